"""Metrics of one output a sequence, each for many resamples at once.

A metric is a function ``(truth, output, rows) -> [b]``: ``truth`` ``[n]``, ``output`` ``[n]`` or ``[n, C]``, ``rows``
``[b, m]`` the items of each resample. NaN where it is not defined (one class only, all values equal).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom_tasks.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom_tasks.definition_kinds import SequenceKind

Metric = Callable[["NDArray[Any]", "NDArray[Any]", "NDArray[np.int64]"], "NDArray[np.float64]"]

MOST_CLASSES = 20
"""Beyond so many classes, the metrics of :data:`SLOW` get no interval: it would take hours."""


def pearson(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the linear correlation."""
    return _correlation(truth[rows], output[rows])


def spearman(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the correlation of ranks, ties at their mean rank."""
    times = _multiplicities(rows, len(truth))
    middle = (rows.shape[-1] + 1) / 2
    a, b = _ranks(times, truth) - middle, _ranks(times, output) - middle
    spread = np.sqrt((times * a * a).sum(axis=-1) * (times * b * b).sum(axis=-1))
    return ratio((times * a * b).sum(axis=-1), spread)


def _ranks(times: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the rank of each item, ties at their mean, in resamples that hold it ``times`` ``[b, n]``."""
    order, starts, place = _sorted(values)
    held = np.add.reduceat(times[:, order], starts, axis=1)  # [b, distinct values]
    found: NDArray[np.float64] = (np.cumsum(held, axis=1) - (held - 1) / 2)[:, place]
    return found


def _sorted(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the order of items, where in it each distinct value begins, and which of them each item has."""
    _, place, held = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(held) - held
    return np.argsort(place, kind="stable"), starts, place.astype(np.int64)


def mse(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean squared error."""
    return _mean(np.square(truth - output)[rows])


def mae(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean absolute error."""
    return _mean(np.abs(truth - output)[rows])


def r2(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of the truth's variance that is explained; below 0 where its mean would be nearer."""
    drawn = truth[rows]
    spread = np.where(_constant(drawn), 0, drawn.var(axis=-1))
    return 1 - ratio(mse(truth, output, rows), spread)


def auc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the area under the ROC curve: how often a positive is above a negative, ties half (Mann-Whitney)."""
    return _auc(_multiplicities(rows, len(truth)), truth == 1, output)


def _auc(times: NDArray[np.float64], positive: NDArray[np.bool_], scores: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the AUC of resamples that hold every item ``times`` ``[b, n]``: the items are sorted once for all."""
    order, starts, _ = _sorted(scores)
    drawn = times[:, order]
    above = np.add.reduceat(drawn * positive[order], starts, axis=1)  # [b, distinct scores]
    below = np.add.reduceat(drawn, starts, axis=1) - above
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    return ratio(wins, above.sum(axis=1) * below.sum(axis=1))


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
    real, given = truth == 1, decisions(output) == 1
    hit, either = (real & given)[rows].sum(axis=-1), (real[rows].sum(axis=-1) + given[rows].sum(axis=-1))
    return ratio(2 * hit, either)


def macro_f1(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of F1 over the classes that occur in truth or output; 0 for one that is never right."""
    hit, real, given = _tallies(truth, output, rows)
    return _nanmean(ratio(2 * hit, real + given))


def balanced_accuracy(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean recall of the classes that occur in truth."""
    hit, real, _ = _tallies(truth, output, rows)
    return _nanmean(ratio(hit, real))


def mcc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns Matthews' correlation of truth and decision (Gorodkin 2004 for several classes); 0 if one is constant."""
    hit, real, given = _tallies(truth, output, rows)
    right, n = hit.sum(axis=-1), rows.shape[-1]
    spread = np.sqrt((n**2 - (real * real).sum(axis=-1)) * (n**2 - (given * given).sum(axis=-1)))
    return np.where(spread > 0, ratio(right * n - (real * given).sum(axis=-1), spread), 0.0)


def ovr_auc(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean over classes of the AUC of one against the rest; classes without both are left out."""
    times = _multiplicities(rows, len(truth))
    each = [_auc(times, truth == label, output[:, label]) for label in range(output.shape[1])]
    return _nanmean(np.stack(each, axis=-1))


def micro_f1(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns F1 over all decisions of all items, a class at a time yes or no."""
    guess = output > 0
    hit = ((truth == 1) & guess).sum(axis=1)[rows].sum(axis=-1)
    either = ((truth == 1).sum(axis=1) + guess.sum(axis=1))[rows].sum(axis=-1)
    return ratio(2 * hit, either)


def macro_f1_labels(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of F1 over labels; 0 for one that is neither there nor given."""
    guess = output > 0
    times = _multiplicities(rows, len(truth))
    hit, either = times @ ((truth == 1) & guess), times @ ((truth == 1).astype(np.float64) + guess)
    return np.asarray(np.nan_to_num(ratio(2 * hit, either)).mean(axis=-1), dtype=np.float64)


def fmax(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the best F of mean precision and mean recall of items over 101 thresholds of the sigmoid (CAFA's Fmax).

    Precision is averaged over the items that got a label at a threshold, recall over all that have one.
    """
    from scipy.special import expit

    probability = expit(output)
    best = np.full(len(rows), np.nan)
    has = truth.sum(axis=1)
    times = _multiplicities(rows, len(truth))
    able = times @ (has > 0)
    for threshold in np.linspace(0, 1, 101):
        guess = probability >= threshold
        hit, given = (guess & (truth == 1)).sum(axis=1), guess.sum(axis=1)
        precision = ratio(times @ (hit / np.maximum(given, 1)), times @ (given > 0))
        recall = ratio(times @ (hit / np.maximum(has, 1)), able)
        best = np.fmax(best, np.where(precision + recall == 0, 0, ratio(2 * precision * recall, precision + recall)))
    return best


METRICS: Mapping[SequenceKind, Mapping[str, Metric]] = {
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

SLOW = frozenset({"OvR AUC"})
"""Metrics that rank all items anew for each class and resample."""

LOWER_IS_BETTER = frozenset({"MSE", "MAE"})
"""Metrics that are errors."""


def decisions(output: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the class that an output decides for: the highest of several, else whether the score is above 0."""
    chosen = output.argmax(axis=1) if output.ndim == 2 else output > 0
    return np.asarray(chosen, dtype=np.int64)


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    a = first - first.mean(axis=-1, keepdims=True)
    b = second - second.mean(axis=-1, keepdims=True)
    spread = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return ratio((a * b).sum(axis=-1), np.where(_constant(first) | _constant(second), 0, spread))


def _constant(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tells where all values are equal: the mean of equal decimals may differ from them in the last digit."""
    return np.asarray(values.max(axis=-1) == values.min(axis=-1), dtype=np.bool_)


def _mean(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=-1), dtype=np.float64)


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over the last axis of what is defined, NaN where nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _tallies(truth: NDArray[Any], output: NDArray[Any], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Returns for each resample how often every class is right, true and given, each ``[b, C]``."""
    guess = decisions(output)
    size = int(max(truth.max(), guess.max())) + 1
    first = np.arange(len(rows))[:, None] * size

    def count(labels: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        # a last bin of each resample for what is not kept would cost more than to weigh it by 0
        counted = np.bincount((first + labels[rows]).ravel(), kept[rows].ravel(), minlength=len(rows) * size)
        return np.asarray(counted.reshape(len(rows), size), dtype=np.float64)

    every = np.ones(len(truth), dtype=np.bool_)
    return count(truth, guess == truth), count(truth, every), count(guess, every)


def _multiplicities(rows: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Returns how often each item is in each resample, ``[b, n]``."""
    first = np.arange(len(rows))[:, None] * n
    return np.bincount((first + rows).ravel(), minlength=len(rows) * n).reshape(len(rows), n).astype(np.float64)
