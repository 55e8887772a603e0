"""The options of ``objective: {name: contrastive-pairs, ...}``; imports no torch."""

from pydantic import Field

from protloom.settings import Section


class ContrastivePairsConfig(Section):
    """Options of the contrastive loss."""

    temperature: float = Field(default=0.07, gt=0, description="Divides the cosines; smaller is stricter")
