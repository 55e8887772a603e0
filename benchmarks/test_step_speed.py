"""Training steps, embedding and generation of whole networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import MakeRun
from protloom.completion import complete
from protloom.data.layout import Store
from protloom.data.records import Entry
from protloom.embedding import Embedder
from protloom.generation import Decoding
from protloom.phases import Phases
from protloom.stepper import Stepper

TOKENS = 2048
RUNS = {
    "esm2:8M, mlm": ("esm2:8M", "mlm"),
    "ankh:small, denoise": ("ankh:small", "denoise"),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_training_step(benchmark: Any, make_run: MakeRun, name: str, precision: str) -> None:
    run = make_run(*RUNS[name], trainer__tokens_per_step=TOKENS, trainer__precision=precision)
    stepper = Stepper(run)
    try:
        benchmark.group = name
        work = benchmark.pedantic(stepper.next, args=(Phases(),), rounds=7, warmup_rounds=2)
        benchmark.extra_info["tokens of the last step"] = work.tokens
        assert work.tokens > TOKENS / 2
    finally:
        stepper.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embedding_of_100_proteins(benchmark: Any, make_run: MakeRun, store: Store, precision: str) -> None:
    run = make_run("esm2:8M", "mlm")
    sequences = [bytes(store.sequence(i)).decode() for i in range(100)]
    dtype = torch.bfloat16 if precision == "bf16" else None
    embedder = Embedder(run.model, run.tokenizer, dtype=dtype)
    features = benchmark.pedantic(lambda: embedder.pooled(sequences), rounds=5, warmup_rounds=1)
    benchmark.extra_info["tokens"] = sum(len(s) + 2 for s in sequences)
    assert features.shape == (100, 320)
    assert bool(np.isfinite(features).all())


def test_generation_of_8_completions(benchmark: Any, make_run: MakeRun, store: Store) -> None:
    run = make_run("ankh:small", "complete")
    entries = [Entry(str(i), bytes(store.sequence(i))[:100].decode()) for i in range(8)]
    greedy = Decoding(max_length=50)

    def write() -> int:
        return len(list(complete(run.model, run.tokenizer, entries, 0.5, greedy)))

    assert benchmark.pedantic(write, rounds=3, warmup_rounds=1) == 8
