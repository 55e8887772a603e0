"""The protocol of labels of residues: a probe on frozen features, linear by default, scored over labelled residues."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom_tasks import intervals, metrics, probes, residue_heads, residue_metrics
from protloom_tasks.datasets.proteins import Labelled, Splits, without_duplicates
from protloom_tasks.neighbours import NeighbourLabels
from protloom_tasks.probe_options import ProbeOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject

BLOCK = 20_000
"""Residues predicted at once."""

UNKNOWN = "-"
"""Stands in saved predictions for a residue that has no label, or no features."""


PER_ITEM = {True: "share of right classes among the residues", False: "mean absolute error over the residues"}
"""What is kept of every item, where labels are classes or not."""


class ProbeConfig(ProbeOptions):
    """Options of a residue probe."""

    train_proteins: int | None = Field(default=1000, ge=1, description="Training proteins, drawn by seed; null: all")
    train_residues: int | None = Field(
        default=100_000, ge=2, description="Residues of them, drawn by seed; null: all; convbert and lora take all"
    )
    probe: residue_heads.Probe = Field(
        default="multinomial",
        description="Form of the logistic regression (ridge for numbers), knn, a convbert layer, or lora",
    )
    c: float = Field(default=1.0, gt=0, description="Inverse strength of its L2 penalty; fixed, never tuned on a test")


@dataclass(frozen=True)
class Measure:
    """What a residue's label is, and what its main metric is called.

    Attributes:
        metric: the main one.
        accuracy: what the share of right classes is called, such as Q3.
        states: name of each class; empty where the label is a number.
        ordinal: the classes are in an order.
    """

    metric: str
    accuracy: str = "accuracy"
    states: Sequence[str] = ()
    ordinal: bool = False


def score(
    subject: Subject, splits: Splits, config: ProbeConfig, measure: Measure, *, task: str, unit: str, seed: int
) -> TaskResult:
    """Fits the probe on the training proteins and scores the test proteins.

    Args:
        subject: gives features.
        splits: training and test proteins.
        config: size and form of the probe.
        measure: what the labels are.
        task: the task's name.
        unit: what is resampled: the groups of the test proteins.
        seed: of the draws of residues and of the bootstrap.

    Raises:
        UserError: if nothing is left to fit on or to score.
    """
    train, removed = without_duplicates(splits.train, splits.test)
    if not train or not splits.test:
        raise UserError(f"{task}: {len(train)} training and {len(splits.test)} test proteins; both need one at least")
    probe = _fit(subject, train, config, seed, classes=bool(measure.states))
    found = _predict(subject, splits.test, probe)
    # a protein without features is not scored, and of a cropped one only the beginning
    seen, owner, counts = np.unique(found.owner, return_inverse=True, return_counts=True)
    tested = [splits.test[i] for i in seen]
    group_of = np.unique([protein.group for protein in tested], return_inverse=True)[1].astype(np.int64)
    scores = _scores(replace(found, owner=owner), group_of, measure, seed)
    details = {
        **splits.details,
        **probe.details,
        "train_proteins": len(train),
        "duplicates_of_test_removed_from_train": removed,
        "test_proteins": len(tested),
        "test_proteins_without_features": sum(len(probes.known(of.labels)) > 0 for of in splits.test) - len(tested),
        "test_residues": len(found.truth),
        "test_residues_without_features": found.missing,
        "seed": seed,
        "per_item_is": f"{PER_ITEM[bool(measure.states)]} of each of the {unit}, in alphabetical order",
    }
    if math.isnan(scores.values[measure.metric]):
        details["undefined"] = metrics.why_undefined(found.truth, found.output)
    return TaskResult(
        metric=measure.metric,
        value=scores.values[measure.metric],
        interval=percentile_interval(scores.replicates[measure.metric]),
        n=len(scores.per_group),
        unit=unit,
        metrics=scores.values,
        intervals={name: percentile_interval(of) for name, of in scores.replicates.items()},
        per_item=scores.per_group,
        replicates=scores.replicates[measure.metric],
        items=intervals.fingerprint(task, map(_scored, tested, counts.tolist()), seed),
        predictions=_table(splits.test, found, measure.states),
        details=details,
    )


@dataclass(frozen=True)
class _Predicted:
    """Truth, output, protein and place of every scored residue ``[R]``, and how many got no features."""

    truth: NDArray[Any]
    output: NDArray[Any]
    owner: NDArray[np.int64]
    place: NDArray[np.int64]
    missing: int


def _scores(found: _Predicted, group_of: NDArray[np.int64], measure: Measure, seed: int) -> residue_metrics.Scores:
    if not measure.states:
        return residue_metrics.numbers(found.truth, found.output, found.owner, group_of, seed=seed)
    return residue_metrics.classes(
        found.truth,
        found.output,
        found.owner,
        group_of,
        states=measure.states,
        accuracy=measure.accuracy,
        ordinal=measure.ordinal,
        seed=seed,
    )


def _fit(
    subject: Subject, train: Sequence[Labelled], config: ProbeConfig, seed: int, *, classes: bool
) -> probes.Fitted | residue_heads.WholeProbe:
    """Fits the probe, or takes the one that another task fitted for this subject on the same residues."""
    labels = [protein.labels for protein in train]
    chosen = probes.choose_residues(labels, config.train_residues, seed)
    _refuse_none(sum(map(len, chosen)))
    digest = hashlib.sha256()
    for protein, index in zip(train, chosen, strict=True):
        digest.update(protein.sequence.encode() + protein.labels.tobytes() + index.tobytes())
    probe = residue_heads.effective(config.probe, subject)
    options = tuple(getattr(config, name) for name in ProbeOptions.model_fields)
    extent = str(getattr(subject, "extent", ""))
    key = ("residue probe", digest.hexdigest(), classes, probe, config.c, options, seed, extent)
    if key not in subject.memo and probe in ("convbert", "lora"):
        make = residue_heads.ConvBertProbe if probe == "convbert" else residue_heads.LoraProbe
        subject.memo[key] = make(subject, train, config, classes=classes, seed=seed)
    if key not in subject.memo:
        rows = probes.gather(subject, [protein.sequence for protein in train], labels, chosen)
        _refuse_none(len(rows.labels))
        if probe == "knn":
            nearest = NeighbourLabels(rows.features, rows.labels, k=config.neighbours, distance=config.distance)
            fitted = probes.Fitted(nearest, nearest.details)
        elif classes:
            kind: probes.Kind = "ovr" if probe == "ovr" else "multinomial"
            fitted = probes.fit_classifier(rows.features, rows.labels, kind=kind, c=config.c, seed=seed)
        else:
            fitted = probes.fit_regressor(rows.features, rows.labels)
        total = sum(len(probes.known(of)) for of in labels)
        fitted.details.update(train_residues=len(rows.labels), train_residues_available=total)
        subject.memo[key] = fitted
    found: probes.Fitted | residue_heads.WholeProbe = subject.memo[key]
    return found


def _refuse_none(residues: int) -> None:
    if not residues:
        raise UserError("no residue of the training proteins is labelled and has features")


def _predict(
    subject: Subject, proteins: Sequence[Labelled], probe: probes.Fitted | residue_heads.WholeProbe
) -> _Predicted:
    chosen = [probes.known(protein.labels) for protein in proteins]
    truth: list[NDArray[Any]] = []
    output: list[NDArray[Any]] = []
    owner: list[NDArray[np.int64]] = []
    place: list[NDArray[np.int64]] = []
    missing = 0
    held: list[NDArray[np.float32]] = []

    def flush() -> None:
        if held and isinstance(probe, probes.Fitted):
            output.append(probe.predict(np.concatenate(held)))
            held.clear()

    sequences = [protein.sequence for protein in proteins]
    # what comes is features, or labels already
    found: Iterator[NDArray[Any]] = (
        subject.residues(sequences) if isinstance(probe, probes.Fitted) else probe.predicted(sequences)
    )
    for i, of in enumerate(found):
        index = chosen[i][chosen[i] < len(of)]
        missing += len(chosen[i]) - len(index)
        if len(index):
            (held if isinstance(probe, probes.Fitted) else output).append(of[index])
            truth.append(proteins[i].labels[index])
            owner.append(np.full(len(index), i, dtype=np.int64))
            place.append(index)
        if sum(map(len, held)) >= BLOCK:
            flush()
    flush()
    if not truth:
        raise UserError("no residue of the test proteins is labelled and has features")
    return _Predicted(
        np.concatenate(truth), np.concatenate(output), np.concatenate(owner), np.concatenate(place), missing
    )


def _scored(protein: Labelled, residues: int) -> str:
    """Returns what identifies a protein of which so many residues were scored, the first ones if not all."""
    labelled = len(probes.known(protein.labels))
    return protein.sequence if residues == labelled else f"{protein.sequence} {residues}"


def _table(proteins: Sequence[Labelled], found: _Predicted, states: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """Returns a table of what was predicted, a row a protein: an entry a residue, a text where classes are letters."""
    table: dict[str, list[Any]] = {"id": [], "sequence": [], "label": [], "output": []}
    ends = np.cumsum(np.bincount(found.owner, minlength=len(proteins)))[:-1]
    columns = [np.split(of, ends) for of in (found.place, found.truth, found.output)]
    for protein, place, truth, output in zip(proteins, *columns, strict=True):
        table["id"].append(protein.id)
        table["sequence"].append(protein.sequence)
        for name, values in (("label", truth), ("output", output)):
            row: list[Any] = [UNKNOWN if states else None] * len(protein.sequence)
            for at, value in zip(place.tolist(), values.tolist(), strict=True):
                row[at] = states[value] if states else value
            table[name].append("".join(row) if states and all(len(state) == 1 for state in states) else row)
    return table
