"""Tests over tasks, as the field counts them: sign test, Wilcoxon signed ranks, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def sign_test(wins: int, losses: int) -> float:
    """Returns the one-sided p of at least so many wins if wins and losses were equally likely; ties are left out.

    p = Σ_{k ≥ wins} C(n, k) / 2ⁿ with n = wins + losses; 1 where there is neither.
    """
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n)


def count(deltas: Sequence[float], margin: float) -> dict[str, Any]:
    """Counts wins, losses and ties, and asks how likely so many wins are by chance."""
    edge = margin + 1e-12  # a difference on the margin is a tie, whatever the last bit says
    wins, losses = sum(d > edge for d in deltas), sum(d < -edge for d in deltas)
    return {
        "margin": margin,
        "wins": wins,
        "losses": losses,
        "ties": len(deltas) - wins - losses,
        "sign_test_p": sign_test(wins, losses) if wins + losses else None,
    }


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p of Wilcoxon's signed-rank test that differences are centred at 0; zeros are left out.

    Exact for up to 50 differences without ties, else by the normal approximation (SciPy's); None if all are 0.
    """
    from scipy.stats import wilcoxon as signed_ranks

    kept = [d for d in differences if d != 0.0]
    return float(signed_ranks(kept).pvalue) if kept else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Holm's step-down procedure (1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
