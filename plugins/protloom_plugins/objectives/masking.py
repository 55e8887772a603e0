"""Corruption of residues: which are chosen, and what stands there instead.

Every choice is a hash of (stream, sequence, position). The functions work on whole packed batches; what happens to a
sequence does not depend on its neighbours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from protloom.rng import below, mix64, threshold, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom.contracts import SequenceBatch
    from protloom.rng import CounterRNG

    U64 = NDArray[np.uint64]
    F64 = NDArray[np.float64]
    I64 = NDArray[np.int64]


def below_rate(bits: U64, probability: float | F64, cu: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tells of ``[T]`` hashes which fall below a probability, or below ``[n]`` probabilities of their sequences."""
    bound = threshold(probability)
    return bits < (np.repeat(bound, np.diff(cu)) if bound.ndim else bound)


def never_empty(index: I64, bits: U64, residue: NDArray[np.bool_], cu: NDArray[np.integer]) -> I64:
    """Gives every sequence with residues at least one chosen position: that with the smallest hash.

    Args:
        index: ``[M]`` chosen positions, ascending.
        bits: ``[T]`` hashes of the positions.
        residue: ``[T]`` which positions may be chosen.
        cu: ``[n + 1]`` offsets.

    Returns:
        ``[M']`` chosen positions, ascending.
    """
    empty = np.flatnonzero(np.diff(np.searchsorted(index, cu)) == 0)
    if not len(empty):
        return index
    # [E]: the position of the smallest hash among the residues of each sequence that has none chosen
    positions = np.concatenate([np.arange(cu[i], cu[i + 1]) for i in empty])
    owner = np.repeat(np.arange(len(empty)), cu[empty + 1] - cu[empty])
    allowed = residue[positions]
    positions, owner = positions[allowed], owner[allowed]
    order = np.lexsort((bits[positions], owner))
    owner, positions = owner[order], positions[order]
    first = np.ones(len(owner), dtype=np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    return np.sort(np.concatenate((index, positions[first])))


def choose(batch: SequenceBatch, rng: CounterRNG, rate: float | F64) -> tuple[I64, U64]:
    """Chooses each residue independently with probability ``rate``, at least one in every sequence.

    Args:
        batch: packed sequences.
        rng: the stream.
        rate: one probability, or ``[n]`` one a sequence.

    Returns:
        ``[M]`` int64 chosen positions, ascending, and ``[T]`` the hashes of all positions.
    """
    cu = batch.packed.cu
    bits = rng.positions(batch.keys(rng), cu)
    chosen = below_rate(bits, rate, cu)
    chosen &= batch.residue
    return never_empty(np.flatnonzero(chosen), bits, batch.residue, cu), bits


def choose_spans(batch: SequenceBatch, rng: CounterRNG, rate: float | F64, survival: F64) -> tuple[I64, U64]:
    """Chooses spans of residues so that every residue is chosen with probability ``rate``.

    A span starts at each position (also at virtual ones before the sequence, so that the first residues are not chosen
    less often) with a probability q; a residue is chosen if any span covers it. With S(j) = P(length > j) the
    probability of that is 1 − Π_j (1 − q·S(j)), which :func:`start_probability` inverts.

    Args:
        batch: packed sequences.
        rng: the stream.
        rate: one probability, or ``[n]`` one a sequence.
        survival: ``[longest]`` S(0) = 1, S(1), … of the length distribution.

    Returns:
        As :func:`choose`.
    """
    cu = batch.packed.cu
    keys = batch.keys(rng)
    bits = rng.positions(keys, cu)
    starts = start_probability(rate, tuple(survival.tolist()))  # [] or [n]
    first = np.flatnonzero(below_rate(bits, starts, cu))  # [S] ascending
    reach = _reach_from_before(keys, rng, starts, survival)  # [n]
    reached = np.flatnonzero(reach)
    begin = np.concatenate((cu[reached].astype(np.int64), first))
    end = begin + np.concatenate((reach[reached], _lengths(bits[first], survival)))
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    # a span ends with its sequence
    np.minimum(end, cu[np.searchsorted(cu, begin, side="right")], out=end)
    index = _union(begin, end)
    return never_empty(index[batch.residue[index]], bits, batch.residue, cu), bits


def _reach_from_before(keys: U64, rng: CounterRNG, starts: float | F64, survival: F64) -> I64:
    """Returns ``[n]`` how many tokens spans that start before each sequence reach into it."""
    n, virtual = len(keys), len(survival) - 1  # positions −1, −2, … −V
    reach = np.zeros(n, dtype=np.int64)
    if not virtual:
        return reach
    bits = rng.stream("before").positions(keys, np.arange(n + 1) * virtual)  # [n · V]
    begins = np.flatnonzero(below_rate(bits, starts, np.arange(n + 1) * virtual))
    sequence, position = np.divmod(begins, virtual)
    np.maximum.at(reach, sequence, _lengths(bits[begins], survival) - 1 - position)
    return reach


def _union(begin: I64, end: I64) -> I64:
    """Returns the positions that any of the spans ``begin`` (ascending) to ``end`` covers, each once, ascending."""
    if not len(begin):
        return np.zeros(0, dtype=np.int64)
    upto = np.maximum.accumulate(end)
    own = begin.copy()  # what earlier spans cover already is theirs
    np.maximum(own[1:], upto[:-1], out=own[1:])
    sizes = (upto - own).clip(min=0)
    shift = own - (np.cumsum(sizes) - sizes)
    return np.repeat(shift, sizes) + np.arange(sizes.sum())


def _lengths(bits: U64, survival: F64) -> I64:
    """Draws a length (≥ 1) with the given survival function for each hash."""
    u = uniform(mix64(bits.copy()))
    # the length is the number of j with u < S(j); S descends
    return len(survival) - np.searchsorted(survival[::-1], u, side="right")


def geometric_survival(mean: float, longest: int) -> F64:
    """Returns S(j) = (1 − 1/mean)^j for j < ``longest``: geometric lengths, longer ones cut to ``longest``."""
    return (1.0 - 1.0 / mean) ** np.arange(longest, dtype=np.float64)


def fixed_survival(length: int) -> F64:
    """Returns S(j) = 1 for j < ``length``: every span has this length."""
    return np.ones(length, dtype=np.float64)


def start_probability(rate: float | F64, survival: tuple[float, ...]) -> float | F64:
    """Returns the probability that a span starts at a position, such that a residue is covered with ``rate``."""
    if isinstance(rate, float):
        return _solve(rate, survival)
    unique, back = np.unique(rate, return_inverse=True)
    return np.array([_solve(float(r), survival) for r in unique])[back]


@lru_cache(maxsize=4096)
def _solve(rate: float, survival: tuple[float, ...]) -> float:
    """Bisects 1 − Π_j (1 − q·S_j) = rate, which ascends in q."""
    s = np.array(survival)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1.0 - np.prod(1.0 - middle * s) < rate:
            low = middle
        else:
            high = middle
    return high


def pick(keys: U64, values: Sequence[float]) -> F64:
    """Draws one of ``values`` for each sequence, all equally likely, by a hash of its key."""
    return np.asarray(values, dtype=np.float64)[below(mix64(keys + np.uint64(0xD1B54A32D192ED03)), len(values))]


def replace(
    tokens: NDArray[np.int32],
    index: I64,
    bits: U64,
    *,
    mask_id: int,
    residue_ids: NDArray[np.int32],
    mask: float,
    random: float,
    other: bool,
) -> NDArray[np.int32]:
    """Returns ``tokens`` with the chosen positions masked, replaced at random, or kept (BERT, Devlin et al. 2019).

    Args:
        tokens: ``[T]`` ids.
        index: ``[M]`` chosen positions.
        bits: ``[M]`` hashes of these positions.
        mask_id: the mask symbol.
        residue_ids: ``[R]`` what a random replacement may be, all equally likely.
        mask: probability of the mask symbol.
        random: probability of a random replacement; the rest is kept.
        other: never replace a residue by itself.
    """
    inputs = tokens.copy()
    # these hashes decided that the position was chosen, so they are hashed again for what becomes of it
    fate = mix64(bits + np.uint64(0x9E3779B97F4A7C15))
    masked = fate < threshold(mask)
    inputs[index[masked]] = mask_id
    if random > 0:
        swap = fate < threshold(mask + random)
        swap &= ~masked
        where = index[swap]
        inputs[where] = random_residues(tokens[where], fate[swap], residue_ids, other=other)
    return inputs


def random_residues(
    originals: NDArray[np.int32], bits: U64, residue_ids: NDArray[np.int32], *, other: bool
) -> NDArray[np.int32]:
    """Draws a residue for each of ``[M]`` originals; with ``other`` never the original itself."""
    draw = mix64(bits.copy())
    if not other:
        return residue_ids[below(draw, len(residue_ids))]
    same = originals[:, None] == residue_ids[None, :]  # [M, R]
    known = same.any(axis=1)
    picked = below(draw, np.where(known, len(residue_ids) - 1, len(residue_ids)))
    picked += known & (picked >= same.argmax(axis=1))
    return residue_ids[picked]
