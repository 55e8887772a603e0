"""Scoring of what a decoder predicts: the cross entropy of every target, and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from protloom.contracts import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Architecture, Tokenizer
    from protloom.objective import Forward
    from protloom.ops import CrossEntropy

RESIDUE, SENTINEL, END = 0, 1, 2
"""Kinds of targets."""


def kinds_of(tokenizer: Tokenizer) -> NDArray[np.uint8]:
    """Returns ``[vocabulary]`` the kind of target that every id is."""
    kinds = np.full(len(tokenizer.vocab), RESIDUE, dtype=np.uint8)
    kinds[list(tokenizer.sentinels)] = SENTINEL
    kinds[list(tokenizer.suffix)] = END
    return kinds


def score(
    model: Architecture,
    passes: Forward,
    prepared: Mapping[str, Tensor],
    cross_entropy: CrossEntropy,
    z_loss: float,
    *,
    residues: Tensor,
    detailed: bool,
) -> tuple[Tensor, dict[str, Metric]]:
    """Scores the decoder at every position.

    Args:
        model: gives the logits.
        passes: gives the decoder's states, ``[T, D]``.
        prepared: ``targets`` ``[T]`` int64 ids and ``kinds`` ``[T]``.
        cross_entropy: the kernel.
        z_loss: weight of (log Z)², Z the sum of the exponentials of the logits (the T5X trainer's 1e-4).
        residues: ``[V]`` bool: ids that stand for residues.
        detailed: give the metrics that cost a pass over the logits.

    Returns:
        The sum of −log p(target) in nats, with the z-loss in it, and metrics. ``accuracy`` is over residues. If
        ``detailed``, −log p of a residue target is told as the sum of two means: ``residue_loss``, which residue it is,
        given that it is one: comparable with the entropy of residue frequencies; and ``layout_loss``, that it is a
        residue, no sentinel or end, which is a matter of how long hidden runs are. ``sentinel_loss`` and ``end_loss``
        are those of the other targets. All without z-loss.
    """
    targets, kinds = prepared["targets"], prepared["kinds"]  # [T], [T]
    logits = model.logits(passes.decoded.last)  # [T, V]
    nats = cross_entropy(logits, targets)  # [T]
    total = nats.sum()
    right = logits.detach().argmax(dim=-1) == targets
    residue = kinds == RESIDUE
    metrics = {"accuracy": Metric((right & residue).sum(), residue.sum())}
    if detailed:
        metrics |= _parts(logits.detach(), nats.detach(), kinds, residues)
    if z_loss:
        penalty = z_loss * torch.logsumexp(logits.float(), dim=-1).square().sum()
        total = total + penalty
        metrics["z_loss"] = Metric(penalty.detach(), float(len(targets)))
    return total, metrics


def _parts(logits: Tensor, nats: Tensor, kinds: Tensor, residues: Tensor) -> dict[str, Metric]:
    """Returns the mean −log p of each kind of target."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    layout = torch.logsumexp(wide, dim=-1) - torch.logsumexp(wide.masked_fill(~residues, -torch.inf), dim=-1)  # [T]
    residue = kinds == RESIDUE
    metrics = {
        "residue_loss": Metric(((nats - layout) * residue).sum(), residue.sum()),
        "layout_loss": Metric((layout * residue).sum(), residue.sum()),
    }
    for name, kind in (("sentinel_loss", SENTINEL), ("end_loss", END)):
        of_kind = kinds == kind
        metrics[name] = Metric((nats * of_kind).sum(), of_kind.sum())
    return metrics
