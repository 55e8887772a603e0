"""The file of a task: one YAML that says what is measured, in which tables, and where they come from. No code.

A definition of a regression, say::

    title: melting points of my proteins
    kind: regression
    sequence: sequence            # a column, or several that are joined
    label: tm                     # a column
    splits:
      train: {file: tm.csv, where: {part: train}}
      test: {file: tm.csv, where: {part: test}}
    carve: [{split: valid, from: train, share: 0.1}]
    origin: measured in our laboratory, 2026
    licence: unpublished

Paths are below the data folder, or beside the file of the definition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from protloom import config_source
from protloom.config_errors import explain
from protloom.errors import UserError, did_you_mean
from protloom.settings import Section

HOME = Path(__file__).with_name("definitions")
"""The definitions that are shipped."""

Kind = Literal["regression", "binary", "multiclass", "multilabel"]
Split = Literal["train", "valid", "test"]

METRIC: Mapping[Kind, str] = {
    "regression": "Spearman",
    "binary": "AUC",
    "multiclass": "accuracy",
    "multilabel": "micro F1",
}
"""The main metric of a kind, where a definition names none."""


class Table(Section):
    """Rows of one file."""

    file: str = Field(description="CSV or TSV, may be .gz; below the data folder")
    where: dict[str, list[str]] = Field(default={}, description="Column: the values that a row of this split has")

    @field_validator("where", mode="before")
    @classmethod
    def _lists(cls, where: Any) -> Any:
        if not isinstance(where, Mapping):
            return where
        lists = {column: value if isinstance(value, list) else [value] for column, value in where.items()}
        return {column: [str(value) for value in values] for column, values in lists.items()}


class Carve(Section):
    """A share of one split that becomes another: chosen by a hash, so the same rows for everybody, always."""

    split: Literal["valid", "test"] = Field(description="The split that is made")
    source: Split = Field(default="train", alias="from", description="The split that it is taken from")
    share: float = Field(gt=0, lt=1, description="Of its rows")
    by: str | None = Field(
        default=None, description="Rows with one value of this column stay together; default: sequence"
    )


class Label(Section):
    """How a label is read."""

    column: str = Field(description="Its column")
    separator: str | None = Field(default=None, description="Between the values of a cell: of a list, or of classes")
    mean: bool = Field(default=False, description="The label is the mean of the cell's numbers; 'nan' is left out")
    drop: list[str] = Field(default=[], description="Rows with these labels are left out, and counted")


class Definition(Section):
    """A task as its file says it."""

    title: str = Field(description="What is measured, in a few words")
    kind: Kind = Field(description="What the label is")
    metric: str | None = Field(default=None, description="Main metric; default: that of the kind")
    sequence: list[str] = Field(min_length=1, description="Column of the sequence; of several, joined in this order")
    partner: str | None = Field(default=None, description="Column of a second sequence: the task is about pairs")
    label: Label = Field(description="Column of the label, or more of it")
    splits: dict[Split, list[Table]] = Field(description="Which rows of which files")
    carve: list[Carve] = Field(default=[], description="Splits that are made of others")
    group: str | None = Field(default=None, description="Column: rows of one value are resampled together")
    origin: str = Field(description="Where the data come from: repository, path, commit")
    licence: str = Field(description="As the origin states it")
    citation: str = Field(default="", description="Whom to cite")
    differs: str = Field(
        default="", description="How the data differ from those of the paper that the task is named in"
    )
    reference: list[str] = Field(default=[], description="Published numbers, each with its source")
    variants: dict[str, dict[str, str]] = Field(default={}, description="Variant: values for the {words} in this file")

    @field_validator("sequence", mode="before")
    @classmethod
    def _sequence(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("label", mode="before")
    @classmethod
    def _label(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("splits", mode="before")
    @classmethod
    def _splits(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        lists = {split: table if isinstance(table, list) else [table] for split, table in value.items()}
        return {
            split: [{"file": table} if isinstance(table, str) else table for table in tables]
            for split, tables in lists.items()
        }

    @model_validator(mode="after")
    def _complete(self) -> Definition:
        made = {*self.splits, *(carve.split for carve in self.carve)}
        missing = {"train", "test"} - made
        if missing:
            raise ValueError(f"splits: no {sorted(missing)[0]} split, and none is carved")
        for carve in self.carve:
            if carve.split in self.splits:
                raise ValueError(f"carve: there is a {carve.split} split already")
        return self

    @property
    def main(self) -> str:
        """The main metric."""
        return self.metric or METRIC[self.kind]


def load(name: str, variant: str | None = None) -> tuple[Definition, Path]:
    """Returns a definition and the folder that its file is in.

    Args:
        name: of a shipped one, or the path of a YAML file.
        variant: which of its variants.

    Raises:
        UserError: there is no such file or variant, or the file is wrong; names the key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else HOME / f"{name}.yaml"
    raw, where = _document(path, name)
    variants = raw.get("variants") or {}
    if variant is None and variants:
        raise UserError(f"{where}: has variants, choose one: {', '.join(variants)}")
    if variant is not None:
        if variant not in variants:
            raise UserError(f"{where}: no variant {variant!r}.{did_you_mean(variant, variants)}")
        raw = _filled(raw, {"variant": variant, **variants[variant]}, where)
    try:
        return Definition.model_validate(raw), path.parent
    except ValidationError as error:
        raise explain(error, raw, Definition, lambda _: where) from None


@cache
def _document(path: Path, name: str) -> tuple[dict[str, Any], str]:
    where = str(path) if path.parent != HOME else f"definition {name!r}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    return dict(config_source.parse(text, where)), where


def _filled(value: Any, words: Mapping[str, str], where: str) -> Any:
    """Puts the values of a variant in the place of its words, ``{file}`` for example."""
    if isinstance(value, str):

        def word(match: re.Match[str]) -> str:
            if match[1] not in words:
                raise UserError(f"{where}: {{{match[1]}}} has no value in this variant; it has {', '.join(words)}")
            return words[match[1]]

        return re.sub(r"\{(\w+)\}", word, value)
    if isinstance(value, Mapping):
        return {key: inner if key == "variants" else _filled(inner, words, where) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_filled(inner, words, where) for inner in value]
    return value
