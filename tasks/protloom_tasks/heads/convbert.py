"""One ConvBERT layer and a linear layer on frozen residue features: the head of Ankh's benchmark.

The layer is that of Jiang et al. 2020 ("ConvBERT: Improving BERT with Span-based Dynamic Convolution"): half of the
width is self-attention, half a convolution whose kernel is made anew at every position from the positions around it.
Batches are padded; a mask says what is real, so the output for a sequence does not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protloom_tasks.heads import training

if TYPE_CHECKING:
    from collections.abc import Sequence

Pool = Literal["mean", "max"]

HEADS = 4
"""As the options of the layer count them; half of them attend, the other half's width is the convolution's."""
KERNEL = 7
DROPOUT = 0.1
EPSILON = 1e-12
"""Of the layer norms."""


class ConvBertLayer(nn.Module):
    """Self-attention and span-based dynamic convolution side by side, then a feed-forward layer, both post-norm.

    Args:
        width: D, a multiple of ``heads``.
        inner: width of the feed-forward layer; None: D / 2.
        heads: a half of them attend, each with D / ``heads`` features.
        kernel: odd width of the convolutions.
        dropout: of attention weights and of both residual branches.
    """

    def __init__(
        self,
        width: int,
        inner: int | None = None,
        *,
        heads: int = HEADS,
        kernel: int = KERNEL,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.heads, self.kernel, self.dropout = heads // 2, kernel, dropout
        half = width // 2
        inner = half if inner is None else inner
        self.query, self.key, self.value = (nn.Linear(width, half) for _ in range(3))
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width, padding=kernel // 2, bias=False)
        self.pointwise = nn.Linear(width, half)
        self.make_kernel = nn.Linear(half, self.heads * kernel)
        self.convolved = nn.Linear(width, half)
        self.mixed = nn.Linear(width, width)
        self.mixed_norm = nn.LayerNorm(width, eps=EPSILON)
        self.into, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.out_norm = nn.LayerNorm(width, eps=EPSILON)
        for separable in (self.depthwise, self.pointwise):
            nn.init.normal_(separable.weight, std=0.02)
        nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps ``[B, L, D]`` to ``[B, L, D]``; ``mask`` ``[B, L]`` is true at real positions, what stands elsewhere is
        not read, and what comes out there means nothing.
        """
        x = x * mask[..., None]  # the convolution over keys must see zeros beyond an end
        query = self.query(x)
        spans = self.pointwise(self.depthwise(x.transpose(1, 2)).transpose(1, 2))  # [B, L, D / 2]
        both = torch.cat([self._attended(x, query, mask), self._convolved(x, spans * query, mask)], dim=-1)
        x = self.mixed_norm(x + self._drop(self.mixed(both)))
        return self.out_norm(x + self._drop(self.out(F.gelu(self.into(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _attended(self, x: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (  # [B, H, L, d]
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, self.key(x), self.value(x))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # [B, H, L, L]
        weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(dim=-1)
        return (self._drop(weights) @ value).transpose(1, 2).flatten(2)  # [B, L, D / 2]

    def _convolved(self, x: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
        kernels = self.make_kernel(spans).unflatten(-1, (self.heads, self.kernel)).softmax(dim=-1)  # [B, L, H, K]
        values = self.convolved(x) * mask[..., None]  # the bias, too, ends where the sequence does
        edge = self.kernel // 2
        windows = F.pad(values, (0, 0, edge, edge)).unfold(1, self.kernel, 1)  # [B, L, D / 2, K]
        windows = windows.unflatten(2, (self.heads, -1))  # [B, L, H, d, K]
        return (windows @ kernels[..., None]).squeeze(-1).flatten(2)


class ConvBertHead(nn.Module):
    """A ConvBERT layer, a pooling or none, and a linear layer with weights from U(−0.1, 0.1).

    Args:
        features: of a residue; zeros are added up to the next multiple of the heads.
        outputs: C, numbers that come out.
        pool: of whole sequences, over real positions alone; None: an output a residue.
        inner: see :class:`ConvBertLayer`.
    """

    def __init__(self, features: int, outputs: int, *, pool: Pool | None, inner: int | None = None) -> None:
        super().__init__()
        self.added = -features % HEADS
        self.pool = pool
        self.layer = ConvBertLayer(features + self.added, inner)
        self.linear = training.start(nn.Linear(features + self.added, outputs))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps ``[B, L, features]`` and ``mask`` ``[B, L]`` to ``[B, C]``, or ``[B, L, C]`` without a pooling."""
        x = self.layer(F.pad(x, (0, self.added)), mask)
        if self.pool == "mean":
            x = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        elif self.pool == "max":
            x = x.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        values: Tensor = self.linear(x)
        return values


def padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns features ``[B, L, D]`` of sequences ``[l, D]``, zeros behind their ends, and the mask ``[B, L]``."""
    lengths = torch.tensor([len(of) for of in sequences])
    x = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    return x, torch.arange(x.shape[1]) < lengths[:, None]
