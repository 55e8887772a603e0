"""A third party's distribution with a task that works, and others that are broken in every way."""

from __future__ import annotations

import textwrap
from pathlib import Path

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-tasks"
version = "1.2.3"
license = "BSD-3-Clause"
dependencies = ["protloom"]

[project.entry-points.protloom]
tasks = "acme_tasks.plugin"
more = "acme_tasks.more"

[tool.hatch.build.targets.wheel]
packages = ["acme_tasks"]
"""

ENTRY_POINTS = {"tasks": "acme_tasks.plugin", "more": "acme_tasks.more"}

BROKEN = {
    "charge-import": "cannot load 'acme_tasks.needs_more:Options': ModuleNotFoundError: No module named 'acme_extras'",
    "charge-build": "its factory failed: RuntimeError: no weights",
    "charge-dict": "its factory returned a dict, not a Task",
    "charge-options": "KeyError: 'broken options'",
    "charge-check": "KeyError: 'table'",
    "charge-card": "card() returned nothing, not a mapping",
    "charge-run": "ZeroDivisionError: division by zero",
    "charge-nothing": "run() returned nothing, not a TaskResult",
    "charge-text": "run() returned a result whose value is a str, not a number",
    "charge-metric": "run() returned a result whose main metric 'R' is not among its metrics (r)",
    "charge-interval": "run() returned a result whose interval of r is (0.5,), not two numbers",
    "charge-list": "run() returned a result whose replicates is a list, not an array of numbers in one dimension",
    "charge-object": "run() returned a result whose details or predictions are no plain data: object has no JSON form",
}
"""The broken tasks, and what is told of each."""

LOST = "Broken plugins that may have offered it: acme-tasks:more (ImportError: nothing works)."
"""What is told of tasks whose plugin cannot even be asked."""

_PLUGIN = """
from protloom import TaskSpec, hookimpl

KINDS = ("build", "dict", "options", "check", "card", "run", "nothing", "text", "metric", "interval", "list", "object")

@hookimpl
def protloom_tasks():
    home = "acme_tasks.charge"
    summary = "net charge of made-up peptides"
    good = TaskSpec(name="charge", factory=f"{home}:Charge", config=f"{home}:Options", summary=summary)
    far = TaskSpec(name="charge-import", factory="acme_tasks.needs_more:Task", config="acme_tasks.needs_more:Options")
    return [good, far] + [
        TaskSpec(name=f"charge-{kind}", factory=f"{home}:made", config=f"{home}:Options", options={"kind": kind})
        for kind in KINDS
    ]
"""

_CHARGE = """
import dataclasses
import random
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from protloom.contracts import TaskResult
from protloom.scoring import percentile_interval


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    split: Literal["valid", "test"] = "test"
    rows: int | None = 30
    kind: str = ""

    @field_validator("kind")
    @classmethod
    def _check(cls, kind):
        if kind == "options":
            raise KeyError("broken options")
        return kind


def rows(split, n):
    rng = random.Random(split)
    sequences = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=30)) for _ in range(n or 60)]
    return sequences, np.array([sum(s.count(c) for c in "KR") - sum(s.count(c) for c in "DE") for s in sequences]) / 30


class Charge:
    def __init__(self, config):
        self.config = config

    def card(self):
        return {"title": "net charge", "metric": "r", "definition": "Pearson's r of a least-squares fit",
                "splits": "made up", "probe": "least squares", "licence": "BSD-3-Clause", "simulated": True}

    def check(self):
        pass

    def floors(self):
        return {}

    def run(self, subject, *, seed=0, limit=None):
        sequences, charge = rows("train", 200)
        fit, *_ = np.linalg.lstsq(subject.pooled(sequences).astype(float), charge, rcond=None)
        tested, truth = rows(self.config.split, min(n for n in (self.config.rows, limit, 60) if n is not None))
        output = subject.pooled(tested).astype(float) @ fit
        index = np.random.default_rng([seed, len(tested)]).integers(len(tested), size=(100, len(tested)))
        replicates = np.array([np.corrcoef(output[i], truth[i])[0, 1] for i in index])
        value = float(np.corrcoef(output, truth)[0, 1])
        return TaskResult(metric="r", value=value, interval=percentile_interval(replicates), n=len(tested),
                          unit="peptides", metrics={"r": value}, per_item=np.abs(output - truth), replicates=replicates,
                          items=f"{seed} {tested}", details={"simulated": "by acme", "seed": seed})


class Broken(Charge):
    def card(self):
        return None if self.config.kind == "card" else super().card()

    def check(self):
        if self.config.kind == "check":
            raise KeyError("table")

    def run(self, subject, *, seed=0, limit=None):
        kind, result = self.config.kind, super().run(subject, seed=seed, limit=limit)
        if kind == "run":
            1 / 0
        changes = {"text": {"value": "0.5"}, "metric": {"metric": "R"}, "interval": {"interval": (0.5,)},
                   "list": {"replicates": list(result.replicates)}, "object": {"details": {"probe": object()}}}
        return None if kind == "nothing" else dataclasses.replace(result, **changes[kind])


def made(config):
    if config.kind == "build":
        raise RuntimeError("no weights\\nin two lines")
    return {} if config.kind == "dict" else Broken(config)
"""

_FILES = {
    "__init__.py": "",
    "plugin.py": _PLUGIN,
    "charge.py": _CHARGE,
    "needs_more.py": "import acme_extras\n",
    "more.py": 'raise ImportError("nothing works")\n',
}


def write_package(folder: Path) -> None:
    """Writes the package ``acme_tasks`` into a folder."""
    (folder / "acme_tasks").mkdir(parents=True)
    for name, text in _FILES.items():
        (folder / "acme_tasks" / name).write_text(textwrap.dedent(text))


def write_project(folder: Path) -> None:
    """Writes the project that a wheel is built of."""
    write_package(folder)
    (folder / "pyproject.toml").write_text(PYPROJECT)
