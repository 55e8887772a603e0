"""Counter-based randomness: every random number is a hash of what it is for, never of what was drawn before it.

Masks, crops and orders are hashes of (seed, purpose, epoch, sequence, position). They therefore do not depend on how
sequences are batched, on threads, on ranks or on where a run was resumed, and there is no generator state to save.

The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
OOPSLA; constants of Stafford's variant 13), applied to a key plus a multiple of the golden-ratio increment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    U64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF
# made once: building a numpy scalar costs as much as hashing a short array with it
_U_GOLDEN, _U_MIX1, _U_MIX2 = np.uint64(_GOLDEN), np.uint64(_MIX1), np.uint64(_MIX2)
_SCALE = 2.0**64 * (1 - 2.0**-53)
_U11, _U27, _U30, _U31, _U32 = (np.uint64(bits) for bits in (11, 27, 30, 31, 32))


def mix64(x: U64) -> U64:
    """Hashes each element in place (a bijection of 64 bits) and returns the array."""
    shifted = x >> _U30
    x ^= shifted
    x *= _U_MIX1
    np.right_shift(x, _U27, out=shifted)
    x ^= shifted
    x *= _U_MIX2
    np.right_shift(x, _U31, out=shifted)
    x ^= shifted
    return x


def _mix_int(x: int) -> int:
    """Hashes one Python integer exactly as :func:`mix64` does an element."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def _word(part: str | int) -> int:
    """Turns a name or a number into 64 bits: text by FNV-1a, so that it is the same in every process."""
    if isinstance(part, str):
        value = 0xCBF29CE484222325
        for byte in part.encode():
            value = ((value ^ byte) * 0x100000001B3) & _MASK
        return value
    return int(part) & _MASK


class CounterRNG:
    """A named stream of random numbers addressed by counters.

    Args:
        seed: the run's seed.
        path: names or numbers that tell this stream from others, such as ``"mask"``.
    """

    __slots__ = ("key",)

    def __init__(self, seed: int, *path: str | int) -> None:
        key = _mix_int(int(seed) + _GOLDEN)
        for part in path:
            key = _mix_int(key ^ _mix_int(_word(part) + _GOLDEN))
        self.key = key

    def stream(self, *path: str | int) -> CounterRNG:
        """Returns an independent stream below this one."""
        child = CounterRNG.__new__(CounterRNG)
        key = self.key
        for part in path:
            key = _mix_int(key ^ _mix_int(_word(part) + _GOLDEN))
        child.key = key
        return child

    def at(self, *counters: NDArray[np.integer] | Sequence[int] | int) -> U64:
        """Returns 64 random bits for each tuple of counters (arrays broadcast; at least one dimension comes back)."""
        key: U64 = np.full(1, self.key, dtype=np.uint64)
        for counter in counters:
            word = np.array(counter, dtype=np.int64, ndmin=1).view(np.uint64)
            word += _U_GOLDEN
            key = mix64(key ^ mix64(word))
        return key

    def draw(self, *counters: int) -> int:
        """Returns 64 random bits for one tuple of counters, equal to ``at(*counters)[0]``."""
        key = self.key
        for counter in counters:
            key = _mix_int(key ^ _mix_int(int(counter) + _GOLDEN))
        return key

    def positions(self, keys: U64, cu: NDArray[np.integer]) -> U64:
        """Returns 64 random bits for every position of packed sequences.

        Args:
            keys: ``[n]`` one key a sequence, from :meth:`at`.
            cu: ``[n + 1]`` offsets of the packed sequences.

        Returns:
            ``[T]``; element *t* of sequence *i* depends on ``keys[i]`` and ``t - cu[i]`` alone.
        """
        lengths = np.diff(cu)
        with np.errstate(over="ignore"):
            base = keys + np.uint64(self.key) - cu[:-1].astype(np.uint64) * _U_GOLDEN
            x = np.repeat(base, lengths)
            x += np.arange(1, int(cu[-1]) + 1, dtype=np.uint64) * _U_GOLDEN
        return mix64(x)


def uniform(bits: U64) -> NDArray[np.float64]:
    """Turns 64 random bits into numbers in [0, 1), with 53 bits each."""
    return cast("NDArray[np.float64]", (bits >> _U11) * 2.0**-53)


def below(bits: U64, bound: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Turns 64 random bits into integers in [0, bound); ``bound`` is below 2³¹, so the bias is below 2⁻³²."""
    high = bits >> _U32
    scaled = (high * np.asarray(bound).astype(np.uint64)) >> _U32
    return cast("NDArray[np.int64]", scaled.astype(np.int64))


def threshold(probability: float | NDArray[np.floating]) -> U64:
    """Returns the bound below which 64 random bits fall with ``probability`` (compare with ``<``), as an array."""
    # 2^64 itself is not a uint64, so certainty is the largest value: it misses one draw in 2^64
    if isinstance(probability, float | int):
        below_one = min(max(float(probability), 0.0), 1.0)
        return np.array(_MASK if below_one >= 1.0 else int(below_one * _SCALE), dtype=np.uint64)
    clipped = np.clip(np.asarray(probability, dtype=np.float64), 0.0, 1.0)
    return cast("U64", np.where(clipped >= 1.0, np.uint64(_MASK), (clipped * _SCALE).astype(np.uint64)))


class Permutation:
    """A keyed permutation of ``range(n)`` in closed form: element i costs O(1), whatever n.

    A four-round Feistel network over the smallest even number of bits that holds n, walked until it lands inside the
    range (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; fewer than four steps on
    average).

    Args:
        n: the size, at least 1.
        rng: the key.
    """

    def __init__(self, n: int, rng: CounterRNG) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs n >= 1, not {n}")
        self.n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._keys = [np.uint64(rng.draw(i)) for i in range(4)]

    def __call__(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Returns where each element of ``index`` (all in ``range(n)``) goes."""
        x = np.array(index, dtype=np.uint64, ndmin=1)
        todo = np.arange(x.size)
        while todo.size:
            x[todo] = self._round_trip(x[todo])
            todo = todo[x[todo] >= self.n]
        return x.astype(np.int64)

    def _round_trip(self, x: U64) -> U64:
        half, low = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = x >> half, x & low
        for key in self._keys:
            left, right = right, left ^ (mix64(right + key) & low)
        return (left << half) | right
