"""Proteins with a label on every residue, and what keeps their splits apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Labelled:
    """A protein with residue labels.

    Attributes:
        id: its name.
        sequence: residues as letters.
        labels: ``[L]`` class of each residue, −1 where none is known; or its number, NaN where none is known.
        group: proteins of one group are resampled together: they are not independent.
    """

    id: str
    sequence: str
    labels: NDArray[Any]
    group: str


@dataclass(frozen=True)
class Splits:
    """Training and test proteins, and what there is to say about them.

    Attributes:
        train: to fit on.
        test: to report on, never to choose on.
        details: files with their hashes, sizes, what was left out.
    """

    train: Sequence[Labelled]
    test: Sequence[Labelled]
    details: dict[str, Any] = field(default_factory=dict)


def draw(n: int, most: int | None, seed: int, *purpose: int) -> NDArray[np.int64]:
    """Returns which of ``n`` items to use, ascending: all, or ``most`` drawn by seed."""
    if most is None or n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, *purpose]).choice(n, size=most, replace=False))


def draw_spread(groups: NDArray[np.integer], most: int, seed: int, *purpose: int) -> NDArray[np.int64]:
    """Returns ``most`` items drawn by seed, ascending, as evenly from all groups as their sizes allow."""
    rng = np.random.default_rng([seed, *purpose])
    shuffled = rng.permutation(len(groups))
    rank = np.empty(len(groups), dtype=np.int64)  # how many of its group come before an item
    for group in np.unique(groups):
        members = shuffled[groups[shuffled] == group]
        rank[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(rank[shuffled], kind="stable")[:most]])


def without_duplicates(train: Sequence[Labelled], test: Sequence[Labelled]) -> tuple[list[Labelled], int]:
    """Returns the training proteins whose sequence is not in the test set, and how many were removed."""
    tested = {protein.sequence for protein in test}
    kept = [protein for protein in train if protein.sequence not in tested]
    return kept, len(train) - len(kept)
