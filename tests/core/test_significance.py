"""Tests over tasks against the numbers of the ProteinJEPA paper, SciPy and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from protloom.compare.significance import holm, sign_test, wilcoxon


@pytest.mark.parametrize(("wins", "losses", "p"), [(10, 3, 0.046), (11, 2, 0.011), (11, 4, 0.059), (6, 8, 0.79)])
def test_the_sign_test_gives_the_figures_of_the_paper(wins: int, losses: int, p: float) -> None:
    assert round(sign_test(wins, losses), 3 if p < 0.1 else 2) == p
    assert sign_test(wins, losses) == pytest.approx(
        scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    )


def test_nobody_wins() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == 1.0


def test_wilcoxon_is_exact_for_few_differences() -> None:
    differences = [0.3, -0.1, 0.25, 0.4, 0.05, -0.02, 0.0]
    kept = [d for d in differences if d]
    ranks = scipy.stats.rankdata(np.abs(kept))
    observed = sum(r for r, d in zip(ranks, kept, strict=True) if d > 0)
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=6)
    ]
    tail = min(np.mean([s >= observed for s in sums]), np.mean([s <= observed for s in sums]))
    assert wilcoxon(differences) == pytest.approx(2 * tail)
    assert wilcoxon([0.0, 0.0]) is None


def test_holm_steps_down() -> None:
    # by hand: 3·.01, 2·.02, 1·.04, never below the one before
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_is_that_of_scipy_free_brute_force() -> None:
    values = np.random.default_rng(0).uniform(0, 0.2, 9)
    ordered = np.sort(values)
    expected = np.minimum(1.0, np.maximum.accumulate(ordered * np.arange(9, 0, -1)))
    assert np.sort(holm(values.tolist())) == pytest.approx(expected)
