"""ProteinGym's five metrics of variant scores, for many resamples at once, and its mean over assays.

A metric is a function ``(truth, score, positive, counts) -> [b]``: ``truth`` ``[n]`` measured values, higher is fitter,
``score`` ``[n]`` predictions, ``positive`` ``[n]`` bool, whether a variant counts as functional, and ``counts``
``[b, n]`` how often each resample holds each variant. The value equals that of the resample written out row by row.
Ties share the mean of their ranks. NaN where a metric is not defined (all values equal, one class only).

Source: Notin et al. 2023, "ProteinGym", section on zero-shot performance, and the definitions of its evaluation script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]
    Metric = Callable[[F64, F64, NDArray[np.bool_], NDArray[np.int64]], F64]

TOP = 10
"""The best so many percent that NDCG and recall look at."""

DRAWS = 10_000
"""Bootstrap draws of the standard error over assays."""


def spearman(truth: F64, score: F64, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> F64:
    """Returns the correlation of ranks."""
    a, b = _ranks(truth, counts), _ranks(score, counts)
    n = counts.sum(axis=1, keepdims=True)
    a -= (counts * a).sum(axis=1, keepdims=True) / n
    b -= (counts * b).sum(axis=1, keepdims=True) / n
    spread = np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1))
    return _ratio((counts * a * b).sum(axis=1), spread)


def auc(truth: F64, score: F64, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> F64:
    """Returns how often a functional variant scores above another, ties half."""
    ranks = _ranks(score, counts)
    n = counts[:, positive].sum(axis=1).astype(np.float64)
    below = counts[:, ~positive].sum(axis=1)
    return _ratio((counts * ranks)[:, positive].sum(axis=1) - n * (n + 1) / 2, n * below)


def mcc(truth: F64, score: F64, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> F64:
    """Returns Matthews' correlation of ``positive`` and scores at or above their median; 0 if one is constant."""
    given = score >= _quantile(score, counts, 50)[:, None]  # [b, n]
    hit, wrong = ((counts * given)[:, which].sum(axis=1).astype(np.float64) for which in (positive, ~positive))
    missed, right = ((counts * ~given)[:, which].sum(axis=1).astype(np.float64) for which in (positive, ~positive))
    spread = np.sqrt((hit + wrong) * (hit + missed) * (right + wrong) * (right + missed))
    return np.nan_to_num(_ratio(hit * right - wrong * missed, spread))


def ndcg(truth: F64, score: F64, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> F64:
    """Returns the discounted gain of the best tenth by score over that of the best tenth by truth.

    The gain of a variant is its truth, from 0 (least of the resample) to 1 (most); the discount of rank r is
    1 / log2(r + 1); the tenth is rounded down, to 1 at least. Ties share the mean of their gains.
    """
    top = np.maximum(counts.sum(axis=1) * TOP // 100, 1)
    there = counts > 0
    low = np.where(there, truth, np.inf).min(axis=1)
    high = np.where(there, truth, -np.inf).max(axis=1)
    gains = counts * (truth - low[:, None])  # [b, n], not yet divided by their range
    found = (gains * _discounts(score, counts, top)).sum(axis=1)
    best = (gains * _discounts(truth, counts, top)).sum(axis=1)
    return np.where(high > low, _ratio(found, best), np.nan)


def top_recall(truth: F64, score: F64, positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> F64:
    """Returns the share of the variants above the truth's 90th percentile that are above the score's."""
    best = truth > _quantile(truth, counts, 100 - TOP)[:, None]
    given = score > _quantile(score, counts, 100 - TOP)[:, None]
    return _ratio((counts * (best & given)).sum(axis=1), (counts * best).sum(axis=1))


METRICS: Mapping[str, Metric] = {
    "Spearman": spearman,
    "AUC": auc,
    "MCC": mcc,
    f"NDCG@{TOP}%": ndcg,
    f"recall@{TOP}%": top_recall,
}
"""The metrics by name, the main one first."""


def multiplicities(drawn: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how often each resample holds each variant, ``[b, n]``.

    Args:
        drawn: ``[b, groups]`` the groups of each resample.
        group: ``[n]`` number of each variant's group.
    """
    blocks, size = drawn.shape
    flat = (drawn + size * np.arange(blocks)[:, None]).ravel()
    return np.bincount(flat, minlength=blocks * size).reshape(blocks, size)[:, group]


# -------------------------------------------------------------------------------------------------- order statistics


def _tied(values: F64, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns (order ``[n]``, below, through): how many values are less than each sorted one, how many are not more."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    through = np.cumsum(counts[:, order], axis=1)  # [b, n]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right") - 1
    before = np.concatenate([np.zeros((len(counts), 1), dtype=through.dtype), through], axis=1)
    return order, before[:, first], through[:, last]


def _ranks(values: F64, counts: NDArray[np.int64]) -> F64:
    """Returns the rank of each value in each resample, ``[b, n]`` from 1, ties at their mean."""
    order, below, through = _tied(values, counts)
    found = np.empty(counts.shape)
    found[:, order] = (below + through + 1) / 2
    return found


def _discounts(values: F64, counts: NDArray[np.int64], top: NDArray[np.int64]) -> F64:
    """Returns the mean discount of each value's ranks, counted from the largest, 0 behind rank ``top`` ``[b]``."""
    order, behind, through = _tied(-values, counts)
    total = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, int(top.max()) + 2)))])  # of the first 0, 1, 2 …
    most = top[:, None]
    found = np.empty(counts.shape)
    found[:, order] = (total[np.minimum(through, most)] - total[np.minimum(behind, most)]) / np.maximum(
        through - behind, 1
    )
    return found


def _quantile(values: F64, counts: NDArray[np.int64], percent: float) -> F64:
    """Returns the percentile of each resample, ``[b]``, between two values by a straight line."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    through = np.cumsum(counts[:, order], axis=1)  # [b, n]
    place = (through[:, -1] - 1) * (percent / 100)
    low = np.floor(place).astype(np.int64)
    share = place - low
    # the value with number k (from 0) is the first one with more than k values up to it
    number = [(through <= k[:, None]).sum(axis=1) for k in (low, np.minimum(low + 1, through[:, -1] - 1))]
    a, b = ordered[number[0]], ordered[number[1]]
    return np.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share))


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> F64:
    """Returns above / below, NaN where below is 0."""
    found = np.full(np.shape(above), np.nan)
    return np.divide(above, below, out=found, where=np.asarray(below) != 0)


# ------------------------------------------------------------------------------------------------------ over assays


class AssayValue(NamedTuple):
    """A metric of one assay.

    Attributes:
        assay: its name.
        protein: the UniProt entry that it is about.
        selection: type of what was measured: Activity, Binding, Expression, OrganismalFitness, Stability.
        value: the metric; NaN where it is not defined.
    """

    assay: str
    protein: str
    selection: str
    value: float


@dataclass(frozen=True)
class Aggregate:
    """A metric over assays.

    Attributes:
        value: mean over selection types of the mean over proteins of the mean over a protein's assays.
        standard_error: of ``value``, by the bootstrap.
        selections: selection type -> its mean.
        assays: how many have a value.
        left_out: names of those that have none.
    """

    value: float
    standard_error: float
    selections: Mapping[str, float]
    assays: int
    left_out: Sequence[str]


def aggregate(values: Iterable[AssayValue], *, seed: int = 0, draws: int = DRAWS) -> Aggregate:
    """Averages a metric over assays as ProteinGym does.

    Assays of one protein and selection type are averaged first, then the proteins of a type, then the types, so that a
    protein that was assayed often counts once. The standard error is the standard deviation of that mean when the
    proteins of each type are drawn again, with replacement, ``draws`` times. Of a *difference* to another model, give
    the differences: that is what ProteinGym's table shows, relative to its best model.

    Args:
        values: of the assays.
        seed: of the draws.
        draws: how many.
    """
    given = list(values)
    grouped: dict[str, dict[str, list[float]]] = {}
    for one in given:
        if np.isfinite(one.value):
            grouped.setdefault(one.selection, {}).setdefault(one.protein, []).append(one.value)
    left_out = [one.assay for one in given if not np.isfinite(one.value)]
    if not grouped:
        return Aggregate(float("nan"), float("nan"), {}, 0, left_out)
    proteins = {
        kind: np.array([float(np.mean(of)) for _, of in sorted(grouped[kind].items())]) for kind in sorted(grouped)
    }
    rng = np.random.default_rng(seed)
    drawn = [of[rng.integers(len(of), size=(draws, len(of)))].mean(axis=1) for of in proteins.values()]
    selections = {kind: float(of.mean()) for kind, of in proteins.items()}
    return Aggregate(
        float(np.mean(list(selections.values()))),
        float(np.mean(drawn, axis=0).std(ddof=1)),
        selections,
        len(given) - len(left_out),
        left_out,
    )
