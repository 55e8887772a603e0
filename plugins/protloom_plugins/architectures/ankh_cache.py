"""What the decoder of ``ankh`` remembers while it writes sequences token by token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from protloom.contracts import Offsets

FIRST_CAPACITY = 32
"""Tokens that a cache has room for at first; it doubles when it is full."""


class BlockCache:
    """Keys and values of one decoder block.

    Args:
        memory_keys: ``[M, H, d]`` keys of the encoder's states, packed.
        memory_values: ``[M, H, d]``.
        cu: offsets of the encoder's states.
    """

    def __init__(self, memory_keys: Tensor, memory_values: Tensor, cu: Offsets) -> None:
        self.memory_keys = padded(memory_keys, cu)  # [n, H, M', d]
        self.memory_values = padded(memory_values, cu)
        rows, heads, _, size = self.memory_keys.shape
        self.keys = self.memory_keys.new_empty(rows, heads, FIRST_CAPACITY, size)
        self.values = torch.empty_like(self.keys)

    def append(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Writes new keys and values ``[n, H, m, d]`` behind the first ``length`` and returns all ``[n, H, S, d]``."""
        total = length + keys.shape[2]
        while total > self.keys.shape[2]:
            self.keys = torch.cat((self.keys, torch.empty_like(self.keys)), dim=2)
            self.values = torch.cat((self.values, torch.empty_like(self.values)), dim=2)
        self.keys[:, :, length:total] = keys
        self.values[:, :, length:total] = values
        return self.keys[:, :, :total], self.values[:, :, :total]


class AnkhCache:
    """The state of a batch of sequences that are being written, all equally long so far.

    Attributes:
        blocks: one a decoder block.
        length: tokens that the decoder has read of every sequence.
        seen: ``[n, 1, 1, M']`` bool: where the encoder's padded states stand for tokens; None if there is no padding.
    """

    def __init__(self, blocks: list[BlockCache], cu: Offsets) -> None:
        self.blocks = blocks
        self.length = 0
        # which sequence of the encoder each row reads: beams of one sequence share it
        self._source = torch.arange(cu.n, device=cu.cu.device)
        lengths = cu.cu.diff()
        present = torch.arange(cu.longest, device=cu.cu.device) < lengths.unsqueeze(1)  # [n, M']
        self.seen: Tensor | None = None if min(cu.lengths, default=0) == cu.longest else present[:, None, None, :]

    @property
    def rows(self) -> int:
        """Number of sequences being written."""
        return len(self._source)

    def select(self, rows: Tensor) -> None:
        """Keeps the sequences ``rows`` (int64 numbers on the device), in that order; one may come several times."""
        source = self._source.index_select(0, rows)
        moved = not torch.equal(source, self._source)
        self._source = source
        if moved and self.seen is not None:
            self.seen = self.seen.index_select(0, rows)
        for block in self.blocks:
            block.keys = block.keys.index_select(0, rows)
            block.values = block.values.index_select(0, rows)
            if moved:
                block.memory_keys = block.memory_keys.index_select(0, rows)
                block.memory_values = block.memory_values.index_select(0, rows)


def padded(x: Tensor, cu: Offsets) -> Tensor:
    """Turns packed ``[T, H, d]`` into ``[n, H, L, d]``, zeros behind the shorter sequences."""
    if cu.n == 0:
        return x.new_zeros(0, x.shape[1], 0, x.shape[2])
    return pad_sequence(x.split(cu.lengths), batch_first=True).transpose(1, 2).contiguous()
