"""Results that ``protloom task run --out`` wrote, as parts of a page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protloom.errors import UserError
from protloom.report import charts
from protloom.report.charts import Difference
from protloom.report.page import Drawing, Figure, Part, Table, Words
from protloom.scoring import verdict as verdict_of

Entry = Mapping[str, Any]
HEADER = ("task", "subject", "what it is", "metric", "value", "95 % interval", "model minus this", "the model is")
CSV_HEADER = (
    *("model", "task", "simulated", "subject", "role", "metric", "value", "low95", "high95"),
    *("model_minus_this", "difference_low95", "difference_high95", "model_is", "n", "unit"),
)


@dataclass(frozen=True)
class TaskFile:
    """What one file of results holds.

    Attributes:
        path: the file.
        model: whose results they are.
        tasks: one record a task, as the file has them.
    """

    path: Path
    model: str
    tasks: tuple[Mapping[str, Any], ...]


def read_all(path: Path) -> list[TaskFile]:
    """Reads a file of results, or a folder of them: one :class:`TaskFile` for each model in it.

    Raises:
        UserError: there is nothing, it is of another kind, or damaged.
    """
    if not path.is_dir():
        return [read(path)]
    from protloom.task.results import HOME, ResultFolder, reports
    from protloom.task.run import as_record

    damaged: list[str] = []
    found = reports(ResultFolder(path, damaged.append).records()) if (path / HOME).is_dir() else {}
    if damaged:
        raise UserError(f"--tasks {damaged[0]}")
    if not found:
        raise UserError(f"--tasks {path}: holds no results of a model;  protloom task run … --out {path}  makes some")
    return [
        TaskFile(path, model, tuple(as_record(report, items=False) for report in of)) for model, of in found.items()
    ]


def read(path: Path) -> TaskFile:
    """Reads a file of results.

    Raises:
        UserError: the file is missing, of another kind, or damaged.
    """
    if path.suffix != ".json":
        raise UserError(f"--tasks {path}: expected a .json file, as  protloom task run … --out results.json  writes it")
    if not path.is_file():
        raise UserError(f"--tasks {path}: there is no such file")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--tasks {path}: damaged, not JSON ({error})") from None
    try:
        found = TaskFile(path, str(document["model"]), tuple(document["tasks"]))
        for task in found.tasks:
            _check(task)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--tasks {path}: not what  protloom task run … --out  writes ({what})") from None
    return found


def _check(task: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError if a record lacks what a page shows."""
    _ = str(task["task"]), task["error"], task["simulated"]
    for entry in task["results"]:
        _ = entry["subject"], entry["role"], entry["summary"], entry["metric"], entry["n"], entry["unit"]
        _number(entry["value"]), _interval(entry)
        if entry["model_minus_this"] is not None:
            _difference("", entry["model_minus_this"], entry["n"])


def verdict(files: Sequence[TaskFile]) -> list[str]:
    """Returns a sentence for each task: what the model reached, and against what it is better, worse or neither."""
    told = []
    for file in files:
        for task in file.tasks:
            if task["error"] is not None:
                told.append(f"{task['task']}: failed: {task['error']}")
                continue
            model, *others = task["results"]
            compared = [_compared(entry) for entry in others if entry["model_minus_this"] is not None]
            told.append(
                f"{_title(task)}: {model['metric']} {_number(model['value']):.4f} {_ends(*_interval(model))}"
                f" for {file.model}" + "".join(f"; {words}" for words in compared)
            )
    return told


def _compared(entry: Entry) -> str:
    found = _difference("", entry["model_minus_this"], entry["n"])
    preposition = "against" if found.verdict == "undecided" else "than"
    return f"{found.verdict} {preposition} {entry['subject']} ({found.value:+.4f} {_ends(found.low, found.high, '+')})"


def parts(files: Sequence[TaskFile]) -> Iterator[Part]:
    """Yields, for each file, the differences as a figure, all numbers as a table, and what failed."""
    for number, file in enumerate(files, start=1):
        rows = [
            _difference(f"{_title(task)}, minus {entry['subject']}", entry["model_minus_this"], entry["n"])
            for task in file.tasks
            for entry in task["results"]
            if entry["model_minus_this"] is not None
        ]
        if rows:
            drawing = Drawing(
                f"{file.model}: differences", charts.differences(rows, "model minus this, in the task's metric"), True
            )
            caption = "Bars are differences on the same items, lines 95 % intervals; hollow: undecided."
            yield Figure(f"tasks-{number}", caption, [drawing], csv_text(file))
        yield Table(HEADER, list(_rows(file)), f"Results in {file.path.name}; intervals resample the items.", 4)
        failed = [f"{task['task']} failed: {task['error']}" for task in file.tasks if task["error"] is not None]
        if failed:
            yield Words(failed)


def _rows(file: TaskFile) -> Iterator[list[str]]:
    for task in file.tasks:
        for entry in task["results"]:
            first = [_title(task), entry["subject"], entry["summary"], entry["metric"]]
            value = [f"{_number(entry['value']):.4f}", _ends(*_interval(entry))]
            if entry["model_minus_this"] is None:
                yield [*first, *value, "", ""]
            else:
                found = _difference("", entry["model_minus_this"], entry["n"])
                yield [*first, *value, f"{found.value:+.4f} {_ends(found.low, found.high, '+')}", found.verdict]


def csv_text(file: TaskFile) -> str:
    """Returns a row for every task and subject."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for task in file.tasks:
        for entry in task["results"]:
            gap = entry["model_minus_this"] or {"value": None, "interval95": (None, None)}
            word = None if entry["model_minus_this"] is None else _difference("", gap, entry["n"]).verdict
            numbers = [entry["value"], *entry["interval95"], gap["value"], *gap["interval95"], word]
            names = [file.model, task["task"], task["simulated"], entry["subject"], entry["role"], entry["metric"]]
            writer.writerow([*names, *("" if x is None else x for x in numbers), entry["n"], entry["unit"]])
    return out.getvalue()


def _title(task: Mapping[str, Any]) -> str:
    name = str(task["task"]) if task.get("split") is None else f"{task['task']} ({task['split']})"
    return f"{name} (SIMULATED)" if task["simulated"] else name


def _difference(label: str, gap: Mapping[str, Any], n: int) -> Difference:
    low, high = _interval(gap)
    # by the interval and not the word beside it: files of earlier versions have other words, and decide by few items
    return Difference(label, _number(gap["value"]), low, high, verdict_of((low, high), n))


def _interval(record: Mapping[str, Any]) -> tuple[float, float]:
    low, high = record["interval95"]
    return _number(low), _number(high)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _ends(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]" if math.isfinite(low) and math.isfinite(high) else "(no interval)"
