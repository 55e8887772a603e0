"""Ankh's two tasks trained as a user trains them: recipes, several processes, Adafactor stopped and gone on."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protloom import config
from protloom.cli import main
from protloom.plugins import Registry

KINDS = ("residue_loss", "sentinel_loss", "end_loss")
SIZES = ("tiny", "small", "large", "xl")


def arguments(fasta: Path, folder: Path, out: str) -> list[str]:
    return [
        "train",
        "recipe:ankh3-tiny",
        f"--data={fasta}",
        f"--out={folder / out}",
        f"data.cache_dir={folder / 'cache'}",
        "data.validation_fraction=0.1",
        "optimizer=adafactor",
        "optimizer.lr=0.003",
        "schedule.warmup_steps=2",
        "trainer.steps=8",
        "trainer.tokens_per_step=1500",
        "trainer.tokens_per_microbatch=800",
        "trainer.precision=fp32",
        "trainer.log_every=1",
        "trainer.validate_every=4",
        "trainer.validation_tokens=1000",
        "trainer.checkpoint_every=4",
        "trainer.tensorboard=false",
    ]


def protloom(*words: str, processes: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "protloom", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def losses(run_dir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in records if "learning_rate" in r}


@pytest.mark.parametrize("size", SIZES)
def test_recipes_resolve(size: str, registry: Registry) -> None:
    resolved = config.load(f"recipe:ankh3-{size}", [], registry)
    assert resolved.tokenizer.name == "ankh3"
    assert resolved.architecture.name == "ankh"
    assert [(o.alias, o.mix.share) for o in resolved.objectives] == [("denoise", 0.5), ("complete", 0.5)]
    assert resolved.settings.combine == "dealt"
    assert resolved.optimizer.name == ("adamw" if size in ("tiny", "small") else "adafactor")


def test_one_recipe_trains_a_head_on_the_encoder_beside_the_decoder(small_fasta: Path, tmp_path: Path) -> None:
    words = arguments(small_fasta, tmp_path, "run")
    words[1:2] = ["recipe:ankh3-small-two-heads", "architecture.size=tiny"]
    assert main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(r for r in reversed(records) if "validation/loss" in r)
    first = next(r for r in records if "validation/loss" in r)
    for term in ("denoise.denoise", "denoise.denoise_encoder", "complete"):
        assert last[f"validation/loss/{term}"] < first[f"validation/loss/{term}"]
        assert last[f"validation/perplexity/{term}"] == pytest.approx(math.exp(last[f"validation/loss/{term}"]))


@pytest.mark.parametrize(("size", "tokenizer"), [("base", "ankh"), ("large", "ankh"), ("ankh3-large", "ankh3")])
def test_a_size_brings_the_tokenizer_of_its_released_weights(size: str, tokenizer: str, registry: Registry) -> None:
    assert config.load(None, [f"architecture=ankh:{size}"], registry).tokenizer.name == tokenizer


def test_a_bare_architecture_brings_what_goes_with_it(registry: Registry) -> None:
    resolved = config.load(None, ["architecture=ankh:small"], registry)
    assert [c.name for c in (resolved.tokenizer, resolved.optimizer)] == ["ankh3", "adamw"]
    assert [o.alias for o in resolved.objectives] == ["denoise"]


def test_a_run_logs_its_objectives_apart(small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(small_fasta, tmp_path, "run")) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(r for r in reversed(records) if "validation/loss" in r)
    # one mean over the targets of both
    scored = {alias: last[f"validation/scored/{alias}"] for alias in ("denoise", "complete")}
    total = sum(last[f"validation/loss/{alias}"] * n for alias, n in scored.items())
    assert last["validation/loss"] == pytest.approx(total / sum(scored.values()))
    trained = next(r for r in records if "learning_rate" in r)
    total = sum(trained[f"loss/{alias}"] * trained[f"scored/{alias}"] for alias in scored)
    assert trained["loss"] == pytest.approx(total / sum(trained[f"scored/{alias}"] for alias in scored))
    assert trained["perplexity/denoise"] == pytest.approx(math.exp(trained["loss/denoise"]))
    for alias in ("denoise", "complete"):
        assert last[f"validation/residue_loss/{alias}"] > 0
        assert last[f"validation/end_loss/{alias}"] > 0
    validated = [r["validation/loss"] for r in records if "validation/loss" in r]
    assert validated[-1] < validated[0]
    folder = tmp_path / "run" / "checkpoints" / "step-00000008" / "model"
    capsys.readouterr()
    assert main(["convert", str(folder), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    assert "difference of logits 0.00e+00" in capsys.readouterr().out


def test_the_entropy_to_beat_is_that_of_residues_alone(tmp_path: Path) -> None:
    # two letters, equally common: ln 2, however many sentinels and ends stand among the targets
    draw = random.Random(5)
    fasta = tmp_path / "two.fasta"
    fasta.write_text("".join(f">s{i}\n{''.join(draw.choices('AD', k=60))}\n" for i in range(200)))
    assert main([*arguments(fasta, tmp_path, "run"), "trainer.steps=4"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(r for r in reversed(records) if "validation/loss" in r)
    for alias in ("denoise", "complete"):
        assert math.log(2) - 0.02 < last[f"validation/unigram_entropy/{alias}"] <= math.log(2)
        parts = [last[f"validation/{kind}/{alias}"] for kind in KINDS if f"validation/{kind}/{alias}" in last]
        assert min(parts) <= last[f"validation/loss/{alias}"] <= max(parts)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bitwise(small_fasta: Path, tmp_path: Path) -> None:
    protloom(*arguments(small_fasta, tmp_path, "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000008")
    (tmp_path / "cut" / "checkpoints" / "best.json").unlink()
    protloom("resume", str(tmp_path / "cut"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one(small_fasta: Path, tmp_path: Path, parallel: str) -> None:
    protloom(*arguments(small_fasta, tmp_path, "one"))
    protloom(*arguments(small_fasta, tmp_path, "two"), f"trainer.parallel={parallel}", processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    # saved by two, gone on by one
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000008")
    (tmp_path / "two" / "checkpoints" / "best.json").unlink()
    protloom("resume", str(tmp_path / "two"), "trainer.parallel=none")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
