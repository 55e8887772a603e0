"""Options of the architecture ``amplify``; importing this loads no torch."""

from __future__ import annotations

from pydantic import Field

from protloom_plugins.architectures.rotary_config import RotarySection


class AmplifyConfig(RotarySection):
    """Options of ``amplify``; the defaults are those of the released 120M model."""

    layers: int = Field(default=24, ge=1, description="Number of blocks")
    width: int = Field(default=640, ge=2, description="Size of a hidden state")
    heads: int = Field(default=10, ge=1, description="Attention heads of a block")
    inner: int = Field(
        default=1712,
        ge=8,
        multiple_of=8,
        description="Width of the gated feed-forward layer: 8/3 of the model's, rounded up to a multiple of 8",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square in RMS norms")
    init_range: float = Field(default=0.02, gt=0, description="Initial matrices are uniform within ± this")
