"""Prefix-LM (Raffel et al. 2020, section 3.2.1): the encoder reads a beginning, the decoder predicts all that follows.

Where a sequence is cut is drawn anew at every epoch, so that the network learns to go on from anywhere. ('complete',
which protloom ships, is Ankh3's form of it: cut in the middle, with a mode symbol.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.objective import Objective
from protloom.rng import uniform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG
    from protloom_prefix_lm.prefix_lm_config import PrefixLMConfig


class PrefixLM(Objective):
    """The loss is −log p of the rest and of its end, given the beginning, in nats.

    Args:
        config: between which shares the cut is drawn.
        build: gives tokenizer and kernels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encode", "decode"})
    least_residues: ClassVar[int] = 2
    config: PrefixLMConfig

    def __init__(self, config: PrefixLMConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        self.terms: Mapping[str, Term] = {"rest": Term(nats=True)}
        self._cross_entropy = build.ops.cross_entropy

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Cuts each sequence once; ``targets`` ``[T]`` are what the decoder predicts at each of its positions."""
        tokenizer, cu = self.tokenizer, batch.packed.cu
        before, after = len(tokenizer.prefix), len(tokenizer.suffix)
        share = self.config.least + (self.config.most - self.config.least) * uniform(batch.keys(rng))  # [n]
        begun: list[NDArray[np.int32]] = []
        rests: list[NDArray[np.int32]] = []
        for i in range(batch.packed.n):
            residues = batch.packed.tokens[cu[i] + before : cu[i + 1] - after]
            cut = int(np.clip(round(share[i] * len(residues)), 1, len(residues) - 1))
            begun.append(np.array([*tokenizer.prefix, *residues[:cut], *tokenizer.suffix], dtype=np.int32))
            rests.append(np.array([*residues[cut:], *tokenizer.suffix], dtype=np.int32))
        # the decoder reads its own output moved by one; padding stands where there is none yet, as in T5
        shifted = [np.concatenate([[tokenizer.pad_id], rest[:-1]]).astype(np.int32) for rest in rests]
        target = _packed(rests)
        return Prepared(
            inputs=_packed(begun),
            decoder=_packed(shifted),
            counts={"rest": len(target.tokens)},
            arrays={"targets": target.tokens.astype(np.int64)},
        )

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the sum over the decoder's positions, and how many of its first choices are right."""
        targets = prepared["targets"]
        logits = model.logits(passes.decoded.last)
        right = (logits.detach().argmax(dim=-1) == targets).sum()
        total = self._cross_entropy(logits, targets).sum()
        return Losses({"rest": total}, {"accuracy": Metric(right, float(len(targets)))})


def _packed(parts: Sequence[NDArray[np.int32]]) -> Packed:
    cu = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=cu[1:])
    return Packed(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), cu)
