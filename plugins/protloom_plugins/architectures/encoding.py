"""What encoders over packed sequences share: the pass through the blocks, and which states and maps it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protloom.contracts import Encoded, Offsets


class PassOptions(Protocol):
    """What the blocks of one pass share, as far as the pass itself reads it; each architecture adds to it."""

    @property
    def cu(self) -> Offsets:
        """Offsets of the sequences."""

    @property
    def attentions(self) -> bool:
        """Whether blocks return their attention maps."""


def run_blocks(
    x: Tensor,
    blocks: nn.ModuleList,
    final_norm: nn.Module,
    shared: PassOptions,
    *,
    layers: Sequence[int],
    stop_at: int | None,
    heads: int,
    recompute: bool,
) -> Encoded:
    """Passes states through the blocks; see :meth:`protloom.contracts.Architecture.encode`.

    Args:
        x: ``[T, D]`` what the first block reads: state 0.
        blocks: each maps (states, ``shared``) to (states, its attention maps by sequence or an empty list).
        final_norm: applied after the last of the blocks, if that runs.
        shared: given to every block.
        layers: numbers of the states to return beside the last.
        stop_at: run only this many blocks.
        heads: attention heads of a block, for the shape of maps where no block runs.
        recompute: let blocks run again in the backward pass instead of keeping what is inside them.

    Raises:
        ValueError: if a layer is asked for that does not exist or lies beyond ``stop_at``.
    """
    depth = len(blocks)
    last = last_layer(layers, depth, stop_at)
    kept = {0: x} if 0 in layers else {}
    maps: list[list[Tensor]] = []
    for number, block in enumerate(blocks[:last], start=1):
        x, found = checkpoint(block, x, shared, use_reentrant=False) if recompute else block(x, shared)
        maps.append(found)
        if number in layers and number < depth:
            kept[number] = x
    if last == depth:
        x = final_norm(x)
    if last in layers:
        kept[last] = x
    return Encoded(x, kept, _stack_maps(maps, shared.cu, heads, x) if shared.attentions else None)


def last_layer(layers: Iterable[int], depth: int, stop_at: int | None) -> int:
    """Returns the number of the last state; raises ValueError where a layer lies outside."""
    last = depth if stop_at is None else stop_at
    if not 0 <= last <= depth or any(not 0 <= number <= last for number in layers):
        raise ValueError(f"layers {tuple(layers)} and stop_at {stop_at} must lie within 0 … {depth}")
    return last


def sequence_of_tokens(cu: Offsets) -> Tensor:
    """Returns ``[T]`` the number of the sequence that each token belongs to, without asking the device for sizes."""
    numbers = torch.arange(cu.n, device=cu.cu.device)
    return torch.repeat_interleave(numbers, cu.cu.diff(), output_size=cu.total)


def _stack_maps(maps: Sequence[Sequence[Tensor]], cu: Offsets, heads: int, like: Tensor) -> list[Tensor]:
    """Turns maps by block into ``[blocks, heads, L, L]`` by sequence."""
    if not maps:
        return [like.new_zeros(0, heads, length, length, dtype=torch.float32) for length in cu.lengths]
    return [torch.stack([block[i] for block in maps]) for i in range(cu.n)]
