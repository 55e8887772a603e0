"""Tasks with one label a sequence, or a pair: whatever a definition says, by a probe on pooled features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom_tasks import intervals, metrics, sequence_heads, sequence_metrics, sequence_probes
from protloom_tasks.datasets import tables
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.datasets.selection import sources
from protloom_tasks.definition import Scored, load_as
from protloom_tasks.definition_kinds import SequenceDefinition, described
from protloom_tasks.floors import Composition, Floor, Kmer2, Length, OneHot, cropped_for
from protloom_tasks.probe_options import ProbeOptions
from protloom_tasks.resampling import Resamples
from protloom_tasks.task_base import DefinedTask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.datasets.files import Source
    from protloom_tasks.datasets.tables import Row, Rows

DEFINITIONS: Mapping[str, str] = {
    "Spearman": "correlation of the ranks of prediction and label over the rows of the split, ties at their mean rank",
    "Pearson": "linear correlation of prediction and label over the rows of the split",
    "R2": "share of the labels' variance that is explained; below 0 where their mean would be nearer",
    "MSE": "mean squared error",
    "MAE": "mean absolute error",
    "AUC": "area under the ROC curve: how often a positive row scores above a negative one, ties count half",
    "accuracy": "share of rows whose class is predicted; a class that training lacks can only be missed",
    "AP": "average precision: mean over positive rows of the precision among all that score at least as high",
    "F1": "harmonic mean of precision and recall of the positive class, which scores above 0",
    "balanced accuracy": "mean over classes of the share of their rows whose class is predicted",
    "MCC": "Matthews' correlation of true and predicted class, over all classes; 0 where one is constant",
    "OvR AUC": "mean over classes of the AUC of one class against the rest; classes without a positive are left out",
    "micro F1": "F1 over all (row, label) decisions together; labels that training lacks are left out",
    "macro F1": "mean over classes of F1",
    "Fmax": "best F of mean precision and mean recall over thresholds of the score",
}
"""What the main metrics are."""


PER_ITEM: Mapping[str, str] = {
    "regression": "absolute error",
    "binary": "0 where the class is right, 1 where it is wrong",
    "multiclass": "0 where the class is right, 1 where it is wrong",
    "multilabel": "share of labels that are decided wrongly",
}
"""What is kept of every item: how wrong it is, since most of the main metrics are no means over items."""


class SequenceConfig(ProbeOptions):
    """Options of a task on whole sequences."""

    definition: str = Field(description="A shipped definition, or the path of a YAML file")
    variant: str | None = Field(default=None, description="Which of its variants")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    split: Scored = Field(default="valid", description="What is scored; test is for reporting, never to choose by")
    train_rows: int | None = Field(default=5000, ge=2, description="Training rows, drawn by seed; null: all")
    rows: int | None = Field(default=2000, ge=2, description="Scored rows, drawn by seed; null: all")
    pool: Literal["mean", "max", "cls"] = Field(default="mean", description="How residue states become one vector")
    include_specials: bool = Field(default=True, description="mean and max see <cls> and <eos>, as published")
    probe: sequence_probes.Probe = Field(
        default="lbfgs",
        description="What is fitted: ridge or logistic regression by one of two solvers, knn, convbert, or lora",
    )


@dataclass(frozen=True)
class _Data:
    """What is fitted on and scored."""

    train: Sequence[Row]
    scored: Sequence[Row]
    train_labels: NDArray[Any]
    labels: NDArray[Any]
    classes: Sequence[str]
    details: Mapping[str, Any]


class SequenceTask(DefinedTask[SequenceDefinition]):
    """One task of a definition.

    Args:
        config: which definition, which split and how many rows, pooling, probe.

    Raises:
        UserError: the definition is wrong.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(load_as(SequenceDefinition, config.definition, config.variant), config.data_dir)
        self.config = config
        known = sequence_metrics.METRICS[self.definition.kind]
        if self.definition.main not in known:
            raise UserError(
                f"definition {config.definition!r}: metric {self.definition.main!r} is none of a "
                f"{self.definition.kind} task: {', '.join(known)}"
            )
        self._rows: Rows | None = None
        self._data: dict[tuple[int, int | None], _Data] = {}

    def _sources(self) -> Sequence[Source]:
        return sources(self.definition, self.definition.all_tables())

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        said = self.definition
        lower = said.main in sequence_metrics.LOWER_IS_BETTER
        return {
            "title": said.title,
            "kind": f"{said.kind} of {'pairs of sequences' if said.partner else 'sequences'}, frozen features",
            "metric": said.main,
            "better": "lower" if lower else "higher",
            "also": tuple(name for name in sequence_metrics.METRICS[said.kind] if name != said.main),
            "definition": DEFINITIONS[said.main],
            "splits": described(said),
            "probe": sequence_heads.described(self.config.probe, said.kind),
            "options": self.config.model_dump(exclude={"data_dir", "definition", "variant"}),
            "interval": "bootstrap over " + self._unit(),
            **self._tail(),
        }

    def _unit(self) -> str:
        """Returns what is resampled."""
        if self.definition.group:
            return f"values of {self.definition.group}"
        return "proteins" if self.definition.partner else "sequences"

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all sequences of a split; see :class:`protloom.contracts.HasSequences`."""
        return self._read().sequences(split)

    def _read(self) -> Rows:
        if self._rows is None:
            self._rows = tables.read(self.definition, self._data_dir, self._folder, self.config.split)
        return self._rows

    def _floors(self) -> Sequence[Floor]:
        linear: tuple[Floor, ...] = (Kmer2(), Composition(), Length())
        return (OneHot(), *linear) if self.config.probe == "convbert" else linear

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._data:
            self._data = {(seed, limit): self._load(seed, limit)}
        data = self._data[seed, limit]
        kind = self.definition.kind
        subject = cropped_for(subject, self.config.probe)
        found = self._outputs(subject, data, seed)
        # a row without features is not scored: any output for it would be made up
        kept = np.flatnonzero(found.present)
        if not len(kept):
            raise UserError(f"{self.name}: none of the {len(data.scored)} scored rows has features; see --long")
        scored = replace(data, scored=[data.scored[i] for i in kept.tolist()], labels=data.labels[kept])
        details = {
            **data.details,
            **found.details,
            "train_rows": int(found.usable.sum()),
            "rows": len(kept),
            "without_features": {"train": int((~found.usable).sum()), "scored": int((~found.present).sum())},
            "seed": seed,
            **told(kind, data.classes, sequence_heads.effective(self.config.probe, subject)),
            "per_item_is": f"{PER_ITEM[kind]}; mean over the rows of each of the {self._unit()}, in alphabetical order",
        }
        return self._result(scored, found.output[kept], details, seed)

    def _outputs(self, subject: Subject, data: _Data, seed: int) -> sequence_heads.Found:
        """Fits the probe on the training rows and applies it to the scored ones."""
        kind, config = self.definition.kind, self.config
        probe = sequence_heads.effective(config.probe, subject)
        if probe in ("convbert", "lora"):
            if self.definition.partner:
                raise UserError(f"{self.name}: probe: {probe} reads one sequence, and these rows hold two; use lbfgs")
            train_sequences, sequences = ([row.sequence for row in rows] for rows in (data.train, data.scored))
            given = (subject, train_sequences, data.train_labels, sequences)
            if probe == "convbert":
                return sequence_heads.by_convbert(*given, kind=kind, pool=config.pool, options=config, seed=seed)
            specials = config.include_specials
            return sequence_heads.by_lora(
                *given, kind=kind, pool=config.pool, specials=specials, options=config, seed=seed
            )
        train, usable = self._features(subject, data.train)
        scored, present = self._features(subject, data.scored)
        labels, asked = data.train_labels[usable], {"scored": np.where(present[:, None], scored, 0)}
        if probe == "knn":
            output = sequence_probes.nearest(
                train[usable], labels, asked, kind=kind, k=config.neighbours, distance=config.distance
            )
        else:
            output = sequence_probes.fit(train[usable], labels, asked, kind=kind, probe=probe, seed=seed)
        return sequence_heads.Found(output.values["scored"], usable, present, output.details)

    def _features(self, subject: Subject, rows: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns the features of rows, those of a pair side by side, and which rows have any."""
        pool, specials = self.config.pool, self.config.include_specials
        found = subject.pooled([row.sequence for row in rows], pool=pool, include_specials=specials)
        if self.definition.partner:
            other = subject.pooled([row.partner for row in rows], pool=pool, include_specials=specials)
            found = np.concatenate([found, other], axis=1)
        return found, np.asarray(np.isfinite(found).all(axis=1))

    def _load(self, seed: int, limit: int | None) -> _Data:
        rows, split = self._read(), self.config.split
        if split not in rows.splits:
            raise UserError(f"there is no {split} split; it has {', '.join(rows.splits)}")
        most = {"train": self.config.train_rows, split: self.config.rows}
        most = {name: min((n for n in (size, limit) if n is not None), default=None) for name, size in most.items()}
        chosen = {
            name: [rows.splits[name][i] for i in draw(len(rows.splits[name]), size, seed, name == split)]
            for name, size in most.items()
        }
        labels, classes = tables.encode(chosen, self.definition)
        details: dict[str, Any] = {
            "files": rows.files,
            "split": split,
            "available": {name: len(of) for name, of in rows.splits.items()},
            "left_out": {reason: n for reason, n in rows.counts.items() if n},
            "limit": limit,
        }
        if self.definition.kind == "multiclass":
            trained = int(labels["train"].max()) + 1
            details["classes"] = trained
            details["rows_of_classes_unseen_in_training"] = int((labels[split] >= trained).sum())
        elif self.definition.kind == "multilabel":
            known = set(classes)
            values = [row.value for row in chosen[split]]
            details["classes"] = len(classes)
            details["labels_unseen_in_training"] = sum(name not in known for of in values for name in of)
        return _Data(chosen["train"], chosen[split], labels["train"], labels[split], classes, details)

    def _result(self, data: _Data, output: NDArray[np.float64], details: dict[str, Any], seed: int) -> TaskResult:
        kind, main = self.definition.kind, self.definition.main
        known = sequence_metrics.METRICS[kind]
        resamples = self._resamples(data.scored, seed)
        everything = np.arange(len(output))[None]
        values = {name: float(metric(data.labels, output, everything)[0]) for name, metric in known.items()}
        many = output.ndim == 2 and output.shape[1] > sequence_metrics.MOST_CLASSES
        replicates = {
            name: resamples.of(partial(metric, data.labels, output))
            for name, metric in known.items()
            if name == main or not (many and name in sequence_metrics.SLOW)
        }
        if math.isnan(values[main]):
            details = {**details, "undefined": metrics.why_undefined(data.labels, output)}
        return TaskResult(
            metric=main,
            value=values[main],
            interval=percentile_interval(replicates[main]),
            n=resamples.n,
            unit=self._unit(),
            metrics=values,
            intervals={name: percentile_interval(of) for name, of in replicates.items()},
            per_item=resamples.means(_errors(kind, data.labels, output)),
            replicates=replicates[main],
            items=intervals.fingerprint(self.name, (row.sequence + row.partner for row in data.scored), seed),
            predictions=_predictions(data, output),
            details=details,
        )

    def _resamples(self, rows: Sequence[Row], seed: int) -> Resamples:
        if self.definition.partner and not self.definition.group:
            return Resamples([row.sequence for row in rows], [row.partner for row in rows], seed=seed)
        return Resamples([row.group for row in rows], seed=seed)


def _errors(kind: str, truth: NDArray[Any], output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how wrong each row is, ``[n]``: absolute error, 1 for a wrong class, share of wrong labels."""
    if kind == "regression":
        return np.abs(truth - output)
    if kind == "multilabel":
        return np.asarray(((output > 0) != truth).mean(axis=1), dtype=np.float64)
    return (sequence_metrics.decisions(output) != truth).astype(np.float64)


def told(kind: str, classes: Sequence[str], probe: str) -> Mapping[str, str]:
    """Returns in words what the columns ``output`` and ``score CLASS`` of the predictions are."""
    if kind == "regression":
        return {"output_is": "the predicted label"}
    score = "share of {} among the neighbours, less one half" if probe == "knn" else "log-odds of {}"
    if kind == "binary":
        return {"output_is": f"{score.format(repr(classes[1]))}; above 0 it is decided for"}
    if kind == "multilabel":
        return {"output_is": "the labels whose score is above 0", "score_is": score.format("each label")}
    own = "share of each class among the neighbours" if probe == "knn" else "linear score of each class"
    return {"output_is": "the class with the highest score", "score_is": own}


def _predictions(data: _Data, output: NDArray[np.float64]) -> Mapping[str, Sequence[Any]]:
    """Returns a table of what was predicted, a row a sequence."""
    table: dict[str, Sequence[Any]] = {"id": [row.name for row in data.scored]}
    table |= {"sequence": [row.sequence for row in data.scored]}
    if any(row.partner for row in data.scored):
        table["partner"] = [row.partner for row in data.scored]
    table["label"] = [list(row.value) if isinstance(row.value, tuple) else row.value for row in data.scored]
    if output.ndim == 1:
        table["output"] = output.tolist()
    elif data.labels.ndim == 1:
        table["output"] = [data.classes[i] for i in output.argmax(axis=1).tolist()]
    else:
        table["output"] = [[data.classes[i] for i in np.flatnonzero(row > 0).tolist()] for row in output]
    if output.ndim == 2:
        for name, column in zip(data.classes, output.T.tolist(), strict=False):  # of classes that training holds
            # a task may have a thousand classes; the digits that are cut change no rank that means anything
            table[f"score {name}"] = [float(f"{score:.5g}") for score in column]
    return table
