"""Results of tasks written by hand, as ``protloom task run --out`` keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from protloom.contracts import Task, TaskResult
from protloom.task.results import ResultFolder
from protloom.task.run import Built, Entry


def keep(
    folder: Path,
    who: str,
    task: str,
    result: TaskResult,
    card: Mapping[str, Any],
    *,
    key: Mapping[str, Any] | None = None,
    precision: str = "fp32",
) -> None:
    """Writes what a subject reached in a task; who begins with ``floor:`` is a floor, others are models."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    floor = who.startswith("floor:")
    built = Built(task, cast("Task", None), card, "toy/task 1", {"rows": 5}, None, {}, None, "toy")
    identity = {"name": who} if floor else {"weights": who, "precision": precision}
    entry = Entry(who, who, "floor" if floor else "model", "by hand", result, None, 0.5, identity=identity)
    whole = {"task": "toy/task 1", "options": {"rows": 5}, "subject": identity, "data": {"x.csv": "abc"}}
    whole |= {"seed": 0, "limit": None, "code": {"protloom": "0", "task": "abc"}, **(key or {})}
    ResultFolder(folder, print).save(entry, built, whole)


def found(value: float, replicates: np.ndarray[Any, Any], *, metric: str, n: int, unit: str) -> TaskResult:
    """Returns a result; its interval is 0.02 to either side."""
    interval = (value - 0.02, value + 0.02)
    return TaskResult(metric, value, interval, n, unit, {metric: value}, np.zeros(n), replicates, items="same")


def path_of(folder: Path, who: str, task: str) -> Path:
    """Returns the file of a result."""
    for path in (folder / "results").glob("*/*.json"):
        record = json.loads(path.read_text())
        if (record["subject"], record["task"]) == (who, task):
            return path
    raise AssertionError(f"no result of {who} in {task}")
