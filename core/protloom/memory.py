"""Memory of a training step: what it holds, what it adds while it runs, and what the machine has left.

What is counted is tensors, from PyTorch's own allocators: on a CPU too this is exact, the same on every run, and no
matter what else the process holds. The interpreter and libraries (some 300 MB) come on top.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from protloom.phases import PREFIX, Phases

GIB = 2**30
SPARE = 0.95
"""Share of the free memory that a step may take: allocators do not fill every gap."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of the tensors of a training step.

    Attributes:
        weights: parameters and buffers of network and objectives.
        gradients: after the step.
        optimizer: its state.
        activations: what the forward pass of the largest micro-batch leaves for its backward pass.
        peak: the most at any moment of the step, all of these included as far as they were there.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    @property
    def added(self) -> int:
        """What the step takes at its peak beside weights and optimizer state."""
        return self.peak - self.weights - self.optimizer


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of tensors on their device; those that share memory count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Returns the tensors of an optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def measure(
    step: Callable[[Phases], object], module: nn.Module, optimizer: Optimizer, device: torch.device
) -> StepMemory:
    """Takes a step and measures its memory.

    Args:
        step: does an optimizer step and names its parts with what it is given.
        module: everything that has parameters.
        optimizer: moves them.
        device: where.
    """
    optimizer.zero_grad(set_to_none=True)  # as the step does: freed before, they are not counted twice
    before = _held(module, optimizer)
    watch = _cuda if device.type == "cuda" else _host
    above, activations = watch(step, device)
    weights, gradients, state = _held(module, optimizer)
    return StepMemory(weights, gradients, state, activations, sum(before) + above)


def _held(module: nn.Module, optimizer: Optimizer) -> tuple[int, int, int]:
    """Returns the bytes of weights, gradients and optimizer state."""
    parameters = list(module.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nbytes([*parameters, *module.buffers()]), nbytes(gradients), nbytes(optimizer_tensors(optimizer))


def _host(step: Callable[[Phases], object], _device: torch.device) -> tuple[int, int]:
    """Returns the bytes above the start at the peak, and those between forward and backward pass, from a profile."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells on stderr that it starts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(Phases())
    events: list[tuple[int, str, int]] = []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            events.append((event.start_ns(), "", event.nbytes()))
        elif event.name() in (PREFIX + "forward", PREFIX + "backward"):
            events.append((event.start_ns(), event.name().removeprefix(PREFIX), 0))
    level = peak = begin = activations = 0
    for _, part, change in sorted(events, key=lambda event: event[0]):
        level += change
        peak = max(peak, level)
        if part == "forward":
            begin = level
        elif part == "backward":
            activations = max(activations, level - begin)
    return peak, activations


class _Watched(Phases):
    """Reads the allocator of a CUDA device where a forward and a backward pass begin."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = self.activations = 0

    def __call__(self, name: str) -> AbstractContextManager[object]:
        now = torch.cuda.memory_allocated(self._device)
        if name == "forward":
            self._begin = now
        elif name == "backward":
            self.activations = max(self.activations, now - self._begin)
        return super().__call__(name)


def _cuda(step: Callable[[Phases], object], device: torch.device) -> tuple[int, int]:
    """Returns what :func:`_host` does, as CUDA's allocator counts."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, watched = torch.cuda.memory_allocated(device), _Watched(device)
    step(watched)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, watched.activations


# ------------------------------------------------------------------------------------------------- what there would be


@dataclass(frozen=True)
class Growth:
    """Memory as a straight line over the tokens that are read at once.

    Attributes:
        fixed: bytes without any token.
        each: bytes a token.
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, points: Sequence[tuple[int, int]]) -> Growth:
        """Returns the line through the smallest and the largest of some points (tokens, bytes).

        One that would fall, or have less than nothing at no tokens, goes through the origin.
        """
        (few, low), (many, high) = min(points), max(points)
        each = (high - low) / (many - few) if many > few else 0.0
        fixed = high - each * many
        return cls(fixed, each) if each > 0 and fixed >= 0 else cls(0.0, high / max(many, 1))

    def at(self, tokens: int) -> int:
        """Returns the bytes for so many tokens."""
        return round(self.fixed + self.each * tokens)

    def tokens(self, free: float) -> int:
        """Returns how many tokens fit into so many bytes, rounded down to a number that one would write."""
        exact = max(0.0, (free - self.fixed) / max(self.each, 1e-9))
        unit = 1024 if exact >= 16384 else 128
        return int(exact) if exact < unit else int(exact // unit * unit)


def available(device: torch.device) -> int | None:
    """Returns the bytes that this process can still have on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [number for number in (_free_of_system(), _free_of_group()) if number is not None]
    return min(known, default=None)


def _free_of_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _free_of_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns what a container's limit (control groups, version 2) leaves, None without one."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no control group, or "max"
        return None


def is_exhausted(error: BaseException) -> bool:
    """Tells whether an error means that a tensor found no memory, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def readable(number: float) -> str:
    """Writes a number of bytes: ``1.2 GiB``."""
    for size, unit in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def facts(memory: StepMemory) -> dict[str, Any]:
    """Returns the numbers of a step for JSON, in bytes."""
    names = ("weights", "gradients", "optimizer", "activations", "peak")
    return {f"{name}_bytes": getattr(memory, name) for name in names}
