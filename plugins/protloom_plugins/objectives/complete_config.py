"""Options of completion; PyTorch is not needed to validate them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protloom.settings import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]


class UniformSplit(Section):
    """A sequence is cut after a share of its residues that is drawn from a range."""

    min: Fraction = Field(description="Smallest share that the encoder reads")
    max: Fraction = Field(description="Largest share that the encoder reads")

    @model_validator(mode="after")
    def _ordered(self) -> UniformSplit:
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        return self


class CompleteConfig(Section):
    """Options of completion."""

    split: Literal["half"] | UniformSplit = Field(
        default="half", description="half: after floor(L / 2) residues; or {min, max}: a share drawn for each sequence"
    )
    prefix: str = Field(
        default="auto", description="Mode in front; auto: S2S where the tokenizer has modes, none: nothing"
    )
    z_loss: float = Field(default=0.0, ge=0, description="Weight of (log Z)², in training; T5X: 1e-4")
