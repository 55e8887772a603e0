"""Measures what is asked for: builds the variants, checks them, lets them take turns, and returns all numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from protloom import weights
from protloom.assembly import assemble
from protloom.bench import against, clock, corpus, document, rounds, variants
from protloom.bench.against import Form, Theirs
from protloom.bench.measured import Measured, Ours
from protloom.bench.sweep import lengths, sweep
from protloom.bench.variants import Asked, Variant
from protloom.compare.foreign_load import LoadMeter
from protloom.distributed import World, join
from protloom.flops import matmul_peak
from protloom.stepper import Stepper, refuse_too_large_network

if TYPE_CHECKING:
    from protloom.bench.clock import Clock
    from protloom.contracts import Peer
    from protloom.plugins import Registry

CUDA_TOKENS = 16384
"""Of a step on a CUDA device where nothing says how many."""
DRAWN = 2000
"""Sequences that are drawn where no corpus is named."""


def bench(
    asked: Asked,
    registry: Registry,
    *,
    tell: Callable[[str], None] = lambda line: None,
    with_clock: Clock | None = None,
) -> dict[str, Any]:
    """Measures, and returns the document of :mod:`protloom.bench.document`.

    Args:
        asked: what the command line asks for.
        registry: finds components.
        tell: prints how far it is.
        with_clock: tells the time; by default the device's.

    Raises:
        UserError: if a variant is no valid run, does not fit into memory, or another program does not compute the same.
    """
    drawn = variants.drawn_needed(asked, registry)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="protloom-bench-")))
        fixed = corpus.parse_lengths(asked.lengths)
        store = corpus.draw(folder / "drawn", DRAWN, fixed).path if drawn else None
        tokens = CUDA_TOKENS if torch.cuda.is_available() else variants.TOKENS
        planned = variants.plan(asked, registry, corpus=store, tokens=tokens)
        peer = None
        if asked.against is not None:
            peer = against.peer_of(planned[0].resolved, asked.against, registry)
            planned = [replace(variant, name=f"protloom, {variant.name}") for variant in planned]
        world = join("none", planned[0].resolved.settings.trainer.device)
        at = max(o.mix.start_step for variant in planned for o in variant.resolved.objectives)
        ours = [_ours(variant, registry, world, at, stack) for variant in planned]
        found = Measured(ours, world)
        timing = with_clock or clock.of(world.device)
        begin = timing.now()
        if peer is not None:
            tell(f"comparing losses with {asked.against}, and looking for its best form")
            _add_theirs(found, peer, asked, registry, folder, store, tokens, timing, stack)
        if world.device.type != "cuda":
            for one in ours:
                started = timing.now()
                one.stepper.refuse_too_large(one.stepper.batches())
                found.first[one.name] = timing.now() - started
        _measure(found, asked, timing, begin, tell)
        if asked.sweep:
            _sweep(found, asked, folder, timing, tell)
        about = None if store is None else corpus.described(fixed)
        return document.build(asked, found, corpus=about)


def _ours(variant: Variant, registry: Registry, world: World, first: int, stack: ExitStack) -> Ours:
    settings = variant.resolved.settings
    refuse_too_large_network(variant.resolved, registry, world.device)
    run = assemble(variant.resolved, registry, world, initial=settings.init)
    stepper = Stepper(run, first)
    stack.callback(stepper.close)
    return Ours(variant.name, variant, run, stepper)


def _add_theirs(
    found: Measured,
    peer: Peer,
    asked: Asked,
    registry: Registry,
    folder: Path,
    store: Path | None,
    tokens: int,
    timing: Clock,
    stack: ExitStack,
) -> None:
    """Adds the other program as shipped and at its best, after both have computed the same loss."""
    first, program = found.ours[0], str(asked.against)
    plain = replace(
        asked, objectives=asked.objectives[:1], precisions=("fp32",), kernels=asked.kernels[:1], compiled=False
    )
    # in fp32 and not compiled, whatever is measured: the losses of both programs are to be the same
    resolved = variants.plan(plain, registry, corpus=store, tokens=tokens)[0].resolved
    judge = assemble(resolved, registry, found.world, initial=resolved.settings.init)
    chosen = resolved.architecture
    weights.save_pretrained(
        folder / "weights",
        component=chosen.component,
        config=chosen.config,
        state=judge.model.state_dict(),
        tokenizer=judge.tokenizer,
        tokenizer_component=resolved.tokenizer.component,
        tokenizer_config=resolved.tokenizer.config,
        layout="adapter",
    )
    at = first.stepper.first

    def make(form: Form, name: str = " at its best") -> Theirs:
        return Theirs(program, name, peer, form, folder / "weights", first.run, at)

    theirs = make(against.shipped(peer), ", as shipped")
    stack.callback(theirs.close)
    batches = judge.host_step(at)
    found.gate = against.check(judge, theirs, batches)
    best, found.tried = against.best_of(peer, found.world.device, make, batches, timing)
    stack.callback(best.close)
    found.theirs = (theirs, best)


def _measure(found: Measured, asked: Asked, timing: Clock, begin: float, tell: Callable[[str], None]) -> None:
    """Warms up, measures memory and the rounds."""
    runners = found.everyone
    tell(f"warming up {len(runners)} variant{'s' * (len(runners) > 1)}")
    found.steps, first = rounds.warm_up(runners, timing)
    found.first = {name: found.first.get(name, 0.0) + seconds for name, seconds in first.items()}
    for one in found.ours:
        found.memory[one.name] = one.memory()
    for other in found.theirs:
        found.memory[other.name] = other.memory(found.ours[0].stepper.batches())
    _note_peaks(found)
    tell("measuring in turns")
    load = LoadMeter()
    found.samples = rounds.measure(
        runners,
        timing,
        steps=found.steps,
        rounds=asked.rounds,
        until=begin + asked.seconds,
    )
    found.foreign = load.foreign_cores()
    _note_peaks(found)


def _note_peaks(found: Measured) -> None:
    """Measures what a matrix product can do in each precision that a variant uses."""
    used = {document.precision(one) for one in found.everyone}
    for name in sorted(used):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        found.peaks.setdefault(name, []).append(matmul_peak(found.world.device, dtype))


def _sweep(found: Measured, asked: Asked, folder: Path, timing: Clock, tell: Callable[[str], None]) -> None:
    runs = {one.name: one.run for one in found.ours}
    longest = max((length for run in runs.values() for length in lengths(run)), default=0)
    if not longest:
        return
    tell(f"measuring over lengths up to {longest}")
    store = corpus.draw(folder / "sweep", 256, longest)
    until = timing.now() + asked.seconds / 2
    found.sweep = sweep(runs, store, timing, first=found.ours[0].stepper.first, rounds=asked.rounds, until=until)
