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
) -> tuple[Tensor, dict[str, Metric]]:
    """Scores the decoder at every position.

    Args:
        model: gives the logits.
        passes: gives the decoder's states, ``[T, D]``.
        prepared: ``targets`` ``[T]`` int64 ids and ``kinds`` ``[T]``.
        cross_entropy: the kernel.
        z_loss: weight of (log Z)², Z the sum of the exponentials of the logits (the T5X trainer's 1e-4).

    Returns:
        The sum of −log p(target) in nats, with the z-loss in it, and metrics: ``accuracy`` and ``residue_loss`` over
        residues, ``sentinel_loss`` and ``end_loss`` over the other targets, each a mean of −log p without z-loss.
    """
    targets, kinds = prepared["targets"], prepared["kinds"]  # [T], [T]
    logits = model.logits(passes.decoded.last)  # [T, V]
    nats = cross_entropy(logits, targets)  # [T]
    total = nats.sum()
    told = nats.detach()
    right = logits.detach().argmax(dim=-1) == targets
    residue = kinds == RESIDUE
    residues = residue.sum()
    metrics = {
        "accuracy": Metric((right & residue).sum(), residues),
        "residue_loss": Metric((told * residue).sum(), residues),
    }
    for name, kind in (("sentinel_loss", SENTINEL), ("end_loss", END)):
        of_kind = kinds == kind
        metrics[name] = Metric((told * of_kind).sum(), of_kind.sum())
    if z_loss:
        penalty = z_loss * torch.logsumexp(logits.float(), dim=-1).square().sum()
        total = total + penalty
        metrics["z_loss"] = Metric(penalty.detach(), float(len(targets)))
    return total, metrics
