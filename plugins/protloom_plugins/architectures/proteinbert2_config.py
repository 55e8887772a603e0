"""Options of the architecture ``proteinbert2``; importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from protloom_plugins.architectures.rotary_config import RotarySection


class ProteinBert2Config(RotarySection):
    """Options of ``proteinbert2``; the defaults make the 35M size.

    Published are layers, width, heads, the depth of the stem and the total window of 256; everything else is this
    implementation's choice, and an option for that reason.
    """

    layers: int = Field(default=12, ge=1, description="Number of attention blocks, the stem not counted")
    width: int = Field(default=512, ge=2, description="Size of a hidden state")
    heads: int = Field(default=8, ge=1, description="Attention heads of a block")
    inner: int = Field(
        default=1152, ge=1, description="Width of the gated feed-forward layer; 1152 makes 34.6 M parameters"
    )
    stem_layers: int = Field(default=3, ge=0, description="Depthwise-separable convolution layers before the blocks")
    kernel: int = Field(default=9, ge=1, description="Residues that a convolution spans; odd, so that it has a middle")
    window: int = Field(
        default=128,
        ge=1,
        description="Reach of local attention to each side: a token sees those with |i - j| <= window",
    )
    first: Literal["local", "global"] = Field(
        default="local", description="Kind of the first attention block; local and global ones alternate"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square in RMS norms")
    init_std: float = Field(
        default=0.02, gt=0, description="Standard deviation of initial matrices; convolutions: kernel^-1/2"
    )

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel ({kernel}) must be odd: a convolution reaches equally far to both sides")
        return kernel
