"""Floors: what trivial features reach with the same probe. A model below its floor has learned nothing for the task.

They have the methods of :class:`protloom.embedding.Embedder`, so a task cannot treat them differently.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import Extent
from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject

    F32 = NDArray[np.float32]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard residues, by letter."""

CODES = np.full(256, 20, dtype=np.int64)
"""Number of each ASCII byte: 0 to 19 for the standard residues, 20 for any other letter."""
CODES[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(20)


def encode(sequence: str) -> NDArray[np.int64]:
    """Returns the number of each residue, ``[L]`` (see :data:`CODES`)."""
    return CODES[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]


class Floor:
    """Base of the floors, which give one kind of features or another; a floor that lacks a kind says so.

    Attributes:
        name: ``floor:...``.
        summary: what it is, for tables.
        extent: how much of long sequences gets features, as the model has it that is judged.
    """

    name = "floor"
    summary = ""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.extent = Extent()

    @classmethod
    def made(cls, config: None) -> Floor:
        """Returns it with its default options; what the plugin system calls."""
        return cls()

    def residues(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields ``[L, D]`` features of each sequence's residues, of the first ones where the extent is less."""
        found = zip(sequences, self.of_residues(sequences), strict=True)
        return (features[: self.extent.residues(len(sequence))] for sequence, features in found)

    def pooled(self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False) -> F32:
        """Returns ``[n, D]`` features of whole sequences, NaN for those that the extent leaves out.

        ``pool`` and ``include_specials`` mean nothing to a floor.
        """
        features = self.of_sequences(sequences)
        features[[not self.extent.whole(len(sequence)) for sequence in sequences]] = np.nan
        return features

    def contact_features(self, sequence: str) -> F32:
        """Returns ``[L, L, C]`` features of residue pairs, of the first residues where the extent is less."""
        most = self.extent.pairs(len(sequence))
        return self.of_pairs(sequence)[:most, :most]

    def of_residues(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields ``[L, D]`` features of all residues of each sequence."""
        raise UserError(f"{self.name} has no features of residues: use floor:onehot")

    def of_sequences(self, sequences: Sequence[str]) -> F32:
        """Returns ``[n, D]`` features of whole sequences."""
        raise UserError(f"{self.name} has no features of whole sequences: use floor:kmer2")

    def of_pairs(self, sequence: str) -> F32:
        """Returns ``[L, L, C]`` features of all residue pairs."""
        raise UserError(f"{self.name} has no features of residue pairs: use floor:separation")


def cropped_for(subject: Subject, probe: str) -> Subject:
    """Returns a floor as it is beside a model that this probe reads: LoRA reads the beginning of every sequence."""
    if probe != "lora" or not isinstance(subject, Floor):
        return subject
    found = copy.copy(subject)
    found.extent = replace(subject.extent, policy="crop")
    return found


class OneHot(Floor):
    """Each residue as the one-hot letters in a window round it.

    Args:
        window: k: residues on each side.

    The features are ``[L, (2k + 1) · 21]``: 20 residues and one for any other letter; a place beyond an end is all
    zero. Pooled: the mean of the residue's own 21, which is the composition.
    """

    name = "floor:onehot"

    def __init__(self, window: int = 7) -> None:
        super().__init__()
        self.window = window
        self.summary = f"one-hot letters, window ±{window}"

    def of_residues(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields the windows of each sequence."""
        k = self.window
        identity = np.eye(21, dtype=np.float32)
        for sequence in sequences:
            padded = np.zeros((len(sequence) + 2 * k, 21), dtype=np.float32)
            padded[k : k + len(sequence)] = identity[encode(sequence)]
            windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * k + 1, axis=0)  # [L, 21, 2k + 1]
            yield windows.transpose(0, 2, 1).reshape(len(sequence), -1)

    def of_sequences(self, sequences: Sequence[str]) -> F32:
        """Returns the composition of each sequence, ``[n, 21]``."""
        return _frequencies([encode(s) for s in sequences], 21)


class Composition(Floor):
    """Frequencies of the 20 standard residues, ``[n, 20]``."""

    name = "floor:composition"
    summary = "residue frequencies"

    def of_sequences(self, sequences: Sequence[str]) -> F32:
        """Returns the frequencies; other letters do not count."""
        return _frequencies([codes[codes < 20] for codes in map(encode, sequences)], 20)


class Kmer2(Floor):
    """Frequencies of the 400 pairs of neighbouring standard residues, ``[n, 400]``."""

    name = "floor:kmer2"
    summary = "2-mer frequencies"

    def of_sequences(self, sequences: Sequence[str]) -> F32:
        """Returns the frequencies; pairs with another letter do not count."""
        pairs = []
        for codes in map(encode, sequences):
            known = (codes[:-1] < 20) & (codes[1:] < 20)
            pairs.append((codes[:-1] * 20 + codes[1:])[known])
        return _frequencies(pairs, 400)


class Length(Floor):
    """The length of a sequence and its logarithm, ``[n, 2]``."""

    name = "floor:length"
    summary = "sequence length"

    def of_sequences(self, sequences: Sequence[str]) -> F32:
        """Returns length and log length."""
        lengths = np.array([len(s) for s in sequences], dtype=np.float32)
        return np.stack([lengths, np.log(lengths)], axis=1)


class Separation(Floor):
    """Residue pairs by how far apart they are, and by which letters they have, ``[L, L, 22]``.

    Channel 0 is log |i − j| (0 on the diagonal), the others add up the one-hot letters of both residues.
    """

    name = "floor:separation"
    summary = "separation and letters of a pair"

    def of_pairs(self, sequence: str) -> F32:
        """Returns the features of all pairs."""
        place = np.arange(len(sequence))
        distance = np.log(np.maximum(np.abs(place[:, None] - place[None, :]), 1)).astype(np.float32)
        letters = np.eye(21, dtype=np.float32)[encode(sequence)]  # [L, 21]
        both = letters[:, None, :] + letters[None, :, :]
        return np.concatenate([distance[..., None], both], axis=-1)


def _frequencies(codes: Sequence[NDArray[np.int64]], size: int) -> F32:
    """Returns how often each code below ``size`` occurs, ``[n, size]``, rows adding up to 1 (or 0 if empty)."""
    counts = np.stack([np.bincount(of, minlength=size) for of in codes]).astype(np.float32)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
