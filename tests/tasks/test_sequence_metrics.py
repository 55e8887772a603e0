"""Every metric of sequence tasks against scikit-learn and scipy: ties, one class, unseen classes, resampled rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from protloom_tasks import sequence_metrics as own
from protloom_tasks.resampling import Resamples

Reference = Callable[[np.ndarray, np.ndarray], float]

REGRESSION: dict[str, Reference] = {
    "Spearman": lambda t, o: spearmanr(t, o).statistic,
    "Pearson": lambda t, o: pearsonr(t, o).statistic,
    "R2": sk.r2_score,
    "MSE": sk.mean_squared_error,
    "MAE": sk.mean_absolute_error,
}
BINARY: dict[str, Reference] = {
    "AUC": sk.roc_auc_score,
    "AP": sk.average_precision_score,
    "accuracy": lambda t, o: sk.accuracy_score(t, o > 0),
    "F1": lambda t, o: sk.f1_score(t, o > 0),
    "balanced accuracy": lambda t, o: sk.balanced_accuracy_score(t, o > 0),
    "MCC": lambda t, o: sk.matthews_corrcoef(t, o > 0),
}
MULTICLASS: dict[str, Reference] = {
    "accuracy": lambda t, o: sk.accuracy_score(t, o.argmax(1)),
    "macro F1": lambda t, o: sk.f1_score(t, o.argmax(1), average="macro"),
    "balanced accuracy": lambda t, o: sk.balanced_accuracy_score(t, o.argmax(1)),
    "MCC": lambda t, o: sk.matthews_corrcoef(t, o.argmax(1)),
    "OvR AUC": lambda t, o: np.mean(
        [sk.roc_auc_score(t == c, o[:, c]) for c in range(o.shape[1]) if 0 < (t == c).sum() < len(t)]
    ),
}


def fmax_loop(truth: np.ndarray, output: np.ndarray) -> float:
    best = 0.0
    for threshold in np.linspace(0, 1, 101):
        guess = expit(output) >= threshold
        precisions = [(g & (t == 1)).sum() / g.sum() for t, g in zip(truth, guess, strict=True) if g.any()]
        recalls = [(g & (t == 1)).sum() / t.sum() for t, g in zip(truth, guess, strict=True) if t.any()]
        if precisions and recalls and (total := np.mean(precisions) + np.mean(recalls)) > 0:
            best = max(best, 2 * np.mean(precisions) * np.mean(recalls) / total)
    return best


MULTILABEL: dict[str, Reference] = {
    "micro F1": lambda t, o: sk.f1_score(t, o > 0, average="micro"),
    "macro F1": lambda t, o: sk.f1_score(t, o > 0, average="macro", zero_division=0.0),
    "Fmax": fmax_loop,
}
KINDS = {"regression": REGRESSION, "binary": BINARY, "multiclass": MULTICLASS, "multilabel": MULTILABEL}
CASES = [(kind, name) for kind, of in KINDS.items() for name in of]


def sample(kind: str, seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Truth and output with many ties, small enough that resamples of some have one class only."""
    rng = np.random.default_rng(seed)
    if kind == "regression":
        truth = rng.integers(-3, 4, n).astype(float)
        return truth, np.round(truth + rng.normal(size=n) * 2, 0)
    if kind == "binary":
        truth = (rng.random(n) < 0.3).astype(np.int64)
        return truth, np.round(truth + rng.normal(size=n) - 0.5, 1)
    if kind == "multiclass":
        truth = rng.choice(5, n, p=[0.4, 0.3, 0.2, 0.08, 0.02])
        output = np.round(rng.normal(size=(n, 5)), 1)
        output[np.arange(n), truth] += 0.8
        return truth, output
    truth = (rng.random((n, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0]).astype(np.int64)
    return truth, np.round(truth * 1.5 + rng.normal(size=(n, 6)) - 0.8, 1)


def test_every_metric_has_a_reference_and_a_definition() -> None:
    from protloom_tasks.sequence_task import DEFINITIONS

    assert {kind: set(of) for kind, of in own.METRICS.items()} == {kind: set(of) for kind, of in KINDS.items()}
    assert {name for of in own.METRICS.values() for name in of} <= set(DEFINITIONS)


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_metric_equals_the_reference_on_all_rows_and_on_resamples(kind: Any, name: str, seed: int) -> None:
    truth, output = sample(kind, seed)
    rows = np.vstack([np.arange(60), np.random.default_rng(seed).integers(60, size=(15, 60))])
    found = own.METRICS[kind][name](truth, output, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that a resample lacks
        wanted = [KINDS[kind][name](truth[row], output[row]) for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_block_of_resamples_equals_one_at_a_time(kind: Any, name: str) -> None:
    truth, output = sample(kind, 7)
    rows = np.random.default_rng(0).integers(60, size=(6, 40))
    metric = own.METRICS[kind][name]
    single = [metric(truth, output, row[None])[0] for row in rows]
    np.testing.assert_allclose(metric(truth, output, rows), single)


def every(kind: Any, truth: np.ndarray, output: np.ndarray) -> dict[str, float]:
    rows = np.arange(len(truth))[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is not defined is told by NaN, not by a warning
        return {name: float(metric(truth, output, rows)[0]) for name, metric in own.METRICS[kind].items()}


@pytest.mark.parametrize("value", [0.1, -7.3, 0.0])
def test_constant_values_have_no_correlation(value: float) -> None:
    # the mean of three 0.1 is not 0.1: nothing may be divided by what is left
    constant, other = np.full(3, value), np.array([1.0, 2.0, 4.0])
    found = every("regression", constant, other)
    assert np.isnan([found["Spearman"], found["Pearson"], found["R2"]]).all()
    assert found["MAE"] == pytest.approx(np.abs(constant - other).mean())
    found = every("regression", other, constant)
    assert np.isnan([found["Spearman"], found["Pearson"]]).all()
    assert found["R2"] == pytest.approx(sk.r2_score(other, constant))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label: int) -> None:
    truth, output = np.full(4, label), np.array([0.5, -0.5, 2.0, -1.0])
    found = every("binary", truth, output)
    assert np.isnan(found["AUC"])
    assert found["AP"] == 1 if label else np.isnan(found["AP"])
    assert found["MCC"] == 0
    assert found["accuracy"] == found["balanced accuracy"] == 0.5
    nothing = every("binary", np.zeros(3, dtype=int), np.full(3, -1.0))
    assert np.isnan(nothing["F1"])  # nothing to find and nothing given
    assert nothing["accuracy"] == 1


def test_equal_scores_are_a_coin() -> None:
    truth = np.array([0, 1, 1, 0, 1])
    found = every("binary", truth, np.zeros(5))
    assert found["AUC"] == 0.5
    assert found["AP"] == pytest.approx(0.6)


def test_a_class_unseen_in_training_can_only_be_missed() -> None:
    truth = np.array([0, 1, 2, 2, 1, 0])  # training knew 0 and 1: there are two columns of scores
    output = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [0, 1], [0, 1]])
    found = every("multiclass", truth, output)
    guess = output.argmax(1)
    assert found["accuracy"] == pytest.approx(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["macro F1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
        assert found["balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert found["MCC"] == pytest.approx(sk.matthews_corrcoef(truth, guess))
    each = [sk.roc_auc_score(truth == c, output[:, c]) for c in (0, 1)]
    assert found["OvR AUC"] == pytest.approx(np.mean(each))


def test_labels_that_nothing_has() -> None:
    truth, output = np.zeros((3, 2), dtype=int), np.full((3, 2), -50.0)
    found = every("multilabel", truth, output)
    assert np.isnan(found["micro F1"])
    assert np.isnan(found["Fmax"])  # no recall without a label
    assert found["macro F1"] == 0
    assert every("multilabel", np.ones((3, 2), dtype=int), np.full((3, 2), -1000.0))["Fmax"] == 1  # at threshold 0


# ----------------------------------------------------------------------------------------------------- resampling


def test_groups_are_resampled_together() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    resamples = Resamples(groups, seed=0)
    assert resamples.n == 3
    seen: list[tuple[int, ...]] = []

    def remember(rows: np.ndarray) -> np.ndarray:
        seen.extend(tuple(np.bincount(row, minlength=6)) for row in rows)
        return rows.mean(axis=-1)

    found = resamples.of(remember)
    assert len(found) == len(seen) == 2000
    for times in seen:
        assert times[0] == times[2] == times[5]
        assert times[1] == times[4]
        assert times[0] + times[1] + times[3] == 3  # as many groups as there are
    assert len(set(seen)) == 10  # of three groups, three are drawn
    np.testing.assert_allclose(resamples.means(np.arange(6.0)), [7 / 3, 2.5, 3])


def test_rows_alone_are_resampled_as_groups_of_one() -> None:
    values = np.random.default_rng(0).normal(size=5)
    names = ["e", "d", "c", "b", "a"]  # the order of names is that of the draws, not that of rows
    alone = Resamples(names, seed=3).of(lambda rows: values[rows].mean(axis=-1))
    twice = Resamples([*names, "a"], seed=3).of(lambda rows: np.append(values, values[4])[rows].mean(axis=-1))
    assert len(alone) == len(twice) == 2000
    assert alone.std() == pytest.approx(values.std() / np.sqrt(5), rel=0.1)
    np.testing.assert_array_equal(alone, Resamples(names, seed=3).of(lambda rows: values[rows].mean(axis=-1)))


def test_a_pair_counts_as_often_as_both_proteins_were_drawn() -> None:
    first, second = ["a", "a", "b", "c"], ["b", "c", "c", "c"]
    resamples = Resamples(first, second, seed=1)
    assert resamples.n == 3
    seen = []

    def remember(rows: np.ndarray) -> np.ndarray:
        seen.append(np.bincount(rows[0], minlength=4))
        return np.zeros(1)

    found = resamples.of(remember)
    assert len(found) == 2000
    for times in seen:
        squares = [n for n in range(4) if n * n == times[3]]
        assert len(squares) == 1  # c with itself
        c = squares[0]
        options = [(a, 3 - c - a) for a in range(4 - c)]
        assert any(times.tolist() == [a * b, a * c, b * c, c * c] for a, b in options)
    assert np.isnan(found).sum() == 2000 - len(seen)  # drawn: three times a, which has no pair with itself
    assert len(seen) < 2000
    np.testing.assert_allclose(resamples.means(np.array([1.0, 2, 3, 4])), [1.5, 2, (2 + 3 + 4 + 4) / 4])
