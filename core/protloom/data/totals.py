"""Which sequences of a store count, and how many tokens each block of it holds.

The sampler needs the token total of every block to know where a position of its stream lies. One vectorised pass over
lengths and hashes finds them; the result is kept beside the store, so that later runs start at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from protloom.rng import CounterRNG, mix64, threshold

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]

BLOCK = 256
"""Groups of a block: the unit that an epoch's permutation moves."""

_CHUNK = 16_384
"""Blocks counted at once: some hundred megabytes of work space."""

_LAYOUT = 2
"""Raised when the meaning of the cached totals changes."""


class SequenceStore(Protocol):
    """What sampling and batching read of a store; :class:`protloom.data.store.Store` is one."""

    @property
    def path(self) -> Path:
        """The store's folder."""

    @property
    def content_hash(self) -> str:
        """A hash of all sequences in their order."""

    @property
    def residues(self) -> NDArray[np.uint8]:
        """ASCII residues of all sequences end to end."""

    @property
    def offsets(self) -> I64:
        """``[N + 1]`` where each sequence begins in ``residues``."""

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """``[N]`` hash of each sequence's residues: equal sequences have equal hashes."""

    @property
    def groups(self) -> I64 | None:
        """``[G + 1]`` first sequence of each group; None: every sequence is its own group."""

    def __len__(self) -> int:
        """Number of sequences N."""


@dataclass(frozen=True)
class Rule:
    """Which sequences are taken, and how many tokens each becomes.

    Attributes:
        max_length: longer sequences are cropped to this many residues.
        min_length: shorter sequences are left out.
        specials: special symbols that the tokenizer puts round a sequence.
        validation_fraction: share of the sequences that is held out, by content: duplicates fall on one side. It does
            not depend on the seed, so that runs of several seeds are validated on the same sequences. A group is held
            out as a whole, by the least hash among its members: a pair is not torn apart.
        held_out: take the held-out sequences instead of the others.
    """

    max_length: int
    min_length: int
    specials: int
    validation_fraction: float
    held_out: bool = False

    def is_held_out(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tells of each content hash whether its sequence is held out."""
        bits = mix64(np.bitwise_xor(hashes, np.uint64(CounterRNG(0, "validation").key)))
        return bits < threshold(self.validation_fraction)

    def tokens(self, store: SequenceStore, low: int, high: int) -> I64:
        """Returns ``[high - low]``: the tokens of sequences ``low`` to ``high``, 0 for those that are not taken."""
        lengths = np.diff(store.offsets[low : high + 1])
        taken = lengths >= self.min_length
        if self.validation_fraction > 0:
            taken &= self.is_held_out(_group_hashes(store, low, high)) == self.held_out
        elif self.held_out:
            taken[:] = False
        tokens: I64 = np.minimum(lengths, self.max_length)
        tokens += self.specials
        tokens *= taken
        return tokens


def _group_hashes(store: SequenceStore, low: int, high: int) -> NDArray[np.uint64]:
    """Returns for sequences ``low`` to ``high`` (whole groups) the least content hash of the group of each."""
    hashes = store.hashes[low:high]
    if store.groups is None or not len(hashes):
        return hashes
    first, last = np.searchsorted(store.groups, (low, high))
    bounds = store.groups[first : last + 1] - low
    least: NDArray[np.uint64] = np.repeat(np.minimum.reduceat(hashes, bounds[:-1]), np.diff(bounds))
    return least


@dataclass(frozen=True)
class Totals:
    """What a rule takes of a store.

    Attributes:
        blocks: ``[blocks]`` int64 tokens of each block.
        tokens: their sum, the tokens of an epoch.
        longest: tokens of the longest group.
        sequences: sequences taken.
        short: sequences left out because they are shorter than ``min_length``.
        held_out: sequences kept for validation.
    """

    blocks: I64
    tokens: int
    longest: int
    sequences: int
    short: int
    held_out: int


def sequence_range(store: SequenceStore, first: int, last: int) -> tuple[int, int]:
    """Returns the range of sequences of groups ``first`` to ``last``."""
    if store.groups is None:
        return first, last
    return int(store.groups[first]), int(store.groups[last])


def unit_count(store: SequenceStore) -> int:
    """Returns the number of groups."""
    return len(store) if store.groups is None else len(store.groups) - 1


def unit_sizes(store: SequenceStore, first: int, last: int) -> I64:
    """Returns the number of sequences of each of the groups ``first`` to ``last``."""
    if store.groups is None:
        return np.ones(last - first, dtype=np.int64)
    sizes: I64 = np.diff(store.groups[first : last + 1])
    return sizes


def unit_tokens(store: SequenceStore, tokens: I64, first: int, last: int) -> I64:
    """Adds the ``tokens`` of the sequences of groups ``first`` to ``last`` up group by group."""
    if store.groups is None:
        return tokens
    bounds = store.groups[first : last + 1]
    upto = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(tokens)))
    totals: I64 = np.diff(upto[bounds - bounds[0]])
    return totals


def _count(store: SequenceStore, rule: Rule) -> Totals:
    units = unit_count(store)
    blocks: list[I64] = []
    longest = sequences = short = 0
    for first in range(0, units, _CHUNK * BLOCK):
        last = min(first + _CHUNK * BLOCK, units)
        low, high = sequence_range(store, first, last)
        tokens = rule.tokens(store, low, high)
        per_unit = unit_tokens(store, tokens, first, last)
        blocks.append(np.add.reduceat(per_unit, np.arange(0, last - first, BLOCK)))
        longest = max(longest, int(per_unit.max()))
        sequences += int(np.count_nonzero(tokens))
        short += int(np.count_nonzero(np.diff(store.offsets[low : high + 1]) < rule.min_length))
    every = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64)
    held_out = len(store) - sequences - short
    return Totals(every, int(every.sum()), longest, sequences, short, held_out)


def block_totals(store: SequenceStore, rule: Rule) -> Totals:
    """Returns the totals of a store under a rule, from the cache beside the store where there is one.

    A cache that cannot be read is counted anew, one that cannot be written is left out: neither is an error.
    """
    identity = f"{_LAYOUT} {BLOCK} {store.content_hash} {rule}"
    file = store.path / f"totals-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"
    # a damaged file raises whatever its damage leads to; all of it means: count
    with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as cached:
        if str(cached["identity"]) == identity:
            numbers = (int(number) for number in cached["numbers"])
            return Totals(cached["blocks"], *numbers)
    totals = _count(store, rule)
    numbers_out = [totals.tokens, totals.longest, totals.sequences, totals.short, totals.held_out]
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            np.savez(out, identity=np.array(identity), blocks=totals.blocks, numbers=np.array(numbers_out))
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
    return totals
