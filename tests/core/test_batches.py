"""Packed batches against a sequence-at-a-time tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from memory_store import MemoryStore, random_sequences, store_of
from protloom.contracts import Record, SequenceBatch, Tokenizer
from protloom.data.batches import BatchMaker
from protloom.data.build import build_store
from protloom.data.layout import Store
from protloom.data.sampler import Members, Sampler


def tokenizer_of(prefix: Sequence[int], suffix: Sequence[int], *, first: int) -> Tokenizer:
    """Letters are numbered from ``first``; everything else is 3."""
    table = np.full(256, 3, dtype=np.int32)
    table[ord("A") : ord("Z") + 1] = first + np.arange(26)
    return cast("Tokenizer", SimpleNamespace(table=table, prefix=tuple(prefix), suffix=tuple(suffix)))


TOKENIZERS = {
    "cls and eos": tokenizer_of([0], [2], first=4),
    "nothing round": tokenizer_of([], [], first=4),
    "only a prefix": tokenizer_of([7, 8, 9], [], first=40),
    "only a suffix": tokenizer_of([], [1], first=4),
    "ids above a byte": tokenizer_of([1000, 5], [70_000], first=250),
}
LONGEST = 30


def members_of(rows: Sequence[tuple[int, int, int]]) -> Members:
    corpus, epoch, index = zip(*rows, strict=True) if rows else ((), (), ())
    n = len(rows)
    return Members(
        np.array(corpus, dtype=np.int32),
        np.array(epoch, dtype=np.int64),
        np.array(index, dtype=np.int64),
        np.arange(n, dtype=np.int32),
        np.zeros(n, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def stores() -> list[MemoryStore]:
    return [store_of(random_sequences(40, seed=1)), store_of(random_sequences(20, seed=2, shortest=100, longest=300))]


def pieces(batch: SequenceBatch) -> list[list[int]]:
    cu = batch.packed.cu
    return [batch.packed.tokens[a:b].tolist() for a, b in pairwise(cu.tolist())]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_batches_equal_a_loop_over_sequences(stores: list[MemoryStore], name: str) -> None:
    tokenizer = TOKENIZERS[name]
    maker = BatchMaker(stores, tokenizer, max_length=LONGEST, seed=3)
    rows = [(0, 0, 5), (1, 2, 7), (0, 1, 39), (0, 0, 0), (1, 0, 7)]
    batch = maker.make(members_of(rows), 11)
    residue = batch.residue.tolist()
    assert batch.packed.tokens.dtype == batch.packed.cu.dtype == np.int32
    assert len(residue) == len(batch.packed.tokens) == batch.packed.cu[-1]
    for (corpus, _, index), ids, a in zip(rows, pieces(batch), batch.packed.cu.tolist(), strict=False):
        text = stores[corpus].sequence(index)
        inner = ids[len(tokenizer.prefix) : len(ids) - len(tokenizer.suffix)]
        assert ids == [*tokenizer.prefix, *inner, *tokenizer.suffix]
        assert len(inner) == min(len(text), LONGEST)
        whole = [int(tokenizer.table[ord(letter)]) for letter in text]
        windows = [whole[i : i + len(inner)] for i in range(len(whole) - len(inner) + 1)]
        assert inner in windows
        flags = [False] * len(tokenizer.prefix) + [True] * len(inner) + [False] * len(tokenizer.suffix)
        assert residue[a : a + len(ids)] == flags
    assert batch.step == 11
    assert batch.corpus.tolist() == [row[0] for row in rows]
    assert batch.epoch.tolist() == [row[1] for row in rows]
    assert batch.index.tolist() == [row[2] for row in rows]


def test_a_sequence_is_the_same_in_any_batch(stores: list[MemoryStore]) -> None:
    tokenizer = TOKENIZERS["cls and eos"]
    rows = [(c, e, i) for c in (0, 1) for e in (0, 1) for i in range(20)]
    together = pieces(BatchMaker(stores, tokenizer, max_length=LONGEST, seed=3).make(members_of(rows), 0))
    maker = BatchMaker(stores, tokenizer, max_length=LONGEST, seed=3)
    assert together == [pieces(maker.make(members_of([row]), 5))[0] for row in rows]


def test_windows_are_drawn_anew_for_epoch_corpus_and_seed(stores: list[MemoryStore]) -> None:
    tokenizer = TOKENIZERS["cls and eos"]
    twins = [stores[1], stores[1]]

    def window(corpus: int, epoch: int, seed: int) -> list[list[int]]:
        maker = BatchMaker(twins, tokenizer, max_length=LONGEST, seed=seed)
        return pieces(maker.make(members_of([(corpus, epoch, i) for i in range(20)]), 0))

    first = window(0, 0, 3)
    assert first == window(0, 0, 3)
    for other in (window(1, 0, 3), window(0, 1, 3), window(0, 0, 4)):
        assert sum(a != b for a, b in zip(first, other, strict=True)) > 15


def test_every_window_is_equally_likely() -> None:
    letters = b"ACDEFGHIKL"
    store = store_of([letters])
    maker = BatchMaker([store], TOKENIZERS["cls and eos"], max_length=7, seed=0)
    batch = maker.make(members_of([(0, epoch, 0) for epoch in range(8000)]), 0)
    starts = batch.packed.tokens.reshape(8000, 9)[:, 1]  # the first residue tells the window
    _, counts = np.unique(starts, return_counts=True)
    assert len(counts) == 4
    assert np.abs(counts - 2000).max() < 6 * np.sqrt(8000 * 3 / 16)


def test_sequences_of_max_length_are_whole() -> None:
    store = store_of([b"ACDEFGHIKL"])
    batch = BatchMaker([store], TOKENIZERS["nothing round"], max_length=10, seed=0).make(members_of([(0, 5, 0)]), 0)
    assert batch.packed.tokens.tolist() == [4 + letter - ord("A") for letter in b"ACDEFGHIKL"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_microbatch(stores: list[MemoryStore], name: str) -> None:
    batch = BatchMaker(stores, TOKENIZERS[name], max_length=LONGEST, seed=0).make(members_of([]), 0)
    assert batch.packed.n == 0
    assert batch.packed.cu.tolist() == [0]
    assert batch.packed.tokens.shape == batch.residue.shape == (0,)


def test_tokens_are_those_the_sampler_counted(stores: list[MemoryStore]) -> None:
    sampler = Sampler(
        stores,
        [1.0, 2.0],
        tokens_per_step=500,
        specials=2,
        max_length=LONGEST,
        min_length=1,
        validation_fraction=0.0,
        seed=0,
    )
    maker = BatchMaker(stores, TOKENIZERS["cls and eos"], max_length=LONGEST, seed=0)
    for step in range(20):
        members = sampler.step(step)
        batch = maker.make(members, step)
        np.testing.assert_array_equal(np.diff(batch.packed.cu), members.tokens)
        assert batch.group is members.group


def test_batches_of_a_real_store_hold_its_sequences(tmp_path: Path) -> None:
    sequences = random_sequences(300, seed=7, shortest=12)
    store = build_store((Record(f"s{i}", text) for i, text in enumerate(sequences)), tmp_path / "store")

    def sampler() -> Sampler:
        return Sampler(
            [Store.open(tmp_path / "store")],
            [1.0],
            tokens_per_step=200,
            specials=0,
            max_length=100,
            min_length=1,
            validation_fraction=0.1,
            seed=0,
        )

    maker = BatchMaker([store], TOKENIZERS["nothing round"], max_length=100, seed=0)
    first = sampler()
    files = set((tmp_path / "store").iterdir())
    again = sampler()  # the totals beside the store change nothing, for the store or for the sampler
    assert files == set((tmp_path / "store").iterdir())
    seen = []
    for step in range(first.tokens_per_epoch // 200):
        batch = maker.make(again.step(step), step)
        assert again.step(step).index.tolist() == first.step(step).index.tolist()
        seen += [bytes(token - 4 + ord("A") for token in piece) for piece in pieces(batch)]
    left_out = set(sequences) - set(seen)
    assert set(seen) <= set(sequences)
    assert first.totals[0].held_out <= len(left_out) < 0.25 * len(sequences)
