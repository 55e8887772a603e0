"""What the page on clusters says of several machines and of Slurm, on one machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doc_blocks import Block, blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"
STEPS = 120

RUN_FILE = f"""
data: {{corpus: "demo:?n=200"}}
architecture: esm2:tiny
schedule: {{name: constant}}
trainer:
  {{steps: {STEPS}, tokens_per_step: 4096, parallel: ddp, log_every: 1, checkpoint_every: 50, tensorboard: false}}
"""

SRUN = """
import os, signal, subprocess, sys
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    tasks.append(subprocess.Popen(sys.argv[1:], env={**os.environ, **own}))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import sys
if sys.argv[1] == "show":
    print("localhost")
else:
    open("requeued", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(what: str) -> Block:
    (found,) = (block for block in blocks(PAGE.read_text("utf-8"), "clusters") if what in block.text)
    return found


def logged(run_dir: Path) -> list[int]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record["step"] for record in records if "learning_rate" in record]


@pytest.fixture
def environment(tmp_path: Path, cache_folder: Path) -> dict[str, str]:
    """Programs that stand for those of a cluster, first on the PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
    (programs / "protloom").write_text(f'#!/bin/sh\nexec {sys.executable} -m protloom "$@"\n')
    (programs / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache_folder)}


@pytest.mark.slow
def test_the_slurm_script_saves_queues_again_and_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    script = shown("#SBATCH --requeue")
    assert script.file == "job.sbatch"
    (tmp_path / script.file).write_text(script.text)
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    # its port is made of the number of the job
    port = next(port for port in (free_port() for _ in range(1000)) if 20000 <= port < 40000)
    job = {"SLURM_JOB_ID": str(port - 20000), "SLURM_JOB_NODELIST": "two", "SLURM_NTASKS": "2"}
    assert "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))" in script.text
    environment |= job
    found = re.search(r"^run=(\S+)$", script.text, re.M)
    assert found
    run_dir = tmp_path / found[1]

    first = subprocess.Popen(["bash", script.file], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None and len(logged(run_dir)) < 3:
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=300) == 0
    stopped_after = logged(run_dir)[-1]
    assert 3 <= stopped_after < STEPS
    assert (run_dir / "checkpoints" / f"step-{stopped_after:08}").is_dir()
    assert (tmp_path / "requeued").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"

    def sitting() -> subprocess.CompletedProcess[str]:
        command = ["bash", str(script.file)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    second = sitting()
    assert second.returncode == 0, second.stderr
    assert logged(run_dir) == list(range(1, STEPS + 1))
    third = sitting()
    assert third.returncode == 0, third.stderr
    assert "done" in third.stdout
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1  # neither the second nor the third

    (run_dir / "config.yaml").write_text("seed: nonsense\n")
    assert sitting().returncode != 0
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_machines_train_one_run(tmp_path: Path, environment: dict[str, str]) -> None:
    """The page's command, twice on this machine, with a process each."""
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (line,) = shown("--rdzv-backend").commands
    line = line.replace("--nproc-per-node 8", "--nproc-per-node 1").replace("node1:29500", f"localhost:{free_port()}")
    words = [*shlex.split(line), "trainer.steps=4"]
    machines = [
        subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    run_dir = tmp_path / words[words.index("--out") + 1]
    assert logged(run_dir) == [1, 2, 3, 4]
