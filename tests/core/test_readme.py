"""What the README shows means what it says; test_docs runs it, in a reduced form where it is long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from protloom import config
from protloom.compare import plan
from protloom.plugins import Registry


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_run_file_is_valid(repository: Path, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(next(b for b in blocks(repository, "yaml") if b.startswith("# file: run.yaml")))
    resolved = config.load(path, [], registry)
    assert resolved.settings.trainer.steps == 100000
    assert yaml.safe_load(path.read_text())["seed"] == resolved.settings.seed


def test_the_comparison_is_valid(repository: Path, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(next(b for b in blocks(repository, "yaml") if b.startswith("# file: compare.yaml")))
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
        "generate",
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
