"""The options of ``objective: {name: prefix-lm, ...}``; imports no torch."""

from pydantic import Field, model_validator

from protloom.settings import Section


class PrefixLMConfig(Section):
    """Options of prefix-LM."""

    least: float = Field(default=0.1, gt=0, lt=1, description="Smallest share of a sequence that the encoder reads")
    most: float = Field(default=0.9, gt=0, lt=1, description="Largest share")

    @model_validator(mode="after")
    def _ordered(self) -> "PrefixLMConfig":
        if self.most < self.least:
            raise ValueError(f"most ({self.most}) is below least ({self.least})")
        return self
