"""Counter-based randomness: published vectors, statistics, independence, exact integer twins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protloom import rng as rng_module
from protloom.rng import CounterRNG, Permutation, below, mix64, threshold, uniform

GOLDEN = 0x9E3779B97F4A7C15
# the first outputs of SplitMix64 from state 0 and 1234567, as its authors' program prints them
SPLITMIX = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
}


@pytest.mark.parametrize("state", SPLITMIX)
def test_finaliser_gives_the_published_sequence(state: int) -> None:
    counters = np.array([(state + (i + 1) * GOLDEN) % 2**64 for i in range(3)], dtype=np.uint64)
    assert mix64(counters).tolist() == SPLITMIX[state]


@given(st.integers(0, 2**64 - 1))
def test_integer_and_array_hash_agree(x: int) -> None:
    assert rng_module._mix_int(x) == int(mix64(np.array([x], dtype=np.uint64))[0])


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_draw_equals_at(seed: int, counters: list[int]) -> None:
    rng = CounterRNG(seed, "test")
    assert rng.draw(*counters) == int(rng.at(*counters)[0])


def test_streams_are_frozen_for_ever() -> None:
    """Numbers of this version: a change of them would change every run and every resumed one."""
    rng = CounterRNG(42, "mask", 3)
    assert rng.key == CounterRNG(42).stream("mask").stream(3).key == CounterRNG(42, "mask").stream(3).key
    cu = np.array([0, 3, 5])
    frozen = {
        "key": rng.key,
        "draw": rng.draw(1, 2),
        "positions": rng.positions(rng.at([0, 1], [7, 7]), cu).tolist(),
        "permutation": Permutation(10, rng)(np.arange(10)).tolist(),
    }
    assert frozen == {
        "key": 2024105379209597083,
        "draw": 9037751365196397116,
        "positions": [
            6678103586281506533,
            151110131313401078,
            9720743939583841692,
            14512372819493545664,
            1627928232646004404,
        ],
        "permutation": [3, 9, 1, 0, 5, 4, 8, 6, 7, 2],
    }


def test_the_same_numbers_in_another_process() -> None:
    """Names are hashed by protloom, not by Python, whose text hash differs from process to process."""
    code = "from protloom.rng import CounterRNG; print(CounterRNG(5, 'crop', 'β').draw(9))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == CounterRNG(5, "crop", "β").draw(9)


def test_positions_depend_on_key_and_place_in_the_sequence_alone() -> None:
    rng = CounterRNG(1, "mask")
    lengths = np.array([5, 1, 300, 17])
    keys = rng.at(np.arange(4))
    together = rng.positions(keys, np.concatenate(([0], np.cumsum(lengths))))
    alone = [rng.positions(keys[i : i + 1], np.array([0, lengths[i]])) for i in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    # a longer sequence begins with the same numbers
    np.testing.assert_array_equal(rng.positions(keys[:1], np.array([0, 50]))[:5], alone[0])


def test_positions_equal_their_formula() -> None:
    rng = CounterRNG(7, "mask")
    keys = rng.at(np.arange(3))
    cu = np.array([0, 2, 2, 9], dtype=np.int32)
    expected = [
        rng_module._mix_int(int(keys[i]) + rng.key + (t + 1) * GOLDEN)
        for i in range(3)
        for t in range(int(cu[i + 1] - cu[i]))
    ]
    assert rng.positions(keys, cu).tolist() == expected


def test_positions_of_nothing() -> None:
    rng = CounterRNG(7)
    assert rng.positions(np.zeros(0, dtype=np.uint64), np.zeros(1, dtype=np.int32)).shape == (0,)


def test_arguments_are_not_changed() -> None:
    rng = CounterRNG(3)
    counters, keys, cu = np.arange(4), rng.at(np.arange(4)), np.array([0, 1, 2, 3, 9])
    before = counters.copy(), keys.copy(), cu.copy()
    rng.at(counters, counters)
    rng.positions(keys, cu)
    uniform(keys)
    below(keys, 5)
    for now, then in zip((counters, keys, cu), before, strict=True):
        np.testing.assert_array_equal(now, then)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """``[n, 64]`` single bits."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1)


SOURCES: dict[str, Callable[[int], NDArray[np.uint64]]] = {
    "counter": lambda n: CounterRNG(0, "a").at(np.arange(n)),
    "second counter": lambda n: CounterRNG(0, "a").at(3, np.arange(n)),
    "seed": lambda n: np.array([CounterRNG(seed).draw(0) for seed in range(n)], dtype=np.uint64),
    "position": lambda n: CounterRNG(0, "a").positions(CounterRNG(1).at([5]), np.array([0, n])),
    "sequence": lambda n: CounterRNG(0, "a").positions(CounterRNG(1).at(np.arange(n)), np.arange(n + 1)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_bits_are_fair_and_neighbours_unrelated(source: str) -> None:
    n = 20_000
    values = SOURCES[source](n)
    assert len(np.unique(values)) == n
    bits = _bits(values)
    # 6 standard deviations of a fair coin, for 64 bits
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(n)
    flips = (bits[1:] ^ bits[:-1]).mean(axis=0)
    assert np.abs(flips - 0.5).max() < 6 * 0.5 / np.sqrt(n)
    counts = np.bincount((uniform(values) * 256).astype(int), minlength=256)
    chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert 255 - 6 * np.sqrt(510) < chi2 < 255 + 6 * np.sqrt(510)


def test_streams_are_independent() -> None:
    n = 20_000
    paths: list[tuple[int, tuple[str | int, ...]]] = [(0, ()), (1, ()), (0, ("a",)), (0, ("b",)), (0, ("a", 0))]
    paths += [(0, ("a", 1)), (0, (0,)), (0, (0, 0))]
    values = np.stack([uniform(CounterRNG(seed, *path).at(np.arange(n))) for seed, path in paths])
    correlation = np.corrcoef(values) - np.eye(len(paths))
    assert np.abs(correlation).max() < 6 / np.sqrt(n)


def test_uniform_is_below_one() -> None:
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert uniform(extremes).tolist() == [0.0, 1.0 - 2.0**-53]


def test_below_covers_its_range_evenly() -> None:
    bits = CounterRNG(0).at(np.arange(60_000))
    values = below(bits, 6)
    assert values.min() == 0
    assert values.max() == 5
    counts = np.bincount(values)
    assert np.abs(counts - 10_000).max() < 6 * np.sqrt(60_000 * 5 / 36)
    assert below(bits, np.full(len(bits), 1)).max() == 0
    mixed = below(bits[:4], np.array([1, 2, 3, 4]))
    assert (mixed < np.array([1, 2, 3, 4])).all()


@pytest.mark.parametrize("probability", [0.0, 1e-3, 0.15, 0.5, 0.999, 1.0])
def test_threshold_has_its_probability(probability: float) -> None:
    n = 100_000
    share = (CounterRNG(2).at(np.arange(n)) < threshold(probability)).mean()
    assert abs(share - probability) <= 6 * np.sqrt(probability * (1 - probability) / n)


@given(st.floats(-0.5, 1.5))
def test_threshold_of_one_equals_that_of_many(probability: float) -> None:
    assert int(threshold(probability)) == threshold(np.array([probability])).item()


def test_threshold_of_many_probabilities() -> None:
    bounds = threshold(np.array([-1.0, 0.0, 0.25, 1.0, 2.0]))
    assert bounds.dtype == np.uint64
    assert bounds.tolist() == [0, 0, int(2**62 * (1 - 2.0**-53)), 2**64 - 1, 2**64 - 1]


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 1024, 1025, 4097, 65_537])
def test_permutation_is_a_bijection(n: int) -> None:
    order = Permutation(n, CounterRNG(0, n))(np.arange(n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@settings(max_examples=30)
@given(st.integers(1, 10**12), st.integers(0, 100))
def test_permutation_of_large_ranges(n: int, seed: int) -> None:
    some = np.unique(np.linspace(0, n - 1, 50).astype(np.int64))
    image = Permutation(n, CounterRNG(seed))(some)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(some)


def test_permutations_of_small_ranges_are_all_reached() -> None:
    """All 24 orders of 4 elements come up, none far more often than another."""
    orders = [tuple(Permutation(4, CounterRNG(seed))(np.arange(4)).tolist()) for seed in range(4800)]
    _, counts = np.unique(np.array(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.max() < 3 * counts.min()


def test_permutation_leaves_no_order_behind() -> None:
    n = 10_000
    order = Permutation(n, CounterRNG(1))(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 6 / np.sqrt(n)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 6 / np.sqrt(n)


def test_permutation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        Permutation(0, CounterRNG(0))
