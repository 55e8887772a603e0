"""A short run on real proteins: it must learn more than how common each residue is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protloom import config, launch
from protloom.plugins import Registry


@pytest.mark.slow
def test_esm2_8m_beats_the_residue_frequencies_of_uniref90_in_300_steps(
    registry: Registry, shared_data: Path, tmp_path: Path
) -> None:
    """The mean loss at masked held-out positions falls 0.01 nats below the entropy of the very residues asked for."""
    options = {
        "data.corpus": shared_data / "pretrain_corpus" / "uniref90_sample_10k.fasta.gz",
        "data.cache_dir": tmp_path / "cache",
        "data.max_length": 512,
        "architecture": "esm2:8M",
        "out": tmp_path / "run",
        "optimizer.lr": "1e-3",
        "schedule.warmup_steps": 50,
        "trainer.steps": 300,
        "trainer.tokens_per_step": 2048,
        "trainer.validate_every": 300,
        "trainer.tensorboard": "false",
    }
    launch.start(config.load(None, [f"{key}={value}" for key, value in options.items()], registry), registry)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if "validation/loss" in r][-1]
    assert last["step"] == 300
    assert last["validation/scored/mlm"] > 5000
    assert last["validation/loss/mlm"] < last["validation/unigram_entropy/mlm"] - 0.01
