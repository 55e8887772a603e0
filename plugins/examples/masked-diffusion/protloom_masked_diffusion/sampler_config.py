"""The options of ``protloom generate ... --generator masked-diffusion``; imports no torch."""

from pydantic import Field

from protloom.settings import Section


class SamplerConfig(Section):
    """How a network that was trained by masked diffusion writes."""

    steps: int = Field(
        default=64, ge=1, description="Passes of the network; with as many as residues, about one is drawn at a time"
    )
    temperature: float = Field(default=1.0, gt=0, description="Below 1 sharpens the distribution, above 1 flattens it")
