"""Copies from the host to a device for which nobody waits."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on a device; to CUDA the copy is queued like a kernel, and the host goes on at once.

    From memory that is not pinned the host would wait until all that is queued before has run.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
