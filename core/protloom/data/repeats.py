"""Records whose id was there before: found by hash, for a whole corpus at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protloom.data.chunk import hash_slices, offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Repeats(NamedTuple):
    """What is wrong with later records of one id.

    Attributes:
        dropped: numbers of records that repeat id and sequence of an earlier one, ascending.
        renamed: number -> new id of records that have the id of an earlier one but another sequence.
    """

    dropped: list[int]
    renamed: dict[int, bytes]


def find_repeats(ids: NDArray[np.uint64], sequences: NDArray[np.uint64], name_of: Callable[[int], bytes]) -> Repeats:
    """Finds records that share an id.

    Two texts count as equal where their 64-bit hashes are; among 10⁸ records a wrong pair has probability 3·10⁻⁴.

    Args:
        ids: ``[n]`` hash of each record's id.
        sequences: ``[n]`` hash of each record's residues.
        name_of: returns the id of a record.
    """
    found = Repeats([], {})
    ordered = np.sort(ids)
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not len(again):
        return found
    order = np.argsort(ids, kind="stable")  # slower than a sort, and most corpora do not need it
    given: set[int] = set()
    for run in np.split(again, np.flatnonzero(np.diff(again) > 1) + 1):
        first, *later = order[run[0] - 1 : run[-1] + 1].tolist()
        name, number = name_of(first), 1
        seen = {int(sequences[first])}
        for i in later:
            if int(sequences[i]) in seen:
                found.dropped.append(i)
                continue
            seen.add(int(sequences[i]))
            number += 1
            while (key := _hash(b"%s#%d" % (name, number))) in given or _contains(ordered, key):
                number += 1
            given.add(key)
            found.renamed[i] = b"%s#%d" % (name, number)
    found.dropped.sort()
    return found


def _hash(text: bytes) -> int:
    return int(hash_slices(text, offsets_of(np.array([len(text)])))[0])


def _contains(ordered: NDArray[np.uint64], key: int) -> bool:
    at = int(np.searchsorted(ordered, np.uint64(key)))
    return at < len(ordered) and int(ordered[at]) == key
