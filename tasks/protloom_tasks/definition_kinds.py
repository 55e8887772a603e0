"""What the files of the kinds of tasks on sequences may say: labels of sequences, labels of residues, retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from protloom.settings import Section
from protloom_tasks.definition import Carve, Definition, Split, Table, tables

SequenceKind = Literal["regression", "binary", "multiclass", "multilabel"]
ResidueKind = Literal["residue-multiclass", "residue-regression"]

METRIC: Mapping[str, str] = {
    "regression": "Spearman",
    "binary": "AUC",
    "multiclass": "accuracy",
    "multilabel": "micro F1",
    "residue-multiclass": "accuracy",
    "residue-regression": "Spearman",
}
"""The main metric of a kind, where a definition names none."""


class TableDefinition(Definition):
    """A task whose sequences stand in tables."""

    sequence: list[str] = Field(min_length=1, description="Column of the sequence; of several, joined in this order")
    fasta: list[str] = Field(default=[], description="FASTA files; columns of sequences then hold their ids")

    @field_validator("sequence", "fasta", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def all_tables(self) -> Iterator[Table]:
        """Yields the tables of every split."""
        raise NotImplementedError

    def all_columns(self) -> Iterator[str]:
        """Yields the columns that every table must have, by the names used in the definition."""
        raise NotImplementedError


class SplitDefinition(TableDefinition):
    """A task that is trained and tested."""

    splits: dict[Split, list[Table]] = Field(description="Which rows of which files")
    carve: list[Carve] = Field(default=[], description="Splits that are made of others")
    group: str | None = Field(default=None, description="Column: rows of one value are resampled together")
    metric: str | None = Field(default=None, description="Main metric; default: that of the kind")

    @field_validator("splits", mode="before")
    @classmethod
    def _splits(cls, value: Any) -> Any:
        return {split: tables(of) for split, of in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _complete(self) -> SplitDefinition:
        there = set(self.splits)
        for carve in self.carve:
            if carve.split in there:
                raise ValueError(f"carve: there is a {carve.split} split already")
            if carve.source not in there:
                raise ValueError(f"carve: there is no {carve.source} split to take {carve.split} from")
            there.add(carve.split)
        missing = {"train", "test"} - there
        if missing:
            raise ValueError(f"splits: no {sorted(missing)[0]} split, and none is carved")
        return self

    @property
    def main(self) -> str:
        """The main metric."""
        return self.metric or METRIC[self.kind]

    def all_tables(self) -> Iterator[Table]:
        """Yields the tables of every split."""
        for of in self.splits.values():
            yield from of

    def all_columns(self) -> Iterator[str]:
        """Yields the columns that every table must have."""
        yield from self.sequence
        if self.group:
            yield self.group
        yield from (carve.by for carve in self.carve if carve.by)


class Label(Section):
    """How the label of a sequence is read."""

    column: str = Field(description="Its column")
    separator: str | None = Field(default=None, description="Between the values of a cell: of a list, or of classes")
    mean: bool = Field(default=False, description="The label is the mean of the cell's numbers; 'nan' is left out")
    below: float | None = Field(default=None, description="Numbers that are not below this stand for no value")
    drop: list[str] = Field(default=[], description="Rows with these labels are left out, and counted")
    positive: str | None = Field(default=None, description="Binary: the class that is looked for; default: named last")


class SequenceDefinition(SplitDefinition):
    """A task with one label a sequence, or a pair of sequences."""

    kind: SequenceKind = Field(description="What the label is")
    partner: str | None = Field(default=None, description="Column of a second sequence: the task is about pairs")
    label: Label = Field(description="Column of the label, or more of it")

    @field_validator("label", mode="before")
    @classmethod
    def _label(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _pairs(self) -> SequenceDefinition:
        if any(carve.partners for carve in self.carve) and self.partner is None:
            raise ValueError("carve: 'partners' is for pairs; name the column of the second sequence by 'partner'")
        return self

    def all_columns(self) -> Iterator[str]:
        """Yields the columns that every table must have."""
        yield from super().all_columns()
        yield self.label.column
        if self.partner:
            yield self.partner
