"""The optimizer ``adafactor``: sublinear memory and steps relative to the weights (Shazeer and Stern 2018).

PyTorch's own waits for the device twice a parameter, cannot move parameters that FSDP2 has sharded, and bounds the mean
squared gradient from below by 1e-7, which is above most of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from protloom.settings import Section

if TYPE_CHECKING:
    from protloom_plugins.optimizers.adafactor_steps import Adafactor


class AdafactorConfig(Section):
    """Options of ``adafactor``; the defaults are those that T5 was trained with.

    A matrix moves by ``lr`` times the schedule, relative to its root mean square; T5's own rate, 0.01 and from step 10⁴
    on 1/√t, is ``lr: 0.01`` with ``schedule: {name: inverse_sqrt, warmup_steps: 10000}``.
    """

    lr: float = Field(default=0.01, gt=0, description="Largest step, as a share of a parameter's root mean square")
    decay: float = Field(default=0.8, gt=0, le=1, description="The running second moment forgets by t^-decay")
    eps: tuple[float, float] = Field(
        default=(1e-30, 1e-3), description="Added to squared gradients; least root mean square that a step refers to"
    )
    clip_update: float = Field(default=1.0, gt=0, description="Largest root mean square of an update before scaling")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay; none on norms and biases")


def build(config: AdafactorConfig, groups: Sequence[Mapping[str, Any]]) -> Adafactor:
    """Makes the optimizer; see :class:`protloom.specs.OptimizerSpec` for ``groups``."""
    from protloom_plugins.kernels.reference import torch_groups
    from protloom_plugins.optimizers.adafactor_steps import Adafactor

    return Adafactor(
        torch_groups(groups, config.lr, config.weight_decay),
        lr=config.lr,
        decay=config.decay,
        eps=config.eps,
        clip_update=config.clip_update,
        weight_decay=config.weight_decay,
    )
