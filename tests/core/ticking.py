"""A clock that tests wind themselves."""

from __future__ import annotations


class Ticking:
    """Each look at it is a second later; so what is done alike takes as long, whatever the machine does.

    Args:
        tick: seconds between two looks.
    """

    def __init__(self, tick: float = 1.0) -> None:
        self.tick = tick
        self.time = 0.0

    def now(self) -> float:
        self.time += self.tick
        return self.time

    mark = now

    def between(self, first: float, second: float) -> float:
        return second - first
