"""Options that encoders with rotary positions share; importing this loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from protloom.settings import Section


class RotarySection(Section):
    """Size of an encoder with rotary positions; each architecture gives its own defaults."""

    layers: int = Field(ge=1, description="Number of blocks")
    width: int = Field(ge=2, description="Size of a hidden state")
    heads: int = Field(ge=1, description="Attention heads of a block")
    rope_base: float = Field(default=10000.0, gt=1, description="Base of the rotary angles")

    @model_validator(mode="after")
    def _head_size(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width ({self.width}) must be a multiple of 2 × heads ({self.heads}): rotary positions pair features"
            )
        return self
