"""Starts and resumes runs: the run folder, what may change between two sittings, and what must not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protloom import budget, checkpoint, config, kernels
from protloom.assembly import Assembly, assemble
from protloom.budget import Amount, Spent
from protloom.checkpoint import TrainState
from protloom.distributed import World, join
from protloom.errors import UserError
from protloom.metrics import say
from protloom.phases import Phases
from protloom.profiling import Profiled
from protloom.run import changes as run_changes
from protloom.run import folder as run_folder
from protloom.trainer import Trainer

if TYPE_CHECKING:
    from protloom.config import ResolvedRun
    from protloom.plugins import Registry


@dataclass(frozen=True)
class Finished:
    """How a sitting ended.

    Attributes:
        run_dir: the run folder.
        state: the counters.
        complete: the run has reached its end.
        main: True on the process that prints.
    """

    run_dir: Path
    state: TrainState
    complete: bool
    main: bool


def start(resolved: ResolvedRun, registry: Registry, *, pause: Amount | None = None, profile: bool = False) -> Finished:
    """Trains a new run.

    Args:
        resolved: the validated run file.
        registry: the installed components.
        pause: save and return once so much is done; ``resume`` goes on.
        profile: write a profile of a few steps into the run folder.
    """
    trainer = resolved.settings.trainer
    run_folder.stated(resolved)
    world = join(trainer.parallel, trainer.device)
    try:
        run = assemble(resolved, registry, world, initial=resolved.settings.init)
        # the main process names the folder: the clocks of the others may already show another second
        run_dir = Path(world.from_main(str(run_folder.claim(resolved)) if world.main else ""))
        with run_folder.held(run_dir) if world.main else nullcontext():
            if world.main:
                run_folder.write_config(run_dir, resolved)
            world.barrier()
            state = TrainState(0, resolved.settings.seed, 0, 0.0, 0.0, tuple(s.content_hash for s in run.stores))
            return _train(run, run_dir, state, pause, profile=profile)
    finally:
        world.close()


def resume(run_dir: Path, overrides: Sequence[str], registry: Registry, *, pause: Amount | None = None) -> Finished:
    """Goes on with a run from its newest checkpoint, or from the beginning if it has none yet.

    Args:
        run_dir: the run folder.
        overrides: changed options, such as ``trainer.steps=2000``.
        registry: the installed components.
        pause: save and return once so much is done.

    Raises:
        UserError: if there is no run, another process trains it, a checkpoint is damaged, or the corpus or the seed is
            another one.
    """
    run_folder.refuse_if_none(run_dir, overrides)
    with run_folder.held(run_dir) if os.environ.get("RANK", "0") == "0" else nullcontext():
        return _resume(run_dir, overrides, registry, pause)


def _resume(run_dir: Path, overrides: Sequence[str], registry: Registry, pause: Amount | None) -> Finished:
    resolved = config.load(run_dir / run_folder.CONFIG, list(overrides), registry)
    trainer = resolved.settings.trainer
    folder = checkpoint.latest(run_dir)
    saved = None if folder is None else checkpoint.read_state(folder)
    checkpoint.best(run_dir)  # a damaged note is told before anything is changed
    changes = [] if saved is None or folder is None else run_changes.since(folder, saved.step, resolved)
    if saved is not None:
        complete = budget.ended(trainer, _spent(saved))
        if complete or (pause is not None and pause.reached(_spent(saved))):
            return Finished(run_dir, saved, complete, main=os.environ.get("RANK", "0") == "0")
    world = join(trainer.parallel, trainer.device)
    try:
        initial = resolved.settings.init if folder is None else folder / "model"
        run = assemble(resolved, registry, world, initial=initial)
        hashes = tuple(store.content_hash for store in run.stores)
        if saved is not None:
            _check_corpora(saved, run, hashes)
            assert folder is not None
            checkpoint.load_training(folder, objectives=run.module.objectives, optimizer=run.optimizer)
        if world.main:
            run_folder.write_config(run_dir, resolved)
            for line in changes:
                say(f"changed  {line}")
            if saved is None:
                say("note     there is no checkpoint yet: the run begins again at step 0")
        world.barrier()
        state = saved or TrainState(0, resolved.settings.seed, 0, 0.0, 0.0, hashes)
        return _train(run, run_dir, state, pause)
    finally:
        world.close()


def _spent(state: TrainState) -> Spent:
    return Spent(state.step, state.seconds, state.tokens, state.flops)


def _train(run: Assembly, run_dir: Path, state: TrainState, pause: Amount | None, *, profile: bool = False) -> Finished:
    if run.world.main:
        run_folder.write_kernels(run_dir, kernels.record(run.ops))
        say(headline(run, run_dir, state))
        if reason := run.why_native():
            say(f"note     weights are written under protloom's own names, which other programs do not read: {reason}")
    phases = Phases()
    if profile and run.world.main:
        phases = Profiled(
            run_dir / "profile",
            ". ".join(" ".join(line.split()) for line in headline(run, run_dir, state).splitlines()[1:]),
            run.settings.trainer.steps - state.step,
            run.world.device,
        )
    final = Trainer(run, run_dir, state, pause, phases).train()
    if isinstance(phases, Profiled):
        say(f"profile  {phases.written or 'none: the run ended before the first step to be profiled was whole'}")
    return Finished(run_dir, final, budget.ended(run.settings.trainer, _spent(final)), run.world.main)


def _check_corpora(saved: TrainState, run: Assembly, hashes: tuple[str, ...]) -> None:
    if len(hashes) != len(saved.corpora):
        raise UserError(f"the run was trained on {len(saved.corpora)} corpora, not {len(hashes)}: restore data.corpus")
    for store, old, new in zip(run.stores, saved.corpora, hashes, strict=True):
        if old != new:
            raise UserError(
                f"corpus {store.name} is not the one that the run was trained on (content {new[:12]}…, was "
                f"{old[:12]}…): restore it, or start a new run with --init from this one"
            )


def headline(run: Assembly, run_dir: Path, state: TrainState) -> str:
    """Describes a run in a few lines, before its first step."""
    parameters = sum(p.numel() for p in run.model.parameters())
    name = run.resolved.architecture.component.name
    objectives = " + ".join(m.alias for m in run.mixture.members)
    corpora = "\n         ".join(_corpus_line(run, number) for number in range(len(run.stores)))
    kernel_lines = "\n         ".join(kernels.told(run.ops))
    world: World = run.world
    where = f"{world.device}" + (f" × {world.size} ({world.parallel})" if world.size > 1 else "")
    begin = f"from step {state.step} " if state.step else ""
    return "\n".join(
        [
            f"run      {run_dir}",
            f"network  {name}, {_readable(parameters)} parameters; objective {objectives}",
            f"corpus   {corpora}",
            f"training {begin}{_length(run)}; {where}, "
            f"{'bf16' if run.precision is not None else 'fp32'}"
            + (", compiled" if run.resolved.settings.trainer.compile else ""),
            f"kernels  {kernel_lines}",
        ]
    )


def _length(run: Assembly) -> str:
    """Tells how long the run is, and how often that shows every sequence."""
    trainer, epoch = run.settings.trainer, run.sampler.tokens_per_epoch
    each = f"{trainer.tokens_per_step:,} tokens a step"
    limits = budget.limits(trainer)
    if limits:
        steps = f"to step {trainer.steps:,} or " if trainer.steps < budget.ENDLESS else ""
        return f"{steps}for {' or '.join(f'{limit.number:,.6g} {limit.unit}' for limit in limits)}, {each}"
    epochs = trainer.steps * trainer.tokens_per_step / epoch
    many = (
        f": every sequence is seen {epochs:,.0f} times, a small network may learn them by heart" if epochs > 50 else ""
    )
    return f"to step {trainer.steps}, {each} ({epochs:.2f} epochs{many})"


def _corpus_line(run: Assembly, number: int) -> str:
    store, totals = run.stores[number], run.sampler.totals[number]
    simulated = "SIMULATED, " if store.manifest["simulated"] else ""
    text = f"{store.name} ({simulated}{totals.sequences:,} sequences, {totals.tokens:,} tokens"
    text += f"; {totals.held_out:,} held out"
    text += f", {totals.short:,} too short" if totals.short else ""
    rules = store.manifest["policies"]["rules"].values()
    cleaned = [f"{counted['records']:,} × {counted['rule']}" for counted in rules if counted["records"]]
    return text + ")" + "".join(f"\n         cleaned: {line}" for line in cleaned)


def _readable(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
