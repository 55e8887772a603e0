"""Which sequences of a corpus also occur, whole or nearly so, in the test sets of tasks.

Two sequences overlap by the share of the distinct k-mers of the one that has fewer of them which the other holds too.
So a domain inside a longer protein counts as much as a copy. k-mers with an X are left out: an unknown residue equals
nothing. With k = 6, a copy of which p of the residues were left alone shares about p⁶ of its k-mers (30 % at 82 %
identity, 53 % at 90 %), and two unrelated sequences of 400 residues about one k-mer in 400.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom.data.chunk import lengths_of, offsets_of
from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

K = 6
"""Residues of a k-mer."""
SHARE = 0.3
"""Least share of k-mers that counts as overlap."""
MOST_K = 12
"""Longest k-mer that fits into a 64-bit number, five bits a residue."""
BLOCK = 1 << 20
"""Residues of a corpus that are looked up at once."""
PAIRS = 1 << 22
"""(k-mer, tested sequence) pairs that are counted at once, about."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # spreads k-mers over the upper bits
_UNKNOWN = ord("X") & 31


@dataclass(frozen=True)
class Pairs:
    """Sequences of a block and tested sequences that overlap.

    Attributes:
        corpus: ``[P]`` number in the block.
        tested: ``[P]`` number of the distinct tested sequence.
        share: ``[P]`` of the k-mers of the one that has fewer, found in the other; 1 where they are equal.
        exact: ``[P]`` the two are equal.
    """

    corpus: NDArray[np.int64]
    tested: NDArray[np.int64]
    share: NDArray[np.float64]
    exact: NDArray[np.bool_]


class Index:
    """The k-mers of tested sequences, to look sequences of a corpus up in.

    Needs about 50 bytes of memory for each residue of the distinct tested sequences while it is made.

    Args:
        tested: sequences of the test sets; upper and lower case are the same.
        k: residues of a k-mer.

    Attributes:
        of: ``[n]`` number of the distinct sequence that each tested one is.
        distinct: number of distinct tested sequences.
        sizes: ``[distinct]`` number of distinct k-mers of each.

    Raises:
        UserError: ``k`` is out of range.
    """

    def __init__(self, tested: Sequence[str], *, k: int = K) -> None:
        if not 1 <= k <= MOST_K:
            raise UserError(f"k-mers of {k} residues: choose 1 to {MOST_K}")
        self._k = k
        self._whole: dict[str, int] = {}
        upper = (sequence.upper() for sequence in tested)
        self.of = np.array([self._whole.setdefault(s, len(self._whole)) for s in upper], dtype=np.int64)
        self.distinct = len(self._whole)
        owner, kmer = _distinct(list(self._whole), k)
        self.sizes = np.bincount(owner, minlength=self.distinct)  # k-mers of each distinct sequence
        order = np.argsort(kmer, kind="stable")
        self._owner, kmer = owner[order].astype(np.int32), kmer[order]
        self._first = np.flatnonzero(np.concatenate([np.ones(min(len(kmer), 1), np.bool_), kmer[1:] != kmer[:-1]]))
        self._keys, self._counts = kmer[self._first], np.diff(self._first, append=len(kmer))
        # most k-mers of a corpus are in no test set: a table of bits tells nearly all of them at the cost of one look
        self._bits = np.uint64(64 - max(len(self._keys).bit_length() + 4, 10))
        self._maybe = np.zeros(1 << (64 - int(self._bits)), dtype=np.bool_)
        self._maybe[self._place(self._keys)] = True

    def _place(self, kmers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.asarray(kmers * _GOLDEN >> self._bits, dtype=np.uint64)

    def look_up(self, sequences: Sequence[str], *, share: float = SHARE) -> Pairs:
        """Returns every pair of a given and a tested sequence that are equal or share enough k-mers.

        Args:
            sequences: of a corpus, some megabytes at most.
            share: least share of k-mers, above 0.
        """
        same = [(i, self._whole[s]) for i, s in enumerate(sequences) if s in self._whole]
        equal = np.array(same, dtype=np.int64).reshape(-1, 2)
        corpus, tested, found = self._shares(sequences, share)
        # an equal pair is told once, and one too short for a k-mer is told too
        fresh = ~np.isin(corpus * self.distinct + tested, equal[:, 0] * self.distinct + equal[:, 1])
        return Pairs(
            np.concatenate([equal[:, 0], corpus[fresh]]),
            np.concatenate([equal[:, 1], tested[fresh]]),
            np.concatenate([np.ones(len(equal)), found[fresh]]),
            np.arange(len(equal) + int(fresh.sum())) < len(equal),
        )

    def _shares(
        self, sequences: Sequence[str], share: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Returns (number in the block, tested, share) of the pairs that share enough k-mers."""
        number, kmers = _kmers(sequences, self._k)
        near = np.flatnonzero(self._maybe[self._place(kmers)])
        number, kmers = number[near], kmers[near]
        at = np.minimum(np.searchsorted(self._keys, kmers), max(len(self._keys) - 1, 0))
        hit = self._keys[at] == kmers if len(self._keys) else np.zeros(0, dtype=np.bool_)
        # a k-mer counts once a sequence, however often it stands there
        hits = np.unique(number[hit] * np.int64(max(len(self._keys), 1)) + at[hit])
        number, at = np.divmod(hits, max(len(self._keys), 1))
        corpus, tested, common = self._common(number, at)
        # no sequence has fewer k-mers than were found of it, so few pairs are left whose sizes must be counted
        least = np.bincount(number, minlength=len(sequences))
        possible = common / np.minimum(self.sizes[tested], least[corpus]) >= share
        corpus, tested, common = corpus[possible], tested[possible], common[possible]
        wanted, place = np.unique(corpus, return_inverse=True)
        owner, _ = _distinct([sequences[i] for i in wanted.tolist()], self._k)
        size = np.bincount(owner, minlength=len(wanted))
        shares = common / np.minimum(self.sizes[tested], size[place])
        enough = shares >= share
        return corpus[enough], tested[enough], shares[enough]

    def _common(
        self, number: NDArray[np.int64], at: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Counts how many of the found k-mers each pair of sequences has in common.

        Args:
            number: ``[H]`` ascending: the sequence that a k-mer was found in.
            at: ``[H]`` the k-mer.

        Returns:
            (number, tested, common) of every pair with one at least.
        """
        corpus, tested, common = [], [], []
        upto = np.cumsum(self._counts[at])
        low = 0
        while low < len(number):
            base = upto[low - 1] if low else 0
            # whole sequences, so that no pair is cut in two; one that is too large comes alone
            high = int(np.searchsorted(upto, base + PAIRS, side="right"))
            if high < len(number):
                high = int(np.searchsorted(number, number[high]))
            if high <= low:
                high = int(np.searchsorted(number, number[low], side="right"))
            counts = self._counts[at[low:high]]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            owner = self._owner[np.repeat(self._first[at[low:high]], counts) + within]
            pairs, shared = np.unique(np.repeat(number[low:high], counts) * self.distinct + owner, return_counts=True)
            corpus.append(pairs // self.distinct)
            tested.append(pairs % self.distinct)
            common.append(shared)
            low = high
        nothing = [np.zeros(0, dtype=np.int64)]
        return np.concatenate(corpus or nothing), np.concatenate(tested or nothing), np.concatenate(common or nothing)


@dataclass(frozen=True)
class Overlap:
    """A sequence of the corpus and the tested sequence nearest to it.

    Attributes:
        id: of the sequence in the corpus.
        tested: number of the distinct tested sequence.
        share: of the k-mers of the one that has fewer, found in the other.
        exact: the two are equal.
    """

    id: str
    tested: int
    share: float
    exact: bool


@dataclass(frozen=True)
class Count:
    """What of one test set occurs in a corpus.

    Attributes:
        tested: its sequences, repeated ones counted each time.
        exact: those that the corpus holds exactly.
        above: those that are equal or share enough k-mers with a sequence of the corpus.
        corpus: sequences of the corpus that do so with any of them.
    """

    tested: int
    exact: int
    above: int
    corpus: int


class Audit:
    """Adds up what of several test sets occurs in a corpus.

    Args:
        sets: name -> tested sequences; upper and lower case are the same.
        share: least share that counts, above 0 and at most 1.

    Attributes:
        share: as given.
        distinct: every tested sequence once.
        read: sequences of the corpus so far.

    Raises:
        UserError: ``share`` is out of range.
    """

    def __init__(self, sets: Mapping[str, Sequence[str]], *, share: float = SHARE) -> None:
        if not 0 < share <= 1:
            raise UserError(f"a share of {share:g}: must lie above 0 and be at most 1")
        self.read = 0
        self.share = share
        whole: dict[str, int] = {}
        self._rows = {
            name: np.array([whole.setdefault(s.upper(), len(whole)) for s in tested], dtype=np.int64)
            for name, tested in sets.items()
        }
        self.distinct = list(whole)
        self._member = {name: np.isin(np.arange(len(whole)), rows) for name, rows in self._rows.items()}
        self._concerned = dict.fromkeys(sets, 0)
        self._best = np.zeros(len(whole))
        self._exact = np.zeros(len(whole), dtype=np.bool_)

    def add(self, names: Sequence[str], pairs: Pairs) -> Iterator[Overlap]:
        """Takes the next sequences of a corpus; yields those that overlap, each with the tested one nearest to it.

        Args:
            names: ids of the sequences.
            pairs: of them with :attr:`distinct`; shares below the least are left out.
        """
        self.read += len(names)
        enough = pairs.share >= self.share
        corpus, tested = pairs.corpus[enough], pairs.tested[enough]
        share, exact = pairs.share[enough], pairs.exact[enough]
        np.maximum.at(self._best, tested, share)
        self._exact[tested[exact]] = True
        for name, member in self._member.items():
            self._concerned[name] += len(np.unique(corpus[member[tested]]))
        # of each sequence the best pair first; an equal one before one with as many k-mers
        order = np.lexsort((tested, ~exact, -share, corpus))
        _, first = np.unique(corpus[order], return_index=True)
        for i in order[first].tolist():
            yield Overlap(names[corpus[i]], int(tested[i]), float(share[i]), bool(exact[i]))

    def sets_of(self, tested: int) -> list[str]:
        """Returns the names of the test sets that hold a distinct tested sequence."""
        return [name for name, member in self._member.items() if member[tested]]

    def counts(self) -> dict[str, Count]:
        """Returns what was found of each test set so far."""
        above = self._best >= self.share
        return {
            name: Count(len(rows), int(self._exact[rows].sum()), int(above[rows].sum()), self._concerned[name])
            for name, rows in self._rows.items()
        }


def overlaps(corpus: Iterable[tuple[str, str]], audit: Audit, *, k: int = K) -> Iterator[Overlap]:
    """Yields the sequences of a corpus that share k-mers with a tested one, in the corpus's order.

    Args:
        corpus: (id, residues in upper case) one after the other.
        audit: of the test sets; complete once this is exhausted.
        k: residues of a k-mer.

    Raises:
        UserError: ``k`` is out of range.
    """
    index = Index(audit.distinct, k=k)
    names: list[str] = []
    sequences: list[str] = []
    size = 0
    for name, sequence in corpus:
        names.append(name)
        sequences.append(sequence)
        size += len(sequence)
        if size >= BLOCK:
            yield from audit.add(names, index.look_up(sequences, share=audit.share))
            names, sequences, size = [], [], 0
    yield from audit.add(names, index.look_up(sequences, share=audit.share))


def occurring(
    tested: Sequence[str], corpus: Sequence[str], *, k: int = K, share: float = SHARE
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tells of each tested sequence whether a corpus holds it exactly, and whether one of it shares enough k-mers.

    Much faster than :func:`overlaps` where nearly everything overlaps, as in variants of one protein: a tested
    sequence that was found once is looked for no more.

    Returns:
        (exact, above), both ``[n]``; what is exact is above too.
    """
    whole = dict.fromkeys(sequence.upper() for sequence in tested)
    held = {sequence.upper() for sequence in corpus}
    distinct = list(whole)
    exact = np.array([sequence in held for sequence in distinct], dtype=np.bool_)
    above = exact.copy()
    left = np.flatnonzero(~above)
    index = Index([distinct[i] for i in left], k=k)
    others, wasted = sorted(held), 0
    # in no order: neighbours in a file are often alike, and find the same tested sequences again and again
    order = np.random.default_rng(0).permutation(len(others)).tolist()
    first, step = 0, 1
    while first < len(others) and len(left):
        found = index.look_up([others[i] for i in order[first : first + step]], share=share).tested
        wasted += int(index.sizes[found].sum())
        above[left[found]] = True
        first += step
        step = min(2 * step, 1024)
        if wasted > int(index.sizes.sum()) // 2:  # as much work as to leave out what was found
            left, wasted = left[~above[left]], 0
            index = Index([distinct[i] for i in left], k=k)
    number = {sequence: i for i, sequence in enumerate(distinct)}
    rows = np.array([number[sequence.upper()] for sequence in tested], dtype=np.int64)
    return exact[rows], above[rows]


def _kmers(sequences: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns (number of the sequence, k-mer) for every window of ``k`` known residues, ascending by the first."""
    each = [sequence.encode("ascii") for sequence in sequences]
    letters = np.frombuffer(b"".join(each), dtype=np.uint8) & np.uint8(31)
    lengths = lengths_of(each)
    count = max(len(letters) - k + 1, 0)
    left = np.repeat(offsets_of(lengths)[1:], lengths)[:count] - np.arange(count)  # residues from here to the end
    whole = left >= k
    found = np.zeros(count, dtype=np.uint64)
    for i in range(k):
        part = letters[i : i + count]
        found = (found << np.uint64(5)) | part
        whole &= part != _UNKNOWN
    return np.repeat(np.arange(len(each)), lengths)[:count][whole], found[whole]


def _distinct(sequences: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns (number of the sequence, k-mer) for every distinct k-mer of each sequence."""
    numbers: list[NDArray[np.int64]] = []
    found: list[NDArray[np.uint64]] = []
    first = 0
    while first < len(sequences):
        last, size = first, 0
        while last < len(sequences) and size < BLOCK:
            size += len(sequences[last])
            last += 1
        number, kmers = _kmers(sequences[first:last], k)
        order = np.lexsort((kmers, number))
        number, kmers = number[order], kmers[order]
        new = np.ones(len(number), dtype=np.bool_)
        new[1:] = (number[1:] != number[:-1]) | (kmers[1:] != kmers[:-1])
        numbers.append(number[new] + first)
        found.append(kmers[new])
        first = last
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    return np.concatenate(numbers), np.concatenate(found)
