"""Overlap of a corpus with test sets, against a count of shared k-mers that does nothing clever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from protloom.contracts import HasSequences
from protloom.data import overlap
from protloom.data.overlap import Audit, Count, Index, occurring, overlaps
from protloom.data.records import Source
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.task import suite as task_suite

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def kmers_of(sequence: str, k: int) -> set[str]:
    windows = {sequence[i : i + k] for i in range(len(sequence) - k + 1)}
    return {window for window in windows if "X" not in window}


def share_of(a: str, b: str, k: int) -> float:
    if a == b:
        return 1.0
    one, other = kmers_of(a, k), kmers_of(b, k)
    fewer = min(len(one), len(other))
    return len(one & other) / fewer if fewer else 0.0


def mutated(sequence: str, identity: float, rng: np.random.Generator) -> str:
    """Returns a copy of which each residue is left alone with a probability."""
    kept = rng.random(len(sequence)) < identity
    drawn = rng.choice(list(LETTERS), size=len(sequence))
    return "".join(a if keep else str(b) for a, keep, b in zip(sequence, kept, drawn, strict=True))


@pytest.fixture
def planted(random_proteins: Callable[..., list[str]]) -> tuple[list[str], list[str]]:
    """Returns (corpus, tested) with every kind of relation between them."""
    rng = np.random.default_rng(3)
    tested = random_proteins(60, seed=1, low=30, high=200)
    corpus = random_proteins(60, seed=2, low=30, high=300)
    corpus += tested[:5]  # copies
    for identity in (0.95, 0.9, 0.8, 0.7, 0.5):
        corpus += [mutated(sequence, identity, rng) for sequence in tested[5:15]]
    corpus += [corpus[i] + tested[i] + corpus[i + 1] for i in range(15, 20)]  # a domain in a longer protein
    corpus += [tested[i][10:-5] for i in range(20, 25)]  # a fragment
    tested += tested[:3]  # repeated
    tested += ["MKT", "M", "MKTAYI", "ACDEF"]  # shorter than k, and as long
    corpus += ["MKT", "MKTA", "MKTAYI", "WMKTAYIW"]
    corpus += ["A" * 80, "AC" * 40, "X" * 50, "MKUBZJOXXA" * 6, tested[30][:40] + "X" * 20 + tested[30][40:]]
    tested += ["A" * 50, "CA" * 30, "X" * 30, "MKUBZJOXXA" * 5, "MKUBZJOOBZ" * 5]
    return corpus, tested


@pytest.mark.parametrize("k", [3, 6, 12])
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_every_pair_is_that_of_brute_force(planted: tuple[list[str], list[str]], k: int, share: float) -> None:
    corpus, tested = planted
    index = Index(tested, k=k)
    distinct = list(dict.fromkeys(tested))
    assert [distinct[i] for i in index.of] == tested
    pairs = index.look_up(corpus, share=share)
    found = {
        (int(c), int(t)): (float(s), bool(e))
        for c, t, s, e in zip(pairs.corpus, pairs.tested, pairs.share, pairs.exact, strict=True)
    }
    assert len(found) == len(pairs.corpus)
    expected = {}
    for c, a in enumerate(corpus):
        for t, b in enumerate(distinct):
            value = share_of(a, b, k)
            if value >= share:
                expected[c, t] = (value, a == b)
    assert found == expected


def test_blocks_and_pieces_change_nothing(
    planted: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tested = planted
    named = [(f"c{i}", sequence) for i, sequence in enumerate(corpus)]

    def found() -> tuple[list[overlap.Overlap], dict[str, Count]]:
        audit = Audit({"a": tested[:30], "b": tested[20:]}, share=0.1)
        return list(overlaps(named, audit)), audit.counts()

    once = found()
    monkeypatch.setattr(overlap, "BLOCK", 500)
    monkeypatch.setattr(overlap, "PAIRS", 50)
    assert found() == once


def test_counts_of_an_audit_are_those_of_brute_force(planted: tuple[list[str], list[str]]) -> None:
    corpus, tested = planted
    sets = {"a": tested[:30], "b": tested[20:], "none": []}
    audit = Audit(sets, share=0.3)
    half = len(corpus) // 2
    named = [(f"c{i}", sequence) for i, sequence in enumerate(corpus)]
    found = [*overlaps(named[:half], audit), *overlaps(named[half:], audit)]
    assert audit.read == len(corpus)
    for name, members in sets.items():
        best = [max(share_of(a, b, 6) for a in corpus) for b in members]
        assert audit.counts()[name] == Count(
            tested=len(members),
            exact=sum(b in corpus for b in members),
            above=sum(value >= 0.3 for value in best),
            corpus=sum(any(share_of(a, b, 6) >= 0.3 for b in members) for a in corpus),
        )
    nearest = [max(share_of(a, b, 6) for b in tested) for a in corpus]
    assert [o.id for o in found] == [f"c{i}" for i, value in enumerate(nearest) if value >= 0.3]
    distinct = list(dict.fromkeys(tested))
    for o in found:
        sequence = corpus[int(o.id[1:])]
        assert o.share == nearest[int(o.id[1:])] == share_of(sequence, distinct[o.tested], 6)
        assert o.exact == (sequence in tested)
        assert not o.exact or distinct[o.tested] == sequence
        assert audit.sets_of(o.tested) == [name for name, of in sets.items() if distinct[o.tested] in of]


def test_share_follows_identity(random_proteins: Callable[..., list[str]]) -> None:
    rng = np.random.default_rng(0)
    tested = random_proteins(200, seed=4, low=300, high=400)
    index = Index(tested)
    for identity in (0.9, 0.82):
        copies = [mutated(sequence, identity, rng) for sequence in tested]
        pairs = index.look_up(copies, share=0.01)
        own = pairs.share[pairs.corpus == pairs.tested]
        assert len(own) == 200
        # a residue that is drawn anew is now and then the old one
        kept = identity + (1 - identity) / 20
        assert abs(own.mean() - kept**6) < 0.02


def test_lower_case_and_nothing_at_all() -> None:
    index = Index(["mktayiakqr"])
    assert index.look_up(["MKTAYIAKQR"]).exact.tolist() == [True]
    assert index.look_up([]).corpus.shape == (0,)
    empty = Index([])
    assert empty.look_up(["MKTAYIAKQR"]).corpus.shape == (0,)
    assert list(overlaps([("a", "MKTAYIAKQR")], Audit({}))) == []
    nothing, none = occurring([], ["MKT"])
    assert nothing.shape == none.shape == (0,)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_occurring_is_that_of_brute_force(planted: tuple[list[str], list[str]], share: float) -> None:
    corpus, tested = planted
    exact, above = occurring([s.lower() for s in tested], corpus, share=share)
    assert exact.tolist() == [b in corpus for b in tested]
    assert above.tolist() == [any(share_of(a, b, 6) >= share for a in corpus) for b in tested]


@pytest.mark.parametrize("k", [0, -1, 13])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 12"):
        Index(["MKT"], k=k)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match="must lie above 0"):
        Audit({"a": ["MKT"]}, share=share)


@pytest.mark.slow
def test_exact_overlap_of_the_real_corpus(shared_data: Path, registry: Registry) -> None:
    tasks = ("localization:test", "solubility", "scope-retrieval", "remote-homology")
    sets: dict[str, Sequence[str]] = {}
    for name in tasks:
        task = task_suite.build(name, registry, data_dir=str(shared_data))
        assert isinstance(task, HasSequences)
        sets[name] = task.sequences("test")
    audit = Audit(sets)
    for path in sorted((shared_data / "pretrain_corpus").glob("*.fasta.gz")):
        entries = Source(str(path), registry).entries()
        assert sum(1 for _ in overlaps(((e.id, e.sequence) for e in entries), audit)) > 0
    assert audit.read == 79_968
    assert {name: (count.exact, count.tested) for name, count in audit.counts().items()} == {
        "localization:test": (196, 2768),
        "solubility": (78, 2001),
        "scope-retrieval": (150, 9806),
        "remote-homology": (13, 718),
    }
