"""The optimizer ``adamw``: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from protloom.settings import Section

if TYPE_CHECKING:
    from torch.optim import AdamW


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Section):
    """Options of ``adamw``; the defaults are those of ESM-2 (Lin et al. 2023)."""

    lr: float = Field(default=4e-4, gt=0, description="Peak learning rate")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.98), description="Decay of the two running moments")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay; none on norms and biases")


def build(config: AdamWConfig, groups: Sequence[Mapping[str, Any]]) -> AdamW:
    """Makes the optimizer, fused where PyTorch can; see :class:`protloom.specs.OptimizerSpec` for ``groups``."""
    from protloom_plugins.kernels.native import adamw

    return adamw(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
