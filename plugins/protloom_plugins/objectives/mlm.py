"""Masked language modelling: residues are hidden and predicted from the rest (BERT, Devlin et al. 2019; ESM-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.errors import UserError
from protloom.objective import Objective
from protloom_plugins.objectives import masking
from protloom_plugins.objectives.mlm_config import MaskedLMConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG


class MaskedLM(Objective):
    """Predicts chosen residues; the loss is the sum of −log p(residue) over the chosen positions, in nats.

    Which residues are chosen, and what stands there instead, is a hash of (seed, corpus, epoch, sequence, position).
    Each sequence has at least one chosen residue; special symbols are never chosen.

    Args:
        config: rates and replacements.
        build: gives tokenizer and kernels.

    Raises:
        UserError: if the tokenizer has no mask symbol.
    """

    config: MaskedLMConfig

    def __init__(self, config: MaskedLMConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        if build.tokenizer.mask_id is None:
            raise UserError(
                f"objective mlm needs a mask symbol, but tokenizer {build.tokenizer.name!r} has none: "
                "choose another tokenizer or objective"
            )
        self.terms: Mapping[str, Term] = {"mlm": Term(nats=True)}
        self._mask_id = build.tokenizer.mask_id
        self._residue_ids = np.array(build.tokenizer.residue_ids, dtype=np.int32)
        self._cross_entropy = build.ops.cross_entropy
        self._survival = config.span.survival() if config.span else None

    def _rate(self, batch: SequenceBatch, rng: CounterRNG) -> float | NDArray[np.float64]:
        config = self.config
        if config.mask_rates is not None:
            return masking.pick(batch.keys(rng), config.mask_rates)
        if config.mask_rate_schedule is not None:
            steps, rates = zip(*config.mask_rate_schedule, strict=True)
            return float(np.interp(batch.step, steps, rates))
        return config.mask_rate

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Chooses residues and replaces them; ``index`` and ``targets`` are ``[M]`` int64."""
        rate = self._rate(batch, rng)
        if self._survival is None:
            index, bits = masking.choose(batch, rng, rate)
        else:
            index, bits = masking.choose_spans(batch, rng, rate, self._survival)
        split = self.config.split
        inputs = masking.replace(
            batch.packed.tokens,
            index,
            bits[index],
            mask_id=self._mask_id,
            residue_ids=self._residue_ids,
            mask=split.mask,
            random=split.random,
            other=self.config.replace_by_other,
        )
        return self._prepared(batch, inputs, index)

    def prepare_validation(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Chooses residues one by one at ``validation_rate``; each becomes the mask symbol."""
        index, _ = masking.choose(batch, rng, self.config.validation_rate)
        inputs = batch.packed.tokens.copy()
        inputs[index] = self._mask_id
        return self._prepared(batch, inputs, index)

    def _prepared(self, batch: SequenceBatch, inputs: NDArray[np.int32], index: NDArray[np.int64]) -> Prepared:
        targets = batch.packed.tokens[index].astype(np.int64)
        return Prepared(
            inputs=Packed(inputs, batch.packed.cu),
            counts={"mlm": len(index)},
            arrays={"index": index, "targets": targets},
        )

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the summed cross entropy at the chosen positions, and the accuracy there."""
        index, targets = prepared["index"], prepared["targets"]  # [M], [M]
        logits = model.logits(passes.encoded.last[index])  # [M, V]
        total = self._cross_entropy(logits, targets).sum()
        correct = (logits.detach().argmax(dim=-1) == targets).sum()
        return Losses({"mlm": total}, {"accuracy": Metric(correct, float(len(targets)))})
