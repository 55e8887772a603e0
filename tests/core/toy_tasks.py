"""A third-party distribution with tiny tasks, a suite and a floor, for tests of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plugin_files import Site

from protloom.cli import main

MODEL = "random-init(esm2:tiny)"

SOURCE = """
import json, os
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from protloom import FloorSpec, TaskSpec, hookimpl
from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval

SPLITS = {"valid": ["ACDE", "ACDEFG", "AAAA", "WYWY", "ACAC", "GGG"], "test": ["MKTA", "MKV", "MMMM", "AW"]}


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    split: Literal["valid", "test"] = "test"
    rows: int | None = 5
    pool: Literal["mean", "max", "cls"] = "mean"
    shift: float = 0.0
    data_dir: str | None = None
    file: str | None = None
    kind: str = "plain"


class Toy:
    def __init__(self, config):
        self.config = config

    def card(self):
        data = {"toy.txt": {"from": "here", "licence": "none"}} if self.config.kind == "data" else {}
        better = "lower" if self.config.kind == "lower" else "higher"
        return {"title": "a toy", "metric": "score", "better": better, "definition": "the sum", "data": data,
                "also": ("double",), "simulated": self.config.kind == "sim"}

    def check(self):
        if self.config.kind == "missing":
            raise UserError("no file toy.txt: put it there")

    def floors(self):
        return {"floor:toy": Floor(0.5)}

    def run(self, subject, *, seed=0, limit=None):
        if log := os.environ.get("TOY_LOG"):
            with open(log, "a") as file:
                file.write(f"{self.config.kind} {subject.name}\\n")
        if self.config.kind == "broken":
            raise ValueError("two\\nlines")
        if self.config.kind == "killed" and os.environ.get("TOY_KILL"):
            raise KeyboardInterrupt
        sequences = SPLITS[self.config.split][: self.config.rows][:limit]
        values = subject.pooled(sequences, pool=self.config.pool).astype(np.float64).sum(1) + self.config.shift
        index = np.random.default_rng([seed, len(sequences)]).integers(len(sequences), size=(200, len(sequences)))
        replicates = values[index].mean(1)
        value = float(values.mean())
        return TaskResult(
            metric="score", value=value, interval=percentile_interval(replicates), n=len(sequences), unit="sequences",
            metrics={"score": value, "double": 2 * value, "undefined": float("nan")}, per_item=values,
            replicates=replicates, items=f"{seed} {sequences}", details={"split": self.config.split},
            intervals={"double": percentile_interval(2 * replicates)},
            predictions={"sequence": sequences, "output": values.tolist()},
        )


class Floor:
    name, summary = "floor:toy", "a constant"

    def __init__(self, value):
        self.memo, self.value = {}, value

    @classmethod
    def made(cls, config):
        return cls(0.25)

    def pooled(self, sequences, pool="mean", include_specials=False):
        return np.full((len(sequences), 1), self.value, dtype=np.float32)


@hookimpl
def protloom_floors():
    return [FloorSpec(name="toy-quarter", factory="toytasks:Floor.made")]


@hookimpl
def protloom_tasks():
    kinds = ("plain", "lower", "data", "broken", "missing", "killed", "sim")
    tasks = [TaskSpec(name=f"toy:{k}", factory="toytasks:Toy", config="toytasks:Options", options={"kind": k})
             for k in kinds]
    return [*tasks, TaskSpec(name="toy-file", factory="toytasks:Toy", config="toytasks:Options",
                             files={".toy": "file"})]
"""

SUITES = {
    "inner": "title: an inner suite\ntasks: [toy:plain]\noptions: {rows: 2, shift: 1.0}\n",
    "outer": 'title: an outer suite\ntasks: ["suite:inner", toy:lower]\noptions: {shift: 2.0}\n',
    "gone": "title: names a task that nobody has\ntasks: [toy:plain, protien]\n",
    "circle": 'title: runs in a circle\ntasks: ["suite:circle"]\n',
    "wrong": "title: has no tasks\ntask: [toy:plain]\n",
}


def install(folder: Path) -> None:
    """Writes the distribution ``toy-tasks`` with the package ``toytasks`` into a folder for ``sys.path``."""
    site = Site(folder)
    site.add("toy-tasks", "toytasks", "", points={"main": "toytasks"})
    (folder / "toytasks.py").unlink()
    (folder / "toytasks" / "suites").mkdir(parents=True)
    (folder / "toytasks" / "__init__.py").write_text(SOURCE)
    for name, text in SUITES.items():
        (folder / "toytasks" / "suites" / f"{name}.yaml").write_text(text)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Installs the toy tasks for the time of a test; returns the file that tells what they computed."""
    site = folder / "site"
    site.mkdir()
    install(site)
    patch.syspath_prepend(site)
    patch.delitem(sys.modules, "toytasks", raising=False)
    patch.delenv("PROTLOOM_DATA", raising=False)
    patch.setenv("TOY_LOG", str(folder / "log"))
    return folder / "log"


def computed(log: Path) -> list[str]:
    """Returns what was computed since the last call."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def run(*arguments: str, model: str = MODEL) -> int:
    """Runs tasks through the command line; returns its exit code."""
    return main(["task", "run", *arguments, "--model", model])
