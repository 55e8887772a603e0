"""The parts of a training step, named for profilers and for clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from torch.profiler import record_function

T = TypeVar("T")

PARTS = ("data", "forward", "backward", "optimizer")
"""Waiting for a batch and moving it to the device; the loss; its gradients; clipping, moving parameters, teachers."""
PREFIX = "step/"
"""Of the names of these parts in a profile."""


class Phases:
    """Names the parts of a step while they run: some microseconds each, and a range in a profile."""

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """Returns a context that is one of :data:`PARTS`."""
        return record_function(PREFIX + name)

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields what ``items`` yields; waiting for each is the part ``name``."""
        iterator = iter(items)
        while True:
            with self(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
