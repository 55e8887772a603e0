"""What each optimizer step sees, as a pure function of (seed, step, corpus).

A corpus is an endless stream of tokens: epoch after epoch of all its sequences, each epoch in another order. The order
is closed-form: the store (shuffled once, when it was built) is cut into blocks, a keyed permutation of the epoch orders
the blocks, and hashes order the groups within a block. Token totals of the blocks, cached beside the store, then say
where any position of the stream lies, so that a run resumes at any step without reading what came before.

Step s takes the groups whose first token lies in ``[s·T, (s+1)·T)`` with T = tokens_per_step. A group (one sequence, or
a pair or family where the corpus says so) is never split; a step may therefore be longer than T by less than a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from protloom.data.members import Members, Slice, group_starts, join, shares_of, split
from protloom.data.totals import BLOCK, Rule, block_totals, sequence_range, unit_count, unit_sizes
from protloom.data.validation import ValidationSet
from protloom.errors import UserError
from protloom.rng import CounterRNG, Permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom.data.totals import SequenceStore, Totals

    I64 = NDArray[np.int64]

__all__ = ["Members", "Sampler", "ValidationSet", "split"]


@dataclass(frozen=True, slots=True)
class _Block:
    """The kept sequences of one block in the order of one epoch; ``start`` is the first token of a sequence's group."""

    index: I64  # [n]
    unit: I64  # [n]
    start: I64  # [n], ascending, counted from the block's first token
    tokens: I64  # [n]

    def part(self, i: int, j: int) -> _Block:
        """Returns sequences ``i`` to ``j``."""
        return _Block(self.index[i:j], self.unit[i:j], self.start[i:j], self.tokens[i:j])


class _Stream:
    """One corpus as an endless stream of tokens."""

    def __init__(self, store: SequenceStore, totals: Totals, rule: Rule, rng: CounterRNG) -> None:
        self.store, self.totals, self.rule = store, totals, rule
        self._rng, self._within = rng, rng.stream("within")
        # the loader's threads share these; lru_cache is safe for that
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        self._block = lru_cache(maxsize=64)(self._make_block)

    def _make_epoch(self, epoch: int) -> tuple[I64, I64]:
        """Returns the order of the blocks and their first tokens (one more than blocks)."""
        blocks = self.totals.blocks
        order = Permutation(len(blocks), self._rng.stream(epoch))(np.arange(len(blocks)))
        starts = np.zeros(len(blocks) + 1, dtype=np.int64)
        np.cumsum(blocks[order], out=starts[1:])
        return order, starts

    def _make_block(self, epoch: int, block: int) -> _Block:
        first, last = block * BLOCK, min((block + 1) * BLOCK, unit_count(self.store))
        low, high = sequence_range(self.store, first, last)
        tokens = self.rule.tokens(self.store, low, high)  # [high - low], 0 where left out
        rank = np.argsort(self._within.at(epoch, np.arange(first, last)), kind="stable")
        if self.store.groups is None:
            index, unit = low + rank, first + rank
        else:
            place = np.empty(last - first, dtype=np.int64)
            place[rank] = np.arange(last - first)
            of_unit = np.repeat(np.arange(last - first), unit_sizes(self.store, first, last))
            order = np.argsort(place[of_unit], kind="stable")
            index, unit = low + order, first + of_unit[order]
        kept = tokens[index - low] > 0
        index, unit = index[kept], unit[kept]
        tokens = tokens[index - low]
        return _Block(index, unit, group_starts(unit, tokens), tokens)

    def interval(self, low: int, high: int) -> Slice:
        """Returns the sequences of the groups that start at positions ``low`` to ``high`` of the stream."""
        size = self.totals.tokens
        parts: list[tuple[int, int, _Block]] = []  # epoch, position of the block from `low`, its members
        for epoch in range(low // size, -(-high // size)):
            origin = epoch * size
            a, b = max(low - origin, 0), min(high - origin, size)
            order, starts = self._epoch(epoch)
            first = int(np.searchsorted(starts, a, side="right")) - 1
            last = int(np.searchsorted(starts, b, side="left"))
            for k in range(first, last):
                at = int(starts[k])
                block = self._block(epoch, int(order[k]))
                i, j = np.searchsorted(block.start, (a - at, b - at))
                if i < j:
                    parts.append((epoch, origin + at - low, block.part(int(i), int(j))))
        if not parts:
            nothing = np.zeros(0, dtype=np.int64)
            return Slice(nothing, nothing, nothing, nothing, nothing)
        blocks = [block for _, _, block in parts]
        return Slice(
            np.repeat(np.array([epoch for epoch, _, _ in parts], dtype=np.int64), [len(b.index) for b in blocks]),
            np.concatenate([b.index for b in blocks]),
            np.concatenate([b.unit for b in blocks]),
            np.concatenate([b.start + at for _, at, b in parts]),
            np.concatenate([b.tokens for b in blocks]),
        )


class Sampler:
    """Says which sequences belong to which step.

    Args:
        stores: the corpora.
        weights: share of the tokens of each corpus, relative to the others.
        tokens_per_step: T, tokens of a step on all ranks together.
        specials: special symbols that a tokenizer puts round a sequence.
        max_length: longer sequences are cropped to this many residues.
        min_length: shorter sequences are left out.
        validation_fraction: share of the sequences that is held out, by a hash of the content (whatever the seed).
        seed: of the order.

    Attributes:
        tokens_per_epoch: tokens of all corpora together.
        totals: what was counted in each corpus: sequences kept, held out and too short, tokens.

    Raises:
        UserError: if nothing is left of a corpus, or a step could be empty.
    """

    def __init__(
        self,
        stores: Sequence[SequenceStore],
        weights: Sequence[float],
        *,
        tokens_per_step: int,
        specials: int,
        max_length: int,
        min_length: int,
        validation_fraction: float,
        seed: int,
    ) -> None:
        if len(stores) != len(weights):
            raise ValueError(f"{len(stores)} stores but {len(weights)} weights")
        rule = Rule(max_length, min_length, specials, validation_fraction)
        self.tokens_per_step = tokens_per_step
        self.totals = tuple(block_totals(store, rule) for store in stores)
        for store, totals in zip(stores, self.totals, strict=True):
            if totals.tokens == 0:
                name = getattr(store, "name", store.path)
                raise UserError(
                    f"data: nothing is left to train on in {name}: of {len(store)} sequences "
                    f"{totals.short} are shorter than data.min_length ({min_length}) and {totals.held_out} held out; "
                    "use a larger corpus, or a lower data.min_length or data.validation_fraction"
                )
        self.tokens_per_epoch = sum(totals.tokens for totals in self.totals)
        self._rates = [tokens_per_step * share for share in shares_of(weights)]  # tokens of each corpus a step, exact
        self._check_never_empty()
        self._streams = [
            _Stream(store, totals, rule, CounterRNG(seed, "order", number))
            for number, (store, totals) in enumerate(zip(stores, self.totals, strict=True))
        ]

    def _check_never_empty(self) -> None:
        """A step surely holds a group if some corpus' interval is at least as long as its longest group."""
        step = self.tokens_per_step
        need = [math.ceil(t.longest * step / rate) for t, rate in zip(self.totals, self._rates, strict=True)]
        if self.tokens_per_step < min(need):
            longest = max(totals.longest for totals in self.totals)
            mixed = f" at these weights of {len(need)} corpora" if len(need) > 1 else ""
            raise UserError(
                f"trainer.tokens_per_step is {self.tokens_per_step}, but the longest sequence or group has {longest} "
                f"tokens{mixed}, so a step could be empty: set trainer.tokens_per_step to at least {min(need)}, "
                "or lower data.max_length"
            )

    def step(self, s: int) -> Members:
        """Returns the members of step ``s`` in their global order."""
        slices, spans = [], []
        for stream, rate in zip(self._streams, self._rates, strict=True):
            low, high = int(s * rate), int((s + 1) * rate)  # a Fraction's int() is its floor here
            slices.append(stream.interval(low, high))
            spans.append(high - low)
        return join(slices, spans)

    def microbatches(
        self, s: int, *, rank: int = 0, world: int = 1, tokens_per_microbatch: int | None = None
    ) -> list[Members]:
        """Returns this rank's micro-batches of step ``s``; see :func:`split`."""
        return split(self.step(s), rank=rank, world=world, tokens_per_microbatch=tokens_per_microbatch)

    def epoch_at(self, s: int) -> float:
        """Returns the tokens before step ``s`` divided by the tokens of all corpora."""
        return s * self.tokens_per_step / self.tokens_per_epoch
