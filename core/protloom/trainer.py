"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from protloom import budget, checkpoint, collapse, schedules
from protloom.budget import Amount, Spent
from protloom.checkpoint import TrainState
from protloom.contracts import StepContext
from protloom.data.loader import Loader
from protloom.errors import UserError, did_you_mean
from protloom.flops import FlopCounter, matmul_peak, real_tokens
from protloom.metrics import MetricLog, Progress
from protloom.phases import Phases
from protloom.rng import CounterRNG
from protloom.run.log import Stepped, Window, describe, step_line
from protloom.step import DeviceShare, first_bad_module, to_device
from protloom.stopping import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from protloom.assembly import Assembly
    from protloom.mixture import HostBatch, TermKey


@dataclass
class Agreed:
    """What all processes agree on before a step.

    Attributes:
        divisors: count of every term over micro-batches and processes.
        share: of the run that is behind.
        end: why no further step is done: ``budget``, ``pause`` or ``signal``; None to go on.
    """

    divisors: Mapping[TermKey, float]
    share: float
    end: str | None


@dataclass
class Trainer:
    """Trains an assembled run from its state to its last step.

    Attributes:
        run: network, objectives, optimizer, data: see :mod:`protloom.assembly`.
        run_dir: the run folder.
        state: where to start; replaced as the run goes on.
        pause: end this sitting, not the run, once so much is done.
        phases: told of the parts of each step.
    """

    run: Assembly
    run_dir: Path
    state: TrainState
    pause: Amount | None = None
    phases: Phases = field(default_factory=Phases)
    _window: Window = field(default_factory=Window)
    _bad_in_a_row: int = 0
    _saved: int = -1
    _collapsed: bool = False

    def __post_init__(self) -> None:
        self._flops = FlopCounter(self.run.model)
        self._rng = CounterRNG(self.run.settings.seed, "step")
        self._peak = 1.0

    def train(self) -> TrainState:
        """Runs until the last step, or until a signal asks to stop; returns the final counters.

        Raises:
            UserError: after ``trainer.nonfinite_limit`` non-finite steps in a row, naming where they come from.
        """
        run, config = self.run, self.run.settings.trainer
        self._peak = matmul_peak(run.world.device, run.precision or torch.float32) if run.world.main else 1.0
        self._saved = self.state.step
        first = self.state.step
        if first:
            self._retain()  # a kill may have come between writing the checkpoint and this
        log = self._open_log()
        open_ended = bool(budget.limits(config))
        progress = Progress(
            None if open_ended else config.steps, done=first, share=self._share(), quiet=not run.world.main
        )
        loader = Loader(run.host_step, threads=run.settings.data.threads, start=first, stop=config.steps)
        try:
            with loader, stop_on_signals(quiet=not run.world.main) as stop:
                if first == 0:
                    self._validate(log, progress)
                for step, batches in self.phases.waiting("data", loader):
                    agreed = self.agree(batches, stop)
                    if agreed.end is not None:
                        self._stop(agreed.end, log, progress)
                        break
                    self.advance(step, batches, agreed, log, progress)
                    progress.advance(self.state.step, self._share())
                    usual = budget.usual_gap(config.steps)
                    if self._due(config.validate_every or usual):
                        self._validate(log, progress)
                    if self._due(config.checkpoint_every or usual):
                        self._save()
        finally:
            progress.close()
            if log is not None:
                log.close()
        return self.state

    # -------------------------------------------------------------------------------------------------- one step

    def agree(self, batches: Sequence[HostBatch], stop: StopRequest) -> Agreed:
        """Adds the counts of every micro-batch and rank, and lets all ranks agree on the time and whether to stop."""
        run = self.run
        keys = sorted({key for batch in batches for key in batch.counts})
        numbers = [float(sum(batch.counts.get(key, 0) for batch in batches)) for key in keys]
        # clocks differ: that of the main process counts
        ended = budget.ended(run.settings.trainer, self.spent())
        paused = self.pause is not None and self.pause.reached(self.spent())
        clock = [float(ended), float(paused), self._share()] if run.world.main else [0.0, 0.0, 0.0]
        *totals, over, pausing, share, asked = run.world.sum_numbers([*numbers, *clock, float(stop.name is not None)])
        reasons = {"budget": over > 0, "pause": pausing > 0, "signal": asked > 0}
        end = next((name for name, holds in reasons.items() if holds), None)
        return Agreed(dict(zip(keys, totals, strict=True)), share, end)

    def _stop(self, reason: str, log: MetricLog | None, progress: Progress) -> None:
        """Ends the sitting before the next step: validates if the run is over, and saves."""
        if reason == "budget" and self.state.validated != self.state.step:
            self._validate(log, progress)
        warmup = self.run.settings.schedule.warmup_steps
        if reason == "budget" and self.state.step < warmup:
            progress.note(
                f"warning: the run ended within its warm-up ({self.state.step} of {warmup} steps): the learning rate "
                "never reached its peak; lower schedule.warmup_steps, or train for longer"
            )
        self._save()
        if reason != "budget":
            word = "paused" if reason == "pause" else "stopped"
            progress.note(f"{word} after step {self.state.step}: go on with  protloom resume {self.run_dir}")

    def spent(self) -> Spent:
        """Returns what the run has used so far, the steps since the last logged line included."""
        state, window = self.state, self._window
        return Spent(state.step, state.seconds + window.seconds, state.tokens, state.flops + window.flops)

    def _share(self) -> float:
        return budget.share(self.run.settings.trainer, self.spent())

    def advance(
        self,
        step: int,
        batches: Sequence[HostBatch],
        agreed: Agreed,
        log: MetricLog | None,
        progress: Progress,
    ) -> None:
        """Does one optimizer step of these micro-batches, and counts and logs it."""
        run, config, divisors = self.run, self.run.settings.trainer, agreed.divisors
        begin = time.perf_counter()
        weights = run.mixture.of_means(run.mixture.weights(step), divisors)
        share = agreed.share if budget.limits(config) else None
        rate = run.peak_rate * schedules.factor(run.settings.schedule, step, config.steps, share=share)
        stepped = self._optimize(step, batches, weights, divisors, rate)
        tokens = self._count(batches, divisors)
        self._window.seconds += time.perf_counter() - begin
        self.state = replace(
            self.state,
            step=step + 1,
            tokens=self.state.tokens + tokens,
            skipped=self.state.skipped + (not stepped.finite),
        )
        if self._due(config.log_every) or not stepped.finite:
            record = self._record(stepped, weights, divisors, rate)
            if log is not None:
                log.write(record)
                progress.update(self.state.step, cast(Any, record), self._share())
                self._watch(record, progress)
        self._guard(stepped, step, batches, weights, divisors, progress)

    def _optimize(
        self,
        step: int,
        batches: Sequence[HostBatch],
        weights: Mapping[TermKey, float],
        divisors: Mapping[TermKey, float],
        rate: float,
    ) -> Stepped:
        """Accumulates gradients over the micro-batches and moves the parameters, unless a number is not finite."""
        run = self.run
        totals: dict[TermKey, Tensor] = {}
        metrics: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        for group in run.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        run.optimizer.zero_grad(set_to_none=True)
        # dropout is a function of (seed, step, rank) too, so that a resumed run draws the same
        torch.manual_seed(self._rng.stream("torch").draw(step, run.world.rank))
        logging = self._due(run.settings.trainer.log_every, ahead=1)
        for number, batch in enumerate(batches):
            ctx = StepContext(step, self._rng.stream(step, number), run.world.all_sum, run.world.all_gather, logging)
            with self._synchronised(last=number == len(batches) - 1):
                with self.phases("data"):
                    shares = to_device(batch, run.world.device)
                with self.phases("forward"):
                    output = run.wrapped(shares, weights, divisors, ctx)
                with self.phases("backward"):
                    output.loss.backward()
            for key, total in output.totals.items():
                totals[key] = totals.get(key, torch.zeros_like(total)) + total
            for name, metric in output.metrics.items():
                total, count = (_on(x, run.world.device) for x in (metric.total, metric.count))
                before = metrics.get(name, (torch.zeros_like(total), torch.zeros_like(count)))
                metrics[name] = (before[0] + total.detach(), before[1] + count.detach())
        with self.phases("optimizer"):
            limit = run.settings.trainer.clip_norm
            norm = run.ops.clip_grad_norm(run.trainable(), math.inf if limit is None else limit)
            # the one point where the host waits for the device: whether to step must be known
            healthy = torch.isfinite(torch.stack([norm, *totals.values()])).all()
            finite = bool(run.world.everywhere(healthy))
            if finite:
                run.optimizer.step()
                for name, metric in run.module.after_step(step).items():
                    total, count = (_on(x, run.world.device) for x in (metric.total, metric.count))
                    metrics[name] = (total.detach(), count)
        return Stepped(totals, metrics, norm, finite)

    @contextmanager
    def _synchronised(self, *, last: bool) -> Iterator[None]:
        """Lets DDP and FSDP2 reduce gradients in the last micro-batch only."""
        wrapped: Any = self.run.wrapped
        parallel = self.run.world.parallel
        if parallel == "fsdp2":
            wrapped.set_requires_gradient_sync(last)
        with wrapped.no_sync() if parallel == "ddp" and not last else nullcontext():
            yield

    def _count(self, batches: Sequence[HostBatch], divisors: Mapping[TermKey, float]) -> int:
        """Adds tokens and FLOPs of a step, on all ranks together (estimated from this rank's share of the lengths)."""
        run = self.run
        flops = self._flops.of_batches(batches, run.mixture.members)
        numbers = [float(sum(b.tokens for b in batches)), float(real_tokens(batches)), flops]
        tokens, real, flops = self.run.world.sum_numbers(numbers)
        self._window.tokens += int(tokens)
        self._window.real += int(real)
        self._window.flops += flops
        return int(tokens)

    def _guard(
        self,
        stepped: Stepped,
        step: int,
        batches: Sequence[HostBatch],
        weights: Mapping[TermKey, float],
        divisors: Mapping[TermKey, float],
        progress: Progress,
    ) -> None:
        """Counts skipped steps, names the culprit, and ends a run that cannot recover."""
        if stepped.finite:
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        run, limit = self.run, self.run.settings.trainer.nonfinite_limit
        where = "a sharded network"
        if run.world.parallel != "fsdp2":
            ctx = StepContext(step, self._rng.stream(step, 0), _alone, _alone)
            where = next(filter(None, (self._culprit(b, weights, divisors, ctx) for b in batches)), "a gradient")
        progress.note(f"step {step + 1} skipped: not finite, first in {where} ({self._bad_in_a_row} in a row)")
        if self._bad_in_a_row >= limit:
            saved = checkpoint.latest(self.run_dir)
            advice = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
            raise UserError(
                f"training stopped at step {step + 1}: not finite {limit} times in a row, first in {where}; "
                f"{advice}. Lower optimizer.lr, lengthen schedule.warmup_steps or train with trainer.precision=fp32",
                exit_code=1,
            )

    def _culprit(self, batch: HostBatch, weights: Any, divisors: Any, ctx: StepContext) -> str:
        shares: tuple[DeviceShare, ...] = to_device(batch, self.run.world.device)
        return first_bad_module(self.run.module, shares, weights, divisors, ctx)

    # ------------------------------------------------------------------------------------ logging and saving

    def _due(self, every: int, *, ahead: int = 0) -> bool:
        """True after every ``every``-th step and after the last; ``ahead`` steps from now."""
        step = self.state.step + ahead
        return step % every == 0 or step == self.run.settings.trainer.steps

    def _open_log(self) -> MetricLog | None:
        if not self.run.world.main:
            return None
        return MetricLog(
            self.run_dir,
            step=self.state.step,
            tensorboard=self.run.settings.trainer.tensorboard,
            callbacks=self.run.callbacks(self.run_dir),
        )

    def _record(
        self,
        stepped: Stepped,
        weights: Mapping[TermKey, float],
        divisors: Mapping[TermKey, float],
        rate: float,
    ) -> dict[str, float | int]:
        """Makes the line of ``metrics.jsonl`` for the step just done, and begins a new window; a call of all ranks."""
        self._account()
        record = step_line(self.run, self.state, stepped, weights, divisors, self._window)
        self._window = Window()
        mfu = record["flops_per_second"] / (self._peak * self.run.world.size)
        return record | {"learning_rate": rate, "mfu": mfu}

    def _watch(self, record: Mapping[str, float | int], progress: Progress) -> None:
        """Warns of collapsed latent states, when it begins and not at every line."""
        told = collapse.warnings(record)
        for line in told if not self._collapsed else ():
            progress.note(f"warning: step {self.state.step}: {line}")
        self._collapsed = bool(told)

    def _account(self) -> None:
        """Moves the window's time and FLOPs into the state."""
        self.state = replace(
            self.state,
            seconds=self.state.seconds + self._window.seconds,
            flops=self.state.flops + self._window.flops,
        )

    def _validate(self, log: MetricLog | None, progress: Progress) -> None:
        run = self.run
        if run.validator is None:
            return
        # every term counts, also one that starts later
        results = run.validator.run(run.wrapped, run.mixture.final_weights())
        wanted = run.settings.trainer.best_metric
        if wanted not in results:
            raise UserError(
                f"trainer.best_metric: a validation has no metric {wanted!r}.{did_you_mean(wanted, results)}"
            )
        self.state = replace(self.state, validation=results, validated=self.state.step)
        if log is not None:
            log.write({"step": self.state.step, "loss": results["validation/loss"], **results})
            progress.note(f"validation after step {self.state.step}: {describe(results)}")

    def _save(self) -> None:
        if self._saved == self.state.step:
            return
        run = self.run
        if self._window.seconds:
            self._account()
            self._window = Window()
        checkpoint.save(
            self.run_dir,
            self.state,
            write_model=run.write_model,
            model=run.model,
            objectives=run.module.objectives,
            optimizer=run.optimizer,
            world=run.world,
        )
        self._saved = self.state.step
        self._retain()

    def _retain(self) -> None:
        """Notes whether the checkpoint just written is the best one, and removes what need not be kept."""
        state, config = self.state, self.run.settings.trainer
        if not self.run.world.main:
            return
        # a metric of earlier weights says nothing of these
        value = state.validation.get(config.best_metric) if state.validated == state.step else None
        if value is not None and math.isfinite(value):
            checkpoint.note_best(self.run_dir, state.step, config.best_metric, value)
        checkpoint.prune(self.run_dir, config.keep_last)


def _alone(x: Tensor) -> Tensor:
    return x


def _on(x: Tensor | float, device: torch.device) -> Tensor:
    """Returns a number as a tensor of the device, written there: for a copy the host would wait."""
    return x.to(device) if isinstance(x, Tensor) else torch.full((), x, device=device)
