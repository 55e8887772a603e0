"""Options of masked language modelling; PyTorch is not needed to validate them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from protloom.settings import Section, differing
from protloom_plugins.objectives import masking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        # not what was stated: a finished run states everything, defaults included
        forms = ("mask_rate", "mask_rates", "mask_rate_schedule")
        given = differing(self, forms)
        if len(given) > 1:
            raise ValueError(f"give only one of {' and '.join(given)}")
        points = [step for step, _ in self.mask_rate_schedule or []]
        if points != sorted(set(points)):
            raise ValueError(f"the steps of mask_rate_schedule must ascend, not {points}")
        return self
