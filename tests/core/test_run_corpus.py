"""How many scored sequences a model was trained on: looked up in the stores of its run, unknown if these are gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import options_in

from protloom import checkpoint
from protloom.cli import main
from protloom.contracts import TaskResult
from protloom.data.store import Store, build_store, open_corpus
from protloom.data.totals import Rule
from protloom.plugins import Registry
from protloom.run import corpus as run_corpus
from protloom.run.corpus import RunCorpus, describe, mark, open_run_corpus

PEPTIDES = ["MKTAYIAKQR", "ACDEFGHIKL", "WWWWWWWWWW"]


class Told:
    """A task that tells its sequences and nothing else."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._sequences = sequences

    def sequences(self, split: str) -> Sequence[str]:
        self.asked.append(split)
        return self._sequences


def result(**changes: Any) -> TaskResult:
    nothing = np.zeros(0)
    return TaskResult("m", 0.0, (0.0, 0.0), 1, "items", {}, nothing, nothing, "", **changes)


@pytest.fixture
def run(small_fasta: Path, tmp_path: Path) -> Path:
    """A run of two steps."""
    options = options_in(tmp_path, small_fasta)(trainer__steps=2, trainer__checkpoint_every=1)
    assert main(["train", *options]) == 0
    return tmp_path / "run"


def test_a_run_tells_what_it_was_trained_on(
    run: Path, small_fasta: Path, tmp_path: Path, registry: Registry, random_proteins: Callable[..., list[str]]
) -> None:
    store = open_corpus(str(small_fasta), cache_dir=tmp_path / "cache", registry=registry)
    corpus = open_run_corpus(str(run), registry)
    assert corpus.known
    sequences = [store.sequence(i).tobytes().decode() for i in range(len(store))]
    held_out = Rule(1024, 1, 0, 0.1).is_held_out(store.hashes)
    assert 0 < held_out.sum() < 60
    np.testing.assert_array_equal(corpus.contains(sequences), ~held_out)
    strangers = random_proteins(50, seed=9)
    assert not corpus.contains(strangers).any()
    taken = next(s for s, out in zip(sequences, held_out, strict=True) if not out)
    # in any order, repeated, in lower case, and one residue less or more is another sequence
    asked = [strangers[0], taken, taken.lower(), taken[:-1], taken + "A", taken]
    assert corpus.contains(asked).tolist() == [False, True, True, False, False, True]
    assert corpus.contains([]).shape == (0,)


def test_checkpoints_and_models_of_the_run_are_the_run(run: Path, registry: Registry) -> None:
    newest = checkpoint.latest(run)
    assert newest is not None
    for model in (newest, newest / "model"):
        corpus = open_run_corpus(str(model), registry)
        assert corpus.known
        assert len(corpus.stores) == 1


def test_what_the_run_was_started_from_counts(
    run: Path, tmp_path: Path, registry: Registry, random_proteins: Callable[..., list[str]]
) -> None:
    other = tmp_path / "other.fasta"
    more = random_proteins(60, seed=5)
    other.write_text("".join(f">q{i}\n{s}\n" for i, s in enumerate(more)))
    options = options_in(tmp_path, other)("second", init=str(run), data__validation_fraction=0.0, trainer__steps=1)
    assert main(["train", *options]) == 0
    corpus = open_run_corpus(str(tmp_path / "second"), registry)
    assert corpus.known
    assert [len(store) for store in corpus.stores] == [60, 300]
    assert corpus.contains(more).all()
    shutil.move(run, tmp_path / "moved")
    left = open_run_corpus(str(tmp_path / "second"), registry)
    assert not left.known
    assert left.contains(more).all()
    assert "of no run" in str(left.missing)


def test_unknown_where_the_corpus_is_gone_or_changed(
    run: Path, small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    content = small_fasta.read_text()
    small_fasta.write_text(content + ">more\nMKTAYI\n")
    assert "prepared copy is not in the cache" in str(open_run_corpus(str(run), registry).missing)
    open_corpus(str(small_fasta), cache_dir=tmp_path / "cache", registry=registry)
    assert "has changed since" in str(open_run_corpus(str(run), registry).missing)
    small_fasta.write_text(content)
    assert open_run_corpus(str(run), registry).known
    small_fasta.unlink()
    corpus = open_run_corpus(str(run), registry)
    assert "small.fasta is not there" in str(corpus.missing)
    marked = mark(result(predictions={"sequence": PEPTIDES}), Told([]), corpus)  # type: ignore[arg-type]
    assert marked.details[run_corpus.KEY]["found"] is None
    line = describe(marked.details)
    assert line is not None
    assert line.startswith("training corpus: unknown (the corpus ")


def test_no_run_at_all(tmp_path: Path, registry: Registry) -> None:
    for model in ("facebook/esm2_t6_8M_UR50D", str(tmp_path), str(tmp_path / "nowhere")):
        assert open_run_corpus(model, registry).missing == f"{model} is no run folder"
    (tmp_path / "config.yaml").write_text("data: [1, 2")
    assert "cannot be read" in str(open_run_corpus(str(tmp_path), registry).missing)


@pytest.fixture
def corpus(tmp_path: Path) -> RunCorpus:
    fasta = tmp_path / "c.fasta"
    fasta.write_text("".join(f">{s}\n{s}\n" for s in PEPTIDES[:2]))
    store: Store = build_store(fasta, tmp_path / "c")
    return RunCorpus([store], [Rule(1024, 1, 0, 0.0)])


def test_scored_sequences_are_looked_up(corpus: RunCorpus) -> None:
    task = Told(["never asked"])
    pairs = {"sequence": [PEPTIDES[0], "MKV"], "partner": [PEPTIDES[1], PEPTIDES[0]], "label": [0, 1]}
    marked = mark(result(predictions=pairs, details={"seed": 0}), task, corpus)  # type: ignore[arg-type]
    assert marked.details == {
        "seed": 0,
        "training_corpus": {"sequences": 4, "found": 3, "complete": True, "of": "scored", "why": None},
    }
    assert describe(marked.details) == "training corpus: 3 of 4 scored sequences occur in it exactly"
    assert task.asked == []


def test_without_predictions_the_split_is_looked_up(corpus: RunCorpus) -> None:
    task = Told(PEPTIDES)
    marked = mark(result(details={"split": "valid"}), task, corpus)  # type: ignore[arg-type]
    assert task.asked == ["valid"]
    assert describe(marked.details) == "training corpus: 2 of 3 sequences of the whole split occur in it exactly"
    untold = mark(result(), object(), corpus)  # type: ignore[arg-type]
    assert describe(untold.details) == "training corpus: unknown (the task does not tell its sequences)"
    assert describe({}) is None


def test_a_part_of_the_corpora_gives_a_lower_bound(corpus: RunCorpus) -> None:
    part = RunCorpus(corpus.stores, corpus.rules, "the corpus x is not there (any more)")
    line = describe(mark(result(predictions={"sequence": PEPTIDES}), Told([]), part).details)  # type: ignore[arg-type]
    assert line is not None
    assert "2 of 3 scored sequences occur in it exactly, at least (the corpus x" in line
