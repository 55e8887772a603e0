"""The sampler against a loop that counts tokens one sequence at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import MemoryStore, random_sequences, store_of
from protloom.data import totals, validation
from protloom.data.sampler import Members, Sampler, ValidationSet, split
from protloom.data.totals import BLOCK, Rule, block_totals
from protloom.errors import UserError
from protloom.rng import CounterRNG, Permutation

SPECIALS, LONGEST, SHORTEST = 2, 40, 3


def sampler_of(*stores: MemoryStore, weights: tuple[float, ...] = (1.0,), step: int = 200, **options: float) -> Sampler:
    given_options = {"seed": 0, "validation_fraction": 0.1, "min_length": SHORTEST, "max_length": LONGEST, **options}
    return Sampler(stores, weights, tokens_per_step=step, specials=SPECIALS, **given_options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """Three blocks, the last one short."""
    return store_of(random_sequences(2 * BLOCK + 100, seed=1))


@pytest.fixture(scope="module")
def families() -> MemoryStore:
    """Groups of 1 to 5 sequences, more than a block of them."""
    sizes = np.random.default_rng(2).integers(1, 6, BLOCK + 40)
    return store_of(random_sequences(int(sizes.sum()), seed=2), groups=sizes.tolist())


def same(a: Members, b: Members) -> None:
    for name in Members.__slots__:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=name)


def glue(parts: list[Members]) -> Members:
    return Members(*(np.concatenate([getattr(part, name) for part in parts]) for name in Members.__slots__))


def rows(members: Members) -> list[tuple[int, int, int]]:
    return list(zip(members.corpus.tolist(), members.epoch.tolist(), members.index.tolist(), strict=True))


def held_out(store: MemoryStore, fraction: float = 0.1) -> set[int]:
    """Held-out sequences, counted group by group: the least hash of its members decides for a whole group."""
    rule = Rule(LONGEST, 1, SPECIALS, fraction)
    bounds = range(len(store) + 1) if store.groups is None else store.groups.tolist()
    out: set[int] = set()
    for a, b in pairwise(bounds):
        if rule.is_held_out(np.array([min(store.hashes[a:b].tolist())], dtype=np.uint64))[0]:
            out |= set(range(a, b))
    return out


def slow_stream(store: MemoryStore, corpus: int, seed: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yields (first token, epoch, members) of every group of a corpus, for ever, one at a time."""
    rng = CounterRNG(seed, "order", corpus)
    out = held_out(store)
    bounds = list(range(len(store) + 1)) if store.groups is None else store.groups.tolist()
    groups = [list(range(a, b)) for a, b in pairwise(bounds)]
    blocks = [list(range(k, min(k + BLOCK, len(groups)))) for k in range(0, len(groups), BLOCK)]
    at = 0
    for epoch in count():
        for block in Permutation(len(blocks), rng.stream(epoch))(np.arange(len(blocks))).tolist():
            for group in sorted(blocks[block], key=lambda g: rng.stream("within").draw(epoch, g)):
                kept = [i for i in groups[group] if len(store.sequence(i)) >= SHORTEST and i not in out]
                if kept:
                    yield at, epoch, kept
                at += sum(min(len(store.sequence(i)), LONGEST) + SPECIALS for i in kept)


@pytest.mark.parametrize("name", ["store", "families"])
def test_every_step_equals_the_slow_count(name: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(name)
    sampler = sampler_of(store, step=250, seed=5)
    expected: dict[int, list[tuple[int, int, int]]] = {}
    steps = 3 * sampler.tokens_per_epoch // 250 + 1
    for at, epoch, kept in slow_stream(store, 0, 5):
        if at >= steps * 250:
            break
        expected.setdefault(at // 250, []).extend((0, epoch, i) for i in kept)
    assert [rows(sampler.step(s)) for s in range(steps)] == [expected[s] for s in range(steps)]


def test_tokens_are_cropped_lengths_and_specials(store: MemoryStore) -> None:
    members = sampler_of(store).step(3)
    lengths = [min(len(store.sequence(i)), LONGEST) + SPECIALS for i in members.index]
    assert members.tokens.tolist() == lengths


def test_a_step_does_not_depend_on_what_was_asked_before(store: MemoryStore) -> None:
    forward = [sampler_of(store).step(s) for s in range(40)]
    sampler = sampler_of(store)
    for s in np.random.default_rng(0).permutation(40).tolist():
        same(sampler.step(s), forward[s])


@pytest.mark.parametrize("name", ["store", "families"])
def test_each_sequence_once_an_epoch(name: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(name)
    sampler = sampler_of(store, step=250)
    seen = Counter(row for s in range(3 * sampler.tokens_per_epoch // 250 + 2) for row in rows(sampler.step(s)))
    assert set(seen.values()) == {1}
    long_enough = {i for i in range(len(store)) if len(store.sequence(i)) >= SHORTEST}
    for epoch in range(3):
        assert {index for _, e, index in seen if e == epoch} == long_enough - held_out(store)


def test_epochs_and_seeds_have_their_own_order() -> None:
    store = store_of(random_sequences(30, seed=3))  # one block: its inside must change too
    sampler = sampler_of(store, step=int(sampler_of(store).tokens_per_epoch))
    orders = [sampler.step(s).index.tolist() for s in range(4)]
    orders += [sampler_of(store, step=sampler.tokens_per_step, seed=9).step(0).index.tolist()]
    assert len({tuple(order) for order in orders}) == 5
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_a_group_is_held_out_as_a_whole(families: MemoryStore) -> None:
    assert families.groups is not None
    rule = {"specials": SPECIALS, "max_length": LONGEST, "min_length": SHORTEST, "validation_fraction": 0.3}
    validation = ValidationSet([families], [1.0], tokens=10**9, **rule)  # type: ignore[arg-type]
    out, whole = held_out(families, 0.3), families.groups.tolist()
    assert 0.15 < len(out) / len(families) < 0.45
    assert all(len(set(range(a, b)) & out) in (0, b - a) for a, b in pairwise(whole))
    long = {i for i in out if len(families.sequence(i)) >= SHORTEST}
    assert set(validation.members.index.tolist()) == long


def test_groups_stay_together_and_are_numbered(families: MemoryStore) -> None:
    assert families.groups is not None
    for s in range(20):
        members = sampler_of(families, step=400).step(s)
        family = np.searchsorted(families.groups, members.index, side="right")
        assert np.unique(members.group).tolist() == list(range(members.group.max() + 1))
        assert (np.diff(members.group) == (np.diff(family) != 0)).all()


def test_tiny_corpora_give_several_epochs_in_a_step() -> None:
    store = store_of([b"MKV", b"ACDEF", b"GHIKLMN"])
    sampler = sampler_of(store, step=100, validation_fraction=0.0)
    assert sampler.tokens_per_epoch == 5 + 7 + 9
    seen = Counter(row for s in range(21) for row in rows(sampler.step(s)))
    assert len(seen) == 3 * 100  # 21 steps of 100 tokens are 100 epochs of 21
    assert set(seen.values()) == {1}
    assert sampler.step(0).epoch.max() == 4
    assert sampler.epoch_at(21) == 100.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 500)), st.integers(1, 900))
def test_ranks_and_microbatches_share_a_step(s: int, world: int, budget: int | None, step: int) -> None:
    sizes = np.random.default_rng(4).integers(1, 4, 60).tolist()
    families = store_of(random_sequences(sum(sizes), seed=4), groups=sizes)
    longest = block_totals(families, Rule(LONGEST, SHORTEST, SPECIALS, 0.1)).longest
    sampler = sampler_of(families, step=max(step, longest))
    everything = [
        sampler.microbatches(s, rank=rank, world=world, tokens_per_microbatch=budget) for rank in range(world)
    ]
    assert len({len(parts) for parts in everything}) == 1
    same(glue([part for parts in everything for part in parts]), sampler.step(s))
    of_group: dict[int, int] = {}
    for place, part in enumerate(part for parts in everything for part in parts):
        for group in part.group.tolist():
            assert of_group.setdefault(group, place) == place, "a group was split"
        groups = len(set(part.group.tolist()))
        assert budget is None or part.tokens.sum() <= budget or groups == 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_order_is_the_same_on_any_number_of_ranks(store: MemoryStore, world: int) -> None:
    for s in range(30):
        parts = [part for r in range(world) for part in sampler_of(store).microbatches(s, rank=r, world=world)]
        assert len(parts) == world
        same(glue(parts), sampler_of(store).step(s))


def test_ranks_get_equal_shares(store: MemoryStore) -> None:
    sampler = sampler_of(store, step=4000)
    for s in range(5):
        tokens = [int(sampler.microbatches(s, rank=r, world=4)[0].tokens.sum()) for r in range(4)]
        assert max(tokens) - min(tokens) <= 2 * (LONGEST + SPECIALS)


def test_a_group_above_the_budget_is_a_microbatch_of_its_own() -> None:
    members = Members(
        corpus=np.zeros(5, dtype=np.int32),
        epoch=np.zeros(5, dtype=np.int64),
        index=np.arange(5),
        group=np.array([0, 1, 1, 2, 3], dtype=np.int32),
        tokens=np.array([4, 30, 30, 5, 5]),
    )
    parts = split(members, rank=0, world=1, tokens_per_microbatch=10)
    assert [part.index.tolist() for part in parts] == [[0], [1, 2], [3, 4]]


def test_more_ranks_than_groups_leaves_ranks_without_work() -> None:
    store = store_of([b"MKVLI"])
    sampler = sampler_of(store, step=7, validation_fraction=0.0)
    sizes = [[part.n for part in sampler.microbatches(0, rank=r, world=3, tokens_per_microbatch=7)] for r in range(3)]
    assert sizes == [[1], [0], [0]]


def test_mixture_gives_each_corpus_its_share(store: MemoryStore, families: MemoryStore) -> None:
    weights, step = (3.0, 0.7), 900
    sampler = sampler_of(store, families, weights=weights, step=step)
    got = np.zeros(2)
    for s in range(60):
        members = sampler.step(s)
        for corpus in range(2):
            got[corpus] += members.tokens[members.corpus == corpus].sum()
        expected = np.array(weights) / sum(weights) * step * (s + 1)
        # the first group of the next step at most
        assert (np.abs(got - expected) <= 5 * (LONGEST + SPECIALS) + 1).all()


def test_mixture_keeps_the_streams_of_its_corpora(store: MemoryStore, families: MemoryStore) -> None:
    """Merging only interleaves: a corpus' own order is that of its stream."""
    sampler = sampler_of(store, families, weights=(1.0, 3.0), step=1000, seed=5)
    members = glue([sampler.step(s) for s in range(20)])
    for corpus, source in enumerate((store, families)):
        mine = [row[1:] for row in rows(members) if row[0] == corpus]
        stream = slow_stream(source, corpus, 5)
        slow: list[tuple[int, int]] = []
        while len(slow) < len(mine):
            _, epoch, kept = next(stream)
            slow += [(epoch, i) for i in kept]
        assert mine == slow


def test_mixture_is_even_within_a_step(store: MemoryStore, families: MemoryStore) -> None:
    sampler = sampler_of(store, families, weights=(1.0, 1.0), step=4000)
    for rank in range(4):
        part = sampler.microbatches(2, rank=rank, world=4)[0]
        share = part.tokens[part.corpus == 0].sum() / part.tokens.sum()
        assert 0.25 < share < 0.75


def test_held_out_sequences_never_appear(store: MemoryStore) -> None:
    out = held_out(store)
    assert 0.05 < len(out) / len(store) < 0.15
    sampler = sampler_of(store)
    seen = {index for s in range(2 * sampler.tokens_per_epoch // 200) for index in sampler.step(s).index.tolist()}
    assert not seen & out
    kept_back = validation_of(store)
    assert set(kept_back.members.index.tolist()) <= out
    short = sum(len(store.sequence(i)) < SHORTEST for i in range(len(store)))
    assert sampler.totals[0].short == short
    assert sampler.totals[0].held_out == sum(len(store.sequence(i)) >= SHORTEST for i in out)
    assert sampler.totals[0].sequences == len(seen)


def test_duplicates_fall_on_one_side() -> None:
    sequences = random_sequences(200, seed=6, shortest=5)
    store = store_of(sequences * 3)
    sides: dict[str, set[bool]] = {}
    out = held_out(store)
    for i in range(len(store)):
        sides.setdefault(store.sequence(i), set()).add(i in out)
    assert all(len(side) == 1 for side in sides.values())
    assert out


def validation_of(*stores: MemoryStore, tokens: int = 10**6, fraction: float | None = 0.1) -> ValidationSet:
    return ValidationSet(
        stores,
        [1.0] * len(stores),
        tokens=tokens,
        specials=SPECIALS,
        max_length=LONGEST,
        min_length=SHORTEST,
        validation_fraction=fraction,
    )


def test_validation_is_every_held_out_sequence_in_order(store: MemoryStore) -> None:
    expected = sorted(i for i in held_out(store) if len(store.sequence(i)) >= SHORTEST)
    assert validation_of(store).members.index.tolist() == expected


def test_validation_stops_at_its_tokens(store: MemoryStore) -> None:
    whole, part = validation_of(store), validation_of(store, tokens=300)
    n = len(part)
    assert part.tokens <= 300 < part.tokens + int(whole.members.tokens[n])
    same(part.members, whole.members.part(0, n))
    assert len(validation_of(store, tokens=1)) == 1  # never empty if there is anything


@pytest.mark.parametrize("budget", [1, 300, 900, 10**6])
def test_validation_does_not_depend_on_how_it_is_read(
    families: MemoryStore, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = validation_of(families, tokens=budget)
    monkeypatch.setattr(validation, "_CHUNK", 7)
    same(validation_of(families, tokens=budget).members, whole.members)


def test_validation_with_a_corpus_of_its_own(families: MemoryStore) -> None:
    members = validation_of(families, fraction=None).members
    assert members.index.tolist() == [i for i in range(len(families)) if len(families.sequence(i)) >= SHORTEST]
    assert families.groups is not None
    family = np.searchsorted(families.groups, members.index, side="right")
    assert (np.diff(members.group) == (np.diff(family) != 0)).all()


def test_validation_is_shared_by_ranks_like_a_step(store: MemoryStore, families: MemoryStore) -> None:
    everything = validation_of(store, families)
    parts = [everything.microbatches(rank=r, world=3, tokens_per_microbatch=100) for r in range(3)]
    assert len({len(part) for part in parts}) == 1
    same(glue([part for rank in parts for part in rank]), everything.members)


def test_validation_without_held_out_sequences_is_empty(store: MemoryStore) -> None:
    nothing = validation_of(store, fraction=0.0)
    assert len(nothing) == 0
    assert [part.n for part in nothing.microbatches(tokens_per_microbatch=100)] == [0]


def test_a_step_that_could_be_empty_is_refused(store: MemoryStore, families: MemoryStore) -> None:
    with pytest.raises(UserError, match=r"tokens_per_step is 41, but .* 42 tokens.*at least 42"):
        sampler_of(store, step=41)
    assert sampler_of(store, step=42).step(0).n
    with pytest.raises(UserError, match=r"at least 84"):
        sampler_of(store, store, weights=(1.0, 1.0), step=83)
    sampler = sampler_of(store, store, weights=(1.0, 1.0), step=84)
    assert all(sampler.step(s).n for s in range(200))


def test_a_corpus_with_nothing_left_is_refused() -> None:
    with pytest.raises(UserError, match=r"nothing is left .* 1 are shorter than data.min_length \(3\)"):
        sampler_of(store_of([b"MK"]))


def test_weights_must_be_positive(store: MemoryStore) -> None:
    with pytest.raises(UserError, match="weight must be above 0"):
        sampler_of(store, weights=(0.0,))


def test_totals_are_kept_beside_the_store(store: MemoryStore, tmp_path: Path) -> None:
    kept = replace(store, path=tmp_path)
    rule = Rule(LONGEST, SHORTEST, SPECIALS, 0.1)
    first = block_totals(kept, rule)
    (file,) = tmp_path.iterdir()
    # hide the lengths: what comes back now can only be the file's
    hollow = replace(kept, offsets=np.zeros_like(kept.offsets))
    again = block_totals(hollow, rule)
    np.testing.assert_array_equal(again.blocks, first.blocks)
    assert replace(again, blocks=first.blocks) == first
    # another rule or another corpus is counted anew
    assert block_totals(kept, replace(rule, max_length=10)).tokens < first.tokens
    assert block_totals(replace(hollow, content_hash="other"), rule).tokens == 0
    for damage in (b"", b"PK\x03\x04 nonsense", file.read_bytes()[:-200]):
        file.write_bytes(damage)
        assert replace(block_totals(kept, rule), blocks=first.blocks) == first


def test_totals_of_another_rule_under_this_name_are_not_taken(store: MemoryStore, tmp_path: Path) -> None:
    kept = replace(store, path=tmp_path)
    rules = [Rule(length, SHORTEST, SPECIALS, 0.1) for length in (LONGEST, 10)]
    right = [block_totals(kept, rule).tokens for rule in rules]
    files = list(tmp_path.iterdir())
    content = [file.read_bytes() for file in files]
    for file, other in zip(files, reversed(content), strict=True):
        file.write_bytes(other)
    assert [block_totals(kept, rule).tokens for rule in rules] == right


@pytest.mark.parametrize("name", ["store", "families"])
def test_totals_do_not_depend_on_how_they_are_counted(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rule = request.getfixturevalue(name), Rule(LONGEST, SHORTEST, SPECIALS, 0.1)
    whole = block_totals(store, rule)
    monkeypatch.setattr(totals, "_CHUNK", 1)
    parts = block_totals(store, rule)
    np.testing.assert_array_equal(parts.blocks, whole.blocks)
    assert replace(parts, blocks=whole.blocks) == whole


def test_totals_of_groups_are_counted_group_by_group(families: MemoryStore) -> None:
    rule = Rule(LONGEST, SHORTEST, SPECIALS, 0.1)
    out = held_out(families)
    assert families.groups is not None
    sums = [
        sum(
            min(len(families.sequence(i)), LONGEST) + SPECIALS
            for i in range(a, b)
            if i not in out and len(families.sequence(i)) >= SHORTEST
        )
        for a, b in pairwise(families.groups.tolist())
    ]
    counted = block_totals(families, rule)
    assert counted.blocks.tolist() == [sum(sums[:BLOCK]), sum(sums[BLOCK:])]
    assert counted.longest == max(sums)
