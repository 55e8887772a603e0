"""Which sequences of a corpus also occur, whole or nearly so, in the test sets of tasks.

Two sequences overlap by the share of k-mers of the shorter one that the other holds too. With k = 6, sequences that are
82 % identical share about 30 %, and two unrelated ones of 400 residues about one k-mer in 400.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

K = 6
"""Residues of a k-mer."""
SHARE = 0.3
"""Least share of k-mers that counts as overlap."""
MOST_K = 12
"""Longest k-mer that fits into a 64-bit number, five bits a residue."""


@dataclass(frozen=True)
class Overlap:
    """A sequence of the corpus and the tested sequence nearest to it.

    Attributes:
        id: of the sequence in the corpus.
        tested: number of the tested sequence.
        share: of the k-mers of the shorter one, found in the other.
        exact: the two are equal.
    """

    id: str
    tested: int
    share: float
    exact: bool


class Index:
    """The k-mers of tested sequences, to look sequences of a corpus up in.

    Needs about 30 bytes of memory for each tested residue.

    Args:
        tested: sequences of the test sets.
        k: residues of a k-mer.

    Raises:
        UserError: ``k`` is out of range.
    """

    def __init__(self, tested: Sequence[str], *, k: int = K) -> None:
        if not 1 <= k <= MOST_K:
            raise UserError(f"k-mers of {k} residues: choose 1 to {MOST_K}")
        self._k = k
        self._whole: dict[str, int] = {}
        for number, sequence in enumerate(tested):
            self._whole.setdefault(sequence, number)
        each = [np.unique(_kmers(sequence, k)) for sequence in self._whole]
        self._size = np.array([len(kmers) for kmers in each], dtype=np.int64)
        self._number = np.fromiter(self._whole.values(), dtype=np.int64, count=len(self._whole))
        everything = np.concatenate(each) if each else np.zeros(0, dtype=np.uint64)
        owner = np.repeat(np.arange(len(each)), self._size)
        order = np.argsort(everything, kind="stable")
        self._keys, first, self._counts = np.unique(everything[order], return_index=True, return_counts=True)
        self._first, self._owner = first, owner[order]

    def nearest(self, sequence: str, *, share: float = SHARE) -> tuple[int, float, bool] | None:
        """Returns (number of the tested sequence, share, whether they are equal) of the nearest one, None below.

        Args:
            sequence: of a corpus.
            share: least share of k-mers.
        """
        if sequence in self._whole:
            return self._whole[sequence], 1.0, True
        kmers = np.unique(_kmers(sequence, self._k))
        if not len(kmers) or not len(self._keys):
            return None
        place = np.minimum(np.searchsorted(self._keys, kmers), len(self._keys) - 1)
        place = place[self._keys[place] == kmers]
        # no pair can reach the share with so few hits, and most sequences of a corpus end here
        if len(place) < share * min(len(kmers), int(self._size.min(initial=len(kmers)))) or not len(place):
            return None
        starts, counts = self._first[place], self._counts[place]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners, hits = np.unique(self._owner[np.repeat(starts, counts) + within], return_counts=True)
        shares = hits / np.minimum(self._size[owners], len(kmers))
        best = int(np.argmax(shares))
        if shares[best] < share:
            return None
        return int(self._number[owners[best]]), float(shares[best]), False


def overlaps(corpus: Iterable[tuple[str, str]], index: Index, *, share: float = SHARE) -> Iterator[Overlap]:
    """Yields the sequences of a corpus that overlap with a tested one, in the corpus's order.

    Args:
        corpus: (id, residues) one after the other.
        index: of the tested sequences.
        share: least share of k-mers that counts; 1 with an index of long k-mers finds little but contained sequences.
    """
    for name, sequence in corpus:
        found = index.nearest(sequence, share=share)
        if found is not None:
            yield Overlap(name, *found)


def _kmers(sequence: str, k: int) -> NDArray[np.uint64]:
    """Returns the k-mers of a sequence as numbers, ``[L − k + 1]``."""
    letters = np.frombuffer(sequence.encode("ascii"), dtype=np.uint8) & np.uint8(31)
    count = len(letters) - k + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    found = np.zeros(count, dtype=np.uint64)
    for i in range(k):
        found = (found << np.uint64(5)) | letters[i : i + count].astype(np.uint64)
    return found
