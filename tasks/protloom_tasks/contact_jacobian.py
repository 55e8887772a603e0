"""Contacts from the categorical Jacobian: how logits everywhere answer to a substitution anywhere; no training.

Zhang et al. 2024, "Protein language models learn evolutionary statistics of interacting sequence motifs" (PNAS 121).
A sequence of L standard residues costs 19 L + 1 passes over it and ``L · 20 · L · 20 · 4`` bytes, a few times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from protloom.contracts import NetworkSubject, Offsets
from protloom.errors import UserError
from protloom.inference import frozen, letter_ids
from protloom_tasks.floors import AMINO_ACIDS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from protloom.contracts import Subject

    F32 = NDArray[np.float32]


class JacobianHead:
    """Corrected norms of the blocks of a masked-token model's categorical Jacobian.

    Args:
        subject: a network with logits at each residue. Nothing is masked. Only the first ``max_length`` residues of a
            sequence are read.

    Raises:
        UserError: if the subject is no network, an encoder-decoder, whose encoder has no logits, or one whose features
            come from an inner layer.
    """

    def __init__(self, subject: Subject) -> None:
        if not isinstance(subject, NetworkSubject):
            raise UserError(f"{subject.name} has no logits, which head: jacobian needs: use head: auto")
        if "decode" in subject.model.capabilities or subject.tokenizer.mask_id is None:
            raise UserError(
                f"{subject.name}: head: jacobian needs the logits of a masked-token model, and this one was not trained"
                " to fill masks: use head: pairs"
            )
        if subject.layer != subject.model.depth:
            raise UserError(
                f"{subject.name}: head: jacobian reads logits, which come after the last block, not layer"
                f" {subject.layer}: leave the layer out"
            )
        self._subject = subject
        self.details: Mapping[str, Any] = {"head": "jacobian", "probe": "categorical Jacobian, nothing trained"}

    def scores(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yields corrected norms of all pairs."""
        for sequence in sequences:
            yield pair_scores(categorical_jacobian(self._subject, sequence[: self._subject.max_length]))


def categorical_jacobian(subject: NetworkSubject, sequence: str) -> F32:
    """Returns ``[L, 20, L, 20]``: entry (i, a, j, b) is how far the logit of b at j moves when i becomes a.

    The residues a and b are in the order of :data:`protloom_tasks.floors.AMINO_ACIDS`.
    """
    tokens, cu = subject.pack([sequence])
    device, size, length = tokens.device, cu.total, len(sequence)
    letters = letter_ids(subject.tokenizer, AMINO_ACIDS)
    columns = torch.from_numpy(letters).to(device)  # [20]
    places = torch.arange(len(subject.prefix), len(subject.prefix) + length, device=device)  # [L]

    def logits(copies: Tensor) -> Tensor:
        """Maps ``[R, L + specials]`` ids to ``[R, L, 20]``."""
        rows = len(copies)
        hidden = subject.model.encode(copies.reshape(-1), Offsets.of([size] * rows, device)).last
        inner = hidden.unflatten(0, (rows, size))[:, places].flatten(0, 1)  # [R · L, D]
        return subject.model.logits(inner)[:, columns].float().unflatten(0, (rows, length))

    found = torch.zeros((length * 20, length, 20))
    own = tokens[places]
    # substitutions of a residue by itself move nothing
    changes = (own[:, None] != columns[None, :]).flatten().nonzero().flatten()  # of L · 20
    rows = max(1, subject.tokens_per_batch // size)
    with frozen(cast("nn.Module", subject.model), subject.dtype):
        before = logits(tokens[None])  # [1, L, 20]
        for chosen in changes.split(rows):
            copies = tokens.repeat(len(chosen), 1)
            copies[torch.arange(len(chosen), device=device), places[chosen // 20]] = columns[chosen % 20]
            found[chosen.cpu()] = (logits(copies) - before).cpu()
    return cast("F32", found.unflatten(0, (length, 20)).numpy())


def pair_scores(jacobian: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns ``[L, L]`` scores of pairs from ``[L, 20, L, 20]``.

    Centred over each axis in turn; (i, a, j, b) averaged with (j, b, i, a); the Frobenius norm of each 20 × 20 block,
    0 on the diagonal; less the average product, (row sum · column sum) / total.
    """
    centred = jacobian.copy()
    for axis in range(4):
        centred -= centred.mean(axis=axis, keepdims=True)
    symmetric = (centred + centred.transpose(2, 3, 0, 1)) / 2
    norms = np.sqrt(np.square(symmetric).sum(axis=(1, 3), dtype=np.float64))
    np.fill_diagonal(norms, 0)
    total = norms.sum()
    if total == 0:
        return norms
    return np.asarray(norms - norms.sum(axis=1, keepdims=True) * norms.sum(axis=0, keepdims=True) / total)
