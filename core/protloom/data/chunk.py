"""Some megabytes of records at once: what readers give, policies clean and the store writes.

Work on single records in Python costs more than the rest of the pipeline together, so everything after the reader is
done for a whole chunk by a few numpy calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from protloom.rng import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Record

CHUNK_BYTES = 1 << 20
"""Residues (and headers) of a chunk, about; large enough for numpy, small enough for the processor's cache."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# the bytes of a last word that belong to the sequence, by length modulo 8
_TAIL = np.array([(1 << 64) - 1, *((1 << (8 * k)) - 1 for k in range(1, 8))], dtype=np.uint64)


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a source.

    Attributes:
        ids: identifier of each record, UTF-8.
        residues: the sequences end to end, as they stand in the source but without line ends.
        offsets: ``[n + 1]`` int64, where each begins in ``residues``.
        numbers: ``[n]`` int64 number of each record in the source, from 1.
        lines: ``[n]`` int64 line where each record begins, from 1, or None where the source has no lines.
        groups: label of each record's group, or None where the source has none.
    """

    ids: list[bytes]
    residues: bytes
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int64]
    lines: NDArray[np.int64] | None = None
    groups: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[n]`` residues of each record."""
        return np.diff(self.offsets)

    def where(self, i: int) -> str:
        """Says where record ``i`` of this chunk stands, for errors: ``record 7 (line 23) 'P12345'``."""
        line = "" if self.lines is None else f" (line {self.lines[i]})"
        return f"record {self.numbers[i]}{line} {self.ids[i].decode()!r}"


def offsets_of(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns the ``n + 1`` cumulative offsets of ``n`` lengths."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def lengths_of(items: list[bytes]) -> NDArray[np.int64]:
    """Returns the length of each item."""
    return np.fromiter(map(len, items), np.int64, len(items))


def chunks_of(records: Iterable[Record], size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Gathers single records into chunks of about ``size`` residues."""
    first, iterator = 1, iter(records)
    while True:
        batch: list[Record] = []
        total = 0
        for record in islice(iterator, size // 64):
            batch.append(record)
            total += len(record.residues)
            if total >= size:
                break
        if not batch:
            return
        grouped = any(r.group is not None for r in batch)
        yield Chunk(
            ids=[r.id.encode() for r in batch],
            residues=b"".join([r.residues for r in batch]),
            offsets=offsets_of(lengths_of([r.residues for r in batch])),
            numbers=np.arange(first, first + len(batch)),
            groups=[r.group for r in batch] if grouped else None,
        )
        first += len(batch)


def hash_slices(data: bytes, offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes every slice ``data[offsets[i]:offsets[i + 1]]`` to 64 bits that depend on its bytes alone.

    With w_k the k-th little-endian word of 8 bytes (the last one filled with zeros) and g the golden-ratio increment:
    mix(Σ_k mix(w_k + (k + 1)·g) + length·g), all modulo 2⁶⁴, where mix is :func:`protloom.rng.mix64`. It tells
    sequences apart; it does not resist somebody who wants a collision.

    Args:
        data: bytes that hold all slices.
        offsets: ``[n + 1]`` int64, not decreasing.

    Returns:
        ``[n]`` uint64.
    """
    lengths = np.diff(offsets)
    words = (lengths + 7) >> 3
    ends = offsets_of(words)
    # slices begin anywhere: each of their words is put together from two aligned ones, which is faster to fetch
    aligned = np.frombuffer(data + bytes(16 - len(data) % 8), dtype="<u8").astype(np.uint64, copy=False)
    shift = ((offsets[:-1] & 7) << 3).view(np.uint64)  # [n] bits
    within = np.arange(ends[-1], dtype=np.int64)
    within -= np.repeat(ends[:-1], words)  # [W] k of each word
    at = np.repeat(offsets[:-1] >> 3, words)
    at += within
    word = aligned.take(at)
    word >>= np.repeat(shift, words)
    at += 1
    high = aligned.take(at)
    high <<= np.uint64(1)  # a shift by 64 has no meaning, so one bit goes first
    high <<= np.repeat(np.uint64(63) - shift, words)
    word |= high
    full = words > 0
    word[ends[1:][full] - 1] &= _TAIL[lengths[full] & 7]
    within += 1
    word += within.view(np.uint64) * _GOLDEN
    total = np.zeros(len(lengths), dtype=np.uint64)
    if len(word):
        total[full] = np.add.reduceat(mix64(word), ends[:-1][full])
    return mix64(total + lengths.view(np.uint64) * _GOLDEN)


def byte_counts(data: bytes) -> NDArray[np.int64]:
    """Returns ``[256]`` how often each byte occurs."""
    # pairs halve the work of bincount, which converts every element to 8 bytes
    pairs = len(data) // 2
    square = np.bincount(np.frombuffer(data, np.uint16, pairs), minlength=1 << 16).reshape(256, 256)
    counts = square.sum(axis=0) + square.sum(axis=1)
    if len(data) % 2:
        counts[data[-1]] += 1
    result: NDArray[np.int64] = counts.astype(np.int64, copy=False)
    return result
