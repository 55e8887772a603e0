"""Tasks with a label on every residue: whatever a definition says, by a linear probe on frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from protloom.errors import UserError
from protloom_tasks import residue_heads
from protloom_tasks.datasets import residue_rows
from protloom_tasks.datasets.proteins import Splits, draw
from protloom_tasks.datasets.selection import Reader, sources
from protloom_tasks.definition import Scored, load_as
from protloom_tasks.definition_kinds import ResidueDefinition, described
from protloom_tasks.floors import Floor, OneHot, cropped_for
from protloom_tasks.residue_probe import Measure, ProbeConfig, score
from protloom_tasks.task_base import DefinedTask

if TYPE_CHECKING:
    from protloom.contracts import Subject, TaskResult
    from protloom_tasks.datasets.files import Source
    from protloom_tasks.datasets.proteins import Labelled

ACCURACY = (
    "share of right classes ({classes}) among residues with a label, all proteins pooled; '{name} per protein' is the"
    " mean of each protein's share, a different number"
)
SPEARMAN = (
    "correlation of the ranks of prediction and label over all residues with a label, proteins pooled, ties at their"
    " mean rank; 'Spearman per protein' is the mean of each protein's correlation, a different number"
)
ORDINAL = "correlation of the ranks of true and predicted class, which are in an order, all residues pooled"
PROBES = {
    True: "StandardScaler + logistic regression on frozen features of single residues, C fixed, nothing chosen on test",
    False: "StandardScaler + ridge(alpha=1) on frozen features of single residues",
}


class ResidueConfig(ProbeConfig):
    """Options of a task on residues."""

    definition: str = Field(description="A shipped definition, or the path of a YAML file")
    variant: str | None = Field(default=None, description="Which of its variants")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    split: Scored = Field(default="valid", description="What is scored; test is for reporting, never to choose by")
    proteins: int | None = Field(default=None, ge=1, description="Scored proteins, drawn by seed; null: all")
    window: int = Field(default=7, ge=0, description="Floor: residues on each side")


class ResidueTask(DefinedTask[ResidueDefinition]):
    """One task of a definition.

    Args:
        config: which definition, which split, size of the probe.

    Raises:
        UserError: the definition is wrong.
    """

    def __init__(self, config: ResidueConfig) -> None:
        super().__init__(load_as(ResidueDefinition, config.definition, config.variant), config.data_dir)
        self.config = config
        self._splits: dict[tuple[int, int | None], Splits] = {}

    def _sources(self) -> Sequence[Source]:
        return sources(self.definition, self.definition.all_tables())

    def _needed(self) -> Sequence[Source]:
        return self._sources_of("train", self.config.split)

    def _sources_of(self, *splits: str) -> Sequence[Source]:
        there = residue_rows.splits_read(self.definition, splits)
        return sources(self.definition, (table for split in there for table in self.definition.splits[split]))

    def _floors(self) -> Sequence[Floor]:
        return (OneHot(self.config.window),)

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        said = self.definition
        text = ACCURACY.format(classes=", ".join(said.label.classes), name=said.accuracy)
        if said.main == "Spearman":
            text = ORDINAL if said.label.classes else SPEARMAN
        return {
            "title": said.title,
            "kind": f"{'classes' if said.label.classes else 'numbers'} of residues, frozen features",
            "metric": said.main,
            "better": "higher",
            "also": tuple(name for name in said.metrics if name != said.main),
            "definition": text,
            "splits": described(said),
            "probe": residue_heads.described(self.config.probe, PROBES[bool(said.label.classes)]),
            "options": self.config.model_dump(exclude={"data_dir", "definition", "variant"}),
            "interval": f"bootstrap over {self._unit()}, with all their residues",
            **self._tail(),
        }

    def _unit(self) -> str:
        """Returns what is resampled: rows of one sequence are one protein."""
        return f"values of {self.definition.group}" if self.definition.group else "proteins"

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all sequences of a split; see :class:`protloom.contracts.HasSequences`."""
        return [protein.sequence for protein in self._read([split])[0].get(split, ())]

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._load(seed, limit)}
        said, splits = self.definition, self._splits[seed, limit]
        measure = Measure(said.main, said.accuracy, said.label.classes, said.label.ordinal)
        subject = cropped_for(subject, self.config.probe)
        return score(subject, splits, self.config, measure, task=self.name, unit=self._unit(), seed=seed)

    def _read(self, wanted: Sequence[str]) -> tuple[dict[str, list[Labelled]], Reader]:
        reader = Reader(self.definition, self._data_dir, self._folder)
        return residue_rows.read(self.definition, reader, wanted, self.config.split), reader

    def _load(self, seed: int, limit: int | None) -> Splits:
        split = self.config.split
        found, reader = self._read(["train", split])
        if split not in found:
            raise UserError(f"there is no {split} split; it has {', '.join(self.definition.all_splits())}")
        train, scored = found["train"], found[split]
        sizes = {"train": self.config.train_proteins, split: self.config.proteins}
        most = {name: min((n for n in (size, limit) if n is not None), default=None) for name, size in sizes.items()}
        details = {
            "files": reader.files,
            "split": split,
            "available": {name: len(of) for name, of in found.items()},
            "left_out": {reason: n for reason, n in reader.counts.items() if n},
            "limit": limit,
        }
        # the order matters: drawn before duplicates are removed, test sets share one probe
        return Splits(
            [train[i] for i in draw(len(train), most["train"], seed, 0)],
            [scored[i] for i in draw(len(scored), most[split], seed, 1)],
            details,
        )
