"""The sequences of a step: how corpora are merged, and how ranks and micro-batches share them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Members:
    """Sequences of a step or of a micro-batch, in order.

    Attributes:
        corpus: ``[n]`` int32: number of the corpus in the mixture.
        epoch: ``[n]`` int64: how often the corpus had been seen before.
        index: ``[n]`` int64: number of the sequence in its store.
        group: ``[n]`` int32: number of the group in the step; members of a group are neighbours.
        tokens: ``[n]`` int64: residues after cropping plus special symbols.
    """

    corpus: NDArray[np.int32]
    epoch: I64
    index: I64
    group: NDArray[np.int32]
    tokens: I64

    @property
    def n(self) -> int:
        """Number of sequences."""
        return len(self.index)

    def part(self, start: int, stop: int) -> Members:
        """Returns members ``start`` to ``stop``."""
        return Members(
            self.corpus[start:stop],
            self.epoch[start:stop],
            self.index[start:stop],
            self.group[start:stop],
            self.tokens[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """Sequences of one corpus in an interval of its stream."""

    epoch: I64  # [n]
    index: I64  # [n]
    unit: I64  # [n]
    start: I64  # [n], counted from the interval's first token
    tokens: I64  # [n]


def group_starts(unit: I64, tokens: I64) -> I64:
    """Returns ``[n]`` the first token of each sequence's group, where members of a group are neighbours."""
    start = np.cumsum(tokens) - tokens
    if not len(unit):
        return start
    new = np.ones(len(unit), dtype=np.bool_)
    new[1:] = unit[1:] != unit[:-1]
    first: I64 = start[new][np.cumsum(new) - 1]
    return first


def join(slices: Sequence[Slice], spans: Sequence[int]) -> Members:
    """Merges corpora by relative position, so that every stretch of a step has the shares of the mixture."""
    sizes = [len(piece.index) for piece in slices]
    corpus = np.repeat(np.arange(len(slices), dtype=np.int32), sizes)
    epoch = np.concatenate([piece.epoch for piece in slices])
    index = np.concatenate([piece.index for piece in slices])
    unit = np.concatenate([piece.unit for piece in slices])
    tokens = np.concatenate([piece.tokens for piece in slices])
    if sum(size > 0 for size in sizes) > 1:
        place = np.concatenate([piece.start / max(span, 1) for piece, span in zip(slices, spans, strict=True)])
        # stable: members of a group share one place and stay neighbours
        order = np.argsort(place, kind="stable")
        corpus, epoch, index, unit, tokens = corpus[order], epoch[order], index[order], unit[order], tokens[order]
    new = np.zeros(len(index), dtype=np.int32)
    new[1:] = (unit[1:] != unit[:-1]) | (epoch[1:] != epoch[:-1]) | (corpus[1:] != corpus[:-1])
    return Members(corpus, epoch, index, np.cumsum(new, dtype=np.int32), tokens)


def split(members: Members, *, rank: int, world: int, tokens_per_microbatch: int | None) -> list[Members]:
    """Cuts members into contiguous micro-batches of one rank; every rank gets the same number, some may be empty.

    A group goes to the rank in whose equal share of the tokens it starts. Within a rank a micro-batch takes groups as
    long as they fit; a group longer than ``tokens_per_microbatch`` is a micro-batch of its own.

    Args:
        members: the whole step, the same on every rank.
        rank: this rank, from 0.
        world: number of ranks.
        tokens_per_microbatch: None: one micro-batch a rank.
    """
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.flatnonzero(np.diff(members.group)) + 1))  # [groups]
    ends = np.concatenate((first[1:], [members.n]))
    total_to = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(members.tokens)))  # [n + 1]
    starts = total_to[first]  # [groups]: first token of each group
    total = int(total_to[-1])
    shares = np.searchsorted(starts * world, np.arange(world + 1) * total)  # [world + 1]: group bounds of the ranks
    shares[-1] = len(first) if members.n else 0
    if tokens_per_microbatch is None:
        a, b = shares[rank], shares[rank + 1]
        return [members.part(int(first[a]), int(ends[b - 1])) if a < b else members.part(0, 0)]
    stops = total_to[ends]  # [groups]: one past the last token of each group
    most, mine = 1, []
    for r in range(world):
        at, stop, cuts = int(shares[r]), int(shares[r + 1]), []
        while at < stop:
            fits = int(np.searchsorted(stops, starts[at] + tokens_per_microbatch, side="right"))
            until = min(max(fits, at + 1), stop)
            cuts.append((int(first[at]), int(ends[until - 1])))
            at = until
        most = max(most, len(cuts))
        if r == rank:
            mine = cuts
    return [members.part(*cut) for cut in mine] + [members.part(0, 0)] * (most - len(mine))


def shares_of(weights: Sequence[float]) -> list[Fraction]:
    """Normalises weights exactly; a weight means the decimal number that the user wrote."""
    exact = [Fraction(str(weight)) for weight in weights]
    if not exact or min(exact) <= 0:
        raise UserError(f"data.corpus: every weight must be above 0, not {list(weights)}")
    return [weight / sum(exact) for weight in exact]
