"""The example plugins as their authors would ship them: wheels in a fresh environment, tested by their own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_plugin_wheel import fresh_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "plugins" / "examples"
NAMES = ("masked-diffusion", "prefix-lm", "contrastive-pairs")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_is_tested_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if (path / "pyproject.toml").is_file()} == set(NAMES)


@pytest.mark.slow
def test_the_examples_keep_their_promises_as_wheels(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    sources = tmp_path / "sources"
    shutil.copytree(EXAMPLES, sources, ignore=shutil.ignore_patterns("__pycache__"))  # building leaves files behind
    for name in NAMES:
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path / "dist", name, cwd=sources)
    pip = [sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", *(tmp_path / "dist").glob("*.whl"), cwd=tmp_path)
    for name in NAMES:
        run(python, "-m", "pytest", "-q", "tests", cwd=sources / name)
    distributions = [f"protloom-{name}" for name in NAMES]
    assert "promises hold" in run(python, "-m", "protloom", "check-plugin", *distributions, cwd=tmp_path)


@pytest.mark.slow
def test_a_trained_diffusion_model_writes_proteins(tmp_path: Path, small_fasta: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    shutil.copytree(EXAMPLES / "masked-diffusion", tmp_path / "source")
    pip = [sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-build-isolation", "./source", cwd=tmp_path)
    options = ["objective=masked-diffusion", "trainer.steps=3", "trainer.tensorboard=false"]
    corpus = [f"--data={small_fasta}", f"data.cache_dir={tmp_path / 'cache'}"]
    run(python, "-m", "protloom", "train", *corpus, "--arch=esm2:tiny", *options, "--out=run", cwd=tmp_path)
    command = [python, "-m", "protloom", "generate", "run", "--n=3", "--length=40", "steps=8", "--json"]
    written = json.loads(run(*command, cwd=tmp_path))
    assert written["generator"]["name"] == "protloom-masked-diffusion/masked-diffusion"
    sequences = written["sequences"]
    assert [len(sequence) for sequence in sequences] == [40] * 3
    assert set("".join(sequences)) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert json.loads(run(*command, cwd=tmp_path)) == written
