"""Rounds: every variant takes the same steps in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from protloom.bench.clock import Clock, Timed
from protloom.phases import PARTS, Phases
from protloom.stepper import Work

WARM_UP = 2
"""Steps before the first round: the first compiles and allocates, the second tells how long one takes."""
LEAST, MOST = 3, 25
"""Rounds, whatever the time."""
SAMPLE = 0.25
"""Seconds that the fastest variant should take in a round: several steps of a fast one are timed together."""
STEPS = 50
OTHER = "other"


class Runner(Protocol):
    """A variant that can take steps, the same ones as the others in the same order."""

    name: str

    def next(self, phases: Phases) -> Work:
        """Takes the next step and says what it did."""


@dataclass(frozen=True)
class Sample:
    """One variant in one round.

    Attributes:
        seconds: of all its steps.
        parts: the same by part of a step; with ``other``, the rest, they add up to ``seconds``.
        work: of all its steps.
        steps: how many.
    """

    seconds: float
    parts: Mapping[str, float]
    work: Work
    steps: int


Samples = Mapping[str, Sequence[Sample]]
"""Name of a variant -> its rounds."""


def sample(runner: Runner, steps: int, clock: Clock) -> Sample:
    """Times some steps of a variant."""
    timed = Timed(clock)
    begin = clock.now()
    works = [runner.next(timed) for _ in range(steps)]
    seconds = clock.now() - begin
    taken = timed.taken()
    parts = {part: taken.get(part, 0.0) for part in PARTS}
    parts[OTHER] = max(0.0, seconds - sum(parts.values()))
    # the device's clock and the host's may differ by a little
    whole = sum(parts.values()) or 1.0
    parts = {part: seconds * share / whole for part, share in parts.items()}
    total = Work(sum(w.tokens for w in works), sum(w.positions for w in works), sum(w.flops for w in works))
    return Sample(seconds, parts, total, steps)


def warm_up(runners: Sequence[Runner], clock: Clock) -> tuple[int, dict[str, float]]:
    """Takes the first steps of every variant.

    Returns:
        How many steps one should take in a round, and how long the first of each variant took: it compiles.
    """
    taken = [{runner.name: sample(runner, 1, clock).seconds for runner in runners} for _ in range(WARM_UP)]
    fastest = max(min(taken[-1].values()), 1e-6)
    return min(STEPS, max(1, math.ceil(SAMPLE / fastest))), taken[0]


def measure(
    runners: Sequence[Runner],
    clock: Clock,
    *,
    steps: int,
    rounds: int | None,
    until: float,
) -> Samples:
    """Measures variants in turns.

    Args:
        runners: the variants; another one begins each round.
        clock: tells the time.
        steps: of each variant in a round.
        rounds: how many; None: as many as end before ``until``, :data:`LEAST` at least and :data:`MOST` at most.
        until: a time of the clock.
    """
    samples: dict[str, list[Sample]] = {runner.name: [] for runner in runners}

    def again(done: int, now: float, longest: float) -> bool:
        if rounds is not None:
            return done < rounds
        return done < LEAST or (done < MOST and now + longest <= until)

    done, now, longest = 0, clock.now(), 0.0
    while again(done, now, longest):
        at = done % len(runners)
        for runner in (*runners[at:], *runners[:at]):
            samples[runner.name].append(sample(runner, steps, clock))
        done, before, now = done + 1, now, clock.now()
        longest = max(longest, now - before)
    return samples
