"""Secondary structure: readers, floors, the probe, and the real data."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.contracts import Subject, Task
from protloom.errors import UserError
from protloom_tasks import floors, probes
from protloom_tasks.datasets import secondary_structure as data
from protloom_tasks.datasets.files import locate, sha256
from protloom_tasks.datasets.proteins import Labelled, Splits, draw, draw_spread, without_duplicates
from protloom_tasks.residue_probe import ProbeConfig, score
from protloom_tasks.secondary_structure import SimSs3, SimSs3Config, Ss3, Ss3Config


class Told(floors.Floor):
    """A subject that knows the answer: features are one-hot of the true state, with a flip here and there."""

    name = "told"

    def __init__(self, truth: dict[str, np.ndarray], length: int | None = None) -> None:
        super().__init__()
        self.truth, self.length, self.asked = truth, length, 0

    def residues(self, sequences: Sequence[str]) -> Iterator[Any]:
        self.asked += len(sequences)
        for sequence in sequences:
            yield np.eye(3, dtype=np.float32)[self.truth[sequence]][: self.length]


@pytest.fixture
def toy() -> tuple[Splits, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKL"))
    proteins, truth = [], {}
    for number in range(30):
        size = int(rng.integers(5, 40))
        sequence = "".join(rng.choice(letters, size))
        states = rng.integers(0, 3, size)
        labels = np.where(rng.random(size) < 0.1, -1, states)
        proteins.append(Labelled(f"p{number}", sequence, labels, sequence))
        truth[sequence] = states
    return Splits(proteins[:20], proteins[20:]), truth


def run(subject: Subject, splits: Splits, **options: Any) -> Any:
    config = ProbeConfig(**options)
    return score(subject, splits, config, task="t", metric="Q3", states="HEC", unit="proteins", seed=0)


def test_floors_and_tasks_meet_the_contracts() -> None:
    for floor in floors.FLOORS.values():
        assert isinstance(floor(), Subject)
        assert floor().name.startswith("floor:")
    assert isinstance(SimSs3(SimSs3Config()), Task)
    assert isinstance(Ss3(Ss3Config(test="casp12")), Task)


def test_one_hot_windows_by_brute_force() -> None:
    sequence = "MKXTA"
    found = next(floors.OneHot(2).residues([sequence]))
    assert found.shape == (5, 5 * 21)
    for place in range(5):
        for offset in range(-2, 3):
            block = found[place, (offset + 2) * 21 : (offset + 3) * 21]
            if not 0 <= place + offset < 5:
                assert not block.any()
                continue
            letter = sequence[place + offset]
            code = floors.AMINO_ACIDS.index(letter) if letter in floors.AMINO_ACIDS else 20
            assert block[code] == 1
            assert block.sum() == 1


def test_pooled_floors_by_brute_force() -> None:
    sequences = ["AACX", "W", "ACACA"]
    composition = floors.Composition().pooled(sequences)
    np.testing.assert_allclose(composition[0][:2], [2 / 3, 1 / 3])
    pairs = floors.Kmer2().pooled(sequences)
    assert pairs.shape == (3, 400)
    np.testing.assert_allclose(pairs[0][[0, 1]], [0.5, 0.5])  # AA and AC; CX does not count
    assert not pairs[1].any()
    np.testing.assert_allclose(pairs[2][[1, 20]], [0.5, 0.5])  # AC and CA
    np.testing.assert_allclose(floors.Length().pooled(sequences)[:, 0], [4, 1, 5])
    features = floors.Separation().contact_features("AAC")
    np.testing.assert_allclose(features[0, 2, [0, 1, 2]], [np.log(2), 1, 1])
    np.testing.assert_allclose(features, features.transpose(1, 0, 2))
    with pytest.raises(UserError, match="floor:kmer2 has no features of residues"):
        floors.Kmer2().residues(["A"])


def test_a_subject_that_knows_gets_one_and_one_that_is_wrong_gets_less(toy: Any) -> None:
    splits, truth = toy
    known = run(Told(truth), splits)
    assert known.value == 1.0
    assert known.interval == (1.0, 1.0)
    assert known.n == 10
    scored = sum(int((p.labels >= 0).sum()) for p in splits.test)
    assert known.details["test_residues"] == scored
    half = {s: np.where(np.arange(len(of)) % 2, of, 0) for s, of in truth.items()}
    result = run(Told(half), splits)
    # by hand: each shown state is answered by the state that it most often stands for in training
    shown = np.concatenate([half[p.sequence][p.labels >= 0] for p in splits.train])
    labels = np.concatenate([p.labels[p.labels >= 0] for p in splits.train])
    answer = {state: np.bincount(labels[shown == state]).argmax() for state in range(3)}
    each = [
        [answer[x] == label for x, label in zip(half[p.sequence], p.labels, strict=True) if label >= 0]
        for p in splits.test
    ]
    assert result.value == pytest.approx(sum(map(sum, each)) / sum(map(len, each)))
    assert result.metrics["Q3 per protein"] == pytest.approx(np.mean([np.mean(of) for of in each]))
    assert result.value != result.metrics["Q3 per protein"]
    low, high = result.interval
    assert low < result.value < high < 1


def test_duplicates_of_the_test_set_leave_the_training_set(toy: Any) -> None:
    splits, truth = toy
    copies = [splits.test[0], splits.test[3], splits.test[3]]
    kept, removed = without_duplicates([*copies, *splits.train], splits.test)
    assert removed == 3
    assert [p.id for p in kept] == [p.id for p in splits.train]
    result = run(Told(truth), Splits([*splits.train, *copies], splits.test))
    assert result.details["duplicates_of_test_removed_from_train"] == 3
    assert result.details["train_proteins"] == 20
    with pytest.raises(UserError, match="0 training and 10 test proteins"):
        run(Told(truth), Splits(splits.test, splits.test))


def test_rows_of_one_sequence_are_resampled_together(toy: Any) -> None:
    splits, truth = toy
    result = run(Told(truth), Splits(splits.train, [*splits.test, splits.test[2]]))
    assert result.n == 10
    assert result.details["test_proteins"] == 11
    single = sum(int((p.labels >= 0).sum()) for p in [*splits.test, splits.test[2]])
    assert result.details["test_residues"] == single


def test_residues_without_features_are_counted(toy: Any) -> None:
    splits, truth = toy
    result = run(Told(truth, length=10), splits)
    missing = sum(int((p.labels[10:] >= 0).sum()) for p in splits.test)
    assert result.details["test_residues_without_features"] == missing > 0


def test_one_probe_serves_several_test_sets(toy: Any) -> None:
    splits, truth = toy
    subject = Told(truth)
    run(subject, splits)
    before = subject.asked
    run(subject, Splits(splits.train, splits.test[:4]))
    assert subject.asked == before + 4
    run(subject, Splits(splits.train[:15], splits.test[:4]))
    assert subject.asked == before + 4 + 15 + 4


def test_choosing_residues() -> None:
    labels = [np.array([0, -1, 2, 1]), np.array([-1, -1]), np.array([1] * 50)]
    assert [of.tolist() for of in probes.choose_residues(labels, None, 0)][:2] == [[0, 2, 3], []]
    some = probes.choose_residues(labels, 20, 0)
    assert sum(map(len, some)) == 20
    assert all((of[index] >= 0).all() for of, index in zip(labels, some, strict=True))
    again = probes.choose_residues(labels, 20, 0)
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(some, probes.choose_residues(labels, 20, 1), strict=True))


def test_draws() -> None:
    assert draw(5, None, 0).tolist() == [0, 1, 2, 3, 4]
    few = draw(100, 10, 0, 1)
    assert len(set(few.tolist())) == 10
    assert (np.diff(few) > 0).all()
    assert not np.array_equal(few, draw(100, 10, 0, 2))
    groups = np.array([0] * 50 + [1] * 3 + [2] * 10)
    chosen = groups[draw_spread(groups, 15, 0)]
    assert np.bincount(chosen).tolist() == [6, 3, 6]
    assert draw_spread(groups, 100, 0).tolist() == list(range(63))


@pytest.mark.parametrize("kind", ["multinomial", "ovr"])
def test_probe_equals_scikit_learn_written_out(kind: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 10, 100, 0.1] + 5
    y = (x[:, 0] > 5).astype(int) + (x[:, 3] > 5)
    fitted = probes.fit_classifier(x, y, kind=kind, c=0.5)
    scaled = StandardScaler().fit_transform(x)
    if kind == "multinomial":
        reference = LogisticRegression(C=0.5, max_iter=2000).fit(scaled, y)
        assert (fitted.predict(x) == reference.predict(scaled)).mean() > 0.99
    else:
        margins = [
            LogisticRegression(C=0.5, solver="liblinear", random_state=0).fit(scaled, y == k).decision_function(scaled)
            for k in range(3)
        ]
        assert (fitted.predict(x) == np.argmax(margins, axis=0)).all()
    assert fitted.details["converged"]
    with pytest.raises(UserError, match="two classes"):
        probes.fit_classifier(x, np.zeros(300, dtype=int))


def test_a_probe_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ITERATIONS", 1)
    rng = np.random.default_rng(0)
    assert not probes.fit_classifier(rng.normal(size=(99, 5)), rng.integers(0, 3, 99)).details["converged"]


def test_simulated_task_is_reproducible_and_held_out() -> None:
    config = SimSs3Config(proteome_size=600, train_proteins=40, test_proteins=20, train_residues=2000)
    result = SimSs3(config).run(floors.OneHot(3))
    again = SimSs3(config).run(floors.OneHot(3))
    assert result.value == again.value
    assert result.interval == again.interval
    assert result.items == again.items
    assert 0.34 < result.value < 0.95
    splits = SimSs3(config)._load(0, None)
    assert len(splits.train) == 40
    assert len(splits.test) == 20
    assert not {p.group for p in splits.train} & {p.group for p in splits.test}
    small = SimSs3(config).run(floors.OneHot(3), limit=6)
    assert small.details["limit"] == 6
    assert small.details["train_proteins"] == small.details["test_proteins"] == 6
    assert small.items != result.items


# ------------------------------------------------------------------------------------------------------- files


def write(folder: Path, rows: Sequence[str], name: str = "CASP12.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(["input,dssp3,dssp8,disorder,cb513_mask", *rows]) + "\n")
    return path


def test_masks_are_read_and_bad_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, ["MKTA,HECC,HECC,1.0 0.0 1.0 1.0,1", 'MK,HE,HE,"0.0,1.0",1'])
    first, second = data.read_test(path, "casp12")
    assert first.labels.tolist() == [0, -1, 2, 2]
    assert second.labels.tolist() == [-1, 1]
    write(tmp_path, ["MKTA,HEC,HECC,1.0 0.0 1.0 1.0,1"])
    with pytest.raises(UserError, match=r"row 1: 4 residues, 3 states, 4 mask values"):
        data.read_test(path, "casp12")
    write(tmp_path, ["MKTA,HEXC,HECC,1.0 0.0 1.0 1.0,1"])
    with pytest.raises(UserError, match="row 1: state 'X'"):
        data.read_test(path, "casp12")
    write(tmp_path, ["MKTA,HECC"])
    with pytest.raises(UserError, match="line 2: not 5 cells"):
        data.read_test(path, "casp12")
    write(tmp_path, ["MKTA,HECC,HECC,1.0 yes 1.0 1.0,1"])
    with pytest.raises(UserError, match="row 1: mask"):
        data.read_test(path, "casp12")
    path.write_text("sequence,dssp3\n")
    with pytest.raises(UserError, match="no column 'input'"):
        data.read_test(path, "casp12")


def test_damaged_and_missing_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    task = Ss3(Ss3Config(test="casp12"))
    with pytest.raises(UserError, match=r"--data-dir or PROTLOOM_DATA; it comes from github.com/J-SNACKKB/FLIP"):
        task.run(floors.OneHot())
    with pytest.raises(UserError, match="no folder"):
        locate(str(tmp_path / "nowhere"), data.NETSURFP)
    monkeypatch.setenv("PROTLOOM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"no file .*netsurfp.*licence: AFL-3.0"):
        task.run(floors.OneHot())
    assert task.card()["status"][data.NETSURFP.path].startswith("missing")
    (tmp_path / "secondary_structure").mkdir()
    whole = gzip.compress(b"id,split,sequence,ss3,resolved_mask\n" + b"a,train,MK,HE,11\n" * 500)
    file = tmp_path / data.NETSURFP.path
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        data.read_netsurfp(locate(None, data.NETSURFP))
    file.write_bytes(gzip.compress(b"id,split,sequence,ss3,resolved_mask\na,tarin,MK,HE,11\n"))
    with pytest.raises(UserError, match="split 'tarin' is none of train, valid, test"):
        data.read_netsurfp(file)


def test_real_rows(shared_data: Path) -> None:
    splits = data.read_netsurfp(locate(str(shared_data), data.NETSURFP))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 9712, "valid": 1080, "test": 364}
    scored = sum(int((p.labels >= 0).sum()) for rows in splits.values() for p in rows)
    assert scored == 2_658_218
    wanted = {"casp12": (20, 20, 6004), "cb513": (511, 432, 140_486), "ts115": (115, 115, 27_501)}
    for name, (rows, distinct, residues) in wanted.items():
        proteins = data.read_test(locate(str(shared_data), data.TESTS[name]), name)
        assert len(proteins) == rows
        assert len({p.group for p in proteins}) == distinct
        assert sum(int((p.labels >= 0).sum()) for p in proteins) == residues


def test_real_task_with_the_floor(shared_data: Path) -> None:
    task = Ss3(Ss3Config(test="casp12", data_dir=str(shared_data), train_proteins=150, train_residues=10_000))
    result = task.run(floors.OneHot(7))
    # a linear window of letters is known to reach about 60 % (GOR, Garnier et al. 1978 ff.)
    assert 0.52 < result.value < 0.68
    assert result.n == 20
    assert result.details["available"] == {"train": 9712, "valid": 1080, "test": 20}
    file = shared_data / "secondary_structure" / "CASP12.csv"
    assert result.details["files"]["secondary_structure/CASP12.csv"] == sha256(file)
    every = Ss3(Ss3Config(test="ts115", data_dir=str(shared_data), train_proteins=None))._load(0, None)
    assert without_duplicates(every.train, every.test)[1] == 1  # one TS115 chain is a training chain
