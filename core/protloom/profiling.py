"""``train --profile``: a PyTorch trace of a few steps, and a page that says where their time went."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from protloom.files import write_text
from protloom.phases import PARTS, PREFIX, Phases

T = TypeVar("T")

WARM_UP, PROFILED = 3, 4
"""Steps that go before, so that nothing is compiled or allocated for the first time; and steps that are profiled."""
SHOWN = 25
"""Operations with a line of their own on the page."""
OTHER = "other"
TRACE, PAGE = "trace.json.gz", "profile.md"


@dataclass(frozen=True)
class Operation:
    """One kind of operation.

    Attributes:
        name: as PyTorch calls it; that of :data:`PYTHON` is the time between operations.
        calls: how often it ran.
        seconds: that it took itself, without what it called.
        parts: the same by part of the step.
    """

    name: str
    calls: int
    seconds: float
    parts: Mapping[str, float]


PYTHON = "(between operations: Python, dispatch)"


@dataclass(frozen=True)
class Profile:
    """Where the time of some steps went.

    Attributes:
        steps: how many.
        seconds: of all of them, by the wall clock.
        parts: seconds by part of the step; they and ``other``, the rest, add up to ``seconds``.
        operations: the costliest first. On CUDA their seconds are those of the device, and do not add up to ``parts``:
            the host may be ahead of it.
        device: ``cpu`` or ``cuda``: whose time ``operations`` tells.
    """

    steps: int
    seconds: float
    parts: Mapping[str, float]
    operations: Sequence[Operation]
    device: str


def start() -> Any:
    """Starts PyTorch's profiler for the host and, where there is one, the CUDA device; ``stop()`` ends it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells on stderr that it starts
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    profiler = profile(activities=activities)
    profiler.start()
    return profiler


@dataclass
class Profiled(Phases):
    """Profiles a few steps of a training loop, and writes the result when they are done or the loop ends.

    Attributes:
        folder: where trace and page are written; made then.
        headline: what was trained, for the page.
        steps: that the loop will do at most.
        device: of the run.
        written: the page, once it is written.
    """

    folder: Path
    headline: str
    steps: int
    device: torch.device
    written: Path | None = None
    _profiler: Any = field(default=None, repr=False)
    _begin: float = 0.0

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields what ``items`` yields; profiling begins and ends where the loop asks for the next."""
        first, count = window(self.steps)
        iterator = super().waiting(name, items)
        done = 0
        try:
            while True:
                if done == first:
                    self._profiler, self._begin = start(), self._now()
                elif done == first + count:
                    self._finish(count)
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item
                done += 1
        finally:
            self._finish(done - first)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _finish(self, steps: int) -> None:
        """Stops a profiler that runs, and writes what it found if that is a whole step at least."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        seconds = self._now() - self._begin
        profiler.stop()
        if steps < 1:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / TRACE))
        found = summarise(profiler.events(), steps=steps, seconds=seconds, device=self.device.type)
        write_text(self.folder / PAGE, page(found, self.headline))
        self.written = self.folder / PAGE


def window(steps: int) -> tuple[int, int]:
    """Returns how many steps go before the profiled ones, and how many those are, in a loop of so many."""
    first = max(0, min(WARM_UP, steps - 1))
    return first, max(1, min(PROFILED, steps - first))


# --------------------------------------------------------------------------------------------------------- summing up


class _Range(NamedTuple):
    """When a part of a step ran, in microseconds."""

    begin: float
    end: float
    part: str


def summarise(events: Iterable[Any], *, steps: int, seconds: float, device: str) -> Profile:
    """Adds up what a profiler recorded.

    Args:
        events: of PyTorch's profiler (``torch.autograd.profiler_util.FunctionEvent``).
        steps: how many were recorded.
        seconds: that they took.
        device: ``cuda``: count the time of kernels, not that of the host.
    """
    host = [event for event in events if event.device_type == DeviceType.CPU]
    ranges = sorted(_Range(e.time_range.start, e.time_range.end, _part(e.name)) for e in host if _part(e.name))
    begins = [one.begin for one in ranges]
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    calls: dict[str, int] = defaultdict(int)
    for event in host:
        name = PYTHON if _part(event.name) else str(event.name)
        # a kernel counts where it was launched from, also by the thread that runs backward passes
        at = bisect_right(begins, event.time_range.start) - 1
        inside = at >= 0 and event.time_range.start < ranges[at].end
        taken = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        calls[name] += 1
        spent[name][ranges[at].part if inside else OTHER] += taken / 1e6
    operations = [Operation(name, calls[name], sum(parts.values()), dict(parts)) for name, parts in spent.items()]
    known = {part: sum(one.end - one.begin for one in ranges if one.part == part) / 1e6 for part in PARTS}
    parts = {**known, OTHER: max(0.0, seconds - sum(known.values()))}
    shown = [one for one in operations if one.seconds > 0.0]
    return Profile(steps, seconds, parts, sorted(shown, key=lambda one: (-one.seconds, one.name)), device)


def _part(name: str) -> str:
    """Returns which part of a step a range stands for, empty if none."""
    part = name.removeprefix(PREFIX)
    return part if name.startswith(PREFIX) and part in PARTS else ""


# ------------------------------------------------------------------------------------------------------------ the page


def page(profile: Profile, headline: str) -> str:
    """Returns a profile as Markdown that can be read as it is."""
    each = 1e3 / profile.steps
    whole = sum(profile.parts.values())
    lines = [
        f"# Profile of {profile.steps} steps",
        "",
        headline,
        "",
        f"{profile.seconds * each:,.1f} ms a step. Profiling itself slows small operations. The trace, {TRACE}, "
        "opens in https://ui.perfetto.dev or chrome://tracing.",
        "",
        "| part of a step | ms | % |",
        "|---|--:|--:|",
    ]
    lines += [f"| {part} | {taken * each:,.2f} | {_percent(taken, whole)} |" for part, taken in profile.parts.items()]
    lines += ["", _about(profile), "", *_operations(profile, each)]
    return "\n".join(lines) + "\n"


def _about(profile: Profile) -> str:
    data = (
        "data: waiting for the batch and moving it to the device; optimizer: clipping, moving the parameters, and what "
    )
    data += "objectives do after a step; other: counting, logging, and validation or saving where they fell between. "
    if profile.device == "cuda":
        return data + "Parts are times of the host, which may be ahead of the device; operations are times of kernels."
    return data + "Operations tell their own time, without what they call."


def _operations(profile: Profile, each: float) -> Iterator[str]:
    columns = (*PARTS, OTHER)
    whole = sum(one.seconds for one in profile.operations)
    yield "| operation | calls | ms | % | " + " | ".join(f"% in {part}" for part in columns) + " |"
    yield "|---|--:|--:|--:|" + "--:|" * len(columns)
    for one in _shortened(profile.operations):
        shares = " | ".join(_percent(one.parts.get(part, 0.0), whole) for part in columns)
        calls, share = f"{one.calls / profile.steps:,.0f}", _percent(one.seconds, whole)
        yield f"| {one.name.replace('|', '/')} | {calls} | {one.seconds * each:,.2f} | {share} | {shares} |"


def _shortened(operations: Sequence[Operation]) -> list[Operation]:
    """Returns the costliest, and all others as one."""
    first, rest = list(operations[:SHOWN]), operations[SHOWN:]
    if not rest:
        return first
    parts: dict[str, float] = defaultdict(float)
    for one in rest:
        for part, taken in one.parts.items():
            parts[part] += taken
    name = f"({len(rest)} others)"
    return [*first, Operation(name, sum(one.calls for one in rest), sum(parts.values()), dict(parts))]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole > 0 else "0.0"
