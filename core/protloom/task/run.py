"""Runs tasks for a model, its own random initialisation and floors; what was done before is taken from a folder."""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import __version__, provenance
from protloom.contracts import HasExtent
from protloom.errors import UserError, did_you_mean
from protloom.plugins.blame import explain
from protloom.run import corpus as run_corpus
from protloom.scoring import Difference, paired_difference
from protloom.task import faults as task_faults
from protloom.task import suite as task_suite

if TYPE_CHECKING:
    from protloom.contracts import Extent, Subject, Task, TaskResult
    from protloom.plugins import Registry
    from protloom.run.corpus import RunCorpus
    from protloom.task.results import ResultFolder
    from protloom.task.suite import Choice

FLOOR = "floor:"
"""What the name of a floor begins with."""
TWIN = "random init"
"""What tables call the same network with fresh weights."""
DATA = "PROTLOOM_DATA"
"""Environment variable: the folder of real data, where none is given."""


@dataclass(frozen=True)
class Built:
    """A task that can run, and what its result depends on besides the subject.

    Attributes:
        name: what results call it.
        task: the task.
        card: as it describes itself.
        component: ``distribution/name`` and version of what built it.
        options: all of them but the data folder.
        split: what it scores, None for a task with one set of rows, which is its test set.
        files: every data file's path, by the name that the card gives it; None where it was not found.
        definition: the file that it is made of, or None.
        package: the package that its code is in.
    """

    name: str
    task: Task
    card: Mapping[str, Any]
    component: str
    options: Mapping[str, Any]
    split: str | None
    files: Mapping[str, Path | None]
    definition: Path | None
    package: str


@dataclass(frozen=True)
class Entry:
    """What one subject reached in one task.

    Attributes:
        name: the subject.
        label: the subject in a folder of results: a random initialisation says of which model.
        role: ``model``, ``random init`` or ``floor``.
        summary: what it is, in a few words.
        result: what the task found.
        difference: the model minus this one, above 0 where the model is better; None for the model itself.
        seconds: how long it took.
        counts: of the subject during this task: sequences that were cropped, taken from the cache …
        identity: of the subject: weights, tokenizer, layer …
        reused: taken from the folder of results.
    """

    name: str
    label: str
    role: str
    summary: str
    result: TaskResult
    difference: Difference | None
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False


@dataclass(frozen=True)
class Report:
    """One task: entries, the model's first, or why there are none.

    Attributes:
        task: its name.
        card: as the task describes itself; empty if it could not even be built.
        entries: the model, its random initialisation, floors.
        error: why the task did not run, or None.
        split: what was scored, None for a task with one set of rows, which is its test set.
    """

    task: str
    card: Mapping[str, Any]
    entries: Sequence[Entry] = ()
    error: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        model: the subject to judge; None where a floor is judged.
        twin: the same network with fresh weights, or None.
        floor: name of the floor to judge instead of a model.
        others: finds a floor that a task does not offer itself; raises UserError.
        floors: run each task's floors too.
        seed: of everything random.
        limit: use at most this many items of each split.
        variant: added to the labels of model and twin: options that are none of the task's, such as a layer.
        extent: how much of long sequences floors see; None: as much as the model.
        corpus: what the model was trained on, None where nobody wants to know.
        folder: where results are kept, or None.
        force: take nothing from the folder.
        debug: print the traceback of a failure.
        tell: receives a line when something begins.
    """

    model: Subject | None
    twin: Subject | None = None
    floor: str | None = None
    others: Callable[[str], Subject] | None = None
    floors: bool = True
    seed: int = 0
    limit: int | None = None
    variant: str = ""
    extent: Extent | None = None
    corpus: RunCorpus | None = None
    folder: ResultFolder | None = None
    force: bool = False
    debug: bool = False
    tell: Callable[[str], None] = field(default=lambda line: None)


def build(choice: Choice, registry: Registry, data_dir: str | None) -> Built:
    """Builds a task and makes sure that it can run.

    Raises:
        UserError: it does not take its options, its data are missing, or there is a bug in it.
    """
    task, options = task_suite.build_with_options(choice.component, registry, data_dir=data_dir, options=choice.options)
    component = registry.resolve("task", choice.component)
    task_faults.asked(component, task.check)
    card = task_faults.card(component, task)
    folders = [Path(folder) for folder in (data_dir, os.environ.get(DATA)) if folder]
    if choice.file is not None:
        folders.insert(0, choice.file.parent)
    found = {
        str(name): next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in dict(card.get("data") or {})
    }
    own = card.get("options")
    if isinstance(own, Mapping) and "split" not in own:  # of a file, when only other kinds of file have splits
        options.pop("split", None)
    split = options.get("split")
    return Built(
        name=choice.name,
        task=task,
        card=card,
        component=task_faults.title(component),
        options=options,
        split=split if isinstance(split, str) else None,
        files=found,
        definition=choice.file,
        package=type(task).__module__.partition(".")[0],
    )


def key_of(built: Built, identity: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Returns everything that a result depends on, as plain data: it is reused only where all of it is the same."""
    hashes = {name: None if path is None else provenance.file_hash(path) for name, path in built.files.items()}
    if built.definition is not None:
        hashes[built.definition.name] = provenance.file_hash(built.definition)
    return {
        "task": built.component,
        "options": dict(built.options),
        "subject": dict(identity),
        "data": hashes,
        "seed": request.seed,
        "limit": request.limit,
        "code": {
            "protloom": __version__,
            "task": provenance.code_hash((built.package, "protloom.scoring")),
            **provenance.versions(),
        },
    }


def run(built: Built, request: Request) -> Report:
    """Runs one task for every subject; whatever goes wrong ends in ``Report.error``, and what was done is kept."""
    entries: list[Entry] = []
    try:
        for role, subject in _subjects(built, request):
            entry = _entry(built, role, subject, request)
            if entries:
                entry = _compared(entries[0], entry, built, request)
            entries.append(entry)
    except UserError as error:
        return Report(built.name, built.card, entries, str(error), built.split)
    except OSError as error:  # a full disk, a file that went away
        told = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        return Report(built.name, built.card, entries, told, built.split)
    except Exception as error:  # a bug in one task must not cost the others
        if request.debug:
            traceback.print_exc()
        told = task_faults.bug(explain(error), built.component)
        return Report(built.name, built.card, entries, told, built.split)
    return Report(built.name, built.card, entries, split=built.split)


def _compared(model: Entry, entry: Entry, built: Built, request: Request) -> Entry:
    """Returns the entry with its difference; without one, which is told, where it was not scored on the same."""
    try:
        return against(model, entry, lower=built.card.get("better") == "lower")
    except UserError as error:
        request.tell(f"{built.name}: {entry.label} stands without a comparison: {error}")
        return entry


def _entry(built: Built, role: str, subject: Subject, request: Request) -> Entry:
    """Returns what a subject reaches, from the folder if it is there."""
    label = _label(role, subject, request)
    identity = identity_of(subject)
    key = key_of(built, identity, request)
    if request.folder is not None and not request.force:
        kept = request.folder.load(label, built, key)
        if kept is not None:
            request.tell(f"{built.name}: {label}: done before")
            return kept
    request.tell(f"{built.name}: {subject.name} ...")
    before = Counter(getattr(subject, "counts", {}))
    start = time.perf_counter()
    result = built.task.run(subject, seed=request.seed, limit=request.limit)
    task_faults.check_result(result, built.component)
    if role == "model" and request.corpus is not None:
        result = run_corpus.mark(result, built.task, request.corpus)
    entry = Entry(
        name=subject.name,
        label=label,
        role=role,
        summary=subject.summary,
        result=result,
        difference=None,
        seconds=time.perf_counter() - start,
        counts=dict(Counter(getattr(subject, "counts", {})) - before),
        identity=identity,
    )
    if request.folder is not None:
        request.folder.save(entry, built, key)
    return entry


def against(model: Entry, entry: Entry, *, lower: bool) -> Entry:
    """Returns the entry with the difference of the model and it, turned round where lower is better."""
    gap = paired_difference(model.result, entry.result)
    if lower:
        low, high = gap.interval
        gap = Difference(-gap.value, (-high, -low), gap.n)
    return replace(entry, difference=gap)


def see(floor: Subject, extent: Extent | None) -> None:
    """Tells a floor how much of long sequences it is to see; one that is a network of its own knows already."""
    if extent is not None and isinstance(floor, HasExtent):
        with contextlib.suppress(AttributeError):  # a property
            floor.extent = extent


def identity_of(subject: Subject) -> dict[str, Any]:
    """Returns what identifies a subject: what its maker stated, or its name and summary."""
    stated = dict(getattr(subject, "provenance", {}))
    if stated:
        return stated
    extent = str(getattr(subject, "extent", ""))
    return {"name": subject.name, "summary": subject.summary} | ({"extent": extent} if extent else {})


def _label(role: str, subject: Subject, request: Request) -> str:
    if role == "floor":
        extent = str(getattr(subject, "extent", ""))
        return f"{subject.name} ({extent})" if extent else subject.name
    variant = f" ({request.variant})" if request.variant else ""
    if role == TWIN and request.model is not None:
        return f"{TWIN} of {request.model.name}{variant}"
    return f"{subject.name}{variant}"


def _subjects(built: Built, request: Request) -> Iterator[tuple[str, Subject]]:
    """Yields (role, subject), the one to judge first."""
    offered = built.task.floors()
    extent = request.extent or getattr(request.model, "extent", None)
    for floor in offered.values():
        see(floor, extent)
    if request.floor is not None:
        if request.floor in offered:
            yield "floor", offered[request.floor]
        elif request.others is None:
            raise UserError(f"no floor {request.floor!r}.{did_you_mean(request.floor, offered)}")
        else:
            yield "floor", request.others(request.floor)
        return
    if request.model is not None:
        yield "model", request.model
    if request.twin is not None:
        yield TWIN, request.twin
    if request.floors:
        for floor in offered.values():
            yield "floor", floor


# ------------------------------------------------------------------------------------------------------ plain data


def as_record(report: Report, *, items: bool) -> dict[str, Any]:
    """Returns a report as plain data for JSON.

    Args:
        report: what to tell.
        items: include the metric of every resampled item, and the predictions.
    """
    record: dict[str, Any] = {
        "task": report.task,
        "simulated": bool(report.card.get("simulated")),
        "split": report.split,
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
        "value": number(result.value),
        "interval95": [number(end) for end in result.interval],
        "n": result.n,
        "unit": result.unit,
        "model_minus_this": None,
        "metrics": {name: number(value) for name, value in result.metrics.items()},
        "intervals95": intervals(result),
        "items": result.items,
        "details": result.details,
        "counts": dict(entry.counts),
        "seconds": round(entry.seconds, 3),
    }
    if difference is not None:
        record["model_minus_this"] = {
            "value": number(difference.value),
            "interval95": [number(end) for end in difference.interval],
            "model_is": difference.verdict,
        }
    if items:
        record["per_item"] = [number(float(value)) for value in result.per_item]
        record["predictions"] = {name: list(column) for name, column in result.predictions.items()}
    return record


def intervals(result: TaskResult) -> dict[str, list[float | None]]:
    """Returns the intervals of all metrics that have one."""
    known = {**result.intervals, result.metric: result.interval}
    return {name: [number(end) for end in ends] for name, ends in known.items()}


def number(value: float) -> float | None:
    """Returns a number that JSON can hold: what is not finite, which it cannot, becomes null."""
    return value if math.isfinite(value) else None
