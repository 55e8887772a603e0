"""Reading, sampling, tokenising and masking, a core's worth each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeRun
from protloom.assembly import make
from protloom.config import choose
from protloom.data.build import build_store
from protloom.data.layout import Store
from protloom.plugins import Registry

TOKENS = 16_384


def tokenizers() -> list[str]:
    """Names of the installed tokenizers."""
    return [c.name for c in Registry.discover().components("tokenizer")]


def test_store_is_built_from_fasta(benchmark: Any, fasta: Path, tmp_path: Path) -> None:
    folders = (tmp_path / str(i) for i in itertools.count())
    built = benchmark.pedantic(build_store, setup=lambda: ((fasta, next(folders)), {}), rounds=5)
    benchmark.extra_info["megabytes"] = fasta.stat().st_size / 1e6
    assert len(built) == 5000


def test_store_is_opened(benchmark: Any, store: Store) -> None:
    assert len(benchmark(Store.open, store.path)) == 5000


def test_step_is_sampled(benchmark: Any, make_run: MakeRun) -> None:
    run, steps = make_run("esm2:tiny", "mlm", trainer__tokens_per_step=TOKENS), itertools.count()
    members = benchmark(lambda: run.sampler.step(next(steps)))
    assert members.n > 10


def test_batch_is_packed(benchmark: Any, make_run: MakeRun) -> None:
    run, steps = make_run("esm2:tiny", "mlm", trainer__tokens_per_step=TOKENS), itertools.count()
    members = run.sampler.step(0)
    batch = benchmark(lambda: run.maker.make(members, next(steps)))
    benchmark.extra_info["tokens"] = len(batch.packed.tokens)


@pytest.mark.parametrize(
    ("architecture", "objective"), [("esm2:tiny", "mlm"), ("ankh:tiny", "denoise"), ("ankh:tiny", "complete")]
)
def test_objective_prepares_a_batch(benchmark: Any, make_run: MakeRun, architecture: str, objective: str) -> None:
    run = make_run(architecture, objective, trainer__tokens_per_step=TOKENS)
    batch = run.maker.make(run.sampler.step(0), 0)
    prepared = benchmark(lambda: run.mixture.prepare(batch, active=run.mixture.active(0)))
    benchmark.extra_info["tokens"] = prepared.tokens
    assert sum(prepared.counts.values()) > 0


@pytest.mark.parametrize("name", tokenizers())
def test_tokenizer_looks_a_million_residues_up(benchmark: Any, store: Store, registry: Registry, name: str) -> None:
    table = np.asarray(make(choose("tokenizer", name, {}, registry)).table)
    residues = np.asarray(store.residues[:1_000_000])
    ids = benchmark(lambda: table[residues])
    assert len(ids) == 1_000_000
