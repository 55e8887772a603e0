"""Options of the architecture ``esm2``; importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protloom_plugins.architectures.rotary_config import RotarySection


class Esm2Config(RotarySection):
    """Options of ``esm2``; the defaults beside the size are those of the released ESM-2 models."""

    layers: int = Field(default=6, ge=1, description="Number of blocks")
    width: int = Field(default=320, ge=2, description="Size of a hidden state")
    heads: int = Field(default=20, ge=1, description="Attention heads of a block")
    ffn_multiple: int = Field(default=4, ge=1, description="Width of the feed-forward layer over the model's")
    token_dropout: bool = Field(default=True, description="Zero <mask> embeddings and rescale the rest, per sequence")
    train_mask_ratio: float = Field(
        default=0.12, ge=0, lt=1, description="Share of <mask> tokens that the rescaling assumes: 0.15 · 0.8"
    )
    rope_precision: Literal["fp32", "fp16"] = Field(
        default="fp32", description="fp16 rounds the rotary frequencies, as some released weights were trained with"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the variance in layer norms")
    init: Literal["normal", "esm2"] = Field(
        default="normal", description="normal: N(0, 0.02) as transformers does; esm2: as fair-esm builds its modules"
    )
