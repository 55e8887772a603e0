"""The optimizer ``lamb``: Adam with steps relative to the norm of the weights, for large batches (You et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from protloom.settings import Section
from protloom_plugins.optimizers.adamw import Decay

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from protloom.ops import Ops


class LambConfig(Section):
    """Options of ``lamb``; moments and decay are those that You et al. trained BERT with.

    A matrix moves by ``lr`` times the schedule, relative to its norm; norms and biases, which are not decayed, move as
    in Adam. The rate lies between theirs for 512 (6.25e-4) and for 32,768 sequences a step (5e-3).
    """

    lr: float = Field(default=2e-3, gt=0, description="Length of a step, as a share of a matrix's norm")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="Decay of the two running moments")
    eps: float = Field(default=1e-6, gt=0, description="Added to the root of the second moment")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay; none on norms and biases")
    max_grad_norm: float | None = Field(
        default=None, gt=0, description="Largest joint norm of the gradients; none, since trainer.clip_norm clips them"
    )


def build(config: LambConfig, groups: Sequence[Mapping[str, Any]], ops: Ops | None = None) -> Optimizer:
    """Makes the optimizer in the form of the run's kernels; see :class:`protloom.specs.OptimizerSpec`."""
    from protloom_plugins.kernels import native

    make = native.lamb if ops is None else ops.lamb
    return make(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
