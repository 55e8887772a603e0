"""What a token costs in longer sequences: equal tokens a step, in sequences of one length after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protloom.bench.rounds import Sample, measure, warm_up
from protloom.data.batches import BatchMaker
from protloom.data.sampler import Sampler
from protloom.stepper import Stepper, Work

if TYPE_CHECKING:
    from protloom.assembly import Assembly
    from protloom.bench.clock import Clock
    from protloom.data.layout import Store
    from protloom.phases import Phases

SHORTEST = 64
SEQUENCES = 256
"""Of the store that windows are taken from."""


@dataclass
class AtLength:
    """A variant that trains on sequences of one length."""

    name: str
    length: int
    stepper: Stepper

    def next(self, phases: Phases) -> Work:
        """Takes the next step."""
        return self.stepper.next(phases)


def lengths(run: Assembly) -> list[int]:
    """Returns 64, 128 … up to the longest sequence that the run keeps and its step holds."""
    specials = len(run.tokenizer.prefix) + len(run.tokenizer.suffix)
    settings = run.settings
    most = min(settings.data.max_length, settings.trainer.tokens_per_step - specials)
    least = max(1, *(m.objective.least_residues for m in run.mixture.members))
    doubled = [SHORTEST * 2**power for power in range(16)]
    return [n for n in doubled if least <= n <= most]


def at_length(run: Assembly, store: Store, length: int) -> Assembly:
    """Returns the run with other data: windows of one length; network and optimizer are shared."""
    settings, tokenizer = run.settings, run.tokenizer
    sampler = Sampler(
        [store],
        [1.0],
        tokens_per_step=settings.trainer.tokens_per_step,
        specials=len(tokenizer.prefix) + len(tokenizer.suffix),
        max_length=length,
        min_length=length,
        validation_fraction=0.0,
        seed=settings.seed,
    )
    maker = BatchMaker([store], tokenizer, max_length=length, seed=settings.seed)
    return replace(run, stores=[store], sampler=sampler, maker=maker)


def sweep(
    runs: Mapping[str, Assembly],
    store: Store,
    clock: Clock,
    *,
    first: int,
    rounds: int | None,
    until: float,
) -> dict[str, dict[int, Sequence[Sample]]]:
    """Measures variants over lengths, all in turns.

    Args:
        runs: by name.
        store: sequences at least as long as the longest that is measured.
        clock: tells the time.
        first: number of the first step.
        rounds: how many, or None: as many as fit.
        until: a time of the clock.

    Returns:
        For each variant its samples by length.
    """
    made = [
        AtLength(f"{name}\n{length}", length, Stepper(at_length(run, store, length), first))
        for name, run in runs.items()
        for length in lengths(run)
    ]
    try:
        steps, _ = warm_up(made, clock)
        samples = measure(made, clock, steps=steps, rounds=rounds, until=until)
    finally:
        for one in made:
            one.stepper.close()
    found: dict[str, dict[int, Sequence[Sample]]] = {name: {} for name in runs}
    for one in made:
        found[one.name.partition("\n")[0]][one.length] = samples[one.name]
    return found
