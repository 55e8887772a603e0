"""Tasks on residues from a definition: labels, masks and mistakes in files, metrics, and the shipped ones."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, recall_score

from protloom.contracts import HasSequences, Task
from protloom.errors import UserError
from protloom_tasks import floors, intervals, residue_metrics
from protloom_tasks.datasets.files import sha256
from protloom_tasks.datasets.proteins import without_duplicates
from protloom_tasks.residue_task import ResidueConfig, ResidueTask

HEAD = "title: t\nsequence: sequence\norigin: from here\nlicence: none\n"
SPLITS = "splits:\n  train: {file: t.csv, where: {part: train}}\n  test: {file: t.csv, where: {part: test}}\n"
STATES = HEAD + "kind: residue-multiclass\nlabel: {column: y, classes: HEC, mask: m, unknown: '?'}\n" + SPLITS
NUMBERS = HEAD + "kind: residue-regression\nlabel: {column: y, separator: ';', below: 900}\n" + SPLITS
ROWS = ("MKTA,HECC,1011,train", "MKV,H?H,111,train", "MKW,EHC,111,test", 'WW,CE,"1.0, 0.0",test')


def make(folder: Path, text: str, rows: Sequence[str] = ROWS, **options: Any) -> ResidueTask:
    (folder / "t.csv").write_text("\n".join(["sequence,y,m,part", *rows]) + "\n")
    (folder / "t.yaml").write_text(text)
    return ResidueTask(ResidueConfig(definition=str(folder / "t.yaml"), split="test", **options))


def labels(task: ResidueTask) -> dict[str, list[list[float]]]:
    found, _ = task._read(["train", "test"])
    return {split: [protein.labels.tolist() for protein in of] for split, of in found.items()}


def test_labels_and_masks(tmp_path: Path) -> None:
    task = make(tmp_path, STATES)
    assert isinstance(task, Task)
    assert isinstance(task, HasSequences)
    assert labels(task) == {"train": [[0, -1, 2, 2], [0, -1, 0]], "test": [[1, 0, 2], [2, -1]]}
    assert task.name == "t"
    rows = ("MKT,1.5;nan;-2,,train", "MKW,999;;900,,test", "MKY,0;inf;899.5,,test")
    found = labels(make(tmp_path, NUMBERS, rows))
    np.testing.assert_equal(found["train"], [[1.5, np.nan, -2]])
    np.testing.assert_equal(found["test"], [[np.nan, np.nan, np.nan], [0, np.nan, 899.5]])


def test_labels_of_json(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(
        '[{"s": "MKT", "z": [1, null, -3.5], "p": "train"}, {"s": "MK", "z": [2, NaN], "p": "test"}]'
    )
    text = HEAD.replace("sequence: sequence", "sequence: s") + "kind: residue-regression\nlabel: {column: z}\n"
    task = make(tmp_path, text + SPLITS.replace("t.csv", "t.json").replace("part", "p"))
    np.testing.assert_equal(labels(task), {"train": [[1, np.nan, -3.5]], "test": [[2, np.nan]]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("MKTA,HEC,1111,train", r"t\.csv, line 6: 4 residues, 3 labels in y, 4 mask values in m; they must be as"),
        ("MKTA,HECC,111,train", r"line 6: 4 residues, 4 labels in y, 3 mask values"),
        ("MKTA,HEXC,1111,train", r"line 6: label 'X' of y is none of H, E, C"),
        ("MKTA,HECC,1 1 yes 1,train", "line 6: m holds what is no number of a mask"),
        ("MK*A,HECC,1111,train", "line 6: a sequence holds '\\*', which has no residue to label"),
        ("MK1A,HECC,1111,train", "line 6: a sequence holds '1'; residues are letters"),
        ("MKTA,HECC,1111", "line 6: not 4 cells, but 3"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, STATES, (*ROWS, row)).run(floors.OneHot(1))


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    rows = ("MKT,1;2;3,,train", "MKW,1;x;3,,test")
    with pytest.raises(UserError, match=r"line 3: y holds what is no number \(.*'x'\)"):
        make(tmp_path, NUMBERS, rows).run(floors.OneHot(1))
    with pytest.raises(UserError, match="line 2: 3 residues, 2 labels in y; they must"):
        make(tmp_path, NUMBERS, ("MKT,1;2,,train", "MKW,1;2;3,,test")).run(floors.OneHot(1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes: HEC", "classes: H", r"t\.yaml: label\.classes: name two classes at least"),
        ("classes: HEC", "classes: HEH", "a class is named twice in H E H"),
        ("classes: HEC", "clases: HEC", "label.clases: unknown key. Did you mean 'label.classes'"),
        ("column: y", "column: z", r"no column 'z'; it has sequence, y, m, part"),
        ("residue-multiclass", "residue-regression", "a residue-regression has numbers"),
        (
            "origin:",
            "metric: Q3\norigin:",
            "metric: 'Q3' is none of this kind: accuracy, accuracy per protein, macro F1",
        ),
        (
            "where: {part: test}",
            "where: {part: tset}",
            r"no row is selected: 'where' wants part = tset; it is test, train",
        ),
        ("sequence: sequence", "sequence: sequence\npartner: p", "partner: unknown key"),
        ("origin:", "carve: [{split: valid, share: 0.5, partners: true}]\norigin:", "partners' is for pairs"),
        ("{file: t.csv, where: {part: test}}", "{file: t.csv, columns: {y: null}}", "t.csv cannot do without 'y'"),
    ],
)
def test_a_definition_that_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in STATES
    with pytest.raises(UserError, match=message):
        make(tmp_path, STATES.replace(old, new)).run(floors.OneHot(1))


def test_a_split_that_is_missing_is_told(tmp_path: Path) -> None:
    task = make(tmp_path, STATES)
    other = ResidueTask(task.config.model_copy(update={"split": "valid"}))
    with pytest.raises(UserError, match="there is no valid split; it has train, test"):
        other.run(floors.OneHot(1))


def test_a_table_may_have_no_mask_and_other_names(tmp_path: Path) -> None:
    (tmp_path / "u.tsv").write_text("input\tdssp\nMKA\tHEC\n")
    text = STATES.replace(
        "{file: t.csv, where: {part: test}}", "{file: u.tsv, columns: {sequence: input, y: dssp, m: null}}"
    )
    assert labels(make(tmp_path, text))["test"] == [[0, 1, 2]]


def test_carved_proteins_stay_together_and_go_back_for_the_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{''.join(rng.choice(list('ACDE'), 6))},HECHEC,111111,{'test' if i > 70 else 'train'}" for i in range(80)]
    text = STATES + "carve: [{split: valid, from: train, share: 0.4}]\n"
    task = make(tmp_path, text, [*rows, *rows[:40]])
    back, _ = task._read(["train", "test"])
    assert len(back["train"]) == 111
    valid = ResidueTask(task.config.model_copy(update={"split": "valid"}))
    found, _ = valid._read(["train", "valid"])
    sequences = {split: [protein.sequence for protein in of] for split, of in found.items()}
    assert not set(sequences["train"]) & set(sequences["valid"])
    assert len(sequences["train"]) + len(sequences["valid"]) == 111
    assert 20 < len(sequences["valid"]) < 70
    again, _ = ResidueTask(valid.config)._read(["valid"])
    assert [protein.sequence for protein in again["valid"]] == sequences["valid"]
    assert list(valid.sequences("valid")) == sequences["valid"]


# ------------------------------------------------------------------------------------------------------- metrics


def drawn(seed: int, groups: int = 7, proteins: int = 9) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, proteins, 150))
    return owner, np.append(np.arange(groups), rng.integers(0, groups, proteins - groups)), rng


def resamples(owner: np.ndarray, group_of: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """The residues of the first resamples, written out."""
    groups = group_of[owner]
    block = next(intervals.draws(int(group_of.max()) + 1, seed=4))
    for chosen in block[:most]:
        yield np.concatenate([np.flatnonzero(groups == g) for g in chosen])


def test_metrics_of_classes_are_those_of_scikit_learn() -> None:
    owner, group_of, rng = drawn(0)
    truth, guess = rng.integers(0, 3, 150), rng.integers(0, 4, 150)  # class 3 is given and never true
    found = residue_metrics.classes(truth, guess, owner, group_of, states="HECX", accuracy="Q4", ordinal=True, seed=4)

    def reference(rows: np.ndarray) -> dict[str, float]:
        t, g = truth[rows], guess[rows]
        recalls = recall_score(t, g, labels=range(4), average=None, zero_division=0.0)
        return {
            "Q4": accuracy_score(t, g),
            "macro F1": f1_score(t, g, labels=range(4), average="macro", zero_division=0.0),
            "Spearman": spearmanr(t, g).statistic,
            **{f"recall {state}": recall for state, recall in zip("HECX", recalls, strict=True)},
        }

    for name, value in reference(np.arange(150)).items():
        assert found.values[name] == pytest.approx(value)
    for at, rows in enumerate(resamples(owner, group_of, 20)):
        for name, value in reference(rows).items():
            assert found.replicates[name][at] == pytest.approx(value)
    each = np.array([accuracy_score(truth[owner == p], guess[owner == p]) for p in range(9)])
    assert found.values["Q4 per protein"] == pytest.approx(each.mean())
    block = next(intervals.draws(7, seed=4))
    mine = [np.concatenate([np.flatnonzero(group_of == g) for g in chosen]) for chosen in block[:20]]
    np.testing.assert_allclose(found.replicates["Q4 per protein"][:20], [each[of].mean() for of in mine])
    assert len(found.per_group) == 7


def test_metrics_of_numbers_are_those_of_scipy() -> None:
    owner, group_of, rng = drawn(1)
    truth = rng.integers(-4, 5, 150).astype(float)  # with ties
    output = np.round(truth + rng.normal(size=150) * 3)
    output[owner == 2] = 1.0  # constant in one protein: it has no correlation of its own
    found = residue_metrics.numbers(truth, output, owner, group_of, seed=4)

    def reference(rows: np.ndarray) -> dict[str, float]:
        t, o = truth[rows], output[rows]
        return {
            "Spearman": spearmanr(t, o).statistic,
            "Pearson": pearsonr(t, o).statistic,
            "MAE": mean_absolute_error(t, o),
        }

    for name, value in reference(np.arange(150)).items():
        assert found.values[name] == pytest.approx(value)
    for at, rows in enumerate(resamples(owner, group_of, 20)):
        for name, value in reference(rows).items():
            assert found.replicates[name][at] == pytest.approx(value)
    each = [spearmanr(truth[owner == p], output[owner == p]).statistic for p in range(9) if p != 2]
    assert found.values["Spearman per protein"] == pytest.approx(np.mean(each))


def test_degenerate_residues() -> None:
    owner, group_of = np.zeros(4, dtype=int), np.zeros(1, dtype=int)
    same = residue_metrics.numbers(np.full(4, 0.1), np.arange(4.0), owner, group_of, seed=0)
    assert np.isnan(same.values["Spearman"])
    assert np.isnan(same.values["Pearson"])
    assert np.isnan(same.values["Spearman per protein"])
    assert all(len(of) == 0 for of in same.replicates.values())  # one protein cannot be resampled
    one = np.zeros(4, dtype=int)
    found = residue_metrics.classes(one, one, owner, group_of, states="AB", accuracy="a", ordinal=True, seed=0)
    assert found.values["a"] == 1
    assert np.isnan(found.values["Spearman"])
    assert found.values["macro F1"] == 0.5  # class B is neither there nor given


def test_regression_of_residues_learns_and_keeps_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    score = {letter: float(i) for i, letter in enumerate("ACDEFGHIKL")}
    rows = []
    for number in range(30):
        sequence = "".join(rng.choice(list(score), 12))
        values = [str(score[letter]) if rng.random() < 0.8 else "nan" for letter in sequence]
        rows.append(f"{sequence},{';'.join(values)},,{'test' if number > 20 else 'train'}")
    result = make(tmp_path, NUMBERS, rows, window=1).run(floors.OneHot(0))
    assert result.value > 0.99
    assert result.metric == "Spearman"
    assert result.n == 9
    assert set(result.intervals) == set(result.metrics)
    table = result.predictions
    flat = [
        (a, b) for la, out in zip(table["label"], table["output"], strict=True) for a, b in zip(la, out, strict=True)
    ]
    known = [(a, b) for a, b in flat if a is not None]
    assert 0 < len(known) < len(flat)
    assert spearmanr(*zip(*known, strict=True)).statistic == pytest.approx(result.value)
    assert "ridge(alpha=1)" in result.details["probe"]


def test_saved_classes_give_the_metric_again(tmp_path: Path) -> None:
    rows = [
        f"{'ACDEFGHIKL'[i % 10] * 3}MKV{'WYTS'[i % 4]},HECHECH,1111110,{'test' if i > 12 else 'train'}"
        for i in range(20)
    ]
    result = make(tmp_path, STATES, rows).run(floors.OneHot(1))
    labels, output = ("".join(result.predictions[name]) for name in ("label", "output"))
    pairs = [(a, b) for a, b in zip(labels, output, strict=True) if a != "-"]
    assert len(pairs) == 7 * 6
    assert result.value == pytest.approx(np.mean([a == b for a, b in pairs]))


class Seen(floors.Floor):
    """A subject whose features tell a state for each residue: that of its letter in the order H, E, C."""

    name = "seen"

    def residues(self, sequences: Sequence[str]) -> Iterator[Any]:
        for sequence in sequences:
            yield np.eye(3, dtype=np.float32)[["HEC".index(c) for c in sequence]]


def test_q3_with_masks_on_proteins_made_by_hand(tmp_path: Path) -> None:
    text = "accuracy: Q3\n" + STATES
    training = ("HECHEC,HECHEC,111111,train", "CEH,CEH,111,train")  # the letter is the state
    tested = (
        "HHEEC,HEEHC,11101,test",  # right where seen: H, not E, E; the wrong fourth is masked; C: 3 of 4
        "CCC,HEC,001,test",  # one residue is resolved, and right: 1 of 1
        "HEH,?HH,111,test",  # no label, wrong, right: 1 of 2
        "HHH,EEE,000,test",  # nothing is resolved: it counts nowhere
    )
    result = make(tmp_path, text, (*training, *tested)).run(Seen())
    assert result.metric == "Q3"
    assert result.value == pytest.approx((3 + 1 + 1) / (4 + 1 + 2))
    assert result.metrics["Q3 per protein"] == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert result.predictions["output"] == ["HHE-C", "--C", "-EH", "---"]
    assert result.predictions["label"] == ["HEE-C", "--C", "-HH", "---"]
    # H: true twice, right twice; E: twice, once; C: twice, twice; and E is given once for H, H once for E
    each = {"H": 2 / 3, "E": 1 / 2, "C": 1.0}
    assert {name: result.metrics[f"recall {name}"] for name in each} == pytest.approx(each)


# --------------------------------------------------------------------------------------------------- the shipped ones


def ss3(data: Path, variant: str, split: str = "test", **options: Any) -> ResidueTask:
    return ResidueTask(
        ResidueConfig(definition="ss3", variant=variant, data_dir=str(data), split=split, **options)  # type: ignore[arg-type]
    )


MEASURED = {
    # what the reader of these files gave before a definition replaced it: value, interval, items
    "casp12": (0.516655562958028, (0.48146389914416465, 0.5427898624111667), "eb5d93432bec9812"),
    "cb513": (0.5379041327961505, (0.5333803938454831, 0.5429011713699443), "82981eaf2f55df5c"),
    "new364": (0.53064905440174, (0.5245226463675898, 0.5363959583589237), "18b0653ae9b7eaaf"),
    "ts115": (0.5395803788953129, (0.5296985169249806, 0.5491197331120151), "b05b3ef89756911a"),
}


@pytest.mark.parametrize("variant", list(MEASURED))
def test_results_did_not_change_with_the_definition(shared_data: Path, variant: str) -> None:
    task = ss3(shared_data, variant, train_proteins=60, train_residues=3000, window=1)
    result = task.run(floors.OneHot(1), seed=3)
    value, interval, items = MEASURED[variant]
    assert result.items == items
    # a few residues may fall on the other side of the fence with another release of scikit-learn
    assert result.value == pytest.approx(value, abs=1e-3)
    assert result.interval == pytest.approx(interval, abs=1e-3)


def test_real_rows(shared_data: Path) -> None:
    wanted = {"casp12": (20, 20, 6004), "cb513": (511, 432, 140_486), "ts115": (115, 115, 27_501)}
    for name, (rows, distinct, residues) in wanted.items():
        proteins = ss3(shared_data, name)._read(["test"])[0]["test"]
        assert len(proteins) == rows
        assert len({p.group for p in proteins}) == distinct
        assert sum(int((p.labels >= 0).sum()) for p in proteins) == residues
    every = ss3(shared_data, "ts115")._read(["train", "valid", "test"])[0]
    assert {split: len(of) for split, of in every.items()} == {"train": 9712, "valid": 1080, "test": 115}
    assert without_duplicates(every["train"], every["test"])[1] == 1  # one TS115 chain is a training chain


@pytest.mark.slow
def test_real_task_with_the_floor(shared_data: Path) -> None:
    small = {"train_proteins": 150, "train_residues": 10_000}
    result = ss3(shared_data, "casp12", **small).run(floors.OneHot(7))
    # a linear window of letters is known to reach about 60 % (GOR, Garnier et al. 1978 ff.)
    assert 0.52 < result.value < 0.68
    assert result.n == 20
    file = shared_data / "secondary_structure" / "CASP12.csv"
    assert result.details["files"]["secondary_structure/CASP12.csv"] == sha256(file)
    valid = ss3(shared_data, "casp12", "valid", proteins=40, **small).run(floors.OneHot(7))
    assert valid.n == 40
    assert "secondary_structure/CASP12.csv" not in valid.details["files"]
    assert valid.details["available"] == {"train": 9712, "valid": 1080}


def test_eight_states(shared_data: Path) -> None:
    config = ResidueConfig(
        definition="ss8:casp12", data_dir=str(shared_data), split="test", train_proteins=40, train_residues=1500
    )
    result = ResidueTask(config).run(floors.OneHot(1))
    assert result.metric == "Q8"
    assert 0.25 < result.value < 0.6
    assert result.details["available"]["train"] == 1927  # nothing is held back where test is scored
    assert set("".join(result.predictions["label"])) <= set("GHIBESTC-")


def test_a_file_that_cannot_be_had_says_how_to_get_it(shared_data: Path) -> None:
    task = ss3(shared_data, "casp14")
    with pytest.raises(UserError, match=r"put secondary_structure/CASP14\.csv into .* it comes from huggingface\.co"):
        task.check()
    assert task.card()["status"]["secondary_structure/CASP14.csv"] == "missing secondary_structure/CASP14.csv"
    ss3(shared_data, "casp14", "valid").check()  # validation does not need it


def test_disorder_and_conservation(shared_data: Path) -> None:
    config = {"data_dir": str(shared_data), "train_proteins": 100, "train_residues": 4000}
    disorder = ResidueTask(ResidueConfig(definition="disorder-residue", split="test", **config)).run(floors.OneHot(3))
    assert disorder.n == 117
    assert 0.2 < disorder.value < 0.6
    assert disorder.metrics["Spearman per protein"] != disorder.value
    conserved = ResidueTask(ResidueConfig(definition="conservation", proteins=30, **config)).run(floors.OneHot(1))
    assert conserved.n == 30
    assert conserved.metrics["accuracy"] > 1 / 9
    assert 0 < conserved.metrics["Spearman"] < 0.6


def test_damaged_and_missing_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    task = ResidueTask(ResidueConfig(definition="ss3", variant="casp12", split="test"))
    with pytest.raises(UserError, match=r"--data-dir or PROTLOOM_DATA; it comes from github.com/J-SNACKKB/FLIP"):
        task.run(floors.OneHot())
    monkeypatch.setenv("PROTLOOM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"no file .*netsurfp.*licence: AFL-3.0"):
        task.run(floors.OneHot())
    (tmp_path / "secondary_structure").mkdir()
    file = tmp_path / "secondary_structure" / "netsurfp_q3_train_valid_new364.csv.gz"
    whole = gzip.compress(b"id,split,sequence,ss3,resolved_mask\n" + b"a,train,MK,HE,11\n" * 5000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        task.run(floors.OneHot())
    file.write_bytes(gzip.compress(b"id,split,sequence,ss3,resolved_mask\na,tarin,MK,HE,11\n"))
    with pytest.raises(UserError, match="no row is selected: 'where' wants split = train; it is tarin"):
        task.run(floors.OneHot())
