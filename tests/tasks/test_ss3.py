"""Labels of residues: floors, the probe, its draws, simulated secondary structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from protloom.contracts import Subject, Task
from protloom.errors import UserError
from protloom_tasks import floors, probes
from protloom_tasks.datasets.proteins import Labelled, Splits, draw, draw_spread, without_duplicates
from protloom_tasks.residue_probe import Measure, ProbeConfig, score
from protloom_tasks.secondary_structure import SimSs3, SimSs3Config


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
    return score(subject, splits, config, Measure("Q3", "Q3", "HEC"), task="t", unit="proteins", seed=0)


def test_floors_and_tasks_meet_the_contracts() -> None:
    for floor in (floors.OneHot, floors.Composition, floors.Kmer2, floors.Length, floors.Separation):
        assert isinstance(floor(), Subject)
        assert floor().name.startswith("floor:")
    assert isinstance(SimSs3(SimSs3Config()), Task)


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
    held_out = {}
    for split in ("valid", "test"):
        splits = SimSs3(config.model_copy(update={"split": split}))._load(0, None)
        assert len(splits.train) == 40
        assert len(splits.test) == 20
        assert not {p.group for p in splits.train} & {p.group for p in splits.test}
        held_out[split] = {p.group for p in splits.test}
    assert not held_out["valid"] & held_out["test"]
    assert result.details["split"] == "valid"
    small = SimSs3(config).run(floors.OneHot(3), limit=6)
    assert small.details["limit"] == 6
    assert small.details["train_proteins"] == small.details["test_proteins"] == 6
    assert small.items != result.items


def test_a_probe_is_fitted_in_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info()}

    seen: list[set[int]] = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda *given, **named: (seen.append(threads()), fit(*given, **named))[1]
    )
    rng = np.random.default_rng(0)
    with threadpool_limits(2):
        before = threads()
        probes.fit_classifier(rng.normal(size=(40, 3)), np.arange(40) % 3)
        assert (seen, threads()) == ([{1}], before)
