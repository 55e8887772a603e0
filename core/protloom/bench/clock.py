"""Clocks for measuring: that of the host, and that of a device that works behind its back."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from protloom.phases import Phases


class Clock(Protocol):
    """Tells the time; tests put another one in its place."""

    def now(self) -> float:
        """Returns seconds, after waiting until the device has done all it was asked for."""

    def mark(self) -> Any:
        """Notes a moment of the device's work, without waiting."""

    def between(self, first: Any, second: Any) -> float:
        """Returns the seconds between two marks, once ``now`` was called after them."""


class HostClock:
    """The clock of a host that does the work itself."""

    def now(self) -> float:
        """Returns seconds."""
        return time.perf_counter()

    def mark(self) -> float:
        """Returns seconds."""
        return time.perf_counter()

    def between(self, first: float, second: float) -> float:
        """Returns the difference."""
        return second - first


class CudaClock:
    """The clock of a CUDA device: marks are events in its stream, so that the host need not wait at each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Waits for the device and returns the host's seconds."""
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        """Records an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Returns the seconds between two events."""
        return float(first.elapsed_time(second)) / 1e3


def of(device: torch.device) -> Clock:
    """Returns the clock that suits a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class Timed(Phases):
    """Adds up the time of each part of a step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Marks the beginning and the end of a part."""
        begin = self._clock.mark()
        yield
        self._marks.append((name, begin, self._clock.mark()))

    def taken(self) -> dict[str, float]:
        """Returns the seconds of each part so far; call it after ``now``."""
        seconds: dict[str, float] = defaultdict(float)
        for name, begin, end in self._marks:
            seconds[name] += self._clock.between(begin, end)
        return dict(seconds)
