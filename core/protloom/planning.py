"""``protloom plan``: what a run will take, from some of its steps taken now; only the corpus' store is written."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import budget, machine, training_state
from protloom.assembly import Assembly, assemble
from protloom.bench import clock
from protloom.bench.clock import Timed
from protloom.compare.foreign_load import LoadMeter
from protloom.distributed import join
from protloom.memory import Growth, StepMemory, available, facts, nbytes
from protloom.metrics import peak_memory
from protloom.phases import Phases
from protloom.stepper import SMALL, Stepper, refuse_too_large_network

if TYPE_CHECKING:
    from protloom.bench.clock import Clock
    from protloom.config import ResolvedRun
    from protloom.mixture import HostBatch
    from protloom.plugins import Registry

FORMAT, VERSION = "protloom-plan", 1
LEAST = 3
"""Probe steps whatever the time, after one to warm up."""
MICROBATCHES = 4
"""Of a probe step at most; a step with more is reckoned from them."""
PATIENCE = 0.25
"""Share of the time for all probes that one micro-batch may take; else smaller ones are read."""
BESIDE = 2
"""Checkpoints beside those of ``trainer.keep_last``: the best one, and one that is being written."""


@dataclass(frozen=True)
class Probe:
    """One step that was taken, reckoned for all its micro-batches.

    Attributes:
        seconds: that the whole step takes.
        forward: of these, those of forward passes.
        tokens: that it reads.
        flops: of the model.
    """

    seconds: float
    forward: float
    tokens: int
    flops: float


def plan(
    resolved: ResolvedRun,
    registry: Registry,
    *,
    steps: int,
    seconds: float,
    with_clock: Clock | None = None,
) -> dict[str, Any]:
    """Takes probe steps of a run and returns what the whole of it will take, as plain values.

    Args:
        resolved: the validated run.
        registry: finds components.
        steps: probe steps at most.
        seconds: that they may take; :data:`LEAST` are taken in any case.
        with_clock: tells the time; by default the device's.

    Raises:
        UserError: if the network or a micro-batch does not fit into memory; says what would.
    """
    parallel = resolved.settings.trainer.parallel
    alone = _alone(resolved)
    world = join("none", alone.settings.trainer.device)
    refuse_too_large_network(alone, registry, world.device)
    free = available(world.device)
    run = assemble(alone, registry, world, initial=alone.settings.init)
    starts = max(member.mix.start_step for member in run.mixture.members)
    with closing(Stepper(run, min(starts, alone.settings.trainer.steps - 1))) as stepper:
        timing = with_clock or clock.of(world.device)
        memory, cut = _memory(stepper, timing, PATIENCE * seconds)
        load = LoadMeter()
        probes = _probes(stepper, timing, steps, seconds, cut)
        foreign = load.foreign_cores()
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "machine": machine.describe(world.device),
        "foreign_cores": foreign,
        "network": {
            "architecture": alone.architecture.component.name,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "objectives": [member.alias for member in run.mixture.members],
            "precision": "fp32" if run.precision is None else "bf16",
        },
        "probe": _speed(probes),
        "run": _whole(run, probes),
        "memory": {
            **facts(memory),
            "estimated": cut is not None,
            "process_peak_bytes": round(peak_memory() * 2**20),
            "free_bytes": free,
        },
        "disk": _disk(run),
        "parallel": parallel,
    }
    return document


def _alone(resolved: ResolvedRun) -> ResolvedRun:
    """Returns the run as one process trains it."""
    settings = resolved.settings
    trainer = settings.trainer.model_copy(update={"parallel": "none"})
    return replace(resolved, settings=settings.model_copy(update={"trainer": trainer}))


def _memory(stepper: Stepper, timing: Clock, most: float) -> tuple[StepMemory, int | None]:
    """Returns the memory of the largest micro-batch of a step, and how many tokens probes may read at once.

    Args:
        stepper: of the run.
        timing: tells the time.
        most: seconds that a micro-batch may take. If it takes longer its memory is reckoned from smaller ones, and
            these are what probes read; None: they read whole ones.
    """
    batches = stepper.batches()
    largest = max(batches, key=lambda batch: batch.tokens)
    growth: Growth | None = None
    if stepper.run.world.device.type != "cuda":
        growth = stepper.refuse_too_large(batches)  # there the system would end this process
    small = stepper.small_batch(max(1, largest.tokens // SMALL[0]))
    stepper.take(stepper.first, [small], Phases())  # the optimizer makes its state at the first step
    begin = timing.now()
    stepper.take(stepper.first, [small], Phases())
    each = (timing.now() - begin) / max(1, small.tokens)
    if each * largest.tokens <= most:
        return stepper.memory([largest]), None
    cut = max(small.tokens, int(most / max(each, 1e-12)))
    held = stepper.memory([small])
    growth = growth or stepper.growth(largest.tokens)
    more = growth.at(largest.tokens) - held.added
    return replace(held, activations=held.activations + more, peak=held.peak + more), cut


def _probes(stepper: Stepper, timing: Clock, steps: int, seconds: float, cut: int | None) -> list[Probe]:
    """Takes probe steps; batches are made before, as the trainer's threads do."""
    last = stepper.run.settings.trainer.steps - 1
    begin, probes = timing.now(), list[Probe]()
    while len(probes) < LEAST or (len(probes) < steps and timing.now() - begin < seconds):
        step = min(stepper.first + len(probes), last)
        whole = stepper.run.host_step(step)
        some = whole[:MICROBATCHES] if cut is None else [stepper.small_batch(cut, step)]
        probes.append(_probe(stepper, step, whole, some, timing))
    return probes


def _probe(stepper: Stepper, step: int, whole: Sequence[HostBatch], some: Sequence[HostBatch], timing: Clock) -> Probe:
    """Takes some micro-batches of a step, and reckons what the whole step takes."""
    timed = Timed(timing)
    begin = timing.now()
    stepper.take(step, some, timed)
    seconds = timing.now() - begin
    parts = timed.taken()
    each = sum(parts.get(part, 0.0) for part in ("data", "forward", "backward"))
    work, done = stepper.work(whole), stepper.work(some)
    more = work.tokens / max(1, done.tokens)  # what grows with tokens; the optimizer's part does not
    return Probe(seconds + each * (more - 1), parts.get("forward", 0.0) * more, work.tokens, work.flops)


def _speed(probes: Sequence[Probe]) -> dict[str, Any]:
    seconds = [probe.seconds for probe in probes]
    return {
        "steps": len(probes),
        "step_seconds": statistics.median(seconds),
        "step_seconds_range": [min(seconds), max(seconds)],
        "tokens_per_step": statistics.fmean(probe.tokens for probe in probes),
        "tokens_per_second": statistics.median(probe.tokens / probe.seconds for probe in probes),
        "flops_per_step": statistics.fmean(probe.flops for probe in probes),
    }


def _whole(run: Assembly, probes: Sequence[Probe]) -> dict[str, Any]:
    """Returns how far the run goes: whichever limit is reached first."""
    trainer, speed = run.settings.trainer, _speed(probes)
    a_step = {"seconds": speed["step_seconds"], "tokens": speed["tokens_per_step"], "flops": speed["flops_per_step"]}
    ends = {"steps": trainer.steps}
    ends |= {limit.unit: math.ceil(limit.number / a_step[limit.unit]) for limit in budget.limits(trainer)}
    unit = min(ends, key=lambda name: ends[name])
    steps = max(1, min(ends.values()))
    gap = trainer.validate_every or budget.usual_gap(trainer.steps)
    validations = 1 + steps // gap if run.validator is not None else 0
    # a validation is forward passes, one for each objective
    forward = sum(probe.forward for probe in probes) / max(1, sum(probe.tokens for probe in probes))
    validation = forward * trainer.validation_tokens * len(run.mixture.members)
    return {
        "ends_by": unit,
        "steps": steps,
        "seconds": steps * a_step["seconds"],
        "tokens": steps * a_step["tokens"],
        "flops": steps * a_step["flops"],
        "epochs": run.sampler.epoch_at(steps),
        "validations": validations,
        "validation_seconds": validations * validation,
    }


def _disk(run: Assembly) -> dict[str, Any]:
    """Returns the size of a checkpoint, how many there are at most at a time, and the room where they would lie."""
    tensors = [*run.model.state_dict().values()]
    tensors += training_state.collect(run.module.objectives, run.optimizer).values()
    named = Path(run.settings.out or ".").expanduser().absolute()
    there = next(parent for parent in (named, *named.parents) if parent.is_dir())
    kept = run.settings.trainer.keep_last + BESIDE
    each = nbytes(tensor for tensor in tensors)
    return {
        "checkpoint_bytes": each,
        "checkpoints": kept,
        "bytes": kept * each,
        "free_bytes": shutil.disk_usage(there).free,
    }


# ----------------------------------------------------------------------------------------------------------- in words


def cautions(found: dict[str, Any]) -> list[str]:
    """Returns what may go wrong, or makes the numbers doubtful."""
    told = []
    memory, disk = found["memory"], found["disk"]
    if disk["bytes"] > disk["free_bytes"]:
        told.append("checkpoints need more room than there is: lower trainer.keep_last, or choose another --out")
    if memory["free_bytes"] is not None and memory["peak_bytes"] > 0.8 * memory["free_bytes"]:
        told.append("memory is nearly full: lower trainer.tokens_per_microbatch")
    if found["run"]["epochs"] > 50:
        told.append("every sequence is seen more than 50 times: a small network may learn them by heart")
    if found["foreign_cores"] is not None and found["foreign_cores"] > 0.1:
        busy, cores = found["foreign_cores"], found["machine"]["cores"]
        told.append(f"other programs kept {busy:.1f} of {cores} cores busy meanwhile: the run is faster without them")
    if found["parallel"] != "none":
        told.append(f"probed on one process: with trainer.parallel={found['parallel']} processes share each step")
    return told
