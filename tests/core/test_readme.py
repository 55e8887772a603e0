"""What the README shows must work as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from protloom import config
from protloom.compare import plan
from protloom.plugins import Registry


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_plugin_trains_beside_a_built_in_objective(repository: Path, small_fasta: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "permuted-0.1.dist-info"
    metadata.mkdir(parents=True)
    (site / "permuted").mkdir()
    for source in blocks(repository, "python"):
        (site / source.splitlines()[0].removeprefix("# ")).write_text(source)
    (text,) = blocks(repository, "toml")
    project = tomllib.loads(text)["project"]
    ((name, module),) = project["entry-points"]["protloom"].items()
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(about)
    (metadata / "entry_points.txt").write_text(f"[protloom]\n{name} = {module}\n")
    (metadata / "RECORD").write_text("")
    run_file = tmp_path / "run.yaml"
    mixture = next(b for b in blocks(repository, "yaml") if b.startswith("objectives:"))
    run_file.write_text(mixture.replace("start_step: 1000, ramp_steps: 500", "start_step: 1, ramp_steps: 2"))
    command = [sys.executable, "-m", "protloom", "train", str(run_file), f"--data={small_fasta}", "--arch=esm2:tiny"]
    command += [f"--out={tmp_path / 'run'}", "trainer.steps=4", "trainer.tokens_per_step=500", "trainer.log_every=1"]
    command += [f"data.cache_dir={tmp_path / 'cache'}", "trainer.tensorboard=false"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count('"loss/restore"') == 3  # it starts at the second step
    assert log.count('"loss/mlm"') == 4


def test_the_run_file_is_valid(repository: Path, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(next(b for b in blocks(repository, "yaml") if b.startswith("# run.yaml")))
    resolved = config.load(path, [], registry)
    assert resolved.settings.trainer.steps == 100000
    assert yaml.safe_load(path.read_text())["seed"] == resolved.settings.seed


def test_the_comparison_is_valid(repository: Path, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(next(b for b in blocks(repository, "yaml") if b.startswith("# compare.yaml")))
    planned = plan.load(path, [], registry)
    assert planned.points == (60, 120, 240)
    assert planned.baseline == "mlm-only"


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "resume",
        "task",
        "embed",
        "complete",
        "score",
        "compare",
        "report",
        "convert",
        "preview",
        "data",
        "plugins",
        "show",
        "doctor",
    ],
)
def test_every_command_of_the_readme_explains_itself(command: str, repository: Path) -> None:
    assert f"protloom {command}" in (repository / "README.md").read_text()
    done = subprocess.run([sys.executable, "-m", "protloom", command, "--help"], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"example" in done.stdout
