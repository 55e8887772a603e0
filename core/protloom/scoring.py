"""Compares what tasks found for several subjects: paired differences with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import TaskResult

LEVEL = 0.95
"""Confidence of every interval."""
FEWEST = 10
"""Items that must be resampled for a difference to be decided.

The percentile interval of a mean of n normal items is z·sqrt(1 - 1/n) standard errors wide where Student's t is due: it
holds the truth in 90 % of cases for 10 items, 85 % for 5 and 50 % for 2, not in 95 % as it claims.
"""
VERDICTS = ("better", "worse", "undecided")
"""What a difference is, by its interval: see :func:`verdict`."""
MARGINS = (0.005, 0.0, 0.001, 0.01)
"""Over tasks, differences within a margin are ties; the first is the one that is told in words."""


class Difference(NamedTuple):
    """How much better one subject is than another on the same items.

    Attributes:
        value: first minus second.
        interval: 95 % interval of it, by the paired bootstrap.
        n: how many items were resampled.
    """

    value: float
    interval: tuple[float, float]
    n: int

    @property
    def verdict(self) -> str:
        """Says in a word whether the interval leaves out zero."""
        return verdict(self.interval, self.n)


def verdict(interval: tuple[float, float], n: int) -> str:
    """Returns ``better`` for an interval above 0, ``worse`` for one below, else ``undecided``.

    So for NaN, and for an interval of fewer than :data:`FEWEST` items.

    Args:
        interval: of a difference.
        n: how many items were resampled.
    """
    if n < FEWEST:
        return "undecided"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def percentile_interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the central 95 % of bootstrap replicates (the percentile interval of Efron and Tibshirani 1993, ch. 13).

    Resamples in which a metric is not defined (NaN: an AUC where one class was drawn) are left out. Both ends are NaN
    where there is nothing to resample (fewer than two replicates).
    """
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 2:
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(first: TaskResult, second: TaskResult) -> Difference:
    """Returns ``first - second`` with its interval: both were resampled by the same draws of the same items.

    Raises:
        UserError: if the results are not about the same items.
    """
    if first.items != second.items or first.metric != second.metric or len(first.replicates) != len(second.replicates):
        raise UserError("these two results cannot be compared: they are not about the same items, metric and seed")
    return Difference(first.value - second.value, percentile_interval(first.replicates - second.replicates), first.n)
