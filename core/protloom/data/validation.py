"""The sequences that a run is validated on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.data.members import Members, Slice, group_starts, join, shares_of, split
from protloom.data.totals import BLOCK, Rule, sequence_range, unit_count, unit_sizes, unit_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom.data.totals import SequenceStore

    I64 = NDArray[np.int64]

_CHUNK = 64 * BLOCK
"""Groups looked at in one go."""


class ValidationSet:
    """Held-out sequences in a fixed order, or those of a separate corpus.

    The first sequences of the (shuffled) store that are held out, group by group, as many as fit into the corpus' share
    of ``tokens`` (at least one group if there is any). The same for every seed.

    Args:
        stores: the corpora.
        weights: share of the tokens of each.
        tokens: most tokens of the set.
        specials: special symbols that a tokenizer puts round a sequence.
        max_length: longer sequences are cropped to this many residues.
        min_length: shorter sequences are left out.
        validation_fraction: as the sampler's; None takes every sequence (a separate validation corpus).

    Attributes:
        members: all of them; empty if nothing was held out.
        tokens: their tokens.
    """

    def __init__(
        self,
        stores: Sequence[SequenceStore],
        weights: Sequence[float],
        *,
        tokens: int,
        specials: int,
        max_length: int,
        min_length: int,
        validation_fraction: float | None,
    ) -> None:
        whole = validation_fraction is None
        rule = Rule(max_length, min_length, specials, validation_fraction or 0.0, held_out=not whole)
        slices = [
            _first(store, rule, int(tokens * share)) for store, share in zip(stores, shares_of(weights), strict=True)
        ]
        self.members = join(slices, [int(piece.tokens.sum()) for piece in slices])
        self.tokens = int(self.members.tokens.sum())

    def __len__(self) -> int:
        return self.members.n

    def microbatches(self, *, rank: int = 0, world: int = 1, tokens_per_microbatch: int | None = None) -> list[Members]:
        """Returns this rank's micro-batches; see :func:`split`."""
        return split(self.members, rank=rank, world=world, tokens_per_microbatch=tokens_per_microbatch)


def _first(store: SequenceStore, rule: Rule, budget: int) -> Slice:
    """Returns the first groups that the rule keeps, up to a number of tokens, but at least one if there is any."""
    units = unit_count(store)
    index: list[I64] = []
    unit: list[I64] = []
    tokens: list[I64] = []
    used = 0
    for first in range(0, units, _CHUNK):
        last = min(first + _CHUNK, units)
        low, high = sequence_range(store, first, last)
        size = rule.tokens(store, low, high)  # [high - low]
        per_unit = unit_tokens(store, size, first, last)
        upto = used + np.cumsum(per_unit)
        some = np.flatnonzero(per_unit)
        limit = int(upto[some[0]]) if not used and len(some) else 0
        fits = upto <= max(budget, limit)  # true, …, true, false, …: the totals ascend
        of_unit = np.repeat(np.arange(first, last), unit_sizes(store, first, last))
        kept = np.flatnonzero((size > 0) & fits[of_unit - first])
        index.append(low + kept)
        unit.append(of_unit[kept])
        tokens.append(size[kept])
        used += int(size[kept].sum())
        if not fits.all():
            break
    nothing = [np.zeros(0, dtype=np.int64)]
    indices, units_kept, sizes = (np.concatenate(part or nothing) for part in (index, unit, tokens))
    return Slice(np.zeros_like(indices), indices, units_kept, group_starts(units_kept, sizes), sizes)
