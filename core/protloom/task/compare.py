"""Compares two models by results that ``task run --out`` kept: paired differences, wins, losses and ties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.compare import significance
from protloom.errors import UserError, did_you_mean
from protloom.scoring import MARGINS, VERDICTS, Difference, paired_difference
from protloom.task import notes
from protloom.task.results import HOME, ResultFolder, result_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from protloom.task.results import Record


@dataclass(frozen=True)
class Pair:
    """One task that both models were scored on.

    Attributes:
        task: its name.
        split: what was scored, None for a task with one set of rows, which is its test set.
        metric: the main metric.
        lower: lower is better.
        first: value of the first model.
        second: value of the second.
        difference: first minus second, above 0 where the first is better.
        simulated: the proteins are made by a program.
    """

    task: str
    split: str | None
    metric: str
    lower: bool
    first: float
    second: float
    difference: Difference
    simulated: bool


@dataclass(frozen=True)
class Comparison:
    """What two models reached.

    Attributes:
        first: label of one.
        second: label of the other.
        pairs: the tasks that both have.
        lacking: label -> tasks that it lacks and the other has.
        cautions: what makes the comparison worth less.
    """

    first: str
    second: str
    pairs: Sequence[Pair]
    lacking: Mapping[str, Sequence[str]]
    cautions: Sequence[str]


def compare(
    first: str, second: str, *, allow: Sequence[str] = (), warn: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Compares two subjects.

    Args:
        first: a folder of results that holds one model, or ``FOLDER#SUBJECT``.
        second: the same.
        allow: options of tasks that may differ, such as ``pool``.
        warn: receives a line about a file that cannot be read.

    Raises:
        UserError: there is no such subject, or the results of a task are about other items, options or data.
    """
    (name, own), (other_name, other) = _find(first, warn), _find(second, warn)
    if name == other_name:
        name, other_name = first, second
    pairs, cautions = [], set[str]()
    for key, record in own.items():
        if key in other:
            _refuse_unlike(record, other[key], allow)
            cautions.update(_cautions(record, other[key]))
            pairs.append(_pair(record, other[key]))
    if not pairs:
        _refuse_other_splits(own, other)
    lacking = {
        name: [_title(*key) for key in other if key not in own],
        other_name: [_title(*key) for key in own if key not in other],
    }
    return Comparison(name, other_name, pairs, lacking, sorted(cautions))


def _title(task: str, split: str | None) -> str:
    return task if split is None else f"{task} ({split})"


def _find(source: str, warn: Callable[[str], None]) -> tuple[str, dict[tuple[str, str | None], Record]]:
    """Returns the label of a subject and its results by task and split."""
    path, records = find_records(source, warn)
    labels = list(dict.fromkeys(r["subject"] for r in records))
    if "#" not in source:
        models = list(dict.fromkeys(r["subject"] for r in records if r["role"] == "model"))
        if len(models) != 1:
            offers = ", ".join(f"'{path}#{label}'" for label in models or labels) or "nothing"
            raise UserError(f"{path}: holds {len(models)} models; write one of {offers}")
        labels = models
    return labels[0], {(r["task"], r["split"]): r for r in records if r["subject"] == labels[0]}


def find_records(source: str, warn: Callable[[str], None]) -> tuple[str, list[Record]]:
    """Reads a folder of results.

    Args:
        source: the folder, or ``FOLDER#SUBJECT`` for the results of one subject: its label, or where one subject alone
            has it, the name that ``task run`` prints.
        warn: receives a line about a file that cannot be read.

    Returns:
        The folder's path, and the results.

    Raises:
        UserError: there is no such folder, or no such subject in it.
    """
    path, hash_, wanted = source.partition("#")
    folder = Path(path).expanduser()
    if not (folder / HOME).is_dir():
        raise UserError(f"{path}: no folder of results; 'protloom task run … --out {path}' makes one")
    records = ResultFolder(folder, warn).records()
    if not hash_:
        return path, records
    label = _label(path, wanted, records)
    return path, [r for r in records if r["subject"] == label]


def _label(path: str, wanted: str, records: Sequence[Record]) -> str:
    """Returns the subject that is meant; options beside the defaults (a layer) are in its label, not in its name."""
    labels = list(dict.fromkeys(r["subject"] for r in records))
    if wanted in labels:
        return wanted
    named = list(dict.fromkeys(str(r["subject"]) for r in records if r.get("name") == wanted))
    if len(named) > 1:
        offers = ", ".join(f"'{path}#{label}'" for label in named)
        raise UserError(f"{path}: {len(named)} subjects are called {wanted!r}; write one of {offers}")
    if not named:
        raise UserError(f"{path}: no results of {wanted!r}.{did_you_mean(wanted, labels)}")
    return named[0]


def _refuse_other_splits(
    own: Mapping[tuple[str, str | None], Record], other: Mapping[tuple[str, str | None], Record]
) -> None:
    """Raises UserError where both have a task, but of other splits."""
    for task, split in own:
        others = [scored for name, scored in other if name == task]
        if others:
            sets = [scored or "the one set of rows" for scored in (split, others[0])]
            raise UserError(
                f"{task}: one was scored on {sets[0]}, the other on {sets[1]}: run one of them again, with --test or"
                f" without"
            )


def _refuse_unlike(first: Record, second: Record, allow: Sequence[str]) -> None:
    """Raises UserError where a difference would not be one of the models."""
    where = _title(first["task"], first["split"])
    advice = "run one of them again with the same"
    one, other = first["key"], second["key"]
    for what, a, b in (
        ("task", one["task"], other["task"]),
        ("data", one["data"], other["data"]),
        ("seed", one["seed"], other["seed"]),
        ("limit", one["limit"], other["limit"]),
    ):
        if a != b:
            detail = "" if what == "data" else f" ({a} and {b})"
            raise UserError(f"{where}: the two results differ in {what}{detail}: {advice}")
    for option in sorted({*one["options"], *other["options"]} - set(allow)):
        a, b = one["options"].get(option), other["options"].get(option)
        if a != b:
            raise UserError(
                f"{where}: the two results differ in option {option} ({a} and {b}): {advice}, or say --allow {option}"
            )
    if first["items"] != second["items"] or first["metric"] != second["metric"]:
        what = "other items or another metric"
        raise UserError(f"{where}: the two results are about {what}: {advice} version and --long")


def _cautions(first: Record, second: Record) -> Iterator[str]:
    """Yields what differs and is no reason to refuse."""
    one, other = first["key"]["code"], second["key"]["code"]
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            what = "the code of tasks" if name == "task" else name
            yield f"results were made with different versions of {what}"
    for record in (first, second):
        if record["card"].get("simulated"):
            yield "SIMULATED proteins among the tasks"
    for line in notes.of_size(first["n"], first["unit"]):
        yield f"{_title(first['task'], first['split'])}: {line}"


def _pair(first: Record, second: Record) -> Pair:
    lower = first["card"].get("better") == "lower"
    one, other = result_of(first), result_of(second)
    gap = paired_difference(other, one) if lower else paired_difference(one, other)
    simulated = bool(first["card"].get("simulated"))
    return Pair(first["task"], first["split"], one.metric, lower, one.value, other.value, gap, simulated)


def summary(found: Comparison, margins: Sequence[float] = MARGINS) -> dict[str, Any]:
    """Returns the comparison as plain data: each task, counts at every margin, tests over tasks."""
    deltas = [pair.difference.value for pair in found.pairs]
    verdicts = [pair.difference.verdict for pair in found.pairs]
    return {
        "first": found.first,
        "second": found.second,
        "tasks": [
            {
                "task": pair.task,
                "split": pair.split,
                "simulated": pair.simulated,
                "metric": pair.metric,
                "better": "lower" if pair.lower else "higher",
                "first": pair.first,
                "second": pair.second,
                "difference": pair.difference.value,
                "interval95": list(pair.difference.interval),
                "first_is": pair.difference.verdict,
            }
            for pair in found.pairs
        ],
        "decided": {word: verdicts.count(word) for word in VERDICTS},
        "counts": [significance.count(deltas, margin) for margin in margins],
        "wilcoxon_p": significance.wilcoxon(deltas),
        "mean_difference": sum(deltas) / len(deltas) if deltas else None,
        "lacking": {label: list(tasks) for label, tasks in found.lacking.items() if tasks},
        "cautions": list(found.cautions),
    }
