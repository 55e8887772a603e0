"""How long a run lasts, until a number of steps, seconds, tokens or FLOPs, and how often it looks up on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from protloom.settings import TrainerConfig

UNITS = ("steps", "seconds", "tokens", "flops")
"""What can be counted; seconds are those of optimizer steps, without validation and saving."""
ENDLESS = 10**9
"""``trainer.steps`` of a run that something else ends."""
LEAST_GAP, MOST_GAP = 50, 1000
"""Bounds of the steps between validations, and between checkpoints, where the run file does not state them."""


@dataclass(frozen=True)
class Spent:
    """What a run has used so far."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0

    def of(self, unit: str) -> float:
        """Returns the amount in one of :data:`UNITS`."""
        return float(getattr(self, unit))


@dataclass(frozen=True)
class Amount:
    """A number of one of :data:`UNITS`, written ``seconds=60``."""

    unit: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Amount:
        """Reads ``UNIT=NUMBER``; raises UserError for another unit or a number that is not above 0."""
        unit, equals, number = text.partition("=")
        if not equals or unit not in UNITS:
            raise UserError(f"{text!r}: write UNIT=NUMBER, such as seconds=60.{did_you_mean(unit, UNITS)}")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not value > 0.0:
            raise UserError(f"{text!r}: found {number!r}, should be a number above 0")
        return cls(unit, value)

    def reached(self, spent: Spent) -> bool:
        """True once so much is used."""
        return spent.of(self.unit) >= self.number


def limits(config: TrainerConfig) -> tuple[Amount, ...]:
    """Returns the limits of a run beside its steps."""
    stated: Mapping[str, float | None] = {
        "seconds": config.max_seconds,
        "tokens": config.max_tokens,
        "flops": config.max_flops,
    }
    return tuple(Amount(unit, number) for unit, number in stated.items() if number is not None)


def usual_gap(steps: int) -> int:
    """Returns the steps between validations, and between checkpoints, of a run of so many: a tenth, within bounds."""
    return min(MOST_GAP, max(LEAST_GAP, -(-steps // 10)))


def share(config: TrainerConfig, spent: Spent) -> float:
    """Returns how much of a run is behind: the largest share that any limit has been used of, at most 1."""
    used = [spent.of(limit.unit) / limit.number for limit in limits(config)]
    return min(1.0, max([spent.steps / config.steps, *used]))


def ended(config: TrainerConfig, spent: Spent) -> bool:
    """True once any limit of a run is reached."""
    return spent.steps >= config.steps or any(limit.reached(spent) for limit in limits(config))
