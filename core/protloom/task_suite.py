"""Runs tasks by name for a model, its own random initialisation and the task's floors, and compares them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from protloom import config
from protloom.errors import UserError, did_you_mean
from protloom.scoring import Difference, paired_difference
from protloom.specs import TaskSpec

if TYPE_CHECKING:
    from protloom.contracts import Subject, Task, TaskResult
    from protloom.plugins import Registry

FLOOR = "floor:"
"""What the name of a floor begins with."""
TWIN = "random init"
"""What tables call the same network with fresh weights."""


@dataclass(frozen=True)
class Entry:
    """What one subject reached in one task.

    Attributes:
        name: the subject.
        role: ``model``, ``random init`` or ``floor``.
        summary: what it is, in a few words.
        result: what the task found.
        difference: the model minus this one; None for the model itself.
        seconds: how long it took.
    """

    name: str
    role: str
    summary: str
    result: TaskResult
    difference: Difference | None
    seconds: float


@dataclass(frozen=True)
class Report:
    """One task: entries, the model's first, or why there are none.

    Attributes:
        task: its name.
        card: as the task describes itself; empty if it could not even be built.
        entries: the model, its random initialisation, floors.
        error: why the task did not run, or None.
    """

    task: str
    card: Mapping[str, Any]
    entries: Sequence[Entry] = ()
    error: str | None = None


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        model: the subject to judge; None where a floor is judged.
        twin: the same network with fresh weights, or None.
        floor: name of the floor to judge instead of a model.
        floors: run each task's floors too.
        seed: of everything random.
        limit: use at most this many items of each split.
        tell: receives a line when something begins.
    """

    model: Subject | None
    twin: Subject | None = None
    floor: str | None = None
    floors: bool = True
    seed: int = 0
    limit: int | None = None
    tell: Callable[[str], None] = field(default=lambda line: None)


def expand(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the tasks that names mean, each once: a name, a group (``ss3`` for every ``ss3:...``) or a pattern.

    Raises:
        UserError: if a name means no task; names the nearest.
    """
    found: dict[str, None] = {}
    groups = {name.split(":")[0] for name in known if ":" in name}
    for name in names:
        if name in known:
            means = [name]
        elif name in groups:
            means = [other for other in known if other.startswith(f"{name}:")]
        else:
            means = [other for other in known if fnmatchcase(other, name)]
        if not means:
            raise UserError(f"no task {name!r}.{did_you_mean(name, {*known, *groups})} See 'protloom task list'.")
        found.update(dict.fromkeys(means))
    return list(found)


def build(
    name: str, registry: Registry, *, data_dir: str | None = None, options: Mapping[str, Any] | None = None
) -> Task:
    """Builds a task.

    Args:
        name: as the registry knows it.
        registry: where tasks are found.
        data_dir: folder of real data, for tasks that read any.
        options: on top of those that make the variant.

    Raises:
        UserError: if the task is unknown, broken, or does not take the options.
    """
    component = registry.resolve("task", name)
    fields = option_names(name, registry)
    given = dict(component.spec.options) if isinstance(component.spec, TaskSpec) else {}
    if data_dir is not None and "data_dir" in fields:
        given["data_dir"] = data_dir
    chosen = config.choose("task", name, {**given, **(options or {})}, registry)
    task: Task = component.load_factory()(chosen.config)
    return task


def option_names(name: str, registry: Registry) -> set[str]:
    """Returns the names of a task's options."""
    model = registry.resolve("task", name).load_config()
    return set() if model is None else set(model.model_fields)


def options_of(settings: Sequence[str], names: Sequence[str], registry: Registry) -> dict[str, dict[str, Any]]:
    """Returns the options for each task; each goes to the tasks that have it.

    Args:
        settings: options, each ``key=value``.
        names: tasks.
        registry: where they are found.

    Raises:
        UserError: if no task has an option of that name.
    """
    import yaml

    fields = {name: option_names(name, registry) for name in names}
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write key=value")
        takers = [name for name in names if key in fields[name]]
        if not takers:
            raise UserError(f"--set {setting}: no such option.{did_you_mean(key, set().union(*fields.values()))}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for name in takers:
            options[name][key] = value
    return options


def run(name: str, task: Task, request: Request) -> Report:
    """Runs one task for every subject; a mistake of the user's (missing data) ends in ``Report.error``."""
    card: Mapping[str, Any] = {}
    entries: list[Entry] = []
    try:
        card = task.card()
        for role, subject in _subjects(name, task, request):
            request.tell(f"{name}: {subject.name} ...")
            start = time.perf_counter()
            result = task.run(subject, seed=request.seed, limit=request.limit)
            seconds = time.perf_counter() - start
            difference = paired_difference(entries[0].result, result) if entries else None
            entries.append(Entry(subject.name, role, subject.summary, result, difference, seconds))
    except UserError as error:
        return Report(name, card, entries, str(error))
    return Report(name, card, entries)


def _subjects(name: str, task: Task, request: Request) -> Iterator[tuple[str, Subject]]:
    """Yields (role, subject), the one to judge first."""
    offered = task.floors()
    if request.floor is not None:
        if request.floor not in offered:
            raise UserError(f"{name}: no floor {request.floor!r}.{did_you_mean(request.floor, offered)}")
        yield "floor", offered[request.floor]
        return
    if request.model is not None:
        yield "model", request.model
    if request.twin is not None:
        yield TWIN, request.twin
    if request.floors:
        for floor in offered.values():
            yield "floor", floor


def as_record(report: Report, *, items: bool) -> dict[str, Any]:
    """Returns a report as plain data for JSON.

    Args:
        report: what to tell.
        items: include the metric of every resampled item.
    """
    record: dict[str, Any] = {
        "task": report.task,
        "simulated": bool(report.card.get("simulated")),
        "error": report.error,
    }
    record["definition"] = report.card.get("definition")
    record["results"] = [_entry_record(entry, items=items) for entry in report.entries]
    return record


def _entry_record(entry: Entry, *, items: bool) -> dict[str, Any]:
    result, difference = entry.result, entry.difference
    record: dict[str, Any] = {
        "subject": entry.name,
        "role": entry.role,
        "summary": entry.summary,
        "metric": result.metric,
        "value": _number(result.value),
        "interval95": [_number(end) for end in result.interval],
        "n": result.n,
        "unit": result.unit,
        "model_minus_this": None,
        "metrics": {name: _number(value) for name, value in result.metrics.items()},
        "items": result.items,
        "details": result.details,
        "seconds": round(entry.seconds, 3),
    }
    if difference is not None:
        interval = [_number(end) for end in difference.interval]
        record["model_minus_this"] = {
            "value": _number(difference.value),
            "interval95": interval,
            "model_is": difference.verdict,
        }
    if items:
        record["per_item"] = [_number(float(value)) for value in result.per_item]
    return record


def _number(value: float) -> float | None:
    """Returns a number that JSON can hold: NaN, which it cannot, becomes null."""
    return None if math.isnan(value) else value
