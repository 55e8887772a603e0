"""What a training step keeps in memory: logits at scored positions alone, and bytes in proportion to tokens."""

from __future__ import annotations

import json
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.contracts import StepContext
from protloom.distributed import World
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device

LENGTH = 62  # with the two special symbols of ESM 64 tokens


class Watch(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once, and notes every shape that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.shapes: set[tuple[int, ...]] = set()
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.shapes.add(tuple(tensor.shape))
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def built(folder: Path, registry: Registry, architecture: str, objective: str, tokens: int, precision: str) -> Assembly:
    fasta, letters = folder / "equal.fasta", random.Random(0)
    if not fasta.exists():
        rows = ("".join(letters.choices("ACDEFGHIKLMNPQRSTVWY", k=LENGTH)) for _ in range(400))
        fasta.write_text("".join(f">p{i}\n{row}\n" for i, row in enumerate(rows)))
    values = {
        "architecture": architecture,
        "objective": objective,
        "data.corpus": str(fasta),
        "data.cache_dir": str(folder / "cache"),
        "data.validation_fraction": 0,
        "trainer.tokens_per_step": tokens,
        "trainer.precision": precision,
    }
    resolved = config.load(None, [f"{key}={json.dumps(value)}" for key, value in values.items()], registry)
    return assemble(resolved, registry, World(0, 1, torch.device("cpu"), "none"), initial=None)


def watched_step(run: Assembly) -> tuple[Watch, int, int]:
    """Runs forward and backward of one step; returns what was seen, its tokens and its scored items."""
    (batch,) = run.host_step(0)
    divisors = {key: float(count) for key, count in batch.counts.items()}
    ctx = StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)
    for _ in range(2):  # the first makes gradients, which stay
        with Watch() as seen:
            loss = run.wrapped(to_device(batch, run.world.device), dict.fromkeys(divisors, 1.0), divisors, ctx).loss
            loss.backward()
            del loss
    return seen, batch.tokens, int(sum(divisors.values()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("architecture", "objective"), [("esm2:mini", "mlm"), ("ankh:tiny", "denoise")])
def test_peak_memory_grows_in_proportion_to_tokens(
    registry: Registry, tmp_path: Path, architecture: str, objective: str, precision: str
) -> None:
    peaks = []
    for sequences in (16, 32, 64):
        run = built(tmp_path, registry, architecture, objective, sequences * 64, precision)
        seen, tokens, _ = watched_step(run)
        peaks.append((tokens, seen.peak))
    (t0, p0), (t1, p1), (t2, p2) = peaks
    assert t0 < t1 < t2
    first, second = (p1 - p0) / (t1 - t0), (p2 - p1) / (t2 - t1)
    assert first > 0
    assert second == pytest.approx(first, rel=0.1)


def test_logits_exist_at_scored_positions_alone(registry: Registry, tmp_path: Path) -> None:
    run = built(tmp_path, registry, "esm2:mini", "mlm", 4096, "fp32")
    vocabulary = len(run.tokenizer.vocab)
    seen, tokens, scored = watched_step(run)
    rows = {shape[0] for shape in seen.shapes if len(shape) == 2 and shape[1] == vocabulary}
    assert scored in rows
    assert scored < tokens / 3
    # the embedding's gradient has the vocabulary first; no matrix has a row for every token
    assert max(rows) == scored


def test_the_watch_counts_what_is_alive_and_forgets_what_is_gone() -> None:
    with Watch() as seen:
        kept = torch.zeros(1000)
        gone = torch.ones(5000)
        del gone
        view = kept[:10]
    assert seen.alive == 4000
    assert seen.peak == 24000
    assert view.shape in seen.shapes
