"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SCALES = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"), (1.0, ""))


def short(value: float, digits: int = 3) -> str:
    """Writes a number with few digits and a letter: ``40 M``, ``1.23 B``, ``0.005``; ``–`` where there is none."""
    if not math.isfinite(value):
        return "–"
    for scale, letter in _SCALES:
        # what rounds to 1000 of one letter is 1 of the next
        if abs(value) >= scale * (1.0 - 0.5 * 10.0**-digits):
            return f"{value / scale:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def signed(value: float) -> str:
    """Writes a difference with its sign and four decimals."""
    return f"{value:+.4f}"


def defined(value: float) -> str:
    """Writes a metric with four decimals; ``undefined`` where it is NaN."""
    return f"{value:.4f}" if math.isfinite(value) else "undefined"


def interval(ends: Sequence[float], sign: str = "") -> str:
    """Writes both ends with four decimals, ``sign`` ``+`` before each; ``no interval`` where they are NaN."""
    low, high = ends
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]" if math.isfinite(low) and math.isfinite(high) else "no interval"


def p_value(value: float | None) -> str:
    """Writes the p of a test; ``–`` where there was none."""
    return "–" if value is None else f"{value:.3g}"


def plural(number: int, word: str) -> str:
    """Writes ``1 task`` or ``2 tasks``."""
    return f"{number:,} {word}{'s' * (number != 1)}"
