"""Floors of variant effects: what is known of two amino acids without seeing the protein."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protloom_tasks.floors import Floor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.variants import Variant

_ORDER = "ARNDCQEGHILKMFPSTWYV"
_BLOSUM62 = """
 4 -1 -2 -2  0 -1 -1  0 -2 -1 -1 -1 -1 -2 -1  1  0 -3 -2  0
-1  5  0 -2 -3  1  0 -2  0 -3 -2  2 -1 -3 -2 -1 -1 -3 -2 -3
-2  0  6  1 -3  0  0  0  1 -3 -3  0 -2 -3 -2  1  0 -4 -2 -3
-2 -2  1  6 -3  0  2 -1 -1 -3 -4 -1 -3 -3 -1  0 -1 -4 -3 -3
 0 -3 -3 -3  9 -3 -4 -3 -3 -1 -1 -3 -1 -2 -3 -1 -1 -2 -2 -1
-1  1  0  0 -3  5  2 -2  0 -3 -2  1  0 -3 -1  0 -1 -2 -1 -2
-1  0  0  2 -4  2  5 -2  0 -3 -3  1 -2 -3 -1  0 -1 -3 -2 -2
 0 -2  0 -1 -3 -2 -2  6 -2 -4 -4 -2 -3 -3 -2  0 -2 -2 -3 -3
-2  0  1 -1 -3  0  0 -2  8 -3 -3 -1 -2 -1 -2 -1 -2 -2  2 -3
-1 -3 -3 -3 -1 -3 -3 -4 -3  4  2 -3  1  0 -3 -2 -1 -3 -1  3
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4 -2  2  0 -3 -2 -1 -2 -1  1
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5 -1 -3 -1  0 -1 -3 -2 -2
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5  0 -2 -1 -1 -1 -1  1
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6 -4 -2 -2  1  3 -1
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7 -1 -1 -4 -3 -2
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4  1 -3 -2 -2
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5 -2 -2  0
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11  2 -3
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7 -1
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""

BLOSUM62: Mapping[tuple[str, str], int] = {
    (a, b): int(value)
    for a, row in zip(_ORDER, _BLOSUM62.strip().splitlines(), strict=True)
    for b, value in zip(_ORDER, row.split(), strict=True)
}
"""Log odds of two residues in aligned blocks of proteins, in half bits (Henikoff and Henikoff 1992)."""

OTHER = -1
"""Its score of any pair with another letter."""

LEAST_SELF = 4
"""The least that it gives a residue beside itself."""

GAP_OPEN, GAP_LETTER = 11, 1
"""What a gap and each letter in it cost beside BLOSUM62: the defaults of protein BLAST."""

HYDROPHOBICITY: Mapping[str, float] = dict(
    zip(
        _ORDER,
        (
            1.8,
            -4.5,
            -3.5,
            -3.5,
            2.5,
            -3.5,
            -3.5,
            -0.4,
            -3.2,
            4.5,
            3.8,
            -3.9,
            1.9,
            2.8,
            -1.6,
            -0.8,
            -0.7,
            -0.9,
            -1.3,
            4.2,
        ),
        strict=True,
    )
)
"""Hydropathy of each residue (Kyte and Doolittle 1982)."""


class Substitution(Floor):
    """Σ over mutations of BLOSUM62(wild, mutant) − 4, so that every mutation costs; another length is one gap."""

    name = "floor:substitution"
    summary = "BLOSUM62, added over mutations"

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> NDArray[np.float64]:
        """Returns ``[n]`` scores; see :class:`protloom.contracts.VariantScorer`."""
        return np.array([self._score(wild_type, variant) for variant in variants], dtype=np.float64)

    def _score(self, wild_type: str, variant: Variant) -> float:
        if variant.mutations is None:
            return -GAP_OPEN - GAP_LETTER * abs(len(variant.sequence) - len(wild_type))
        return sum(BLOSUM62.get((m.wild, m.mutant), OTHER) - LEAST_SELF for m in variant.mutations)


class Hydrophobicity(Floor):
    """−Σ over mutations of the absolute change of hydropathy; of another length: of the change of the whole sum."""

    name = "floor:hydrophobicity"
    summary = "change of hydropathy, added over mutations"

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> NDArray[np.float64]:
        """Returns ``[n]`` scores; see :class:`protloom.contracts.VariantScorer`."""
        return np.array([-self._change(wild_type, variant) for variant in variants], dtype=np.float64)

    def _change(self, wild_type: str, variant: Variant) -> float:
        if variant.mutations is None:
            return abs(_hydropathy(variant.sequence) - _hydropathy(wild_type))
        return sum(abs(_hydropathy(m.mutant) - _hydropathy(m.wild)) for m in variant.mutations)


def _hydropathy(letters: str) -> float:
    return sum(HYDROPHOBICITY.get(letter, 0.0) for letter in letters)
