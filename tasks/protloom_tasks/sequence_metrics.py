"""Metrics of one output a sequence, each for many resamples at once.

A metric is a function ``(truth, output, rows) -> [b]``: ``truth`` ``[n]``, ``output`` ``[n]`` or ``[n, C]``, ``rows``
``[b, m]`` the items of each resample. NaN where it is not defined (one class only, all values equal).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom_tasks.definition import Kind

Metric = Callable[["NDArray[Any]", "NDArray[Any]", "NDArray[np.int64]"], "NDArray[np.float64]"]

MOST_CLASSES = 20
"""Beyond so many classes, a mean over classes gets no interval: it would take hours."""


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the rank of each value along the last axis, from 1; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    found: NDArray[np.float64] = rankdata(values, axis=-1)
    return found


def pearson(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the linear correlation."""
    return _correlation(truth[rows], output[rows])


def spearman(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the correlation of ranks, ties at their mean rank."""
    return _correlation(ranks(truth[rows]), ranks(output[rows]))


def mse(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean squared error."""
    return _mean(np.square(truth - output)[rows])


def mae(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean absolute error."""
    return _mean(np.abs(truth - output)[rows])


def r2(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of the truth's variance that is explained; below 0 where the mean would be nearer."""
    drawn = truth[rows]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - mse(truth, output, rows) / drawn.var(axis=-1)


def auc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the area under the ROC curve: how often a positive is above a negative, ties half (Mann-Whitney)."""
    positive = truth[rows] == 1
    n = positive.sum(axis=-1).astype(np.float64)
    below = positive.shape[-1] - n
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks(output[rows]) * positive).sum(axis=-1) - n * (n + 1) / 2) / (n * below)


def average_precision(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean over positives of the precision among everything scored at least as high."""
    found = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        order = np.argsort(-output[row], kind="stable")
        positive, scores = truth[row][order] == 1, output[row][order]
        if positive.any():
            last = np.searchsorted(-scores, -scores, side="right")  # of the items tied with each, one past the end
            found[i] = (np.cumsum(positive)[last - 1] / last)[positive].mean()
    return found


def accuracy(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of right classes."""
    return _mean((decisions(output) == truth)[rows])


def f1(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns F1 of class 1."""
    hit, wrong, missed, _ = _table(truth, output, rows, 1)
    return _ratio(2 * hit, 2 * hit + wrong + missed)


def macro_f1(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of F1 over the classes that occur in truth or output; 0 for one that is never right."""
    total, count = np.zeros(len(rows)), np.zeros(len(rows))
    for label in _labels(truth, output):
        hit, wrong, missed, _ = _table(truth, output, rows, label)
        occurs = hit + wrong + missed > 0
        total += np.where(occurs, _ratio(2 * hit, 2 * hit + wrong + missed), 0)
        count += occurs
    return _ratio(total, count)


def balanced_accuracy(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean recall of the classes that occur in truth."""
    total, count = np.zeros(len(rows)), np.zeros(len(rows))
    for label in _labels(truth, output):
        hit, _, missed, _ = _table(truth, output, rows, label)
        occurs = hit + missed > 0
        total += np.where(occurs, _ratio(hit, hit + missed), 0)
        count += occurs
    return _ratio(total, count)


def mcc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns Matthews' correlation of truth and decision (Gorodkin 2004 for several classes); 0 if one is constant."""
    right, n = (decisions(output) == truth)[rows].sum(axis=-1), rows.shape[-1]
    both, of_truth, of_output = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    for label in _labels(truth, output):
        hit, wrong, missed, _ = _table(truth, output, rows, label)
        both += (hit + missed) * (hit + wrong)
        of_truth += (hit + missed) ** 2
        of_output += (hit + wrong) ** 2
    spread = np.sqrt((n**2 - of_truth) * (n**2 - of_output))
    return np.where(spread > 0, _ratio(right * n - both, spread), 0.0)


def ovr_auc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean over classes of the AUC of one against the rest; classes without both are left out."""
    each = [auc((truth == label).astype(np.int64), output[:, label], rows) for label in range(output.shape[1])]
    return _nanmean(np.stack(each))


def micro_f1(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns F1 over all decisions of all items, a class at a time yes or no."""
    guess = output > 0
    hit = ((truth == 1) & guess).sum(axis=1)[rows].sum(axis=-1)
    either = ((truth == 1).sum(axis=1) + guess.sum(axis=1))[rows].sum(axis=-1)
    return _ratio(2 * hit, either)


def macro_f1_labels(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of F1 over labels; 0 for one that is neither there nor given."""
    each = [f1(truth[:, i], output[:, i], rows) for i in range(truth.shape[1])]
    return np.nan_to_num(np.stack(each)).mean(axis=0)


def fmax(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the best F of mean precision and mean recall of items over 101 thresholds of the sigmoid (CAFA's Fmax).

    Precision is averaged over the items that got a label at a threshold, recall over all that have one.
    """
    probability = 1 / (1 + np.exp(-output))
    best = np.zeros(len(rows))
    has = truth.sum(axis=1)
    for threshold in np.linspace(0, 1, 101):
        guess = probability >= threshold
        hit, given = (guess & (truth == 1)).sum(axis=1), guess.sum(axis=1)
        precision = _ratio((hit / np.maximum(given, 1))[rows].sum(axis=-1), (given > 0)[rows].sum(axis=-1))
        recall = _ratio((hit / np.maximum(has, 1))[rows].sum(axis=-1), (has > 0)[rows].sum(axis=-1))
        best = np.fmax(best, _ratio(2 * precision * recall, precision + recall))
    return best


METRICS: Mapping[Kind, Mapping[str, Metric]] = {
    "regression": {"Spearman": spearman, "Pearson": pearson, "R2": r2, "MSE": mse, "MAE": mae},
    "binary": {
        "AUC": auc,
        "AP": average_precision,
        "accuracy": accuracy,
        "F1": f1,
        "balanced accuracy": balanced_accuracy,
        "MCC": mcc,
    },
    "multiclass": {
        "accuracy": accuracy,
        "macro F1": macro_f1,
        "balanced accuracy": balanced_accuracy,
        "MCC": mcc,
        "OvR AUC": ovr_auc,
    },
    "multilabel": {"micro F1": micro_f1, "macro F1": macro_f1_labels, "Fmax": fmax},
}
"""The metrics of each kind of task, by name."""

LOWER_IS_BETTER = frozenset({"MSE", "MAE"})
"""Metrics that are errors."""


def decisions(output: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the class that an output decides for: the highest of several, else whether the score is above 0."""
    chosen = output.argmax(axis=1) if output.ndim == 2 else output > 0
    return np.asarray(chosen, dtype=np.int64)


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    a = first - first.mean(axis=-1, keepdims=True)
    b = second - second.mean(axis=-1, keepdims=True)
    return _ratio((a * b).sum(axis=-1), np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1)))


def _mean(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=-1), dtype=np.float64)


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over the first axis of what is defined, NaN where nothing is."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Returns above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) != 0)


def _labels(truth: NDArray[Any], output: NDArray[Any]) -> list[int]:
    return np.union1d(truth, decisions(output)).astype(int).tolist()


def _table(
    truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64], label: int
) -> tuple[NDArray[np.float64], ...]:
    """Returns (true positives, false positives, false negatives, true negatives) of a class in each resample."""
    real, given = truth == label, decisions(output) == label
    cells = (real & given, ~real & given, real & ~given, ~real & ~given)
    return tuple(cell[rows].sum(axis=-1).astype(np.float64) for cell in cells)
