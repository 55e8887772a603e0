"""The attention of ``ankh``: unscaled, with a bias by relative position."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from protloom.contracts import Offsets
from protloom_plugins.architectures.gated_layers import Projection, computed_type
from protloom_plugins.kernels.reference import bias_matrix

if TYPE_CHECKING:
    from protloom.ops import Ops
    from protloom_plugins.architectures.ankh_config import AnkhConfig


class Attention(nn.Module):
    """Unscaled attention with a bias by relative position.

    The matrices stay apart, not joined to one: Adafactor scales its steps by the size of each, and T5's queries start
    √d smaller than its keys.
    """

    def __init__(self, config: AnkhConfig, ops: Ops) -> None:
        super().__init__()
        inner = config.heads * config.head_size
        self.heads, self.head_size = config.heads, config.head_size
        self.ops = ops
        self.q = Projection(config.width, inner)
        self.k = Projection(config.width, inner)
        self.v = Projection(config.width, inner)
        self.out = Projection(inner, config.width)

    def split(self, x: Tensor) -> Tensor:
        """Views ``[..., H · d]`` as ``[..., H, d]``."""
        return x.unflatten(-1, (self.heads, self.head_size))

    def forward(
        self, x: Tensor, source: Tensor, cu: Offsets, source_cu: Offsets, *, bias: Tensor | None, causal: bool
    ) -> Tensor:
        """Maps ``[T, D]`` to ``[T, D]``, reading keys and values from ``source`` ``[S, D]``."""
        read = computed_type(source)
        q = self.split(self.q(read if source is x else x))
        k, v = self.split(self.k(read)), self.split(self.v(read))
        mixed = self.ops.attention(q, k, v, cu, source_cu, scale=1.0, causal=causal, bias=bias)
        out: Tensor = self.out(mixed.flatten(-2))
        return out

    def maps(self, x: Tensor, cu: Offsets, bias: Tensor) -> list[Tensor]:
        """Returns the attention probabilities within each sequence, ``[H, L, L]`` in fp32."""
        q, k = self.split(self.q(x)), self.split(self.k(x))
        return [
            torch.softmax((left.transpose(0, 1) @ right.permute(1, 2, 0)).float() + bias_matrix(bias, size, size), -1)
            for left, right, size in zip(q.split(cu.lengths), k.split(cu.lengths), cu.lengths, strict=True)
        ]

    def step(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attends from new tokens ``[n, m, D]`` to keys and values ``[n, H, S, d]``; returns ``[n, m, D]``.

        Args:
            x: normed states.
            keys: of all tokens so far, or of the encoder's states.
            values: the same.
            bias: added to the scores ``[n, H, m, S]``, broadcast; −inf hides a key; at least fp32.
        """
        q = self.split(self.q(x)).transpose(1, 2)  # [n, H, m, d]
        scores = q @ keys.transpose(2, 3)  # [n, H, m, S]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        out: Tensor = self.out((weights.to(values.dtype) @ values).transpose(1, 2).flatten(-2))
        return out


def relative_buckets(distance: Tensor, buckets: int, max_distance: int, *, both: bool) -> Tensor:
    """Returns T5's bucket of each distance (key − query): near ones have their own, far ones share by logarithm.

    Args:
        distance: int64, any shape.
        buckets: number of buckets.
        max_distance: from here on all distances share the last bucket.
        both: half of the buckets are for keys after the query, else those count as distance 0.
    """
    side = buckets // 2 if both else buckets
    far = distance.abs() if both else -distance.clamp(max=0)
    exact = side // 2
    # float64, and a nudge: powers of two fall exactly on a border, which no rounding may move
    share = torch.log(far.clamp(min=1).double() / exact) / math.log(max_distance / exact)
    shared = (exact + (share * (side - exact) + 1e-9).long()).clamp(max=side - 1)
    found = torch.where(far < exact, far, shared)
    return found + (distance > 0) * side if both else found
