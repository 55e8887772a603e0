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
    id: str | None = Field(default=None, description="Column of names; default: FASTA ids, else the file and line")

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

    def may_lack(self) -> frozenset[str]:
        """Returns the columns that a table may say it has not."""
        return frozenset()

    @model_validator(mode="after")
    def _present(self) -> TableDefinition:
        for table in self.all_tables():
            columns = table.columns if isinstance(table.columns, Mapping) else {}
            lacking = [name for name, there in columns.items() if there is None and name not in self.may_lack()]
            if lacking:
                raise ValueError(f"columns: {table.file} cannot do without {lacking[0]!r}: name the column there")
        return self


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

    def all_splits(self) -> list[str]:
        """Returns the names of the splits, those that are carved last."""
        return [*self.splits, *(carve.split for carve in self.carve)]

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


def described(said: SplitDefinition) -> str:
    """Returns in words which rows each split holds."""
    parts = [f"{split}: {', '.join(dict.fromkeys(map(_described, of)))}" for split, of in said.splits.items()]
    for carve in said.carve:
        by = "both proteins" if carve.partners else carve.by or said.group or "the sequence"
        parts.append(f"{carve.split}: {carve.share:.0%} of {carve.source}, by a hash of {by}")
    if any(carve.split == "valid" and carve.source == "train" for carve in said.carve):
        parts.append("scored on test, these validation rows are training rows, as they were published")
    return "; ".join(parts)


def _described(table: Table) -> str:
    rows = " and ".join(f"{column} = {' or '.join(filter(None, of))}" for column, of in table.where.items())
    return f"{table.file} ({rows})" if rows else table.file


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
        if self.id:
            yield self.id


class ResidueLabel(Section):
    """How the labels of residues are read: as many as residues."""

    column: str = Field(description="Their column: a letter a residue, or a list")
    classes: list[str] = Field(default=[], description="Every class, in the order in which results list them")
    unknown: list[str] = Field(default=[], description="Letters that stand for no label")
    mask: str | None = Field(default=None, description="Column of a 0 or 1 for each residue; 1: it counts")
    separator: str | None = Field(
        default=None, description="Between the labels of a text; default: a letter is a label"
    )
    below: float | None = Field(default=None, description="Numbers that are not below this stand for no label")
    ordinal: bool = Field(default=False, description="The classes are in an order: Spearman is told too")

    @field_validator("classes", "unknown", mode="before")
    @classmethod
    def _letters(cls, value: Any) -> Any:
        return list(value) if isinstance(value, str) else value


class ResidueDefinition(SplitDefinition):
    """A task with a label on every residue."""

    kind: ResidueKind = Field(description="What a residue's label is: a class or a number")
    label: ResidueLabel = Field(description="How labels are read")
    accuracy: str = Field(default="accuracy", description="What the share of right classes is called, such as Q3")

    @model_validator(mode="after")
    def _labels(self) -> ResidueDefinition:
        if self.partner_carved:
            raise ValueError("carve: 'partners' is for pairs of sequences")
        if self.kind == "residue-multiclass" and len(self.label.classes) < 2:
            raise ValueError("label.classes: name two classes at least, such as HEC")
        if len(set(self.label.classes)) < len(self.label.classes):
            raise ValueError(f"label.classes: a class is named twice in {' '.join(self.label.classes)}")
        if self.kind == "residue-regression" and (self.label.classes or self.label.ordinal):
            raise ValueError(
                "label.classes: a residue-regression has numbers; the kind of classes is residue-multiclass"
            )
        if self.main not in self.metrics:
            raise ValueError(f"metric: {self.main!r} is none of this kind: {', '.join(self.metrics)}")
        return self

    def may_lack(self) -> frozenset[str]:
        """Returns the column of the mask: without one every residue counts."""
        return frozenset((self.label.mask,) if self.label.mask else ())

    @property
    def partner_carved(self) -> bool:
        """Whether a split is carved by partners."""
        return any(carve.partners for carve in self.carve)

    @property
    def main(self) -> str:
        """The main metric."""
        return self.metric or (self.accuracy if self.kind == "residue-multiclass" else METRIC[self.kind])

    @property
    def metrics(self) -> list[str]:
        """Every metric where higher is better."""
        if self.kind == "residue-regression":
            return ["Spearman", "Spearman per protein", "Pearson"]
        ordinal = ["Spearman"] if self.label.ordinal else []
        return [self.accuracy, f"{self.accuracy} per protein", "macro F1", *ordinal]

    def all_columns(self) -> Iterator[str]:
        """Yields the columns that every table must have."""
        yield from super().all_columns()
        yield self.label.column
        if self.label.mask:
            yield self.label.mask
        if self.id:
            yield self.id


class RetrievalDefinition(TableDefinition):
    """A task of finding relatives by similar features, without training."""

    kind: Literal["retrieval"] = Field(description="Every sequence searches all others")
    id: str | None = Field(default=None, description="Column of names; default: the sequence")
    rows: list[Table] = Field(min_length=1, description="The sequences: they search, and are searched")
    levels: list[str] = Field(min_length=1, description="Columns of classes; a hit has the class of the query")
    level: str = Field(description="That of the main metric")
    item: str = Field(default="sequences", description="What the sequences are called, such as domains")

    @field_validator("rows", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return tables(value)

    @field_validator("levels", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _main(self) -> RetrievalDefinition:
        if self.level not in self.levels:
            raise ValueError(f"level: {self.level!r} is none of the levels {', '.join(self.levels)}")
        return self

    def all_tables(self) -> Iterator[Table]:
        """Yields the tables."""
        yield from self.rows

    def all_columns(self) -> Iterator[str]:
        """Yields the columns that every table must have."""
        yield from self.sequence
        yield from self.levels
        if self.id:
            yield self.id
