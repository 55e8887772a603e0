"""What a measurement holds: the variants, and the numbers that were taken of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protloom.assembly import Assembly
from protloom.bench.against import Gate, Theirs
from protloom.bench.rounds import Sample, Samples
from protloom.bench.variants import Variant
from protloom.distributed import World
from protloom.memory import StepMemory
from protloom.phases import Phases
from protloom.stepper import Stepper, Work


@dataclass
class Ours:
    """A variant that protloom trains."""

    name: str
    variant: Variant
    run: Assembly
    stepper: Stepper

    def next(self, phases: Phases) -> Work:
        """Takes the next step."""
        return self.stepper.next(phases)

    def memory(self) -> StepMemory:
        """Returns the memory of the first step."""
        return self.stepper.memory(self.stepper.batches())


@dataclass
class Measured:
    """Everything that was measured.

    Attributes:
        ours: protloom's variants.
        theirs: those of another program.
        world: where.
        steps: of each variant in a round.
        samples: of each variant.
        first: seconds of each variant's first steps, in which it compiles and allocates.
        memory: of each variant.
        peaks: FLOP/s of a large matrix product by precision, before and after the rounds.
        foreign: cores that others kept busy during the rounds, None if unknown.
        gate: losses of both programs on one batch.
        tried: seconds of the forms among which the other program's best was looked for.
        sweep: samples of each variant by length.
    """

    ours: Sequence[Ours]
    world: World
    theirs: Sequence[Theirs] = ()
    steps: int = 1
    samples: Samples = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    memory: dict[str, StepMemory] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)
    foreign: float | None = None
    gate: Gate | None = None
    tried: dict[str, float] = field(default_factory=dict)
    sweep: dict[str, dict[int, Sequence[Sample]]] = field(default_factory=dict)

    @property
    def everyone(self) -> list[Ours | Theirs]:
        """All variants, ours first."""
        return [*self.ours, *self.theirs]
