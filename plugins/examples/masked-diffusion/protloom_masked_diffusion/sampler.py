"""Writes proteins with a network that was trained by masked diffusion: from all hidden to none, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.inference import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import Tokenizer


def generate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    *,
    steps: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Writes sequences of given lengths.

    Time runs from 1 to 0 in equal steps. In a step from t to s, each hidden residue is drawn from the network's
    distribution with probability (t − s) / t and stays hidden otherwise (ancestral sampling of the linear schedule).

    Args:
        model: the network.
        tokenizer: its vocabulary, with a mask symbol.
        lengths: residues of each sequence.
        steps: passes of the network; with as many as residues, about one is drawn at a time.
        temperature: below 1 sharpens the distribution, above 1 flattens it.
        seed: of the draws.

    Raises:
        UserError: an option is out of range, or there is no mask symbol.
    """
    if steps < 1 or temperature <= 0 or any(length < 1 for length in lengths):
        raise UserError("lengths and steps must be at least 1, temperature above 0")
    if tokenizer.mask_id is None:
        raise UserError(f"tokenizer {tokenizer.name!r} has no mask symbol to start from")
    device = next(model.parameters()).device
    before, after = list(tokenizer.prefix), list(tokenizer.suffix)
    rows = [[*before, *[tokenizer.mask_id] * length, *after] for length in lengths]
    tokens = torch.tensor([token for row in rows for token in row], device=device)
    cu = Offsets.of((len(row) for row in rows), device)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(tokenizer.residue_ids, device=device)
    with frozen(model):
        for step in range(steps, 0, -1):
            hidden = (tokens == tokenizer.mask_id).nonzero()[:, 0]
            drawn = torch.rand(len(hidden), generator=generator) < 1 / step  # (t − s) / t of equal steps
            where = hidden[drawn.to(device)]
            if len(where):
                tokens[where] = allowed[_draw(model, tokens, cu, where, allowed, temperature, generator)]
    return [
        tokenizer.decode(row[len(before) : len(row) - len(after)].tolist()) for row in tokens.cpu().split(cu.lengths)
    ]


def _draw(
    model: torch.nn.Module,
    tokens: Tensor,
    cu: Offsets,
    where: Tensor,
    allowed: Tensor,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns which of the allowed residues is drawn at each place."""
    states = model.encode(tokens, cu).last[where]  # type: ignore[operator]
    logits = model.logits(states)[:, allowed].float().cpu()  # type: ignore[operator]
    chosen: Tensor = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    return chosen.to(tokens.device)
