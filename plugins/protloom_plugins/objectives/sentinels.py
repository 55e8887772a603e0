"""Sequence-to-sequence corruption with sentinels, as in T5: runs of residues are hidden and asked for.

All functions work on whole packed batches, without a loop over sequences or residues. Positions here count residues
only: what a tokenizer puts round a sequence is taken off first (:func:`strip`) and put back last (:func:`frame`).
Source: Raffel et al. 2020 (T5), section 3.1.4 and appendix B of the released preprocessing, restated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from protloom.contracts import Packed
from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom.contracts import SequenceBatch, Tokenizer

    U64 = NDArray[np.uint64]
    I32 = NDArray[np.int32]
    I64 = NDArray[np.int64]
    Flags = NDArray[np.bool_]

Overflow = Literal["drop_random", "drop_tail", "error"]


@dataclass(frozen=True)
class Residues:
    """Packed residues without what stands round a sequence.

    Attributes:
        tokens: ``[R]`` ids.
        cu: ``[n + 1]`` int64 offsets.
    """

    tokens: I32
    cu: I64

    @cached_property
    def lengths(self) -> I64:
        """``[n]`` residues of each sequence."""
        return np.diff(self.cu)


def strip(batch: SequenceBatch, before: int, after: int) -> Residues:
    """Takes ``before`` tokens off the front of every sequence and ``after`` off its end."""
    tokens, cu = batch.packed.tokens, batch.packed.cu.astype(np.int64)
    inner = np.ones(len(tokens), dtype=np.bool_)
    for i in range(before):
        inner[cu[:-1] + i] = False
    for i in range(after):
        inner[cu[1:] - 1 - i] = False
    return Residues(tokens[inner], cu - (before + after) * np.arange(len(cu)))


def tail(ends: I64, sizes: I64) -> I64:
    """Returns, ascending, the last ``sizes`` ``[n]`` positions before each of ``ends`` ``[n]``."""
    begin = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(ends - sizes - begin, sizes)


@dataclass(frozen=True)
class Hidden:
    """Hidden residues, in units that have one sentinel each: runs, or single residues.

    Attributes:
        index: ``[M]`` positions of the hidden residues, ascending.
        owner: ``[M]`` number of the sequence that each lies in.
        first: ``[M]`` bool: the first residue of its unit.
        n: number of sequences.
    """

    index: I64
    owner: I64
    first: Flags
    n: int

    @cached_property
    def residues(self) -> I64:
        """``[n]`` hidden residues of each sequence."""
        return np.bincount(self.owner, minlength=self.n)

    @cached_property
    def units(self) -> I64:
        """``[n]`` units of each sequence."""
        return np.bincount(self.owner[self.first], minlength=self.n)

    @cached_property
    def numbers(self) -> I64:
        """``[U]`` number of each unit within its sequence, from 0."""
        begin = np.cumsum(self.units) - self.units
        return np.arange(int(self.units.sum())) - np.repeat(begin, self.units)

    def where(self, keep: Flags) -> Hidden:
        """Returns the hidden residues where ``keep`` ``[M]`` holds; it must keep or leave whole units."""
        return Hidden(self.index[keep], self.owner[keep], self.first[keep], self.n)


def hide(index: I64, cu: I64, *, merged: bool) -> Hidden:
    """Divides hidden residues ``index`` (ascending) into units: runs of neighbours if ``merged``, else one each."""
    n = len(cu) - 1
    owner = np.repeat(np.arange(n), np.diff(np.searchsorted(index, cu)))
    first = np.ones(len(index), dtype=np.bool_)
    if merged:
        first[1:] = (index[1:] != index[:-1] + 1) | (owner[1:] != owner[:-1])
    return Hidden(index, owner, first, n)


def others(hidden: Hidden, cu: I64) -> Hidden:
    """Returns the residues that are not hidden, in runs."""
    shown = np.ones(int(cu[-1]), dtype=np.bool_)
    shown[hidden.index] = False
    return hide(np.flatnonzero(shown), cu, merged=True)


def never_full(index: I64, bits: U64, cu: I64) -> I64:
    """Shows one residue, that with the largest hash, of every sequence that is hidden whole; one residue stays hidden.

    Args:
        index: ``[M]`` hidden positions, ascending.
        bits: ``[M]`` their hashes.
        cu: ``[n + 1]`` offsets.
    """
    lengths = np.diff(cu)
    full = (np.diff(np.searchsorted(index, cu)) == lengths) & (lengths > 1)
    if not full.any():
        return index
    # the hidden residues of these sequences, ordered by sequence, then by hash: the last of each is shown
    begin, size = np.searchsorted(index, cu[:-1][full]), lengths[full]
    places = np.arange(int(size.sum())) + np.repeat(begin - (np.cumsum(size) - size), size)
    order = np.lexsort((bits[places], np.repeat(np.arange(len(size)), size)))
    return np.delete(index, places[order][np.cumsum(size) - 1])


def limit(hidden: Hidden, bits: U64, most: I64, overflow: Overflow) -> Hidden:
    """Shows units of every sequence that has more than ``most`` of them.

    Args:
        hidden: the units.
        bits: ``[M]`` hashes of the hidden residues.
        most: ``[n]`` units that each sequence may have.
        overflow: ``drop_random``: those with the largest hashes, so that no part of a protein is favoured;
            ``drop_tail``: the last ones; ``error``: none.

    Raises:
        UserError: if there are too many and ``overflow`` is ``error``.
    """
    over = hidden.units > most
    if not over.any():
        return hidden
    if overflow == "error":
        worst = int(np.argmax(hidden.units - most))
        raise UserError(
            f"objective denoise: a sequence has {hidden.units[worst]} masked runs, but there are sentinels for only "
            f"{most[worst]} of them: take a lower mask rate, a smaller data.max_length, or overflow: drop_random"
        )
    owner = hidden.owner[hidden.first]  # [U]
    rank = hidden.numbers
    if overflow == "drop_random":
        # ordered by sequence, then by hash: below the mask rate, where all these are, hashes are still evenly spread
        order = np.lexsort((bits[hidden.first], owner))
        rank = np.empty_like(order)
        rank[order] = hidden.numbers
    kept = rank < most[owner]  # [U]
    return hidden.where(kept[np.cumsum(hidden.first) - 1])


def fold(residues: Residues, hidden: Hidden, sentinels: I32) -> Packed:
    """Returns the sequences with sentinel k in place of hidden unit k, k = 0, 1, … in every sequence."""
    at = hidden.index[hidden.first]  # [U]
    keep = np.ones(len(residues.tokens), dtype=np.bool_)
    keep[hidden.index] = False
    keep[at] = True
    tokens = residues.tokens.copy()
    tokens[at] = sentinels[hidden.numbers]
    return Packed(tokens[keep], offsets(residues.lengths - hidden.residues + hidden.units))


def answers(residues: Residues, hidden: Hidden, sentinels: I32) -> Packed:
    """Returns for every sequence sentinel 0, the residues of unit 0, sentinel 1, …"""
    places = np.arange(len(hidden.index)) + np.cumsum(hidden.first)  # [M] every unit's sentinel goes before it
    tokens = np.empty(len(places) + len(hidden.numbers), dtype=np.int32)
    tokens[places] = residues.tokens[hidden.index]
    tokens[places[hidden.first] - 1] = sentinels[hidden.numbers]
    return Packed(tokens, offsets(hidden.residues + hidden.units))


def offsets(lengths: I64) -> I32:
    """Returns ``[n + 1]`` int32 offsets of ``[n]`` lengths."""
    cu = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu[1:])
    return cu


def frame(body: Packed, prefixes: Sequence[Sequence[int]], which: I64, suffix: Sequence[int]) -> Packed:
    """Puts a prefix before every sequence and ``suffix`` after it.

    Args:
        body: the sequences.
        prefixes: the prefixes that there are, as ids.
        which: ``[n]`` number of each sequence's prefix.
        suffix: ids.
    """
    before = np.array([len(prefix) for prefix in prefixes], dtype=np.int64)[which]
    cu = offsets(np.diff(body.cu) + before + len(suffix))
    tokens = np.empty(int(cu[-1]), dtype=np.int32)
    inner = np.ones(len(tokens), dtype=np.bool_)
    for number, prefix in enumerate(prefixes):
        begin = cu[:-1][which == number] if len(prefixes) > 1 else cu[:-1]
        for i, token in enumerate(prefix):
            tokens[begin + i], inner[begin + i] = token, False
    for i, token in enumerate(suffix):
        at = cu[1:] - len(suffix) + i
        tokens[at], inner[at] = token, False
    tokens[inner] = body.tokens
    return Packed(tokens, cu)


def shift_right(target: Packed, start: int) -> Packed:
    """Returns what a decoder reads to predict ``target``: ``start``, then all but the last token of every sequence."""
    tokens = np.empty_like(target.tokens)
    tokens[1:] = target.tokens[:-1]
    tokens[target.cu[:-1]] = start  # no target is empty: each ends in a suffix
    return Packed(tokens, target.cu)


def prefix_of(tokenizer: Tokenizer, name: str, where: str) -> tuple[int, ...]:
    """Returns the ids of a mode prefix: ``auto`` is the tokenizer's own, ``none`` is none at all.

    Raises:
        UserError: if the tokenizer has no such mode.
    """
    if name == "auto":
        return tokenizer.prefix
    if name == "none":
        return ()
    if name not in tokenizer.prefixes:
        told = did_you_mean(name, tokenizer.prefixes) if tokenizer.prefixes else " It has no modes: say prefix: none"
        raise UserError(f"{where}: prefix: tokenizer {tokenizer.name!r} has no mode {name!r}.{told}")
    return tokenizer.prefixes[name]
