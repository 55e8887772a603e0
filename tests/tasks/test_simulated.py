"""The simulated proteome: the same everywhere, and its truths agree with each other."""

from __future__ import annotations

import hashlib
from itertools import combinations, pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from protloom_tasks.simulated import energy, evolution, folds
from protloom_tasks.simulated.corpus import DemoConfig, read
from protloom_tasks.simulated.proteome import SPLITS, Proteome, encode, simulate
from protloom_tasks.simulated.tables import AMINO_ACIDS

N = 1500
GOLDEN = "eb287598adcf26d03d4c593fc20acbf122465dcc6f6aa72fb38d3ad518ba3002"


@pytest.fixture(scope="module")
def proteome() -> Proteome:
    return simulate(N, 0)


def digest(p: Proteome) -> str:
    parts = (p.residues, p.ss, p.offsets, p.fold, p.family, p.part, p.energy, p.contact_pairs)
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in parts)).hexdigest()


def identity(p: Proteome, i: int, j: int) -> float:
    """Share of equal residues over the columns that two sequences of a fold have in common."""
    _, a, b = np.intersect1d(p.alignment(i), p.alignment(j), assume_unique=True, return_indices=True)
    x, y = (np.frombuffer(p.sequence(k).encode(), dtype=np.uint8) for k in (i, j))
    return float((x[a] == y[b]).mean())


def test_the_same_n_and_seed_give_the_same_bytes() -> None:
    # a change of this hash is a change of the data: raise VERSION, and say so in the change log
    assert digest(simulate(300, 0)) == GOLDEN
    assert digest(simulate(300, 1)) != GOLDEN


def test_sizes_are_as_asked_even_where_they_are_tiny() -> None:
    for n in (1, 2, 3, 7, 25, 100, 777):
        p = simulate(n, 3)
        assert len(p) == n
        assert len({p.id(i) for i in range(n)}) == n
    with pytest.raises(ValueError, match="n >= 1"):
        simulate(0)


def test_every_truth_fits_its_sequence(proteome: Proteome) -> None:
    p = proteome
    assert p.offsets[-1] == len(p.residues) == len(p.ss)
    for i in range(0, N, 37):
        length = p.length(i)
        assert len(p.sequence(i)) == len(p.ss3(i)) == len(p.alignment(i)) == length
        assert set(p.sequence(i)) <= set(AMINO_ACIDS)
        pairs = p.contacts(i)
        assert len(pairs)
        assert ((pairs[:, 1] - pairs[:, 0]) >= 6).all()
        assert pairs.min() >= 0
        assert pairs.max() < length
        assert p.id(i).startswith("SIM|F")


def test_lengths_composition_and_segments_look_like_domains(proteome: Proteome) -> None:
    lengths = np.diff(proteome.offsets)
    assert lengths.min() >= 50
    assert lengths.max() <= 200
    share = np.bincount(encode(proteome.residues), minlength=20) / len(proteome.residues)
    entropy = float(-(share * np.log(share)).sum())
    assert 2.8 < entropy < np.log(20)
    for letter, low, high in (("H", 6, 20), ("E", 3, 12), ("C", 2, 25)):
        runs = [len(r) for i in range(0, N, 50) for r in _runs(proteome.ss3(i), letter)]
        assert min(runs) >= low
        assert max(runs) <= high
        assert 0.15 < float((proteome.ss == ord(letter)).mean()) < 0.6


def _runs(ss3: str, letter: str) -> list[str]:
    return [r for r in "".join(c if c == letter else " " for c in ss3).split() if r]


def test_long_range_contacts_exist_in_every_family(proteome: Proteome) -> None:
    for f in range(len(proteome.contact_offsets) - 1):
        i = int(np.searchsorted(proteome.family, f))
        pairs = proteome.contacts(i)
        assert (pairs[:, 1] - pairs[:, 0] >= 24).sum() >= 10


def test_identity_falls_with_distance_in_the_hierarchy(proteome: Proteome) -> None:
    p = proteome
    seen: dict[str, list[float]] = {"family": [], "superfamily": [], "fold": [], "unrelated": []}
    chosen = np.random.default_rng(0).integers(0, N, size=(6000, 2))
    for i, j in chosen.tolist():
        if i == j:
            continue
        near = [p.family[i] == p.family[j], p.superfamily[i] == p.superfamily[j], p.fold[i] == p.fold[j]]
        seen[("family", "superfamily", "fold", "unrelated")[3 - sum(near)]].append(identity(p, i, j))
    means = {k: float(np.mean(v)) for k, v in seen.items()}
    assert means["family"] > 1.5 * means["superfamily"]
    assert means["superfamily"] > 1.2 * means["fold"]
    assert means["fold"] > 1.1 * means["unrelated"]
    low, high = np.quantile(seen["family"], [0.1, 0.9])
    assert low > 0.15
    assert high < 0.9


def test_touching_sites_change_together() -> None:
    """Mutual information of columns, counted by brute force over a large sample of one family at equilibrium."""
    structure = folds.build(folds.blueprint("alpha+beta", simulate_stream()))
    land = energy.landscape([structure], [[]])
    m, length = 3000, len(structure.ss3)
    codes = evolution.equilibrate(land, np.zeros(m, dtype=np.int64), 6, simulate_stream()).reshape(m, length)
    touching = {(min(i, i + d), max(i, i + d)) for i, row in enumerate(land.neighbours.tolist()) for d in row if d}
    rng = np.random.default_rng(0)
    near = [_mutual_information(codes[:, i], codes[:, j]) for i, j in sorted(touching)]
    pairs = [(i, j) for i, j in combinations(range(length), 2) if j - i > 3 and (i, j) not in touching]
    far = [_mutual_information(codes[:, i], codes[:, j]) for i, j in rng.permutation(pairs)[:200]]
    assert np.mean(near) > 1.3 * np.mean(far)
    assert np.median(near) > np.quantile(far, 0.9)


def simulate_stream() -> energy.CounterRNG:
    return energy.CounterRNG(5, "test")


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.zeros((20, 20))
    np.add.at(joint, (a, b), 1 / len(a))
    product = joint.sum(1)[:, None] * joint.sum(0)[None]
    full = joint > 0
    return float((joint[full] * np.log(joint[full] / product[full])).sum())


def test_neighbours_are_mutual_and_differ_in_colour(proteome: Proteome) -> None:
    land = proteome.landscape
    for f in range(0, len(land.offsets) - 1, 3):
        begin, end = int(land.offsets[f]), int(land.offsets[f + 1])
        pairs = {}
        for i in range(begin, end):
            for d, kind in zip(land.neighbours[i].tolist(), land.kinds[i].tolist(), strict=True):
                assert (d == 0) == (kind == energy.NONE)
                if d:
                    assert begin <= i + d < end
                    assert land.colours[i] != land.colours[i + d]
                    pairs[i, i + d] = kind
        assert all(pairs[j, i] == kind for (i, j), kind in pairs.items())
    assert (land.couplings == land.couplings.transpose(0, 2, 1)).all()
    assert (land.couplings[energy.NONE] == 0).all()


def _energy_by_hand(p: Proteome, family: int, codes: list[int]) -> int:
    land, begin = p.landscape, int(p.landscape.offsets[family])
    total = sum(int(land.physical[begin + i, c]) for i, c in enumerate(codes))
    for i, c in enumerate(codes):
        for d, kind in zip(land.neighbours[begin + i].tolist(), land.kinds[begin + i].tolist(), strict=True):
            if d > 0:
                total += int(land.couplings[kind, c, codes[i + d]])
    return -total


def test_energy_and_mutations_equal_the_sum_over_sites_and_pairs(proteome: Proteome) -> None:
    for i in (0, 400, N - 1):
        codes = [AMINO_ACIDS.index(c) for c in proteome.sequence(i)]
        family = int(proteome.family[i])
        before = _energy_by_hand(proteome, family, codes)
        assert int(proteome.energy[i]) == before
        effects = proteome.mutation_effects(i)
        for site in (0, 7, len(codes) // 2, len(codes) - 1):
            for residue in range(20):
                mutant = [*codes[:site], residue, *codes[site + 1 :]]
                assert _energy_by_hand(proteome, family, mutant) - before == effects[site, residue]


def test_evolved_sequences_fit_their_fold_better_than_shuffled_ones(proteome: Proteome) -> None:
    rng = np.random.default_rng(0)
    codes = encode(proteome.residues)
    shuffled = np.concatenate(
        [rng.permutation(codes[a:b]) for a, b in zip(proteome.offsets[:-1], proteome.offsets[1:], strict=True)]
    )
    score = proteome.landscape.score(shuffled, proteome.family.astype(np.int64))
    assert (-score > proteome.energy).mean() > 0.999
    assert abs(float(proteome.stability.mean())) < 1e-5
    assert float(proteome.stability.std()) == pytest.approx(1, abs=1e-4)
    each = -proteome.energy / np.diff(proteome.offsets)
    assert np.corrcoef(each, proteome.stability)[0, 1] > 0.999


def test_sampling_follows_the_boltzmann_distribution() -> None:
    """Two sites and one coupling against the exact distribution over all 400 pairs."""
    physical = np.zeros((2, 20), dtype=np.int16)
    physical[0, 3], physical[1, 5] = 120, -80
    neighbours, kinds = np.array([[1], [-1]], dtype=np.int32), np.full((2, 1), energy.LADDER, dtype=np.uint8)
    land = energy.Landscape(
        np.array([0, 2]), physical, physical, neighbours, kinds, np.array([0, 1], dtype=np.uint8), energy.couplings()
    )
    draws = 60_000
    codes = evolution.equilibrate(land, np.zeros(draws, dtype=np.int64), 8, simulate_stream()).reshape(draws, 2)
    score = physical[0][:, None] + physical[1][None] + land.couplings[energy.LADDER].astype(float)
    exact = np.exp(score / 100) / np.exp(score / 100).sum()
    seen = np.zeros((20, 20))
    np.add.at(seen, (codes[:, 0], codes[:, 1]), 1)
    chi2 = float(((seen - draws * exact) ** 2 / (draws * exact)).sum())
    # chi-squared with 399 degrees of freedom: mean 399, standard deviation 28
    assert chi2 < 399 + 5 * 28


def test_splits_share_no_superfamily(proteome: Proteome) -> None:
    members = {s: set(proteome.superfamily[proteome.indices(s)].tolist()) for s in SPLITS}
    assert all(members.values())
    assert not members["train"] & members["test"]
    assert not members["train"] & members["valid"]
    assert not members["valid"] & members["test"]
    assert sum(len(proteome.indices(s)) for s in SPLITS) == N
    assert len(members["train"]) > len(members["test"])
    assert all(proteome.split(int(i)) == s for s in SPLITS for i in proteome.indices(s)[:5])


def test_the_hierarchy_is_nested(proteome: Proteome) -> None:
    for upper, lower in ((proteome.fold, proteome.superfamily), (proteome.superfamily, proteome.family)):
        for number in np.unique(lower):
            assert len(np.unique(upper[lower == number])) == 1


def test_trees_have_every_member_once() -> None:
    sizes = [1, 2, 13]
    levels = evolution.trees(sizes, (1, 5), simulate_stream())
    leaves = sorted((int(f), int(m)) for lv in levels for f, m in zip(lv.family, lv.leaf, strict=True) if m >= 0)
    assert leaves == [(f, m) for f, size in enumerate(sizes) for m in range(size)]
    for before, level in pairwise(levels):
        assert (before.family[level.parent] == level.family).all()


def test_helices_and_strands_have_their_textbook_geometry() -> None:
    structure = folds.build(folds.blueprint("alpha/beta", simulate_stream()))
    ca = structure.ca / 100
    for letter, step, spacing in (("H", 4, 6.2), ("E", 2, 6.6)):
        ss3 = structure.ss3.tobytes().decode()
        i = ss3.index(letter * (step + 1))
        assert np.linalg.norm(ca[i + step] - ca[i]) == pytest.approx(spacing, abs=0.3)
        assert np.linalg.norm(ca[i + 1] - ca[i]) == pytest.approx(3.8, abs=0.2)


def test_the_corpus_says_that_it_is_simulated_and_can_be_cut_to_a_split() -> None:
    p = simulate(120, 2)
    everything = list(read(DemoConfig(n=120, seed=2), "demo:?n=120&seed=2"))
    assert [r.residues.decode() for r in everything] == [p.sequence(i) for i in range(120)]
    assert all(r.id.startswith("SIM|") and r.group is None for r in everything)
    test = list(read(DemoConfig(n=120, seed=2, split="test", group="family"), "demo:"))
    assert [r.id for r in test] == [p.id(int(i)) for i in p.indices("test")]
    assert len({r.group for r in test}) == len(set(p.family[p.indices("test")].tolist()))
    with pytest.raises(ValidationError):
        DemoConfig(n=0)
    with pytest.raises(ValidationError):
        DemoConfig(size=3)  # type: ignore[call-arg]
