"""ProteinGym's five metrics of variant scores, for many resamples at once.

A metric is a function ``(truth, score, positive) -> [b]``: ``truth`` are the measured values of n variants, higher is
fitter, and ``score`` the predictions, both :class:`Weighted` by how often each of b resamples holds each variant;
``positive`` is ``[n]`` bool, whether a variant counts as functional. The value equals that of the resample written out
row by row. Ties share the mean of their ranks. NaN where a metric is not defined (all values equal, one class only).

Source: Notin et al. 2023, "ProteinGym", section on zero-shot performance, and the definitions of its evaluation script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from protloom_tasks.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]
    I64 = NDArray[np.int64]

TOP = 10
"""The best so many percent that NDCG and recall look at."""

BLOCK = 200_000
"""Numbers of resamples times variants that are computed in one go; more would leave the processor's cache."""


class Weighted:
    """Values of variants in many resamples.

    Args:
        values: ``[n]``.
        counts: ``[b, n]`` how often each resample holds each.

    Attributes:
        size: ``[b]`` rows of each resample.
    """

    def __init__(self, values: F64, counts: I64) -> None:
        self.values, self.counts = values, counts
        self.size: I64 = counts.sum(axis=1)
        self.order: I64 = np.argsort(values, kind="stable")
        self.ordered: F64 = values[self.order]

    @cached_property
    def _up_to(self) -> I64:
        """``[b, n + 1]``: rows before each place of the sorted values."""
        found = np.zeros((len(self.counts), len(self.values) + 1), dtype=np.int64)
        np.cumsum(self.counts[:, self.order], axis=1, out=found[:, 1:])
        return found

    @cached_property
    def tied(self) -> tuple[I64, I64]:
        """``[b, n]`` twice, by sorted value: how many rows are less, how many are not more."""
        first = np.searchsorted(self.ordered, self.ordered, side="left")
        last = np.searchsorted(self.ordered, self.ordered, side="right")
        return self._up_to[:, first], self._up_to[:, last]

    @cached_property
    def ranks(self) -> F64:
        """``[b, n]``: the rank of each value from 1, ties at their mean."""
        less, not_more = self.tied
        found = np.empty(self.counts.shape)
        found[:, self.order] = (less + not_more + 1) / 2
        return found

    def quantile(self, percent: float) -> F64:
        """Returns the percentile of each resample, ``[b]``, between two values by a straight line."""
        place = (self.size - 1) * (percent / 100)
        low = np.floor(place).astype(np.int64)
        # the row with number k (from 0) has the first value up to which there are more than k rows
        a, b = (
            self.ordered[(self._up_to[:, 1:] <= k[:, None]).sum(axis=1)]
            for k in (low, np.minimum(low + 1, self.size - 1))
        )
        share = place - low
        return np.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share))

    def discounts(self, top: I64) -> F64:
        """Returns the mean 1 / log2(rank + 1) of a value's ranks from the largest; 0 behind rank ``top`` ``[b]``."""
        total = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, int(top.max()) + 2)))])  # of the first 0, 1, …
        less, not_more = self.tied
        before, through = self.size[:, None] - not_more, self.size[:, None] - less
        most = top[:, None]
        found = np.empty(self.counts.shape)
        gained = total[np.minimum(through, most)] - total[np.minimum(before, most)]
        found[:, self.order] = gained / np.maximum(through - before, 1)
        return found


def spearman(truth: Weighted, score: Weighted, positive: NDArray[np.bool_]) -> F64:
    """Returns the correlation of ranks."""
    middle = (truth.size[:, None] + 1) / 2  # the mean of ranks, ties or not
    a, b = truth.ranks - middle, score.ranks - middle
    weighted = truth.counts * a
    spread = np.sqrt(_dot(weighted, a) * _dot(truth.counts * b, b))
    return ratio(_dot(weighted, b), spread)


def auc(truth: Weighted, score: Weighted, positive: NDArray[np.bool_]) -> F64:
    """Returns how often a functional variant scores above another, ties half."""
    held = score.counts[:, positive]
    n = held.sum(axis=1).astype(np.float64)
    return ratio(_dot(held, score.ranks[:, positive]) - n * (n + 1) / 2, n * (score.size - n))


def mcc(truth: Weighted, score: Weighted, positive: NDArray[np.bool_]) -> F64:
    """Returns Matthews' correlation of ``positive`` and scores at or above their median; 0 if one is constant."""
    given = score.counts * (score.values >= score.quantile(50)[:, None])  # [b, n]
    yes, n = score.counts[:, positive].sum(axis=1).astype(np.float64), score.size.astype(np.float64)
    hit, guessed = given[:, positive].sum(axis=1).astype(np.float64), given.sum(axis=1).astype(np.float64)
    # tp·tn − fp·fn = n·tp − (tp + fn)·(tp + fp)
    return np.nan_to_num(ratio(n * hit - yes * guessed, np.sqrt(yes * (n - yes) * guessed * (n - guessed))))


def ndcg(truth: Weighted, score: Weighted, positive: NDArray[np.bool_]) -> F64:
    """Returns the discounted gain of the best tenth by score over that of the best tenth by truth.

    The gain of a variant is its truth, from 0 (least of the resample) to 1 (most); the discount of rank r is
    1 / log2(r + 1); the tenth is rounded down, to 1 at least. Ties share the mean of their gains.
    """
    top = np.maximum(truth.size * TOP // 100, 1)
    low = truth.quantile(0)
    gains = truth.counts * (truth.values - low[:, None])  # [b, n]; their range cancels
    found, best = _dot(gains, score.discounts(top)), _dot(gains, truth.discounts(top))
    return np.where(truth.quantile(100) > low, ratio(found, best), np.nan)


def top_recall(truth: Weighted, score: Weighted, positive: NDArray[np.bool_]) -> F64:
    """Returns the share of the variants above the truth's 90th percentile that are above the score's."""
    best = truth.counts * (truth.values > truth.quantile(100 - TOP)[:, None])
    given = score.values > score.quantile(100 - TOP)[:, None]
    return ratio(_dot(best, given), best.sum(axis=1))


Metric = Callable[[Weighted, Weighted, "NDArray[np.bool_]"], "F64"]

METRICS: Mapping[str, Metric] = {
    "Spearman": spearman,
    "AUC": auc,
    "MCC": mcc,
    f"NDCG@{TOP}%": ndcg,
    f"recall@{TOP}%": top_recall,
}
"""The metrics by name, the main one first."""


def all_metrics(truth: F64, score: F64, positive: NDArray[np.bool_], counts: I64) -> dict[str, F64]:
    """Returns every metric of every resample, ``[b]`` each; ``counts`` is ``[b, n]``."""
    measured, predicted = Weighted(truth, counts), Weighted(score, counts)
    return {name: metric(measured, predicted, positive) for name, metric in METRICS.items()}


def multiplicities(drawn: I64, group: I64) -> Iterator[I64]:
    """Yields how often each resample holds each variant, ``[b, n]``, in blocks of resamples.

    Args:
        drawn: ``[B, groups]`` the groups of each resample.
        group: ``[n]`` number of each variant's group.
    """
    groups = drawn.shape[1]
    size = max(1, BLOCK // len(group))
    for start in range(0, len(drawn), size):
        some = drawn[start : start + size]
        flat = (some + groups * np.arange(len(some))[:, None]).ravel()
        yield np.bincount(flat, minlength=some.size).reshape(some.shape)[:, group]


def _dot(first: NDArray[np.generic], second: NDArray[np.generic]) -> F64:
    """Returns the sum of products of each line, ``[b]``."""
    return np.einsum("bn,bn->b", first, second, dtype=np.float64, casting="unsafe")
