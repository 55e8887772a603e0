"""Masked language modelling: residues are hidden and predicted from the rest (BERT, Devlin et al. 2019; ESM-2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.errors import UserError
from protloom.objective import Objective
from protloom.settings import Section
from protloom_plugins.objectives import masking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG

Rate = Annotated[float, Field(gt=0, le=1)]


class SplitConfig(Section):
    """What becomes of a chosen residue; the three add up to 1."""

    mask: float = Field(default=0.8, ge=0, le=1, description="Becomes the mask symbol")
    random: float = Field(default=0.1, ge=0, le=1, description="Becomes a random residue")
    keep: float = Field(default=0.1, ge=0, le=1, description="Stays as it is")

    @model_validator(mode="after")
    def _sum(self) -> SplitConfig:
        total = self.mask + self.random + self.keep
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"mask + random + keep must add up to 1, not {total:g}")
        return self


class SpanConfig(Section):
    """Residues are chosen in runs instead of one by one; the expected rate stays the same."""

    kind: Literal["geometric", "fixed"] = Field(default="geometric", description="Distribution of the lengths")
    mean: float = Field(default=3.0, ge=1, description="Mean length (before cutting to max), or the fixed length")
    max: int = Field(default=10, ge=1, description="Longer geometric lengths are cut to this")

    @model_validator(mode="after")
    def _whole(self) -> SpanConfig:
        if self.kind == "fixed" and self.mean != int(self.mean):
            raise ValueError(f"a fixed span length is a whole number, not {self.mean:g}")
        return self

    def survival(self) -> NDArray[np.float64]:
        """Returns P(length > j) for j = 0, 1, …"""
        if self.kind == "fixed":
            return masking.fixed_survival(int(self.mean))
        return masking.geometric_survival(self.mean, self.max)


class MaskedLMConfig(Section):
    """Options of masked language modelling; give at most one of the three forms of the rate."""

    mask_rate: Rate = Field(default=0.15, description="Share of the residues that is chosen")
    mask_rates: Annotated[list[Rate], Field(min_length=1)] | None = Field(
        default=None, description="Rates of which each sequence draws one, all equally likely"
    )
    mask_rate_schedule: Annotated[list[tuple[Annotated[int, Field(ge=0)], Rate]], Field(min_length=1)] | None = Field(
        default=None, description="Points (step, rate): linear between them, constant outside"
    )
    split: SplitConfig = SplitConfig()
    replace_by_other: bool = Field(default=False, description="A random residue always differs from the original")
    span: SpanConfig | None = Field(default=None, description="Choose runs of residues; default: one by one")
    validation_rate: Rate = Field(
        default=0.15, description="Rate of validation, one by one, all to the mask symbol: comparable between runs"
    )

    @model_validator(mode="after")
    def _one_rate(self) -> MaskedLMConfig:
        forms = [name for name in ("mask_rate", "mask_rates", "mask_rate_schedule") if name in self.model_fields_set]
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {' and '.join(given)}")
        points = [step for step, _ in self.mask_rate_schedule or []]
        if points != sorted(set(points)):
            raise ValueError(f"the steps of mask_rate_schedule must ascend, not {points}")
        return self


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
        self.terms: Mapping[str, Term] = {"mlm": Term(additive=True)}
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
