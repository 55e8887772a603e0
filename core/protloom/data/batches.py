"""Turns sampled sequences into packed token batches, without Python work per residue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.contracts import Packed, SequenceBatch
from protloom.rng import CounterRNG, below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom.contracts import Tokenizer
    from protloom.data.sampler import Members
    from protloom.data.totals import SequenceStore

_SPECIAL = 128
"""Residues are ASCII; bytes from here on stand for special symbols while a batch is put together."""


class BatchMaker:
    """Crops, tokenises and packs sequences.

    Args:
        stores: the corpora, in the order of the sampler's.
        tokenizer: one lookup table, and what stands round a sequence.
        max_length: longer sequences are cropped to a window of this many residues, whose place depends only on
            (seed, corpus, epoch, sequence).
        seed: of the windows.
    """

    def __init__(self, stores: Sequence[SequenceStore], tokenizer: Tokenizer, *, max_length: int, seed: int) -> None:
        self._residues = [np.ascontiguousarray(store.residues).data for store in stores]
        # plain views: slicing a np.memmap builds a Python object of its own each time
        self._offsets = [np.asarray(store.offsets) for store in stores]
        self._max_length = max_length
        self._rng = CounterRNG(seed, "crop")
        prefix, suffix = tokenizer.prefix, tokenizer.suffix
        self._before, self._after = len(prefix), len(suffix)
        specials = (*suffix, *prefix)  # in the order in which they stand between two sequences
        if len(specials) > 256 - _SPECIAL:
            raise ValueError(f"a tokenizer may have at most {256 - _SPECIAL} special symbols round a sequence")
        self._between = bytes(range(_SPECIAL, _SPECIAL + len(specials)))
        table = np.array(tokenizer.table, dtype=np.int32)  # [256]
        table[_SPECIAL : _SPECIAL + len(specials)] = specials
        self._table = table
        # ids that fit a byte take the C loop of bytes.translate, the fastest lookup at hand
        self._bytes = table.astype(np.uint8).tobytes() if table.min() >= 0 and table.max() < 256 else None

    def make(self, members: Members, step: int) -> SequenceBatch:
        """Returns the packed batch of ``members`` (zero sequences are fine), for optimizer step ``step``."""
        first, last = self._windows(members)  # [n] each
        packed, residue = self._pack(members, first, last)
        return SequenceBatch(
            packed=packed,
            residue=residue,
            epoch=members.epoch,
            index=members.index,
            corpus=members.corpus,
            group=members.group,
            step=step,
        )

    def _windows(self, members: Members) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns where each sequence's window begins and ends in its store."""
        first, last = np.empty(members.n, dtype=np.int64), np.empty(members.n, dtype=np.int64)
        if len(self._offsets) == 1:
            np.take(self._offsets[0], members.index, out=first)
            np.take(self._offsets[0], members.index + 1, out=last)
        else:
            for number, offsets in enumerate(self._offsets):
                of_corpus = np.flatnonzero(members.corpus == number)
                index = members.index[of_corpus]
                first[of_corpus], last[of_corpus] = offsets[index], offsets[index + 1]
        spare = last - first - self._max_length
        long = np.flatnonzero(spare > 0)
        if len(long):
            bits = self._rng.at(members.corpus[long], members.epoch[long], members.index[long])
            first[long] += below(bits, spare[long] + 1)
            last[long] = first[long] + self._max_length
        return first, last

    def _pack(
        self, members: Members, first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> tuple[Packed, NDArray[np.bool_]]:
        cu = np.zeros(members.n + 1, dtype=np.int32)
        np.cumsum(last - first + (self._before + self._after), out=cu[1:])
        if not members.n:
            return Packed(np.zeros(0, dtype=np.int32), cu), np.zeros(0, dtype=np.bool_)
        windows = zip(first.tolist(), last.tolist(), strict=True)
        if len(self._residues) == 1:
            residues = self._residues[0]
            pieces = [residues[a:b] for a, b in windows]
        else:
            pieces = [self._residues[c][a:b] for c, (a, b) in zip(members.corpus.tolist(), windows, strict=True)]
        # one join puts suffix + prefix between sequences and, round them, one of each too many
        raw = self._between.join([b"", *pieces, b""])
        inner = slice(self._after, len(raw) - self._before)
        codes = np.frombuffer(raw, dtype=np.uint8)[inner]  # [T]
        if self._bytes is None:
            tokens = self._table.take(codes)
        else:
            tokens = np.frombuffer(raw.translate(self._bytes), dtype=np.uint8)[inner].astype(np.int32)
        return Packed(tokens, cu), codes < _SPECIAL
