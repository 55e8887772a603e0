"""In which precision a run computes."""

from __future__ import annotations

import torch

from protloom.errors import UserError
from protloom.settings import NO_HALF


def compute_dtype(choice: str, device: torch.device, label: str) -> torch.dtype | None:
    """Returns the dtype of autocast, or None for plain fp32.

    ``auto`` is bf16 where the hardware multiplies it faster than fp32: CUDA devices of compute capability 8 and
    above, CPUs with AVX512-BF16 or AMX. Parameters, optimizer state and reductions stay fp32 in any case.

    Args:
        choice: ``auto``, ``fp32`` or ``bf16``.
        device: where the computation runs.
        label: what the user calls the option, such as ``--precision``; messages begin with it.

    Raises:
        UserError: another choice, or a device without bf16.
    """
    if choice not in ("auto", "fp32", "bf16"):
        advice = NO_HALF if choice in ("fp16", "float16", "half") else "should be auto, fp32 or bf16"
        raise UserError(f"{label}: found {choice!r}: {advice}")
    if choice == "fp32":
        return None
    if choice == "bf16":
        # not is_bf16_supported, which says yes where bf16 is emulated
        if device.type == "cuda" and not has_fast_bf16(device):
            raise UserError(f"{label}: {torch.cuda.get_device_name(device)} has no bf16; use fp32")
        return torch.bfloat16
    return torch.bfloat16 if has_fast_bf16(device) else None


def has_fast_bf16(device: torch.device) -> bool:
    """Tells whether the hardware has instructions for bf16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    # private names, so they are asked for carefully: where one is missing the answer is the safe one
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe is not None and probe() for probe in probes)
