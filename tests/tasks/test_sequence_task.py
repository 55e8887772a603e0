"""Tasks on whole sequences from a definition: the protocol on small tables, and the measured floors on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from protloom.contracts import Task, TaskResult
from protloom.errors import UserError
from protloom_tasks import floors, intervals
from protloom_tasks.sequence_task import SequenceConfig, SequenceTask

TEXT = """
title: t
kind: {kind}
sequence: s
label: y
splits:
  train: {{file: t.csv, where: {{p: train}}}}
  valid: {{file: t.csv, where: {{p: valid}}}}
  test: {{file: t.csv, where: {{p: test}}}}
origin: from here
licence: none
"""


class Told(floors.Floor):
    """A subject whose features are what a table says; NaN for sequences that it leaves out."""

    name = "told"

    def __init__(self, table: dict[str, Sequence[float]]) -> None:
        super().__init__()
        self.table = table
        self.asked: list[tuple[str, bool]] = []

    def pooled(self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False) -> Any:
        self.asked.append((pool, include_specials))
        return np.array([self.table[s] for s in sequences], dtype=np.float32)


def make(folder: Path, kind: str, cells: Sequence[tuple[Any, ...]], extra: str = "", **options: Any) -> SequenceTask:
    lines = ["s,y,p,g", *(",".join(map(str, (*row, "")[:4])) for row in cells)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    (folder / "t.yaml").write_text(TEXT.format(kind=kind) + extra)
    return SequenceTask(SequenceConfig(definition=str(folder / "t.yaml"), **options))


def drawn(n: int = 120, seed: int = 0) -> tuple[list[str], np.ndarray, dict[str, Sequence[float]]]:
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKL"))
    sequences = list(dict.fromkeys("".join(rng.choice(letters, 10)) for _ in range(n)))
    features = rng.normal(size=(len(sequences), 4)).astype(np.float32)
    return sequences, features, {s: tuple(f) for s, f in zip(sequences, features.tolist(), strict=True)}


SPLITS = ["train"] * 70 + ["valid"] * 20 + ["test"] * 30


def test_the_probe_of_a_regression_is_the_published_one(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    y = x @ [1, -2, 0, 0.5] + np.random.default_rng(1).normal(size=120)
    task = make(tmp_path, "regression", list(zip(sequences, y.tolist(), SPLITS, strict=True)), split="test")
    assert isinstance(task, Task)
    subject = Told(table)
    result = task.run(subject)
    assert set(subject.asked) == {("mean", True)}
    scaler = StandardScaler().fit(x[:70])
    guess = Ridge(alpha=1.0).fit(scaler.transform(x[:70]), y[:70]).predict(scaler.transform(x[90:]))
    assert result.value == pytest.approx(spearmanr(guess, y[90:]).statistic)
    np.testing.assert_allclose(result.predictions["output"], guess, rtol=1e-5)
    assert result.predictions["sequence"] == sequences[90:]
    assert result.details["available"] == {"train": 70, "valid": 20, "test": 30}
    assert set(result.intervals) == set(result.metrics) == {"Spearman", "Pearson", "R2", "MSE", "MAE"}
    assert result.interval == result.intervals["Spearman"]
    assert len(result.replicates) == intervals.REPLICATES
    assert result.n == len(result.per_item) == 30
    order = np.argsort(sequences[90:])  # items are in the order of names
    np.testing.assert_allclose(result.per_item, np.abs(guess - y[90:])[order], rtol=1e-4)


@pytest.mark.parametrize("probe", ["lbfgs", "paper"])
def test_the_probe_of_two_classes(tmp_path: Path, probe: str) -> None:
    sequences, x, table = drawn()
    y = (x[:, 0] + np.random.default_rng(1).normal(size=120) > 0.5).astype(int)
    rows = list(zip(sequences, y.tolist(), SPLITS, strict=True))
    result = make(tmp_path, "binary", rows, split="valid", probe=probe).run(Told(table))
    scaler = StandardScaler().fit(x[:70])
    solver = {"lbfgs": "lbfgs", "paper": "liblinear"}[probe]
    model = LogisticRegression(C=1.0, solver=solver, max_iter=1000, random_state=0).fit(
        scaler.transform(x[:70]), y[:70]
    )
    assert result.value == pytest.approx(roc_auc_score(y[70:90], model.decision_function(scaler.transform(x[70:90]))))
    assert result.n == 20


@pytest.mark.parametrize("probe", ["lbfgs", "paper"])
def test_classes_unseen_in_training_and_rows_without_features_are_counted(tmp_path: Path, probe: str) -> None:
    sequences, x, table = drawn()
    y = [f"c{i}" for i in np.digitize(x[:, 0], [-0.5, 0.5]).tolist()]
    y[95] = y[96] = "other"
    y[3] = "rare"  # the one training row of its class has no features
    table[sequences[3]] = table[sequences[100]] = (float("nan"),) * 4
    rows = list(zip(sequences, y, SPLITS, strict=True))
    result = make(tmp_path, "multiclass", rows, split="test", probe=probe).run(Told(table))
    assert result.details["rows_of_classes_unseen_in_training"] == 2
    assert result.details["without_features"] == {"train": 1, "scored": 1}
    assert result.details["train_rows"] == 69
    assert (result.n, len(result.predictions["output"])) == (29, 29)
    assert 0.5 < result.value <= 27 / 29
    assert set(result.predictions["output"]) <= {"c0", "c1", "c2"}
    assert result.metrics["accuracy"] == pytest.approx(
        np.mean([a == b for a, b in zip(result.predictions["label"], result.predictions["output"], strict=True)])
    )


def by_class(result: TaskResult) -> tuple[list[str], np.ndarray]:
    """Returns the classes that predictions have scores of, and the scores, a column a class."""
    names = [name.removeprefix("score ") for name in result.predictions if name.startswith("score ")]
    return names, np.array([result.predictions[f"score {name}"] for name in names]).T


@pytest.mark.parametrize("probe", ["lbfgs", "knn"])
def test_metrics_can_be_computed_again_from_what_is_kept(tmp_path: Path, probe: str) -> None:
    """Also those that ask for the scores of all classes, by another implementation; rows keep file and line."""
    sequences, x, table = drawn()
    y = [f"c{i}" for i in np.digitize(x[:, 0], [-0.5, 0.5]).tolist()]
    result = make(tmp_path, "multiclass", list(zip(sequences, y, SPLITS, strict=True)), split="test", probe=probe).run(
        Told(table)
    )
    names, scores = by_class(result)
    assert names == ["c0", "c1", "c2"]
    aucs = [roc_auc_score([label == name for label in y[90:]], scores[:, i]) for i, name in enumerate(names)]
    assert result.metrics["OvR AUC"] == pytest.approx(np.mean(aucs), abs=1e-3)
    assert [names[i] for i in scores.argmax(axis=1)] == result.predictions["output"]
    assert result.predictions["id"][:2] == ["t.csv:92", "t.csv:93"]
    lines = (tmp_path / "t.csv").read_text().splitlines()
    for name, sequence in zip(result.predictions["id"], result.predictions["sequence"], strict=True):
        assert lines[int(name.partition(":")[2]) - 1].startswith(f"{sequence},")
    assert ("share of each class" in result.details["score_is"]) == (probe == "knn")


def test_fmax_can_be_computed_again_and_rows_have_their_ids(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    names = np.array(["a", "b", "c"])
    labels = [";".join(names[row]) for row in x[:, :3] > 0.3]
    rows = [(s, y, p, f"p{i}") for i, (s, y, p) in enumerate(zip(sequences, labels, SPLITS, strict=True))]
    extra = "label: {column: y, separator: ';'}\nid: g\nmetric: Fmax\n"
    (tmp_path / "t.yaml").write_text(TEXT.format(kind="multilabel").replace("label: y\n", extra))
    make_rows = ["s,y,p,g", *(",".join(row) for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(make_rows) + "\n")
    result = SequenceTask(SequenceConfig(definition=str(tmp_path / "t.yaml"), split="test")).run(Told(table))
    assert result.predictions["id"] == [f"p{i}" for i in range(90, 120)]
    known, scores = by_class(result)
    truth = np.array([[name in of for name in known] for of in result.predictions["label"]])
    best = 0.0
    for threshold in np.unique(scores):
        chosen = scores >= threshold
        some = chosen.any(axis=1)
        right = (chosen & truth).sum(axis=1)
        precision = (right[some] / chosen[some].sum(axis=1)).mean()
        recall = (right / np.maximum(truth.sum(axis=1), 1))[truth.any(axis=1)].mean()
        best = max(best, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert result.value == pytest.approx(best, abs=0.03)  # thresholds of the task are a grid
    assert result.details["per_item_is"].startswith("share of labels that are decided wrongly")


def test_what_the_output_of_two_classes_is(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    y = np.where(x[:, 0] > 0, "binder", "other")
    rows = list(zip(sequences, y.tolist(), SPLITS, strict=True))
    extra = "label: {column: y, positive: binder}\n"
    task = make(tmp_path, "binary", rows, split="test")
    (tmp_path / "t.yaml").write_text(TEXT.format(kind="binary").replace("label: y\n", extra))
    result = SequenceTask(task.config).run(Told(table))
    assert result.details["output_is"] == "log-odds of 'binder'; above 0 it is decided for"
    decided = np.array(result.predictions["output"]) > 0
    assert np.mean(decided == (y[90:] == "binder")) == result.metrics["accuracy"]
    wrong = dict(zip(sequences[90:], (decided != (y[90:] == "binder")).astype(float), strict=True))
    assert result.per_item.tolist() == [wrong[s] for s in sorted(wrong)]


def test_several_labels_a_row(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    names = np.array(["a", "b", "c"])
    labels = [";".join(names[row]) for row in x[:, :3] > 0.3]
    labels[92] = "new;a"
    extra = "label: {column: y, separator: ';'}\n"
    (tmp_path / "unused").mkdir()
    rows = list(zip(sequences, labels, SPLITS, strict=True))
    lines = ["s,y,p,g", *(f"{s},{y},{p}," for s, y, p in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "t.yaml").write_text(TEXT.format(kind="multilabel").replace("label: y\n", extra))
    result = SequenceTask(SequenceConfig(definition=str(tmp_path / "t.yaml"), split="test")).run(Told(table))
    assert result.metric == "micro F1"
    assert 0.8 < result.value <= 1
    assert result.details["labels_unseen_in_training"] == 1
    assert set(result.intervals) == {"micro F1", "macro F1", "Fmax"}


def test_groups_are_one_item(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    y = x[:, 0] + np.random.default_rng(1).normal(size=120)
    rows = [(s, v, p, f"g{i % 7}") for i, (s, v, p) in enumerate(zip(sequences, y.tolist(), SPLITS, strict=True))]
    alone = make(tmp_path, "regression", rows).run(Told(table))
    result = make(tmp_path, "regression", rows, "group: g\n").run(Told(table))
    assert result.value == alone.value
    assert (result.n, len(result.per_item), result.unit) == (7, 7, "values of g")
    assert (alone.n, alone.unit) == (20, "sequences")
    assert result.interval != alone.interval


def test_pairs_have_the_features_of_both(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    other = sequences[1:] + sequences[:1]
    y = ((x[:, 0] > 0) ^ (np.roll(x, -1, axis=0)[:, 1] > 0)).astype(int)
    rows = list(zip(sequences, y.tolist(), SPLITS, other, strict=True))
    result = make(tmp_path, "binary", rows, "partner: g\n", split="test").run(Told(table))
    assert result.details["features"] == 8
    assert result.unit == "proteins"
    assert result.n == len(result.per_item) == len({*sequences[90:], *other[90:]})
    assert result.predictions["partner"] == other[90:]
    low, high = result.interval
    assert low < result.value < high


def test_the_same_again_and_a_limit(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    task = make(tmp_path, "regression", list(zip(sequences, x[:, 0].tolist(), SPLITS, strict=True)), rows=10)
    one, again, other = (task.run(Told(table), seed=seed) for seed in (0, 0, 1))
    assert one.items == again.items != other.items
    np.testing.assert_array_equal(one.replicates, again.replicates)
    assert one.details["rows"] == 10
    small = task.run(Told(table), limit=6)
    assert (small.details["train_rows"], small.details["rows"], small.details["limit"]) == (6, 6, 6)


@pytest.mark.parametrize(
    ("kind", "extra", "change", "message"),
    [
        ("regression", "metric: AUC\n", {}, r"metric 'AUC' is none of a regression task: Spearman, Pearson"),
        ("binary", "", {}, r"a binary task needs two classes, in training too; it has 90"),
        ("regression", "", {"split": "valid", "drop": "valid"}, r"t.csv: no row is selected.*p = valid"),
    ],
)
def test_mistakes_name_the_task(tmp_path: Path, kind: str, extra: str, change: dict[str, Any], message: str) -> None:
    sequences, x, table = drawn()
    rows = zip(sequences, x[:, 0].tolist(), SPLITS, strict=True)
    kept = [row for row in rows if row[2] != change.get("drop")]
    with pytest.raises(UserError, match=message):
        make(tmp_path, kind, kept, extra, train_rows=None, rows=None).run(Told(table))


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    sequences, x, table = drawn()
    task = make(tmp_path, "regression", list(zip(sequences, x[:, 0].tolist(), SPLITS, strict=True)))
    (tmp_path / "t.yaml").write_text(
        TEXT.format(kind="regression").replace("  valid: {file: t.csv, where: {p: valid}}\n", "")
    )
    with pytest.raises(UserError, match="there is no valid split; it has train, test"):
        SequenceTask(task.config).run(Told(table))


def test_a_card_says_what_is_done_with_carved_rows(tmp_path: Path) -> None:
    card = SequenceTask(SequenceConfig(definition="signal-peptide")).card()
    assert "valid: 10% of train, by a hash of the sequence" in card["splits"]
    assert "scored on test, these validation rows are training rows" in card["splits"]
    assert "every tested enzyme is new" in SequenceTask(SequenceConfig(definition="kcat")).card()["note"]
    card = SequenceTask(SequenceConfig(definition="ppi")).card()
    assert "by a hash of both proteins" in card["splits"]
    assert "stand-in" in card["differs"]
    assert card["interval"] == "bootstrap over proteins"


# --------------------------------------------------------------------------------------------- real data: 2-mer floors


def floor(name: str, data: Path, **options: Any) -> TaskResult:
    config = SequenceConfig(definition=name, data_dir=str(data), split="test", train_rows=None, rows=None, **options)
    return SequenceTask(config).run(floors.Kmer2())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "measured", "rows"),
    [
        # 31 designs that are tested too leave training, which moves the floor from .526 to .517
        ("stability", 0.526, (53_583, 12_851)),
        ("fluorescence", 0.560, (21_446, 27_217)),
        ("gb1:sampled", 0.776, (6_289, 1_745)),
        ("gb1:two-vs-rest", 0.462, (381, 8_309)),
        ("gb1:three-vs-rest", 0.752, (2_691, 5_743)),
        ("signal-peptide", 0.912, (16_606, 4_152)),
        ("neuropeptide", 0.952, (2_727, 337)),
        ("solubility", 0.698, (6_942, 2_001)),
    ],
)
def test_floors_are_those_measured_before(shared_data: Path, name: str, measured: float, rows: tuple[int, int]) -> None:
    result = floor(name, shared_data)
    assert result.value == pytest.approx(measured, abs=0.01)
    assert result.details["train_rows"] == pytest.approx(rows[0], rel=0.01)  # what is tested leaves training
    assert result.details["rows"] == rows[1]


TRAIN_AND_VALID = """
title: {name}, trained on validation rows too
kind: regression
sequence: sequence
label: {label}
splits:
  train: {train}
  test: {test}
origin: as the shipped definition
licence: as the shipped definition
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "label", "where", "measured"),
    [
        (
            "disorder_chezod/chezod_pbc.csv.gz",
            '{column: zscores, separator: ";", mean: true}',
            ("split: [train, valid]", "split: test"),
            0.530,
        ),
        ("gb1_flip/two_vs_rest.csv.gz", "target", ("set: train", "set: test"), 0.4624),
        ("gb1_flip/three_vs_rest.csv.gz", "target", ("set: train", "set: test"), 0.7525),
    ],
)
def test_what_differs_was_trained_on_validation_rows(
    shared_data: Path, tmp_path: Path, file: str, label: str, where: tuple[str, str], measured: float
) -> None:
    """The floors measured before had validation rows among those of training: so trained, they are met exactly.

    CheZOD's differs most: .530 came of another release (Rostlab/pbc), trained on its 1,168 training and validation
    proteins. ``chezod-disorder`` is the paper's set, ADOPT's 1,159, whose floor is .558 (below).
    """
    train, test = (f"{{file: {file}, where: {{{of}}}}}" for of in where)
    path = tmp_path / "t.yaml"
    path.write_text(TRAIN_AND_VALID.format(name=file, label=label, train=train, test=test))
    assert floor(str(path), shared_data).value == pytest.approx(measured, abs=0.001)


def test_the_set_of_chezod_is_the_papers(shared_data: Path) -> None:
    result = floor("chezod-disorder", shared_data)
    assert result.details["train_rows"] == 1159
    assert result.n == 117
    assert result.value == pytest.approx(0.558, abs=0.002)


@pytest.mark.slow
def test_pairs_of_real_proteins(shared_data: Path) -> None:
    config = SequenceConfig(definition="ppi", data_dir=str(shared_data), rows=1000)
    result = SequenceTask(config).run(floors.Composition())
    left = result.details["left_out"]
    assert sum(left.values()) + sum(result.details["available"].values()) == 55_000
    assert all(n > 1000 for n in result.details["available"].values())
    assert 0.5 < result.value < 0.9  # composition tells hubs from others
