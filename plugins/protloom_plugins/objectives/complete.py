"""Completion: the encoder reads the first part of a sequence, the decoder generates the rest (Ankh3).

What the network reads and answers for MKAYVLINSRGP, split in half::

    encoder  [S2S] M K A Y V L </s>
    target   I N S R G P </s>
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.objective import Objective
from protloom.rng import uniform
from protloom_plugins.objectives import decoding
from protloom_plugins.objectives import sentinels as seq2seq
from protloom_plugins.objectives.complete_config import CompleteConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG


class Complete(Objective):
    """Asks for the second part of a sequence; the loss is the sum of −log p over it and ``</s>``, in nats.

    Where a sequence is cut is a hash of (seed, corpus, epoch, sequence). Both parts have at least one residue, so a
    sequence needs two.

    Args:
        config: where to cut, and the mode.
        build: gives tokenizer and kernels.

    Raises:
        UserError: if the tokenizer has not the mode that is asked for.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encode", "decode"})
    least_residues: ClassVar[int] = 2
    config: CompleteConfig

    def __init__(self, config: CompleteConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        tokenizer = build.tokenizer
        self.terms: Mapping[str, Term] = {"complete": Term(nats=True)}
        name = "S2S" if config.prefix == "auto" and tokenizer.prefixes else config.prefix
        self._prefix = seq2seq.prefix_of(tokenizer, name, "objective complete")
        self._kinds = decoding.kinds_of(tokenizer)
        self._residues: Tensor
        self.register_buffer("_residues", torch.from_numpy(self._kinds == decoding.RESIDUE), persistent=False)
        self._cross_entropy = build.ops.cross_entropy

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Cuts every sequence in two; ``targets`` and ``kinds`` are ``[T]`` over all positions of the decoder."""
        tokenizer = self.tokenizer
        residues = seq2seq.strip(batch, len(tokenizer.prefix), len(tokenizer.suffix))
        sizes = residues.lengths - self._kept(residues.lengths, batch, rng)  # [n] asked for
        second = np.zeros(len(residues.tokens), dtype=np.bool_)
        second[seq2seq.tail(residues.cu[1:], sizes)] = True
        given = Packed(residues.tokens[~second], seq2seq.offsets(residues.lengths - sizes))
        asked = Packed(residues.tokens[second], seq2seq.offsets(sizes))
        one = np.zeros(batch.packed.n, dtype=np.int64)
        target = seq2seq.frame(asked, [()], one, tokenizer.suffix)
        return Prepared(
            inputs=seq2seq.frame(given, [self._prefix], one, tokenizer.suffix),
            decoder=seq2seq.shift_right(target, tokenizer.pad_id),
            counts={"complete": len(target.tokens)},
            arrays={
                "targets": target.tokens.astype(np.int64),
                "kinds": self._kinds[target.tokens],
                "counters": np.array([len(given.tokens), len(residues.tokens)], dtype=np.int64),
            },
        )

    def _kept(self, lengths: NDArray[np.int64], batch: SequenceBatch, rng: CounterRNG) -> NDArray[np.int64]:
        """Returns ``[n]`` how many residues the encoder reads."""
        split = self.config.split
        if split == "half":
            return lengths // 2
        share = split.min + (split.max - split.min) * uniform(batch.keys(rng))
        return np.maximum((share * lengths).astype(np.int64), np.minimum(1, lengths // 2))

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the summed cross entropy in nats; see :func:`decoding.score` for the metrics."""
        z_loss = self.config.z_loss if self.training else 0.0
        total, metrics = decoding.score(
            model, passes, prepared, self._cross_entropy, z_loss, residues=self._residues, detailed=ctx.logging
        )
        metrics.pop("sentinel_loss", None)  # a completion has none
        given, residues = prepared["counters"].unbind()
        return Losses({"complete": total}, {**metrics, "kept": Metric(given, residues)})
