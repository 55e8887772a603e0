"""What a subject may be beyond its features: a network that can be looked into, or tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from protloom.contracts.evaluation import Subject

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from protloom.contracts.computation import Architecture, Offsets
    from protloom.contracts.preparation import Tokenizer


@runtime_checkable
class NetworkSubject(Subject, Protocol):
    """A subject whose features come from a network (:class:`protloom.embedding.Embedder`); floors are none.

    A task may look at logits or tune a *copy* of the network; the subject's own weights never change.

    Attributes:
        model: the network, an ``nn.Module``.
        tokenizer: the one that it was trained with.
        prefix: ids put before every sequence; the tokenizer's suffix comes behind.
        layer: number of the hidden state that features come from.
        max_length: residues that the network sees at once.
        tokens_per_batch: tokens of a packed batch.
        dtype: autocast precision; None: the network's own.
    """

    model: Architecture
    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    layer: int
    max_length: int
    tokens_per_batch: int
    dtype: torch.dtype | None

    def pack(self, sequences: Sequence[str]) -> tuple[Tensor, Offsets]:
        """Returns the ids ``[T]`` of sequences end to end, special symbols included, on the network's device."""
