"""Runs in processes of their own: killed at a random moment, started again, spread over two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

STEPS = 40


def arguments(small_fasta: Path, tmp_path: Path, out: str) -> list[str]:
    return [
        "train",
        f"--data={small_fasta}",
        "--arch=esm2:tiny",
        f"--out={tmp_path / out}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"trainer.steps={STEPS}",
        "trainer.tokens_per_step=900",
        "trainer.tokens_per_microbatch=300",
        "trainer.precision=fp32",
        "trainer.log_every=1",
        "trainer.checkpoint_every=7",
        "trainer.validate_every=10",
        "trainer.tensorboard=false",
        # gentle: at an unstable rate rounding grows from step to step, and no two orders of summation agree for long
        "optimizer.lr=0.0005",
        "seed=11",
    ]


def environment() -> dict[str, str]:
    # one thread a process: two processes on two cores, and sums in one order
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def protloom(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "protloom", *words], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchrun(*words: str) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = [*launcher, "-m", "protloom", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in records(run_dir) if "learning_rate" in r}


def validations(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["validation/loss"] for r in records(run_dir) if "validation/loss" in r}


def close(one: dict[int, float], other: dict[int, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[s] - other[s]) <= 1e-6 for s in one)


def test_a_killed_run_goes_on_with_bitwise_the_same_losses(small_fasta: Path, tmp_path: Path) -> None:
    protloom(*arguments(small_fasta, tmp_path, "whole"))
    command = [sys.executable, "-m", "protloom", *arguments(small_fasta, tmp_path, "cut"), "data.threads=2"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    # a different moment each time; whatever it hits, the result must be the same
    victim = random.SystemRandom().randint(1, STEPS - 5)
    log = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("learning_rate") >= victim:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "cut" / "config.yaml").exists()
    protloom("resume", str(tmp_path / "cut"), "data.threads=0")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole"), f"killed at step {victim}"
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one_and_one_goes_on_with_their_run(
    small_fasta: Path, tmp_path: Path, parallel: str
) -> None:
    protloom(*arguments(small_fasta, tmp_path, "one"))
    torchrun(*arguments(small_fasta, tmp_path, "two"), f"trainer.parallel={parallel}")
    assert close(losses(tmp_path / "two"), losses(tmp_path / "one"))
    assert close(validations(tmp_path / "two"), validations(tmp_path / "one"))
    tokens = [[r["tokens"] for r in records(tmp_path / out) if "tokens" in r] for out in ("one", "two")]
    assert tokens[0] == tokens[1]
    # saved by two, resumed by one
    torchrun(*arguments(small_fasta, tmp_path, "half"), f"trainer.parallel={parallel}", "trainer.steps=21",
             "schedule.name=constant")  # fmt: skip
    protloom(*arguments(small_fasta, tmp_path, "reference"), "schedule.name=constant")
    protloom("resume", str(tmp_path / "half"), "trainer.parallel=none", f"trainer.steps={STEPS}")
    assert close(losses(tmp_path / "half"), losses(tmp_path / "reference"))


def test_a_signal_ends_a_run_with_a_checkpoint_and_exit_code_0(small_fasta: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "protloom", *arguments(small_fasta, tmp_path, "run"), "trainer.steps=100000"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("learning_rate") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "protloom resume" in output
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    last = records(tmp_path / "run")[-1]["step"]
    assert saved[-1].name == f"step-{last:08d}"
