"""Averages what models reach over assays of mutations as ProteinGym does: from folders of results to its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protloom.errors import UserError
from protloom.task.compare import find_records

if TYPE_CHECKING:
    from protloom.task.results import Record

DRAWS = 10_000
"""Bootstrap draws of the standard error over proteins."""


class AssayValue(NamedTuple):
    """A metric of one assay.

    Attributes:
        assay: its name.
        protein: the UniProt entry that it is about.
        selection: type of what was measured: Activity, Binding, Expression, OrganismalFitness, Stability.
        value: the metric; NaN where it is not defined.
    """

    assay: str
    protein: str
    selection: str
    value: float


@dataclass(frozen=True)
class Aggregate:
    """A metric over assays.

    Attributes:
        value: mean over selection types of the mean over proteins of the mean over a protein's assays.
        standard_error: of ``value``, by the bootstrap; NaN where every selection type has one protein.
        selections: selection type -> its mean.
        assays: how many have a value.
        left_out: names of those that have none.
    """

    value: float
    standard_error: float
    selections: Mapping[str, float]
    assays: int
    left_out: Sequence[str]


def aggregate(values: Iterable[AssayValue], *, seed: int = 0, draws: int = DRAWS) -> Aggregate:
    """Averages a metric over assays as ProteinGym does.

    Assays of one protein and selection type are averaged first, then the proteins of a type, then the types, so that a
    protein that was assayed often counts once. The standard error is the standard deviation of that mean when the
    proteins of each type are drawn again, with replacement, ``draws`` times. Of a *difference* to another model, give
    the differences: that is what ProteinGym's table shows, relative to its best model.

    Args:
        values: of the assays.
        seed: of the draws.
        draws: how many.
    """
    given = list(values)
    grouped: dict[str, dict[str, list[float]]] = {}
    for one in given:
        if np.isfinite(one.value):
            grouped.setdefault(one.selection, {}).setdefault(one.protein, []).append(one.value)
    left_out = [one.assay for one in given if not np.isfinite(one.value)]
    if not grouped:
        return Aggregate(float("nan"), float("nan"), {}, 0, left_out)
    proteins = {
        kind: np.array([float(np.mean(of)) for _, of in sorted(grouped[kind].items())]) for kind in sorted(grouped)
    }
    rng = np.random.default_rng(seed)
    drawn = [of[rng.integers(len(of), size=(draws, len(of)))].mean(axis=1) for of in proteins.values()]
    # of one protein each, every draw is the same: 0 would claim that the mean is exact
    alone = all(len(of) == 1 for of in proteins.values())
    selections = {kind: float(of.mean()) for kind, of in proteins.items()}
    return Aggregate(
        float(np.mean(list(selections.values()))),
        float("nan") if alone else float(np.mean(drawn, axis=0).std(ddof=1)),
        selections,
        len(given) - len(left_out),
        left_out,
    )


# ---------------------------------------------------------------------------------------------------- of kept results


class Assay(NamedTuple):
    """A task whose card says what it is an assay of.

    Attributes:
        task: its name.
        protein: the UniProt entry.
        selection: type of what was measured.
    """

    task: str
    protein: str
    selection: str


@dataclass(frozen=True)
class Standing:
    """What one subject reaches over the assays.

    Attributes:
        subject: its label; with its folder where two folders hold one of that name.
        role: ``model``, ``random init`` or ``floor``.
        metrics: the mean of each metric.
        behind: by how much the first subject is better, of each metric; None for the first one itself.
    """

    subject: str
    role: str
    metrics: Mapping[str, Aggregate]
    behind: Mapping[str, Aggregate] | None


@dataclass(frozen=True)
class Table:
    """Several subjects over the same assays.

    Attributes:
        assays: what the means are over.
        standings: one for each subject, in the order in which they were named.
        left_out: assay or task -> why it is in no mean.
        cautions: what makes the table worth less.
    """

    assays: Sequence[Assay]
    standings: Sequence[Standing]
    left_out: Mapping[str, str]
    cautions: Sequence[str]


def tabulate(sources: Sequence[str], *, seed: int = 0, warn: Callable[[str], None] = lambda line: None) -> Table:
    """Averages results of assays of mutations: those that all subjects have.

    Args:
        sources: folders of results, all of whose subjects take part, or ``FOLDER#SUBJECT``.
        seed: of the draws of standard errors.
        warn: receives a line about a file that cannot be read.

    Raises:
        UserError: no such subject, nothing that all of them have, or results that are about other items or data.
    """
    subjects = _subjects(sources, warn)
    assays, left_out = _common(subjects)
    if not assays:
        told = "; ".join(f"{task}: {why}" for task, why in left_out.items()) or "there are none"
        raise UserError(f"{', '.join(sources)}: no results of mutations that all subjects have ({told})")
    for assay in assays:
        _refuse_unlike(assay.task, {subject: records[assay.task] for subject, records in subjects.items()})
    return Table(assays, _standings(assays, subjects, seed), left_out, _cautions(assays, subjects))


def _subjects(sources: Sequence[str], warn: Callable[[str], None]) -> dict[str, dict[str, Record]]:
    """Returns the results about mutations of each subject by task."""
    found: dict[tuple[str, str], dict[str, Record]] = {}
    for source in dict.fromkeys(sources):
        path, records = find_records(source, warn)
        for record in records:
            if "selection" in record["card"]:
                of_subject = found.setdefault((path, record["subject"]), {})
                before = of_subject.get(record["task"], record)
                # an earlier version kept these results under the name of a split, too: the newer one counts
                if str(before.get("written", "")) <= str(record.get("written", "")):
                    of_subject[record["task"]] = record
    named: dict[str, dict[str, Record]] = {}
    for (path, label), of in found.items():
        others = [records for (other, name), records in found.items() if name == label and other != path]
        if label in named and _same(named[label], of):
            continue  # a floor that was scored for each of two models
        named[f"{path}#{label}" if others and not all(_same(of, other) for other in others) else label] = of
    return named


def _same(one: Mapping[str, Record], other: Mapping[str, Record]) -> bool:
    """Tells whether two folders hold the same of a subject."""
    keys = ("items", "metrics")
    return one.keys() == other.keys() and all(one[task][key] == other[task][key] for task in one for key in keys)


def _common(subjects: Mapping[str, Mapping[str, Record]]) -> tuple[list[Assay], dict[str, str]]:
    """Returns the assays that all subjects have, by type and protein, and why others are in no mean."""
    assays: dict[str, Assay] = {}
    left_out: dict[str, str] = {}
    for task, record in {task: record for records in subjects.values() for task, record in records.items()}.items():
        lacking = [subject for subject, records in subjects.items() if task not in records]
        card = record["card"]
        if not (card.get("protein") and card.get("selection")):
            left_out[task] = "its definition states no protein and selection"
        elif lacking:
            left_out[task] = f"no result of {', '.join(lacking)}"
        else:
            assays[task] = Assay(task, card["protein"], card["selection"])
    return sorted(assays.values(), key=lambda assay: (assay.selection, assay.protein, assay.task)), left_out


def _refuse_unlike(task: str, records: Mapping[str, Record]) -> None:
    """Raises UserError where the results of one assay are not about the same."""
    (label, first), *others = records.items()
    for other, record in others:
        for what, one, two in (
            ("items: run one of them again with the same rows, seed and limit", first["items"], record["items"]),
            ("data: run one of them again", first["key"]["data"], record["key"]["data"]),
        ):
            if one != two:
                raise UserError(f"{task}: the results of {label} and {other} are about other {what}")


def _standings(assays: Sequence[Assay], subjects: Mapping[str, Mapping[str, Record]], seed: int) -> list[Standing]:
    records = [of[assay.task] for of in subjects.values() for assay in assays]
    metrics = [name for name in records[0]["metrics"] if all(name in record["metrics"] for record in records)]
    roles = {subject: of[assays[0].task]["role"] for subject, of in subjects.items()}
    first = next((subject for subject, role in roles.items() if role == "model"), next(iter(subjects)))

    def mean(metric: str, subject: str, of: str | None = None) -> Aggregate:
        """Averages the metric of a subject, or what another one is ahead of it."""
        values = [_value(subjects[subject][assay.task], metric) for assay in assays]
        if of is not None:
            ahead = [_value(subjects[of][assay.task], metric) for assay in assays]
            values = [one - other for one, other in zip(ahead, values, strict=True)]
        return aggregate((AssayValue(*assay, value) for assay, value in zip(assays, values, strict=True)), seed=seed)

    return [
        Standing(
            subject,
            role,
            {metric: mean(metric, subject) for metric in metrics},
            None if subject == first else {metric: mean(metric, subject, first) for metric in metrics},
        )
        for subject, role in roles.items()
    ]


def _value(record: Record, metric: str) -> float:
    value = record["metrics"][metric]
    return float("nan") if value is None else float(value)


def _cautions(assays: Sequence[Assay], subjects: Mapping[str, Mapping[str, Record]]) -> list[str]:
    records = [of[assay.task] for of in subjects.values() for assay in assays]
    told = set()
    for record in records:
        limit = record["key"]["limit"]
        if limit is not None:
            told.add(f"at most {limit} variants of each assay were used: a quick look")
        if record["card"].get("simulated"):
            told.add("SIMULATED proteins among the assays")
    kinds = {assay.selection: {a.protein for a in assays if a.selection == assay.selection} for assay in assays}
    alone = [kind for kind, proteins in kinds.items() if len(proteins) == 1]
    if alone:
        told.add(f"one protein of {', '.join(alone)}: standard errors know nothing of how proteins of a type differ")
    for name in records[0]["key"]["code"]:
        if len({str(record["key"]["code"].get(name)) for record in records}) > 1:
            told.add(f"results were made with different versions of {'the code of tasks' if name == 'task' else name}")
    return sorted(told)


def summary(table: Table) -> dict[str, Any]:
    """Returns the table as plain data."""
    return {
        "assays": [assay._asdict() for assay in table.assays],
        "proteins": len({assay.protein for assay in table.assays}),
        "subjects": [
            {
                "subject": one.subject,
                "role": one.role,
                "metrics": {name: _plain(of) for name, of in one.metrics.items()},
                "first_minus_this": None if one.behind is None else {n: _plain(of) for n, of in one.behind.items()},
            }
            for one in table.standings
        ],
        "left_out": dict(table.left_out),
        "cautions": list(table.cautions),
    }


def _plain(found: Aggregate) -> dict[str, Any]:
    return {
        "value": found.value,
        "standard_error": found.standard_error,
        "selections": dict(found.selections),
        "assays": found.assays,
        "undefined": list(found.left_out),
    }
