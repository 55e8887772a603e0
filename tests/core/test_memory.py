"""Memory of a training step: exact, the same every time, and linear in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ALONE, Options, options_in

from protloom import config, memory, stepper
from protloom.assembly import Assembly, assemble
from protloom.errors import UserError
from protloom.memory import Growth
from protloom.phases import Phases
from protloom.plugins import Registry
from protloom.stepper import Stepper, refuse_too_large_network

Make = Callable[..., Stepper]


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    return options_in(tmp_path, small_fasta)


@pytest.fixture
def make(options: Options, registry: Registry) -> Iterator[Make]:
    made: list[Stepper] = []

    def build(**changes: Any) -> Stepper:
        words = options(trainer__tokens_per_step=4000, data__validation_fraction=0.0, data__max_length=64, **changes)
        run: Assembly = assemble(config.load(None, words, registry), registry, ALONE, initial=None)
        made.append(Stepper(run))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_what_a_step_holds_and_adds_is_exact(make: Make) -> None:
    one = make()
    batch = one.small_batch(1000)
    one.take(0, [batch], Phases())
    found = one.memory([batch])
    parameters = sum(p.numel() for p in one.run.module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in one.run.module.buffers())
    assert found.weights == 4 * parameters + buffers
    assert found.gradients == 4 * sum(p.numel() for p in one.run.module.parameters() if p.grad is not None)
    # two moments and, for each parameter, the number of steps
    assert found.optimizer == pytest.approx(8 * parameters, rel=0.01)
    assert found.activations > 4 * batch.tokens * one.run.model.width * one.run.model.depth
    assert found.peak >= found.weights + found.optimizer + found.activations
    assert found.added == found.peak - found.weights - found.optimizer
    assert one.memory([batch]) == found


def test_a_step_grows_linearly_with_its_tokens(make: Make) -> None:
    one = make(data__min_length=64)  # equal lengths: what attention needs grows with their squares
    one.take(0, [one.small_batch(500)], Phases())
    points = []
    for tokens in (500, 1000, 2000, 4000):
        batch = one.small_batch(tokens)
        points.append((batch.tokens, one.memory([batch]).added))
    line = Growth.through([points[0], points[1]])
    assert points[3][0] > 5 * points[0][0]
    for tokens, added in points:
        assert line.at(tokens) == pytest.approx(added, rel=0.05)


def test_micro_batches_need_the_memory_of_the_largest(make: Make) -> None:
    one = make()
    whole, parts = one.small_batch(4000), [one.small_batch(1000, step) for step in range(4)]
    one.take(0, parts, Phases())
    assert one.memory(parts).activations < 0.5 * one.memory([whole]).activations


def test_a_line_through_points() -> None:
    line = Growth.through([(200, 2100), (100, 1100)])
    assert (line.fixed, line.each) == (100.0, 10.0)
    assert line.at(1000) == 10100
    assert line.tokens(5100) == 384  # of 500
    assert line.tokens(10 * 20000 + 100) == 19 * 1024
    assert line.tokens(600) == 50
    assert line.tokens(50) == 0
    assert Growth.through([(100, 1000)]) == Growth(0.0, 10.0)
    assert Growth.through([(100, 1000), (200, 900)]) == Growth(0.0, 4.5)
    assert Growth.through([(100, 100), (200, 300)]) == Growth(0.0, 1.5)


# ------------------------------------------------------------------------------------------------------------ too large


def test_a_batch_that_will_not_fit_is_told_before_it_is_tried(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    batches = one.batches()
    enough = one.refuse_too_large(batches).at(batches[0].tokens)
    before = one.memory([one.small_batch(500)])
    monkeypatch.setattr(stepper, "available", lambda device: enough // 2)
    with pytest.raises(UserError, match=r"a micro-batch of 4,\d\d\d tokens needs about .* MiB beside") as told:
        one.refuse_too_large(batches)
    fits = int(str(told.value).partition("trainer.tokens_per_microbatch=")[2].partition(" would fit")[0])
    monkeypatch.undo()
    assert 0.3 * 4000 < fits < 0.55 * 4000
    assert one.memory([one.small_batch(fits)]).added <= enough / 2
    assert one.memory([one.small_batch(500)]) == before
    assert "\n" not in str(told.value)


def test_where_not_even_a_sequence_fits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    monkeypatch.setattr(stepper, "available", lambda device: 2000)
    with pytest.raises(UserError, match=r"nor does the longest sequence or group \(66 tokens\) alone: lower data.max_"):
        one.refuse_too_large(one.batches())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator")])
def test_a_device_that_runs_out_says_what_would_fit(
    error: Exception, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    one.take(0, [one.small_batch(500)], Phases())
    advance = one._trainer.advance

    def exhausted(step: int, batches: Any, *rest: Any) -> None:
        if sum(batch.tokens for batch in batches) > 2500:
            raise error
        advance(step, batches, *rest)

    monkeypatch.setattr(one._trainer, "advance", exhausted)
    monkeypatch.setattr(stepper, "available", lambda device: 1_500_000)
    with pytest.raises(UserError, match=r"tokens needs about .* trainer.tokens_per_microbatch=\d+ would fit"):
        one.next(Phases())


def test_another_error_is_no_lack_of_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(one._trainer, "advance", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        one.next(Phases())


def test_a_network_that_will_not_fit_is_not_built(
    options: Options, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = config.load(None, [*options(), "architecture.size=15B"], registry)
    monkeypatch.setattr(stepper, "available", lambda device: 64 * 2**30)
    with pytest.raises(UserError, match=r"esm2 of 15,\d\d\d million parameters needs 11\d.\d GiB for weights and grad"):
        refuse_too_large_network(resolved, registry, torch.device("cpu"))
    monkeypatch.setattr(stepper, "available", lambda device: None)
    refuse_too_large_network(resolved, registry, torch.device("cpu"))


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory._free_of_group(tmp_path) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_of_group(tmp_path) is None
    assert memory._free_of_group(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12 B"), (2048, "2.0 KiB"), (3 * 2**20, "3.0 MiB"), (2**31, "2.0 GiB")]
)
def test_sizes_are_readable(number: int, text: str) -> None:
    assert memory.readable(number) == text
