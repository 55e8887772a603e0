"""How heads are trained: AdamW, warm-up, linear decay, everything random by a seed of its own.

The numbers are those of Ankh's benchmark (Elnaggar et al. 2023) where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

LEARNING_RATE = 1e-3
BATCH = 16
"""Items an optimizer step."""
WARM_UP = 1000
"""Steps of warm-up, but at most a tenth of all: small sets have fewer steps than that."""
SEED = 7
"""Added to the seed of a run, so that a run with seed 0 uses the published one."""
BUCKET = 50
"""Batches whose items are sorted by length together."""


class Schedule:
    """AdamW without weight decay under a linear warm-up and a linear decay to 0.

    Args:
        parameters: what is trained.
        steps: optimizer steps in all.
        learning_rate: at the end of the warm-up.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, *, learning_rate: float = LEARNING_RATE) -> None:
        self._optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self._steps, self._top, self._done = steps, learning_rate, 0

    def step(self) -> None:
        """Takes a step by the gradients, and clears them."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._top * factor(self._done, self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1


def factor(step: int, steps: int) -> float:
    """Returns the share of the learning rate that step ``step`` of ``steps`` (from 0) takes."""
    warm = min(WARM_UP, steps // 10)
    if step < warm:
        return (step + 1) / (warm + 1)
    return (steps - step) / (steps - warm)


def start(layer: nn.Linear, generator: torch.Generator | None = None) -> nn.Linear:
    """Draws a linear layer's weight from U(−0.1, 0.1) and clears its bias; returns it.

    Args:
        layer: to begin with.
        generator: of the numbers; None: torch's own.
    """
    with torch.no_grad():
        layer.weight.uniform_(-0.1, 0.1, generator=generator)
        layer.bias.zero_()
    return layer


def batches(lengths: Sequence[int], rng: np.random.Generator, size: int = BATCH) -> Iterator[NDArray[np.int64]]:
    """Yields an epoch of batches in random order: items of about one length together, so that padding is little.

    Items are shuffled, sorted by length within stretches of :data:`BUCKET` batches and cut; the batches are shuffled.
    """
    order = rng.permutation(len(lengths))
    long = np.asarray(lengths)
    parts: list[NDArray[np.int64]] = []
    for first in range(0, len(order), size * BUCKET):
        stretch = order[first : first + size * BUCKET]
        stretch = stretch[np.argsort(long[stretch], kind="stable")]
        parts += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    for at in rng.permutation(len(parts)):
        yield parts[at]
