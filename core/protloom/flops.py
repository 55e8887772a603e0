"""Model FLOPs of a step and what a machine can do at most, for MFU (model FLOPs utilisation)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from protloom.mixture import HostBatch, Member
    from protloom.objective import Objective


class FlopCounter:
    """Counts the matrix-multiplication FLOPs of training one step.

    A forward pass costs 2 FLOPs a weight and token for the weights of the blocks and 4 · depth · width · Σ L² for
    attention (Kaplan et al. 2020, section 2.1, without the embedding, with the attention term); backward costs twice
    as much. Each objective adds what it computes beside that: at least the output head on what it scores.

    Args:
        model: a network with ``depth`` and ``width``; weights below ``blocks`` (without that: all) read every token.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attention = 4 * int(getattr(model, "depth", 0)) * int(getattr(model, "width", 0))
        blocks = getattr(model, "blocks", None)
        inside = {id(p) for p in (blocks if isinstance(blocks, nn.Module) else model).parameters()}
        self._body = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) in inside)
        self._head = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in inside)

    def step(self, lengths: Sequence[int], scored: Sequence[tuple[Objective, int]]) -> float:
        """Returns the FLOPs of a step.

        Args:
            lengths: of the sequences that the network reads.
            scored: each objective with the number of items that it scores.
        """
        forward = 2.0 * self._body * sum(lengths) + self._attention * float(sum(n * n for n in lengths))
        return 3.0 * forward + sum(objective.flops(forward, 2.0 * self._head, n) for objective, n in scored)

    def of_batches(self, batches: Sequence[HostBatch], members: Sequence[Member]) -> float:
        """Returns the FLOPs of a step with these micro-batches, by the items of each objective's additive terms."""
        lengths = [n for b in batches for s in b.shares for n in (s.inputs.cu[1:] - s.inputs.cu[:-1]).tolist()]
        scored = [(m.objective, sum(b.counts.get(key, 0) for b in batches for key in _added(m))) for m in members]
        return self.step(lengths, scored)


def _added(member: Member) -> list[tuple[str, str]]:
    return [(member.alias, name) for name, term in member.objective.terms.items() if term.additive]


def real_tokens(batches: Sequence[HostBatch]) -> int:
    """Returns the tokens that encoders and decoders read in a step, padding not counted."""
    streams = [p for b in batches for s in b.shares for p in (s.inputs, s.decoder) if p is not None]
    return sum(int(packed.cu[-1]) for packed in streams)


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.15) -> float:
    """Measures the FLOP/s of a large square matrix product: the peak that MFU refers to.

    Args:
        device: where.
        dtype: in which precision.
        seconds: how long to measure; the best product counts.
    """
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    best, spent = float("inf"), 0.0
    torch.mm(a, a)
    while spent < seconds:
        _wait(device)
        begin = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        took = time.perf_counter() - begin
        best, spent = min(best, took), spent + took
    return 2.0 * n**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
