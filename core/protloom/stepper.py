"""Steps of an assembled run taken one at a time, from outside its loop: for measuring. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from protloom import kernels
from protloom.assembly import build_network, make
from protloom.checkpoint import TrainState
from protloom.data.loader import Loader
from protloom.errors import UserError
from protloom.flops import FlopCounter, real_tokens
from protloom.memory import SPARE, Growth, StepMemory, available, is_exhausted, measure, readable
from protloom.metrics import Progress
from protloom.phases import Phases
from protloom.stopping import StopRequest
from protloom.trainer import Trainer

if TYPE_CHECKING:
    from protloom.assembly import Assembly
    from protloom.config import ResolvedRun
    from protloom.mixture import HostBatch
    from protloom.plugins import Registry

SMALL, LARGER = (8, 1024), (4, 2048)
"""Two probes of memory read this fraction of a micro-batch, and so many tokens at most."""


class Work(NamedTuple):
    """What a step did.

    Attributes:
        tokens: read by encoders and decoders, without padding.
        positions: computed, padding included.
        flops: of the model, for the tokens alone.
    """

    tokens: int
    positions: int
    flops: float


class Stepper:
    """Takes optimizer steps as the trainer does, batches prepared ahead by the run's threads.

    Args:
        run: the assembled run; its parameters move.
        first: number of the first step.
    """

    def __init__(self, run: Assembly, first: int = 0) -> None:
        self.run, self.first = run, first
        nowhere = Path("no-run-folder")
        self._trainer = Trainer(run, nowhere, TrainState(first, run.settings.seed, 0, 0.0, 0.0, ()))
        self._quiet = Progress(None, quiet=True)
        self._counter = FlopCounter(run.model)
        self._loader = Loader(run.host_step, threads=run.settings.data.threads, start=first)
        self._batches: Iterator[tuple[int, Sequence[HostBatch]]] = iter(self._loader)

    def close(self) -> None:
        """Ends the threads."""
        self._loader.close()

    def next(self, phases: Phases) -> Work:
        """Takes the next step of the run."""
        with phases("data"):
            step, batches = next(self._batches)
        self.take(step, batches, phases)
        return self.work(batches)

    def take(self, step: int, batches: Sequence[HostBatch], phases: Phases) -> None:
        """Takes a step of given micro-batches.

        Raises:
            UserError: if they do not fit into memory; says what would.
        """
        self._trainer.phases = phases
        try:
            self._trainer.advance(step, batches, self._trainer.agree(batches, StopRequest()), None, self._quiet)
        except RuntimeError as error:
            if not is_exhausted(error):
                raise
            largest = max(batch.tokens for batch in batches)
        else:
            return
        # outside of the handler, whose traceback would keep the tensors of the failed step
        raise self._too_large(largest)

    def work(self, batches: Sequence[HostBatch]) -> Work:
        """Returns what a step of these micro-batches does."""
        positions = sum(batch.tokens for batch in batches)
        return Work(real_tokens(batches), positions, self._counter.of_batches(batches, self.run.mixture.members))

    # ---------------------------------------------------------------------------------------------------------- memory

    def small_batch(self, tokens: int, step: int | None = None) -> HostBatch:
        """Returns the first micro-batch of a step if only so many tokens (one sequence at least) were read at once."""
        run, step = self.run, self.first if step is None else step
        members = run.sampler.microbatches(
            step, rank=run.world.rank, world=run.world.size, tokens_per_microbatch=tokens
        )
        return run.mixture.prepare(run.maker.make(members[0], step), active=run.mixture.active(step))

    def batches(self) -> Sequence[HostBatch]:
        """Returns the micro-batches of the first step."""
        return self.run.host_step(self.first)

    def memory(self, batches: Sequence[HostBatch]) -> StepMemory:
        """Returns the memory of a step of these micro-batches."""
        run = self.run
        return measure(
            lambda phases: self.take(self.first, batches, phases), run.module, run.optimizer, run.world.device
        )

    def growth(self, largest: int) -> Growth:
        """Measures on two small micro-batches how memory beside weights and optimizer state grows with tokens.

        Args:
            largest: tokens of the micro-batch that is asked about.
        """
        small, larger = (self.small_batch(max(1, min(largest // part, most))) for part, most in (SMALL, LARGER))
        self.take(self.first, [small], Phases())  # the optimizer makes its state at the first step
        return Growth.through([(batch.tokens, self.memory([batch]).added) for batch in (small, larger)])

    def refuse_too_large(self, batches: Sequence[HostBatch]) -> Growth:
        """Returns how memory grows, if the largest micro-batch will fit.

        Where memory runs out is found out by trying on CUDA, but by the system's killing the process on a CPU.

        Raises:
            UserError: if it will not; says what will.
        """
        largest = max(batch.tokens for batch in batches)
        growth = self.growth(largest)
        free = available(self.run.world.device)
        if free is not None and growth.at(largest) > SPARE * free:
            raise _refusal(self.run, largest, growth, free)
        return growth

    def _too_large(self, largest: int) -> UserError:
        """Returns the error of a micro-batch that did not fit."""
        device, optimizer = self.run.world.device, self.run.optimizer
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        free = available(device)
        if free is None or largest <= max(1, self.small_batch(1).tokens):
            return UserError(f"{_needs(largest)} more memory than there is on {device}; {_ADVICE}")
        try:
            growth = self.growth(largest)
        except UserError:  # not even a fraction fits
            return UserError(f"{_needs(largest)} more memory than the {readable(free)} on {device}; {_ADVICE}")
        return _refusal(self.run, largest, growth, free)


def refuse_too_large_network(resolved: ResolvedRun, registry: Registry, device: torch.device) -> None:
    """Raises UserError if weights and gradients alone are more than there is, before the network is built."""
    free = available(device)
    if free is None:
        return
    tokenizer = make(resolved.tokenizer)
    ops = kernels.choose(resolved.settings.kernels, registry, device, torch.float32)
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_network(resolved, tokenizer, ops).parameters())
    except (NotImplementedError, RuntimeError):
        return  # one that computes while it is built: it is built, then
    if (least := 8 * parameters) > SPARE * free:
        raise UserError(
            f"architecture {resolved.architecture.component.name} of {parameters / 1e6:,.0f} million parameters needs "
            f"{readable(least)} for weights and gradients alone, and {device} has {readable(free)} left: choose a "
            "smaller size",
            exit_code=1,
        )


_ADVICE = "lower data.max_length, choose a smaller network, or set trainer.activation_checkpointing=true"


def _needs(largest: int) -> str:
    return f"a micro-batch of {largest:,} tokens needs"


def _refusal(run: Assembly, largest: int, growth: Growth, free: int) -> UserError:
    fits = growth.tokens(SPARE * free)
    need = f"about {readable(growth.at(largest))} beside weights and optimizer state, and {run.world.device} has"
    longest = max(totals.longest for totals in run.sampler.totals)
    if fits < longest:
        what = f"nor does the longest sequence or group ({longest:,} tokens) alone: {_ADVICE}"
    else:
        what = f"trainer.tokens_per_microbatch={fits} would fit"
    return UserError(f"{_needs(largest)} {need} {readable(free)} left: {what}", exit_code=1)
