"""Encoders with rotary positions that restart at every sequence (Su et al. 2021, RoFormer, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from protloom.contracts import BuildContext, Encoded, Offsets
from protloom_plugins.architectures.encoding import run_blocks, sequence_of_tokens
from protloom_plugins.kernels.reference import visible

if TYPE_CHECKING:
    from protloom.ops import Ops
    from protloom_plugins.architectures.rotary_config import RotarySection


@dataclass(frozen=True)
class Shared:
    """What the blocks of one pass share.

    A data class, not a tuple: FSDP2 casts every tensor it finds in a block's arguments, and bf16 angles would be wrong.

    Attributes:
        cu: offsets of the sequences.
        cos: ``[T, d/2]`` of the rotary angles.
        sin: ``[T, d/2]``.
        attentions: whether blocks return their attention maps.
    """

    cu: Offsets
    cos: Tensor
    sin: Tensor
    attentions: bool


def rotary_frequencies(
    size: int, base: float, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Returns ``base^(-2i / size)`` for i = 0 … size/2 − 1: radians by which pair i of a head turns a position."""
    # computed in each pass, not kept as a buffer: a network built on the meta device has nothing to restore
    return 1.0 / base ** (torch.arange(0, size, 2, dtype=dtype, device=device) / size)


def rotary_attention(
    qkv: Tensor, heads: int, shared: Shared, ops: Ops, *, window: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Attends within each sequence, scores scaled by d^-½.

    Args:
        qkv: ``[T, 3D]`` queries, keys and values.
        heads: number of heads.
        shared: offsets and angles.
        ops: the run's kernels.
        window: a token sees those with ``|i - j| <= window``; None: its whole sequence.

    Returns:
        ``[T, D]``, and each sequence's ``[heads, L, L]`` attention if it is asked for.
    """
    parts = qkv.unflatten(-1, (3, heads, -1))  # [T, 3, H, d]
    turned = ops.rotary(parts[:, :2].flatten(1, 2), shared.cos, shared.sin)  # [T, 2H, d]
    q, k = turned.unflatten(1, (2, heads)).unbind(1)
    scale = q.shape[-1] ** -0.5
    mixed = ops.attention(q, k, parts[:, 2], shared.cu, shared.cu, scale=scale, window=window)
    maps = attention_maps(q, k, shared.cu, scale, window) if shared.attentions else []
    return mixed.flatten(-2), maps


def attention_maps(q: Tensor, k: Tensor, cu: Offsets, scale: float, window: int | None) -> list[Tensor]:
    """Returns the attention probabilities within each sequence, ``[H, L, L]`` in fp32, from ``[T, H, d]``."""
    maps = []
    for left, right, length in zip(q.split(cu.lengths), k.split(cu.lengths), cu.lengths, strict=True):
        scores = (left.transpose(0, 1) @ right.permute(1, 2, 0)).float() * scale
        seen = visible(length, length, False, window, q.device)
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        maps.append(torch.softmax(scores, dim=-1))
    return maps


class RotaryEncoder(nn.Module):
    """What encoders with rotary positions have in common; see :class:`protloom.contracts.Architecture`.

    A subclass makes ``embedding``, ``blocks`` and ``final_norm``.

    Args:
        config: size and base of the angles.
        build: says whether blocks are recomputed in the backward pass.
    """

    capabilities = frozenset({"encode", "attentions"})
    embedding: nn.Embedding
    blocks: nn.ModuleList
    final_norm: nn.Module

    def __init__(self, config: RotarySection, build: BuildContext) -> None:
        super().__init__()
        self.config: Any = config
        self.width, self.depth, self.heads = config.width, config.layers, config.heads
        self.activation_checkpointing = build.activation_checkpointing

    @property
    def attention_blocks(self) -> nn.ModuleList:
        """The blocks by which hidden states are numbered; each reads :class:`Shared`."""
        return self.blocks

    def embed(self, tokens: Tensor, cu: Offsets, sequence: Tensor) -> Tensor:
        """Returns state 0, ``[T, D]``; ``sequence`` ``[T]`` is the number of each token's sequence."""
        del cu, sequence
        x: Tensor = self.embedding(tokens)
        return x

    def frequencies(self, device: torch.device) -> Tensor:
        """Returns the rotary frequencies ``[d/2]``, in at least fp32."""
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        return rotary_frequencies(self.width // self.heads, self.config.rope_base, dtype=dtype, device=device)

    def recomputes(self) -> bool:
        """Tells whether blocks run again in the backward pass of this pass."""
        return self.activation_checkpointing and self.training and torch.is_grad_enabled()

    def encode(
        self,
        tokens: Tensor,
        cu: Offsets,
        *,
        layers: Sequence[int] = (),
        stop_at: int | None = None,
        attentions: bool = False,
    ) -> Encoded:
        """Maps ``tokens`` ``[T]`` to states ``[T, D]``; see :meth:`protloom.contracts.Architecture.encode`.

        Raises:
            ValueError: if a layer is asked for that does not exist or lies beyond ``stop_at``.
        """
        sequence = sequence_of_tokens(cu)  # [T]
        frequencies = self.frequencies(cu.cu.device)
        # cosines and sines of all tokens, once for all blocks
        within = torch.arange(cu.total, device=cu.cu.device) - cu.cu[:-1][sequence]  # [T]
        angles = within.to(frequencies.dtype).unsqueeze(1) * frequencies  # [T, d/2]
        return run_blocks(
            self.embed(tokens, cu, sequence),
            self.attention_blocks,
            self.final_norm,
            Shared(cu, angles.cos(), angles.sin(), attentions),
            layers=layers,
            stop_at=stop_at,
            heads=self.heads,
            recompute=self.recomputes(),
        )
