"""Latent prediction on several processes, from exported weights, and with every preset."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import environment, lines, losses, options_in

from protloom.cli import main

PRESETS = ("proteinjepa-v1", "proteinjepa-v2", "all-position", "jepa-only")


def objectives(preset: str) -> list[dict[str, Any]]:
    if preset == "jepa-only":
        return [{"name": "jepa", "preset": preset}]
    return [{"name": "mlm", "mask_rate": 0.2}, {"name": "jepa", "preset": preset, "corruption": "mlm"}]


@pytest.mark.parametrize("preset", PRESETS)
def test_continuing_from_an_exported_folder(
    preset: str, small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_in(tmp_path, small_fasta)
    assert main(["train", *options("start", trainer__steps=2)]) == 0
    assert main(["convert", str(tmp_path / "start"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    more = {"objectives": objectives(preset), "trainer__steps": 3, "init": tmp_path / "hf"}
    assert main(["train", *options("goes-on", **more)]) == 0
    capsys.readouterr()
    records = lines(tmp_path / "goes-on")
    first = next(r for r in records if "learning_rate" in r)
    assert {key for key in first if key.startswith("loss/jepa")} == {
        "loss/jepa.jepa",
        f"loss/jepa.{'visreg' if preset == 'proteinjepa-v2' else 'sigreg'}",
    }
    assert 0 <= first["mean_target_loss/jepa"] < 3
    if preset != "jepa-only":
        # what was learnt goes on: the first loss is that of the trained start, not of random weights
        assert records[0]["validation/loss/mlm"] == pytest.approx(
            [r for r in lines(tmp_path / "start") if "validation/loss/mlm" in r][-1]["validation/loss/mlm"], rel=1e-5
        )


def trained(options: list[str], *, ranks: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "protloom", *options],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["proteinjepa-v1", "proteinjepa-v2"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(preset: str, parallel: str, small_fasta: Path, tmp_path: Path) -> None:
    options = options_in(tmp_path, small_fasta)
    # all rows are taken here: a random subset would be drawn on each process apart
    trained(["train", *options("one", objectives=objectives(preset), optimizer__lr=1e-4)])
    trained(
        ["train", *options("two", objectives=objectives(preset), optimizer__lr=1e-4, trainer__parallel=parallel)],
        ranks=2,
    )
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = ([r for r in lines(tmp_path / run) if "learning_rate" in r] for run in ("one", "two"))
    for mine, other in zip(one, two, strict=True):
        for key in mine:
            if key.startswith("loss/"):
                assert other[key] == pytest.approx(mine[key], rel=2e-5), key
        if preset == "proteinjepa-v2":
            assert other["teacher_distance/jepa"] == pytest.approx(mine["teacher_distance/jepa"], rel=0.2)
    # saved by two with teacher and predictor, gone on by one
    trained(["resume", str(tmp_path / "two"), "trainer.parallel=none", "trainer.steps=8"])
    trained(["resume", str(tmp_path / "one"), "trainer.steps=8"])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
    assert json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
