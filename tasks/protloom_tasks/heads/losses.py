"""What a head learns from: targets of each kind of label, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["regression", "binary", "multiclass", "multilabel", "residue-classes", "residue-numbers"]

IGNORED = -1
"""Class of a residue that has none; a number that it lacks is NaN."""


@dataclass(frozen=True)
class Targets:
    """Labels as a head learns them.

    Attributes:
        kind: of the labels.
        each: a tensor a sequence: ``[1]`` numbers, a class, ``[C]`` of 0 and 1, or ``[l]`` of residues.
        outputs: numbers that the head gives.
        shift: what is added to ``scale`` times an output to get a label: numbers are learned standardised.
        scale: see ``shift``.
    """

    kind: Kind
    each: list[Tensor]
    outputs: int
    shift: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, labels: Sequence[Any], kind: Kind) -> Targets:
        """Makes the targets of labels: numbers, classes, rows of 0 and 1, or arrays of residues' labels."""
        if kind in ("regression", "residue-numbers"):
            arrays = [np.atleast_1d(np.asarray(label, dtype=np.float64)) for label in labels]
            numbers = np.concatenate(arrays)
            known = numbers[np.isfinite(numbers)]
            mean, spread = (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
            each = [torch.from_numpy((of - mean) / spread).float() for of in arrays]
            return cls(kind, each, 1, mean, spread)
        if kind == "binary":
            return cls(kind, [torch.tensor([float(label)]) for label in labels], 1)
        if kind == "multilabel":
            return cls(kind, [torch.as_tensor(row, dtype=torch.float32) for row in labels], len(labels[0]))
        classes = [torch.as_tensor(label, dtype=torch.int64) for label in labels]
        return cls(kind, classes, max(1, 1 + max((int(of.max()) for of in classes if of.numel()), default=0)))

    def size(self, chosen: Sequence[int]) -> float:
        """Returns how many items sequences give: themselves, or their residues with a label."""
        if self.kind == "residue-classes":
            return float(sum(int((self.each[i] != IGNORED).sum()) for i in chosen))
        if self.kind == "residue-numbers":
            return float(sum(int(self.each[i].isfinite().sum()) for i in chosen))
        return float(len(chosen))

    def padded(self, chosen: Sequence[int]) -> Tensor:
        """Returns the targets of sequences, residues padded to ``[B, L]`` by what is ignored."""
        if not self.kind.startswith("residue"):
            return torch.stack([self.each[i] for i in chosen])
        nothing = IGNORED if self.kind == "residue-classes" else torch.nan
        return torch.nn.utils.rnn.pad_sequence([self.each[i] for i in chosen], batch_first=True, padding_value=nothing)

    def loss(self, found: Tensor, truth: Tensor) -> Tensor:
        """Returns the summed loss of outputs ``[..., C]`` for targets; of several labels, their mean."""
        return LOSSES[self.kind](found, truth.to(found.device))


def _squares(found: Tensor, truth: Tensor) -> Tensor:
    return (found - truth).square().sum()


def _known_squares(found: Tensor, truth: Tensor) -> Tensor:
    known = truth.isfinite()
    return (found[..., 0][known] - truth[known]).square().sum()


def _bits(found: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(found, truth, reduction="none").mean(dim=1).sum()


def _classes(found: Tensor, truth: Tensor) -> Tensor:
    return F.cross_entropy(found.flatten(0, -2), truth.flatten(), reduction="sum", ignore_index=IGNORED)


LOSSES: Mapping[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": _squares,
    "binary": _bits,
    "multilabel": _bits,
    "multiclass": _classes,
    "residue-classes": _classes,
    "residue-numbers": _known_squares,
}
"""The summed loss of (outputs, targets) on one device."""
