"""Which rows a bootstrap resample holds: whole groups, or the pairs of resampled proteins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protloom_tasks import intervals, metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Metric = Callable[[NDArray[np.int64]], NDArray[np.float64]]
    """Of rows ``[b, m]``, a resample a line: the metric of each, ``[b]``."""


class Resamples:
    """Draws whole groups of rows, the same ones for every subject.

    Rows of one group are not independent. A row may be in one group or in two, as a pair of proteins is: it is then
    taken as often as both were drawn, the product of how often each was (the pigeonhole bootstrap of Owen 2007).

    Args:
        groups: of each row, or for each of both partners those of each row.
        seed: of the draws.

    Attributes:
        n: number of groups.
    """

    def __init__(self, *groups: Sequence[str], seed: int) -> None:
        names, place = np.unique(np.concatenate([np.asarray(of, dtype=object) for of in groups]), return_inverse=True)
        self._groups = place.reshape(len(groups), -1)  # [1 or 2, rows]
        self._alone = len(groups) == 1 and len(names) == self._groups.shape[1]
        self.n, self._seed = len(names), seed

    def of(self, metric: Metric) -> NDArray[np.float64]:
        """Returns the metric of every resample, ``[B]``; NaN where one holds no rows."""
        found: list[NDArray[np.float64]] = []
        first = np.argsort(self._groups[0])
        for block in intervals.draws(self.n, seed=self._seed):
            if self._alone:
                found.append(metric(first[block]))
                continue
            for drawn in block:  # groups differ in size, so resamples do
                times = np.bincount(drawn, minlength=self.n)[self._groups].prod(axis=0)
                rows = np.repeat(np.arange(len(times)), times)
                found.append(metric(rows[None]) if len(rows) else np.full(1, np.nan))
        return np.concatenate(found) if found else np.zeros(0)

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the mean of a value over the rows of each group, ``[n]``."""
        spread = np.broadcast_to(values, self._groups.shape).ravel()
        group = self._groups.ravel()
        total = metrics.sums(spread, group, self.n)
        return total / metrics.sums(np.ones(len(group)), group, self.n)
