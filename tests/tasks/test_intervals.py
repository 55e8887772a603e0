"""The bootstrap against loops, and against what it should cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from protloom.cli import main
from protloom.compare.plan import ComparisonConfig
from protloom.scoring import FEWEST, MARGINS, VERDICTS, paired_difference, percentile_interval, verdict
from protloom_tasks import intervals


def test_ratio_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    total, count = rng.random(17), rng.integers(1, 9, 17).astype(float)
    found = intervals.bootstrap_ratio(total, count, seed=4, replicates=50)
    rows = [row for block in intervals.draws(17, seed=4, replicates=50) for row in block]
    assert len(rows) == 50
    for replicate, row in zip(found, rows, strict=True):
        assert replicate == pytest.approx(sum(total[i] for i in row) / sum(count[i] for i in row))
    mean = intervals.bootstrap_ratio(total, seed=4, replicates=50)
    np.testing.assert_allclose(mean, [np.mean(total[row]) for row in rows])


def test_blocks_make_no_difference_to_the_number_of_replicates() -> None:
    blocks = list(intervals.draws(1_500_000, seed=0, replicates=3))
    assert [block.shape for block in blocks] == [(1, 1_500_000)] * 3
    assert not np.array_equal(blocks[0], blocks[1])


def test_interval_agrees_with_scipy() -> None:
    x = np.random.default_rng(3).normal(size=200)
    low, high = percentile_interval(intervals.bootstrap_ratio(x, seed=1, replicates=20_000))
    reference = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.01)
    assert high == pytest.approx(reference.high, abs=0.01)


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    inside = 0
    for trial in range(400):
        sample = rng.exponential(size=60)
        low, high = percentile_interval(intervals.bootstrap_ratio(sample, seed=trial, replicates=500))
        inside += low <= 1.0 <= high
    assert 0.88 < inside / 400 < 0.98


def test_pairing_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(5)
    hard = rng.random(300)  # how easy each item is, the same for both
    first, second = hard + 0.02 + 0.01 * rng.normal(size=300), hard
    a = intervals.bootstrap_ratio(first, seed=0)
    b = intervals.bootstrap_ratio(second, seed=0)
    low, high = percentile_interval(a - b)
    assert 0.015 < low < high < 0.025
    lonely = percentile_interval(a)
    assert lonely[0] < second.mean()  # alone, the intervals overlap
    rows = [row for block in intervals.draws(300, seed=0) for row in block]
    np.testing.assert_allclose(a - b, [np.mean((first - second)[row]) for row in rows])


def test_too_few_items_give_no_interval() -> None:
    for n in (0, 1):
        replicates = intervals.bootstrap_ratio(np.ones(n), seed=0)
        assert len(replicates) == 0
        assert np.isnan(percentile_interval(replicates)).all()


def test_resamples_without_a_value_are_left_out() -> None:
    drawn = np.random.default_rng(0).normal(size=1000)
    holes = np.concatenate([drawn, np.full(300, np.nan)])
    assert percentile_interval(holes) == percentile_interval(drawn)
    assert np.isnan(percentile_interval(np.array([1.0, np.nan]))).all()


def test_items_and_seed_decide_what_can_be_paired() -> None:
    one = intervals.fingerprint("t", ["A", "B"], 0)
    assert one == intervals.fingerprint("t", iter(["A", "B"]), 0)
    others = {
        intervals.fingerprint("t", ["B", "A"], 0),
        intervals.fingerprint("t", ["A", "B"], 1),
        intervals.fingerprint("u", ["A", "B"], 0),
        intervals.fingerprint("t", ["AB"], 0),
    }
    assert len(others | {one}) == 5


@pytest.mark.parametrize(
    ("interval", "n", "word"),
    [
        ((0.1, 0.3), FEWEST, "better"),
        ((-0.3, -0.1), FEWEST, "worse"),
        ((0.1, 0.3), FEWEST - 1, "undecided"),
        ((-0.3, -0.1), FEWEST - 1, "undecided"),
        ((-0.1, 0.3), 99, "undecided"),
        ((0.0, 0.3), 99, "undecided"),
        ((-0.3, 0.0), 99, "undecided"),
        ((float("nan"), float("nan")), 99, "undecided"),
    ],
)
def test_the_verdict_is_that_of_the_interval(interval: tuple[float, float], n: int, word: str) -> None:
    assert verdict(interval, n) == word
    assert word in VERDICTS


@pytest.mark.parametrize(("n", "share"), [(2, 0.50), (5, 0.85), (FEWEST, 0.90), (100, 0.94)])
def test_intervals_of_few_items_are_too_narrow(n: int, share: float) -> None:
    """Why few items decide nothing: the numbers that FEWEST is documented with."""
    rng = np.random.default_rng(n)
    index = rng.integers(n, size=(400, n))
    covered = [
        low <= 0 <= high for low, high in (percentile_interval(rng.normal(size=n)[index].mean(1)) for _ in range(2000))
    ]
    assert np.mean(covered) == pytest.approx(share, abs=0.03)


def test_both_commands_that_compare_have_the_same_margins(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ComparisonConfig.model_validate({"recipes": {"a": {}, "b": {}}, "budget": {"steps": 1}, "tasks": ["x"]})
    assert plan.margins == list(MARGINS)
    assert main(["task", "compare", "--help"]) == 0
    assert f"({', '.join(f'{margin:g}' for margin in MARGINS)})" in " ".join(capsys.readouterr().out.split())


def test_unlike_results_are_not_compared() -> None:
    from protloom.contracts import TaskResult
    from protloom.errors import UserError

    def result(value: float, items: str) -> TaskResult:
        replicates = value + np.linspace(-0.1, 0.1, 101)
        return TaskResult("m", value, (0, 1), 20, "x", {}, np.zeros(2), replicates, items)

    better = paired_difference(result(0.5, "same"), result(0.2, "same"))
    assert better.value == pytest.approx(0.3)
    assert better.interval == pytest.approx((0.3, 0.3))
    assert better.verdict == "better"
    assert paired_difference(result(0.2, "same"), result(0.5, "same")).verdict == "worse"
    assert paired_difference(result(0.2, "same"), result(0.2, "same")).verdict == "undecided"
    with pytest.raises(UserError, match="not about the same items"):
        paired_difference(result(0.5, "same"), result(0.2, "other"))
