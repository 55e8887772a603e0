"""The optimizer ``adamw``: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from protloom.settings import Section

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from protloom.ops import Ops


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Section):
    """Options of ``adamw``; the defaults are those of ESM-2 (Lin et al. 2023)."""

    lr: float = Field(default=4e-4, gt=0, description="Peak learning rate")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.98), description="Decay of the two running moments")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay; none on norms and biases")


def build(config: AdamWConfig, groups: Sequence[Mapping[str, Any]], ops: Ops | None = None) -> Optimizer:
    """Makes the optimizer in the form of the run's kernels, else fused where PyTorch can.

    See :class:`protloom.specs.OptimizerSpec` for ``groups`` and ``ops``.
    """
    from protloom_plugins.kernels import native

    make = native.adamw if ops is None else ops.adamw
    return make(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
