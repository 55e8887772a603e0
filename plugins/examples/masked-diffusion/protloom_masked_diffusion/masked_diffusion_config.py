"""The options of ``objective: {name: masked-diffusion, ...}``; imports no torch."""

from pydantic import Field

from protloom.settings import Section


class MaskedDiffusionConfig(Section):
    """Options of masked diffusion."""

    least_time: float = Field(
        default=0.001, gt=0, lt=1, description="t is drawn between this and 1: 1 / t stays finite"
    )
