"""A store in memory, with what sampling and batching read of a real one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LETTERS = b"ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True)
class MemoryStore:
    """Sequences end to end; see ``protloom.data.totals.SequenceStore``."""

    path: Path
    content_hash: str
    residues: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sequence(self, index: int) -> str:
        """One sequence as text."""
        return bytes(self.residues[self.offsets[index] : self.offsets[index + 1]]).decode()


def store_of(sequences: Sequence[bytes], *, groups: Sequence[int] | None = None) -> MemoryStore:
    """Makes a store; its folder does not exist, so nothing is cached. ``groups`` are sizes of the groups."""
    digests = [hashlib.sha256(sequence).digest() for sequence in sequences]
    content = hashlib.sha256(b"".join(digests) + repr(groups).encode()).hexdigest()
    return MemoryStore(
        path=Path(os.devnull) / "nowhere",
        content_hash=content,
        residues=np.frombuffer(b"".join(sequences), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
        hashes=np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64),
        groups=None if groups is None else np.cumsum([0, *groups], dtype=np.int64),
    )


def random_sequences(n: int, *, seed: int, shortest: int = 1, longest: int = 60) -> list[bytes]:
    """Draws sequences of uniform lengths and residues."""
    generator = np.random.default_rng(seed)
    alphabet = np.frombuffer(LETTERS, dtype=np.uint8)
    lengths = generator.integers(shortest, longest + 1, n)
    return [bytes(generator.choice(alphabet, length)) for length in lengths]
