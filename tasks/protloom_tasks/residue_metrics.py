"""Metrics of labels of residues: all residues pooled, or a protein at a time, with resamples of whole proteins.

Residues of one protein are not independent, so a resample takes all residues of a protein as often as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom_tasks import intervals, metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]
    Tables = Callable[[F64], F64]
    """Of confusion tables ``[b, C, C]`` (true class, given class), the metric of each, ``[b]``."""


@dataclass(frozen=True)
class Scores:
    """Metrics with their resamples.

    Attributes:
        values: every metric.
        replicates: ``[B]`` of every metric.
        per_group: ``[G]`` of each group: its accuracy, or its mean absolute error.
    """

    values: Mapping[str, float]
    replicates: Mapping[str, F64]
    per_group: F64


def classes(
    truth: NDArray[np.int64],
    guess: NDArray[np.int64],
    owner: NDArray[np.int64],
    group_of: NDArray[np.int64],
    *,
    states: Sequence[str],
    accuracy: str,
    ordinal: bool,
    seed: int,
) -> Scores:
    """Returns accuracy (pooled and per protein), macro F1, recall of each class and, of ordered classes, Spearman.

    Args:
        truth: ``[R]`` class of each scored residue.
        guess: ``[R]`` class given.
        owner: ``[R]`` number of its protein.
        group_of: ``[P]`` number of each protein's group.
        states: names of the classes.
        accuracy: what the accuracy is called.
        ordinal: the classes are in an order.
        seed: of the draws.
    """
    n, groups = len(states), int(group_of.max()) + 1
    cell = (group_of[owner] * n + truth) * n + guess
    of_group = np.bincount(cell, minlength=groups * n * n).reshape(groups, n * n).astype(np.float64)
    measures: dict[str, Tables] = {accuracy: _accuracy, "macro F1": _macro_f1}
    if ordinal:
        measures["Spearman"] = _spearman_of_tables
    measures |= {f"recall {state}": _recall(i) for i, state in enumerate(states)}
    whole = of_group.sum(axis=0).reshape(1, n, n)
    values = {name: float(measure(whole)[0]) for name, measure in measures.items()}
    replicates = dict.fromkeys(measures, np.zeros(0))
    blocks = [(times @ of_group).reshape(-1, n, n) for times in _times(groups, seed)]
    for name, measure in measures.items():
        if blocks:
            replicates[name] = np.concatenate([measure(block) for block in blocks])
    right, scored = metrics.hits(truth == guess, owner, len(group_of))
    each = np.divide(right, scored, out=np.full(len(right), np.nan), where=scored > 0)
    own, own_replicates = _mean_of_proteins(each, group_of, seed)
    name = f"{accuracy} per protein"
    first = {accuracy: values.pop(accuracy), name: own}
    with np.errstate(invalid="ignore"):
        per_group = metrics.sums(right, group_of, groups) / metrics.sums(scored, group_of, groups)
    return Scores({**first, **values}, {**replicates, name: own_replicates}, per_group)


def numbers(truth: F64, output: F64, owner: NDArray[np.int64], group_of: NDArray[np.int64], *, seed: int) -> Scores:
    """Returns Spearman (pooled and per protein), Pearson and the mean absolute error; see :func:`classes`."""
    groups = int(group_of.max()) + 1
    group = group_of[owner]
    places = [np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (truth, output)]
    error = np.abs(truth - output)

    def measures(weight: F64) -> tuple[float, float, float]:
        first, second = (_weighted_ranks(place, weight) for place in places)
        mean_error = float((error * weight).sum() / weight.sum()) if weight.any() else float("nan")
        return weighted_pearson(first, second, weight), weighted_pearson(truth, output, weight), mean_error

    names = ("Spearman", "Pearson", "MAE")
    values = dict(zip(names, measures(np.ones(len(truth))), strict=True))
    drawn = np.array([measures(times[group]) for block in _times(groups, seed) for times in block]).reshape(-1, 3)
    each = np.array([_spearman(truth[mine], output[mine]) for mine in _members(owner, len(group_of))])
    own, own_replicates = _mean_of_proteins(each, group_of, seed)
    replicates = {name: drawn[:, i] for i, name in enumerate(names)}
    total = metrics.sums(error, group, groups)
    count = metrics.sums(np.ones(len(group)), group, groups)
    return Scores(
        {"Spearman": values.pop("Spearman"), "Spearman per protein": own, **values},
        {**replicates, "Spearman per protein": own_replicates},
        np.divide(total, count, out=np.full(groups, np.nan), where=count > 0),
    )


def weighted_pearson(first: F64, second: F64, weight: F64) -> float:
    """Returns the linear correlation of items that count ``weight`` times; NaN where one is constant."""
    there = weight > 0
    a, b, w = first[there], second[there], weight[there]
    if not len(w) or a.min() == a.max() or b.min() == b.max():
        return float("nan")
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    return float((w * a * b).sum() / np.sqrt((w * a * a).sum() * (w * b * b).sum()))


def _weighted_ranks(place: NDArray[np.int64], weight: F64) -> F64:
    """Returns the mean rank of each item where every item stands ``weight`` times in the row, ``[R]``.

    Args:
        place: ``[R]`` number of the item's value among the distinct ones, ascending.
        weight: ``[R]``.
    """
    of_value = np.bincount(place, weight)
    return np.asarray((np.cumsum(of_value) - (of_value - 1) / 2)[place], dtype=np.float64)


def _spearman(truth: F64, output: F64) -> float:
    """Returns Spearman's correlation of one protein, NaN where it is not defined."""
    if len(truth) < 2:
        return float("nan")
    ones = np.ones(len(truth))
    ranks = [_weighted_ranks(np.unique(v, return_inverse=True)[1].astype(np.int64), ones) for v in (truth, output)]
    return weighted_pearson(ranks[0], ranks[1], ones)


def _mean_of_proteins(each: F64, group_of: NDArray[np.int64], seed: int) -> tuple[float, F64]:
    """Returns the mean over the proteins where a metric is defined, and its resamples."""
    some, groups = np.isfinite(each), int(group_of.max()) + 1
    total = metrics.sums(each[some], group_of[some], groups)
    count = metrics.sums(some, group_of, groups)
    return metrics.pooled_accuracy(total, count), intervals.bootstrap_ratio(total, count, seed=seed)


def _members(owner: NDArray[np.int64], n: int) -> list[NDArray[np.int64]]:
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=n))[:-1])


def _times(groups: int, seed: int) -> Iterator[F64]:
    """Yields how often each group is in each resample, ``[b, G]``."""
    for block in intervals.draws(groups, seed=seed):
        first = np.arange(len(block))[:, None] * groups
        counted = np.bincount((first + block).ravel(), minlength=len(block) * groups)
        yield counted.reshape(len(block), groups).astype(np.float64)


# ------------------------------------------------------------------------------------------------ confusion tables


def _accuracy(tables: F64) -> F64:
    return metrics.ratio(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))


def _recall(i: int) -> Tables:
    """Returns the recall of a class, 0 where it does not occur."""
    return lambda tables: np.nan_to_num(metrics.ratio(tables[:, i, i], tables[:, i].sum(axis=-1)))


def _macro_f1(tables: F64) -> F64:
    """Returns the mean of F1 over all classes, 0 for one that neither occurs nor is given."""
    right = np.diagonal(tables, axis1=1, axis2=2)
    f1 = np.nan_to_num(metrics.ratio(2 * right, tables.sum(axis=2) + tables.sum(axis=1)))
    return np.asarray(f1.mean(axis=-1), dtype=np.float64)


def _spearman_of_tables(tables: F64) -> F64:
    """Returns Spearman's correlation of true and given class, whose numbers are their order."""

    def centred(count: F64) -> F64:
        """Returns the mean rank of each class less the mean of all ranks, ``[b, C]``."""
        ranks = np.cumsum(count, axis=1) - (count - 1) / 2
        return ranks - (count.sum(axis=1, keepdims=True) + 1) / 2

    real, given = tables.sum(axis=2), tables.sum(axis=1)
    a, b = centred(real), centred(given)
    product = np.einsum("bij,bi,bj->b", tables, a, b)
    return metrics.ratio(product, np.sqrt((real * a * a).sum(axis=1) * (given * b * b).sum(axis=1)))
