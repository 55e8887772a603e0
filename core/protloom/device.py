"""Which device an option means, and copies to it for which the host does not wait."""

from __future__ import annotations

import os
import re

import torch
from torch import Tensor

from protloom.errors import UserError

_NAME = re.compile(r"cpu(?::0)?|cuda(?::(?P<number>[0-9]+))?")


def find_device(name: str, label: str) -> torch.device:
    """Returns the device that an option means, a CUDA device with its number.

    Args:
        name: ``cpu``, ``cuda:N``, ``cuda`` (the device of this process: that of its rank where ``torchrun`` started it,
            else PyTorch's current one) or ``auto`` (``cuda`` where there is one, else ``cpu``).
        label: what the user calls the option, such as ``--device``; messages begin with it.

    Raises:
        UserError: there is no such device, or not here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    asked = _NAME.fullmatch(name)
    if asked is None:  # PyTorch knows more (meta, mps, xpu), but nothing here was written for them
        raise UserError(f"{label}: no device {name!r}; use auto, cpu, cuda or cuda:N")
    if name.startswith("cpu"):
        return torch.device("cpu")
    if not count:
        raise UserError(f"{label}: no device {name!r}: PyTorch sees no CUDA device here; use cpu or auto")
    number = _of_this_process() if asked["number"] is None else int(asked["number"])
    if number >= count:
        seen = f"PyTorch sees {count} CUDA device{'s' * (count != 1)} here, numbered from 0"
        advice = f"start at most {count} processes here" if asked["number"] is None else "use one of them, cpu or auto"
        raise UserError(f"{label}: no device 'cuda:{number}': {seen}; {advice}")
    return torch.device("cuda", number)


def use_device(name: str, label: str) -> torch.device:
    """Does what :func:`find_device` does, and makes a CUDA device the current one.

    Some kernels of others, apex's among them, are launched on the current device whatever their tensors say.
    """
    device = find_device(name, label)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _of_this_process() -> int:
    rank = os.environ.get("LOCAL_RANK")
    return torch.cuda.current_device() if rank is None else int(rank)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on a device; to CUDA the copy is queued like a kernel, and the host goes on at once.

    From memory that is not pinned the host would wait until all that is queued before has run.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
