"""What was measured of the built-in backends on this kind of device: a file, and how ``auto`` reads it.

``benchmarks/kernels.py --record`` writes ``measurements.yaml``. It holds GPUs by their names::

    devices:
      NVIDIA H200:
        software: {torch: 2.13.0, triton: 3.7.1}
        milliseconds:
          rms_norm:
            bf16:
              16384 × 320: {torch: 0.11, triton: 0.09}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from protloom.files import write_text
from protloom.ops import Timing

FILE = Path(__file__).with_name("measurements.yaml")
BASIS = "torch"
"""The backend in whose time the others are told."""
SLOWER = 1.03
"""A backend that is slower than this at any size that was measured is not faster, however much it gains at others."""

Milliseconds = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""function -> ``fp32`` or ``bf16`` -> size -> backend -> milliseconds of forward and backward."""


def kind(device: torch.device) -> str | None:
    """Returns by what name measurements of a device are kept, None where none are: on CPUs."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else None


def precision(dtype: torch.dtype) -> str:
    """Returns how the file calls a compute dtype."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype))


def timing(backend: str, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
    """Returns how a backend did beside the others on this kind of device, None where it was not measured.

    The cost is the geometric mean over sizes of its time as a share of PyTorch's; where it is slower at some size, it
    is that of the worst: a run has one width, and ``auto`` does not know which.
    """
    name = kind(device)
    measured = {} if name is None else _devices(FILE).get(name, {})
    sizes = measured.get("milliseconds", {}).get(function, {}).get(precision(dtype), {})
    shares = [times[backend] / times[BASIS] for times in sizes.values() if {backend, BASIS} <= times.keys()]
    if not shares:
        return None
    mean = math.exp(math.fsum(map(math.log, shares)) / len(shares))
    worst = max(shares)
    many = "1 size" if len(shares) == 1 else f"{len(shares)} sizes, {min(shares):.2f} to {worst:.2f}"
    version = measured.get("software", {}).get("torch", "unknown")
    said = f"{mean:.2f} of {BASIS}'s time ({many}; {name}, torch {version})"
    return Timing(mean if worst <= SLOWER else worst, said)


@cache
def _devices(path: Path) -> Mapping[str, Any]:
    devices: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["devices"]
    return devices


def record(name: str, software: Mapping[str, str], milliseconds: Milliseconds, path: Path = FILE) -> None:
    """Writes the measurements of one kind of device; those of others stay, its own older ones go.

    Args:
        name: of the device, as :func:`kind` gives it.
        software: versions of what computed.
        milliseconds: the measurements.
        path: of the file.
    """
    text = path.read_text(encoding="utf-8")
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    devices = {**yaml.safe_load(text)["devices"], name: {"software": dict(software), "milliseconds": milliseconds}}
    body = yaml.safe_dump({"devices": devices}, allow_unicode=True, sort_keys=True, width=120)
    write_text(path, comment + body)
    _devices.cache_clear()
