"""Numbers of rounds: medians with their spread, and ratios of pairs with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """A median with its quartiles and its range."""

    median: float
    lower: float
    upper: float
    least: float
    most: float


class Ratio(NamedTuple):
    """The median of ratios of pairs.

    Attributes:
        median: of the rounds' ratios.
        low: lower end of its interval.
        high: upper end.
        confidence: of the interval: at least :data:`CONFIDENCE` from six rounds on, less with fewer, 0 with one.
    """

    median: float
    low: float
    high: float
    confidence: float


def spread(values: Sequence[float]) -> Spread:
    """Returns median, quartiles (of the sample itself) and range."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper, min(values), max(values))


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Returns how many times as fast the second of two variants is, from the seconds of both in each round.

    What slows the whole machine in a round slows both, so the ratio of a round varies less than its two times.
    """
    values = [a / b for a, b in zip(first, second, strict=True)]
    return Ratio(statistics.median(values), *median_interval(values))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns an interval for the median of what values are drawn from, and its confidence.

    Between two order statistics, by the binomial distribution: nothing is assumed of the values but that they are
    drawn alike (Conover 1999, section 3.2).
    """
    ordered = sorted(values)
    n = len(ordered)
    below, outside = 0, 0.5**n  # the chance that at most `below` values lie under the median
    while 2 * (more := outside + math.comb(n, below + 1) * 0.5**n) <= 1 - CONFIDENCE:
        below, outside = below + 1, more
    return ordered[below], ordered[n - 1 - below], max(0.0, 1 - 2 * outside)
