"""The contact head of Ankh's benchmark: one linear layer over products and differences of two residues' states.

A pair's features are h_i ∘ h_j and h_i − h_j, side by side; the layer gives a value for *no contact* and one for
*contact*; the value of (i, j) is the mean of those of (i, j) and (j, i). In that mean the differences cancel whatever
their weights are, so the head reads products alone: half of its weights never move. It is kept as it was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protloom.errors import UserError
from protloom_tasks.contact_protocol import Mapped, candidates
from protloom_tasks.heads import training

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject


class PairProducts(nn.Module):
    """The layer.

    Args:
        width: D, features of a residue.
        generator: of the initial weights.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = training.start(nn.Linear(2 * width, 2), generator)

    def forward(self, states: Tensor) -> Tensor:
        """Maps residue states ``[l, D]`` to values of all pairs ``[l, l, 2]``, symmetric.

        The products are never laid out: Σ_d w_d h_id h_jd is one matrix product a class.
        """
        width = states.shape[1]
        weights = self.linear.weight[:, :width]  # [2, D]; those of differences cancel
        values = (states[None] * weights[:, None]) @ states.T  # [2, l, l]
        return values.permute(1, 2, 0) + self.linear.bias


class _Example(NamedTuple):
    """A training protein: states ``[l, D]``, and its candidate pairs with their truth, ``[P]`` each."""

    states: Tensor
    first: Tensor
    second: Tensor
    truth: Tensor


class AnkhHead:
    """:class:`PairProducts`, trained on all candidate pairs of the training proteins by cross entropy.

    A step takes 16 proteins, each with the mean over its pairs. The training states are held at once.

    Args:
        subject: gives residue states.
        train: training proteins.
        epochs: passes over them.
        seed: of initial weights and order.

    Attributes:
        details: the probe, its steps and the mean loss of the last epoch.

    Raises:
        UserError: if no training protein has a candidate pair with features.
    """

    def __init__(self, subject: Subject, train: Sequence[Mapped], *, epochs: int, seed: int) -> None:
        self._subject = subject
        generator = torch.Generator().manual_seed(training.SEED + seed)
        examples: list[_Example] = []
        states = subject.residues([protein.sequence for protein in train])
        for protein, of in zip(train, states, strict=True):
            first, second = candidates(protein, len(of))
            if len(first):
                truth = torch.from_numpy(protein.contacts[first, second].astype(np.int64))
                places = torch.from_numpy(first), torch.from_numpy(second)
                examples.append(_Example(torch.from_numpy(of), *places, truth))
        if not examples:
            raise UserError("no training protein has a pair of known residues that is far enough apart")
        width = examples[0].states.shape[1]
        self._head = PairProducts(width, generator)
        steps = epochs * -(-len(examples) // training.BATCH)
        schedule = training.Schedule(self._head.parameters(), steps)
        for _ in range(epochs):
            order = torch.randperm(len(examples), generator=generator)
            total = 0.0
            for batch in order.split(training.BATCH):
                for at in batch.tolist():
                    one = examples[at]
                    loss = F.cross_entropy(self._head(one.states)[one.first, one.second], one.truth)
                    (loss / len(batch)).backward()
                    total += loss.item()
                schedule.step()
        self.details: Mapping[str, Any] = {
            "head": "ankh",
            "probe": "linear layer over h_i * h_j and h_i - h_j, symmetrised; AdamW",
            "features": 2 * width,
            "epochs": epochs,
            "steps": steps,
            "last_loss": total / len(examples),
            "proteins_fitted_on": len(examples),
        }

    @torch.no_grad()
    def _values(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        values = self._head(torch.from_numpy(states))
        return np.asarray((values[..., 1] - values[..., 0]).numpy(), dtype=np.float64)

    def scores(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yields log odds of all pairs."""
        for states in self._subject.residues(sequences):
            yield self._values(states)
