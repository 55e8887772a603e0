"""Layers without biases that several architectures share: RMS norm, matrix, gated feed-forward layer, rotary block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protloom_plugins.architectures.rotary import Shared, rotary_attention

if TYPE_CHECKING:
    from protloom.ops import Ops


def computed_type(x: Tensor) -> Tensor:
    """Casts to autocast's type, once for several matrices that read the same input; as it is without autocast."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class RMSNorm(nn.Module):
    """An RMS norm whose arithmetic comes from the run's kernels, left uninitialised."""

    def __init__(self, width: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``[..., D]``."""
        return self.ops.rms_norm(x, self.weight, eps=self.eps)


class Projection(nn.Module):
    """A matrix without bias, left uninitialised: the network's ``initialise`` draws it once, not twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., inputs]`` to ``[..., outputs]``."""
        return F.linear(x, self.weight)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) ⊙ up(x))."""

    def __init__(self, width: int, inner: int, activation: str, ops: Ops) -> None:
        super().__init__()
        self.gate = Projection(width, inner)
        self.up = Projection(width, inner)
        self.down = Projection(inner, width)
        self.activation = activation
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        weights = self.gate.weight, self.up.weight, self.down.weight
        return self.ops.gated_mlp(computed_type(x), *weights, activation=self.activation)


class RotaryBlock(nn.Module):
    """x += attention(norm(x)); x += SwiGLU(norm(x)), with RMS norms and rotary positions.

    Args:
        width: D.
        heads: number of heads.
        inner: width of the feed-forward layer.
        norm_eps: added to the mean square.
        ops: the run's kernels.
        window: a token sees those with ``|i - j| <= window``; None: its whole sequence.
    """

    def __init__(
        self, width: int, heads: int, inner: int, norm_eps: float, ops: Ops, *, window: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.ops = ops
        self.attention_norm = RMSNorm(width, norm_eps, ops)
        self.qkv = Projection(width, 3 * width)  # rows: queries, keys, values
        self.attention_out = Projection(width, width)
        self.mlp_norm = RMSNorm(width, norm_eps, ops)
        self.mlp = GatedMLP(width, inner, "silu", ops)

    def forward(self, x: Tensor, shared: Shared) -> tuple[Tensor, list[Tensor]]:
        """Maps ``[T, D]`` to ``[T, D]``, and gives each sequence's ``[heads, L, L]`` attention if it is asked for."""
        qkv = self.qkv(self.attention_norm(x))
        mixed, maps = rotary_attention(qkv, self.heads, shared, self.ops, window=self.window)
        x = x + self.attention_out(mixed)
        return x + self.mlp(self.mlp_norm(x)), maps
