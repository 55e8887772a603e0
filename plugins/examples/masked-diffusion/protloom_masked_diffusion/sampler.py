"""Writes proteins with a network that was trained by masked diffusion: from all hidden to none, a few at a time.

Time runs from 1 to 0 in equal steps. In a step from t to s, each residue that is still hidden is drawn from the
network's distribution with probability (t − s) / t (ancestral sampling of the linear schedule: Sahoo et al. 2024). So
every residue is drawn in one of the steps, each as likely as the others: here that step is a hash, as is what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.rng import below, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Architecture, Tokenizer
    from protloom.rng import CounterRNG
    from protloom_masked_diffusion.sampler_config import SamplerConfig


class Sampler:
    """Writes sequences; a :class:`protloom.contracts.Generator`.

    Args:
        config: how many steps, and how sharply what is likely is preferred.
    """

    needs = frozenset({"encode"})

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    def write(
        self,
        model: Architecture,
        tokenizer: Tokenizer,
        lengths: Sequence[int],
        numbers: Sequence[int],
        rng: CounterRNG,
    ) -> list[str]:
        """Returns a sequence of each length.

        Raises:
            UserError: the tokenizer has no mask symbol.
        """
        if tokenizer.mask_id is None:
            raise UserError(f"tokenizer {tokenizer.name!r} has no mask symbol to start from")
        before, after = list(tokenizer.prefix), list(tokenizer.suffix)
        rows = [[*before, *[tokenizer.mask_id] * length, *after] for length in lengths]
        device = next(cast(torch.nn.Module, model).parameters()).device
        tokens = torch.tensor([token for row in rows for token in row], device=device)  # [T]
        cu = Offsets.of((len(row) for row in rows), device)
        hidden = (tokens == tokenizer.mask_id).cpu().numpy()
        bounds = np.array(cu.bounds)
        when, what = (
            stream.positions(stream.at(list(numbers)), bounds) for stream in (rng.stream("when"), rng.stream("what"))
        )
        step_of, draw = below(when, self.config.steps), uniform(what)  # [T] each
        for step in range(self.config.steps):
            index = np.flatnonzero(hidden & (step_of == step))
            if len(index):
                where = torch.from_numpy(index).to(device)
                logits = model.logits(model.encode(tokens, cu).last[where])[:, list(tokenizer.residue_ids)]
                chosen = self._choose(logits.double().cpu().numpy(), draw[index])
                tokens[where] = torch.tensor(tokenizer.residue_ids, device=device)[torch.from_numpy(chosen).to(device)]
        return [
            tokenizer.decode(row[len(before) : len(row) - len(after)].tolist())
            for row in tokens.cpu().split(cu.lengths)
        ]

    def _choose(self, logits: NDArray[np.float64], draw: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns which residue each row ``[M, 20]`` of logits gives where a uniform number ``[M]`` says how lucky."""
        scaled = (logits - logits.max(axis=1, keepdims=True)) / self.config.temperature
        rising = np.exp(scaled).cumsum(axis=1)
        return np.asarray((rising <= draw[:, None] * rising[:, -1:]).sum(axis=1), dtype=np.int64)
