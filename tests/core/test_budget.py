"""Runs that end by seconds, tokens or FLOPs, and sittings that pause."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import Options, lines, losses, options_in

from protloom import budget, schedules
from protloom.budget import Amount, Spent
from protloom.cli import main
from protloom.errors import UserError
from protloom.settings import ScheduleConfig, TrainerConfig


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    return options_in(tmp_path, small_fasta)


def test_a_run_lasts_until_its_first_limit() -> None:
    config = TrainerConfig(steps=100, max_seconds=50, max_tokens=1000, max_flops=1e6)
    assert budget.share(config, Spent(10, 5.0, 100, 2e5)) == pytest.approx(0.2)
    assert not budget.ended(config, Spent(99, 49.0, 999, 9e5))
    for spent in (Spent(steps=100), Spent(seconds=50.0), Spent(tokens=1000), Spent(flops=1e6)):
        assert budget.ended(config, spent)
        assert budget.share(config, spent) == 1.0


@pytest.mark.parametrize(
    ("steps", "gap"), [(1, 50), (500, 50), (501, 51), (9_990, 999), (10_001, 1000), (budget.ENDLESS, 1000)]
)
def test_validations_are_a_tenth_of_the_run_apart_within_bounds(steps: int, gap: int) -> None:
    assert budget.usual_gap(steps) == gap


@pytest.mark.parametrize("text", ["seconds", "minutes=3", "steps=0", "steps=-1", "tokens=many", "steps=nan", "=3"])
def test_amounts_are_checked(text: str) -> None:
    with pytest.raises(UserError, match=text):
        Amount.parse(text)


def test_schedules_fall_with_the_share_that_is_used() -> None:
    for name, expected in (("linear", 0.55), ("cosine", 0.55), ("wsd", 1.0), ("constant", 1.0)):
        config = ScheduleConfig(name=name, warmup_steps=10)  # type: ignore[arg-type]
        assert schedules.factor(config, 5, 10**6, share=0.5) == pytest.approx(6 / 11)  # the warm-up stays one of steps
        assert schedules.factor(config, 500, 10**6, share=0.5) == pytest.approx(expected)
    assert schedules.factor(ScheduleConfig(name="wsd"), 500, 10**6, share=0.95) == pytest.approx(0.55)
    assert schedules.factor(ScheduleConfig(name="linear"), 500, 10**6, share=1.0) == pytest.approx(0.1)


def test_a_run_of_so_many_tokens_ends_validated_and_saved(options: Options, tmp_path: Path) -> None:
    assert main(["train", *options(trainer__max_tokens=2000, trainer__steps=1000, trainer__checkpoint_every=500)]) == 0
    records = lines(tmp_path / "run")
    last = [r for r in records if "tokens" in r][-1]
    assert last["tokens"] >= 2000 > last["tokens"] - 800  # the first step that reaches it is the last
    assert records[-1]["step"] == last["step"]
    assert "validation/loss" in records[-1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last['step']:08d}").is_dir()
    assert main(["resume", str(tmp_path / "run")]) == 0  # there is nothing left to do
    assert lines(tmp_path / "run") == records


@pytest.mark.parametrize("limit", ["trainer.max_seconds=0.000001", "trainer.max_flops=1"])
def test_time_and_flops_end_a_run_too(options: Options, tmp_path: Path, limit: str) -> None:
    assert main(["train", *options(trainer__steps=1000), limit]) == 0
    assert [r["step"] for r in lines(tmp_path / "run") if "learning_rate" in r] == [1]


def test_a_paused_run_goes_on_bitwise(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options("whole")]) == 0
    assert main(["train", *options("halves"), "--pause-at", "steps=4"]) == 0
    assert "paused after step 4: go on with  protloom resume" in capsys.readouterr().out
    assert max(losses(tmp_path / "halves")) == 4
    assert main(["resume", str(tmp_path / "halves"), "--pause-at", "tokens=1"]) == 0  # so much is done already
    assert max(losses(tmp_path / "halves")) == 4
    assert main(["resume", str(tmp_path / "halves")]) == 0
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


def test_a_resume_tells_what_has_changed(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options()]) == 0
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run"), "trainer.steps=8", "trainer.clip_norm=2.0"]) == 0
    told = capsys.readouterr().out
    assert "changed  trainer.steps: 6 -> 8\n" in told
    assert "changed  trainer.clip_norm: 1.0 -> 2.0\n" in told
    # cosine from 6 steps at its floor to where it stands after 6 of 8
    assert "changed  learning rate: was 0.0003, goes on at 0.000434\n" in told
    assert main(["resume", str(tmp_path / "run"), "trainer.steps=9"]) == 0
    assert "clip_norm" not in capsys.readouterr().out
