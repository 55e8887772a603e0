"""A contrastive loss on pairs (InfoNCE: van den Oord et al. 2018; in-batch negatives of all ranks).

Each protein of a pair is an anchor. Among the pooled states of all proteins of the step, on all ranks, its partner's is
to have the highest cosine: the loss of an anchor is −log softmax(cosine / temperature) at its partner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from protloom.contracts import Losses, Metric, Prepared, Term
from protloom.errors import UserError
from protloom.objective import Objective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG
    from protloom_contrastive_pairs.contrastive_pairs_config import ContrastivePairsConfig


class ContrastivePairs(Objective):
    """The sum over anchors; its value depends on the whole step, so the term is not additive.

    Args:
        config: temperature.
        build: gives the tokenizer.
    """

    config: ContrastivePairsConfig

    def __init__(self, config: ContrastivePairsConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.terms: Mapping[str, Term] = {"contrast": Term(additive=False)}

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Finds the pairs; the sequences are read as they are.

        ``rows`` ``[R]``: residues of paired sequences; ``anchor`` ``[R]``: which anchor each belongs to; ``own`` and
        ``pair`` ``[A]``: numbers that name an anchor and its pair, the same on every rank.

        Raises:
            UserError: if no two sequences belong together.
        """
        counts = np.bincount(batch.group)
        first = np.searchsorted(batch.group, batch.group)  # members of a group are neighbours
        place = np.arange(batch.packed.n) - first
        paired = (counts[batch.group] >= 2) & (place < 2)
        if batch.packed.n > 1 and not paired.any():
            raise UserError(
                "contrastive-pairs needs sequences that belong together, but this corpus has none: "
                "read it as pairs:FILE.tsv, or give its table a column 'group'"
            )
        keys = (batch.keys(rng.stream("name")) >> np.uint64(1)).astype(np.int64)
        lengths = np.diff(batch.packed.cu)
        number = np.cumsum(paired) - 1
        rows = np.flatnonzero(batch.residue & np.repeat(paired, lengths))
        return Prepared(
            inputs=batch.packed,
            counts={"contrast": int(paired.sum())},
            arrays={
                "rows": rows.astype(np.int64),
                "anchor": np.repeat(number, lengths)[rows].astype(np.int64),
                "own": keys[paired],
                "pair": keys[first[paired]] if len(keys) else keys,
            },
        )

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the sum over this rank's anchors, against the proteins of all ranks."""
        states, anchor = passes.encoded.last[prepared["rows"]].float(), prepared["anchor"]
        own, pair = prepared["own"], prepared["pair"]
        sums = states.new_zeros(len(own), states.shape[-1]).index_add(0, anchor, states)
        pooled = torch.nn.functional.normalize(sums, dim=-1)  # the mean's direction is the sum's
        everyone, names, pairs = ctx.all_gather(pooled), ctx.all_gather(own), ctx.all_gather(pair)
        scores = pooled @ everyone.T / self.config.temperature  # [A, all]
        itself = own[:, None] == names[None, :]
        partner = (pair[:, None] == pairs[None, :]) & ~itself
        scores = scores.masked_fill(itself, -torch.inf)
        each = scores.logsumexp(dim=-1) - scores.masked_fill(~partner, 0.0).sum(dim=-1)
        nearest = partner.gather(1, scores.argmax(dim=-1, keepdim=True)).sum() if len(own) else pooled.sum().detach()
        return Losses({"contrast": each.sum()}, {"accuracy": Metric(nearest, float(len(own)))})
