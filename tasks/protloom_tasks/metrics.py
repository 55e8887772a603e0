"""Metrics of downstream tasks; what scikit-learn and scipy have is taken from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS: Mapping[str, tuple[int, int | None]] = {"long": (24, None), "medium": (12, 23), "short": (6, 11)}
"""Sequence separations |i − j| of contact bands, both ends included (the CASP convention)."""

SHARES: Mapping[str, int] = {"P@L": 1, "P@L/2": 2, "P@L/5": 5}
"""Precision at L / k: how many of the best scored pairs of a protein of L residues count."""


def sums(values: NDArray[np.generic], group: NDArray[np.integer], n: int) -> NDArray[np.float64]:
    """Returns the sum of the values of each group, ``[n]``; ``group`` holds numbers below ``n``."""
    return np.asarray(np.bincount(group, weights=values.astype(np.float64), minlength=n), dtype=np.float64)


def hits(
    correct: NDArray[np.bool_], protein: NDArray[np.integer], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Adds up right answers and scored residues of each protein.

    Args:
        correct: ``[R]`` whether each scored residue is right.
        protein: ``[R]`` number of its protein, below ``n``.
        n: number of proteins.

    Returns:
        (right, scored), both ``[n]``.
    """
    return sums(correct, protein, n), sums(np.ones(len(protein)), protein, n)


def ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> NDArray[np.float64]:
    """Returns above / below, NaN where below is 0."""
    found = np.full(np.shape(above), np.nan)
    return np.divide(above, below, out=found, where=np.asarray(below) != 0)


def pooled_accuracy(right: NDArray[np.float64], scored: NDArray[np.float64]) -> float:
    """Returns Q3 or Q8 as published: right residues of all proteins over scored residues of all proteins."""
    return float(right.sum() / scored.sum()) if scored.sum() else float("nan")


def neighbours(
    queries: NDArray[np.floating], k: int, database: NDArray[np.floating] | None = None, *, rows: int = 1024
) -> NDArray[np.int64]:
    """Returns the ``k`` nearest rows of the database by cosine similarity, ``[n, k]``, nearest first.

    Equal similarities keep the order of rows. A row of zeros is similar to nothing (0 to all).

    Args:
        queries: ``[n, D]``, finite.
        k: how many; fewer come back where there are fewer.
        database: ``[m, D]``; None: the queries themselves, each without itself.
        rows: queries at once, which bounds memory.
    """
    unit = _unit(queries)
    against = unit if database is None else _unit(database)
    k = min(k, len(against) - (database is None))
    if k < 1 or not len(unit):
        return np.zeros((len(unit), 0), dtype=np.int64)
    found = np.empty((len(unit), k), dtype=np.int64)
    for start in range(0, len(unit), rows):
        stop = min(len(unit), start + rows)
        similar = unit[start:stop] @ against.T  # [rows, m]
        if database is None:
            similar[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        best = np.sort(_largest(similar, k), axis=1)
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        found[start:stop] = np.take_along_axis(best, order, axis=1)
    return found


def _largest(values: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Returns the columns of the ``k`` largest values of each row, ``[n, k]``, any order; of equal ones the first."""
    chosen = np.argpartition(-values, k - 1, axis=1)[:, :k]
    least = np.take_along_axis(values, chosen, axis=1).min(axis=1)
    # a partition takes any of those that are equal to the least one
    for row in np.flatnonzero((values >= least[:, None]).sum(axis=1) > k):
        above = np.flatnonzero(values[row] > least[row])
        equal = np.flatnonzero(values[row] == least[row])
        chosen[row] = np.concatenate([above, equal[: k - len(above)]])
    return np.asarray(chosen, dtype=np.int64)


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    rows = vectors.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def retrieved(same: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Tells for every query whether one of its ``k`` nearest has its label, ``[n]``: the mean is Recall@k.

    Args:
        same: ``[n, >= k]`` whether each neighbour, nearest first, has the query's label.
        k: how many neighbours count.
    """
    return np.asarray(same[:, :k].any(axis=1), dtype=np.bool_)


def eligible(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tells which queries can succeed at all: their label occurs at least twice, ``[n]``."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    result: NDArray[np.bool_] = counts[inverse] > 1
    return result


def precision_at(
    scores: NDArray[np.floating],
    contacts: NDArray[np.bool_],
    resolved: NDArray[np.bool_],
    positions: NDArray[np.integer] | None = None,
) -> dict[str, float]:
    """Returns the precision of the best scored residue pairs of one protein, for every share and band.

    Args:
        scores: ``[L, L]``; the upper triangle is read, higher means more likely a contact.
        contacts: ``[L, L]`` truth.
        resolved: ``[L]`` residues with known coordinates; pairs of others are not candidates.
        positions: ``[L]`` residue numbers for the separation; default 0 to L − 1.

    Returns:
        ``"P@L/5:long"`` and so on: right pairs among the best L / k over their number (over the number of candidates
        where there are fewer), NaN without a candidate; and ``"chance:long"``, the share of contacts among candidates.
        L is the full length, unresolved residues included.
    """
    length = len(scores)
    first, second = np.triu_indices(length, 1)
    place = np.arange(length) if positions is None else positions
    separation = np.abs(place[second] - place[first])
    known = resolved[first] & resolved[second]
    found: dict[str, float] = {}
    for band, (low, high) in BANDS.items():
        inside = known & (separation >= low)
        if high is not None:
            inside &= separation <= high
        truth = contacts[first[inside], second[inside]]
        ranked = truth[np.argsort(-scores[first[inside], second[inside]], kind="stable")]
        for share, k in SHARES.items():
            best = ranked[: max(1, length // k)]
            found[f"{share}:{band}"] = float(best.mean()) if len(best) else float("nan")
        found[f"chance:{band}"] = float(truth.mean()) if len(truth) else float("nan")
    return found


def mean_of(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages each entry over proteins, those without a value (NaN) left out."""
    names = list(tables[0]) if tables else []
    columns = {name: np.array([table[name] for table in tables]) for name in names}
    return {n: float(np.nanmean(c)) if np.isfinite(c).any() else float("nan") for n, c in columns.items()}


def why_undefined(truth: NDArray[Any], output: NDArray[Any]) -> str:
    """Says why a correlation or a curve has no value on these labels and predictions (``details["undefined"]``)."""
    if len(truth) == 0:
        return "nothing was scored"
    if truth.ndim == 1 and (truth == truth[0]).all():
        return f"all {len(truth):,} labels are the same"
    if output.ndim == 1 and (output == output[0]).all():
        return f"it predicts the same for all {len(output):,}"
    return "these labels and predictions do not define it"
