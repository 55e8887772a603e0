"""Options of the architecture ``ankh``; importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protloom.settings import Section


class AnkhConfig(Section):
    """Options of ``ankh``; the defaults beside the size are those of Ankh3."""

    layers: int = Field(default=4, ge=1, description="Number of encoder blocks")
    decoder_layers: int = Field(default=2, ge=1, description="Number of decoder blocks")
    width: int = Field(default=256, ge=1, description="Size of a hidden state")
    heads: int = Field(default=8, ge=1, description="Attention heads of a block")
    head_size: int = Field(default=32, ge=1, description="Size of a head; heads × head_size may differ from the width")
    inner: int = Field(default=640, ge=1, description="Width of the gated feed-forward layer")
    activation: Literal["silu", "gelu", "gelu_tanh"] = Field(
        default="silu", description="Gate of the feed-forward layer; Ankh3: silu, older Ankh: gelu_tanh"
    )
    buckets: int = Field(default=64, ge=4, multiple_of=4, description="Buckets of the relative positions")
    max_distance: int = Field(default=128, ge=2, description="Distance from which all positions share the last bucket")
    norm_eps: float = Field(default=1e-6, gt=0, description="Added to the mean square in RMS norms")
    init_factor: float = Field(default=1.0, gt=0, description="Factor on every initial standard deviation and norm")
    head_init: Literal["t5", "scaled"] = Field(
        default="t5",
        description="Initial output head: t5: N(0, 1), as transformers; scaled: N(0, 1/width), whose first loss is near"
        " that of guessing evenly",
    )
