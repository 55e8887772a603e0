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

Paths are below the data folder, or beside the file of the definition. What else a file may say depends on its ``kind``:
see :data:`ENGINES` and :mod:`protloom_tasks.definition_kinds`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from protloom.config import source as config_source
from protloom.config.errors import explain
from protloom.errors import UserError, did_you_mean
from protloom.settings import Section
from protloom_tasks.datasets.published import Fetch

HOME = Path(__file__).with_name("definitions")
"""The definitions that are shipped."""

Split = Literal["train", "valid", "test"]
Scored = Literal["valid", "test"]
"""A split that results are about."""


@dataclass(frozen=True)
class Engine:
    """What runs definitions of a kind; each part is ``module:attribute`` and imported when it is needed.

    Attributes:
        definition: model of the file, a :class:`Definition`.
        config: model of the task's options; it has ``definition`` and ``variant`` among them.
        task: ``task(config) -> protloom.contracts.Task``.
    """

    definition: str
    config: str
    task: str


_KINDS = "protloom_tasks.definition_kinds"
_SEQUENCES = Engine(
    f"{_KINDS}:SequenceDefinition",
    "protloom_tasks.sequence_task:SequenceConfig",
    "protloom_tasks.sequence_task:SequenceTask",
)
_RESIDUES = Engine(
    f"{_KINDS}:ResidueDefinition",
    "protloom_tasks.residue_task:ResidueConfig",
    "protloom_tasks.residue_task:ResidueTask",
)
_RETRIEVAL = Engine(
    f"{_KINDS}:RetrievalDefinition",
    "protloom_tasks.retrieval:DefinedConfig",
    "protloom_tasks.retrieval:RetrievalTask",
)
ENGINES: Mapping[str, Engine] = {
    "regression": _SEQUENCES,
    "binary": _SEQUENCES,
    "multiclass": _SEQUENCES,
    "multilabel": _SEQUENCES,
    "residue-multiclass": _RESIDUES,
    "residue-regression": _RESIDUES,
    "retrieval": _RETRIEVAL,
    "variant-effect": Engine(
        "protloom_tasks.variant_definition:VariantDefinition",
        "protloom_tasks.variant_task:VariantConfig",
        "protloom_tasks.variant_task:VariantTask",
    ),
}
"""What runs each kind of definition."""


def named(path: str) -> Any:
    """Returns what ``module:attribute`` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Table(Section):
    """Rows of one file."""

    file: str = Field(description="CSV, TSV, JSON or JSONL, may be .gz; below the data folder")
    where: dict[str, list[str]] = Field(default={}, description="Column: the values that a row of this split has")
    columns: list[str] | dict[str, str | None] = Field(
        default={},
        description="Names of columns where there is no header line; or name used here: name there, null for none",
    )
    origin: str | None = Field(default=None, description="Where it comes from, if not from where the others do")
    licence: str | None = Field(default=None, description="If not that of the others")

    @field_validator("where", mode="before")
    @classmethod
    def _lists(cls, where: Any) -> Any:
        if not isinstance(where, Mapping):
            return where
        lists = {column: value if isinstance(value, list) else [value] for column, value in where.items()}
        return {column: [str(value) for value in values] for column, values in lists.items()}


class Carve(Section):
    """A share of one split that becomes another: chosen by a hash, so the same rows for everybody, always."""

    split: Scored = Field(description="The split that is made")
    source: Split = Field(default="train", alias="from", description="The split that it is taken from")
    share: float = Field(gt=0, lt=1, description="Of its rows; of its proteins where partners decide")
    by: str | None = Field(
        default=None, description="Rows with one value of this column stay together; default: group, else sequence"
    )
    partners: bool = Field(
        default=False,
        description="A pair is taken if both its proteins are, stays if neither is, else is left out and counted",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Carve:
        if self.by is not None and self.partners:
            raise ValueError("carve: 'by' and 'partners' are two ways to choose; give one")
        return self


def tables(value: Any) -> Any:
    """Returns a list of tables of what a file may say: a path, a table, or several of either."""
    several = value if isinstance(value, list) else [value]
    return [{"file": table} if isinstance(table, str) else table for table in several]


class Definition(Section):
    """What the file of every kind of task says."""

    title: str = Field(description="What is measured, in a few words")
    kind: str = Field(description="What the label is, and so how it is learned and scored")
    origin: str = Field(description="Where the data come from: repository, path, commit")
    licence: str = Field(description="As the origin states it")
    citation: str = Field(default="", description="Whom to cite")
    differs: str = Field(
        default="", description="How the data differ from those of the paper that the task is named in"
    )
    note: str = Field(default="", description="What else a reader of a result should know")
    reference: list[str] = Field(default=[], description="Published numbers, each with its source")
    fetch: list[Fetch] = Field(default=[], description="How 'protloom data fetch' makes its files of published ones")
    variants: dict[str, dict[str, Any]] = Field(
        default={}, description="Variant: values for the {words} in this file, and keys of it to put over its own"
    )


D = TypeVar("D", bound=Definition)


@dataclass(frozen=True)
class Loaded(Generic[D]):
    """A definition that was read.

    Attributes:
        definition: what the file says.
        folder: that the file is in.
        name: of the task: that of the file, with its variant.
    """

    definition: D
    folder: Path
    name: str


def load(name: str, variant: str | None = None) -> Loaded[Definition]:
    """Reads a definition.

    Args:
        name: of a shipped one, or the path of a YAML file; either may end in ``:VARIANT``.
        variant: which of its variants.

    Raises:
        UserError: there is no such file or variant, or the file is wrong; names the key.
    """
    base, colon, behind = name.rpartition(":")
    if colon and variant is None and (_is_path(base) or (HOME / f"{base}.yaml").is_file()):
        name, variant = base, behind
    path = Path(name) if _is_path(name) else HOME / f"{name}.yaml"
    raw, where = _document(path)
    variants = raw.get("variants") or {}
    if not isinstance(variants, Mapping) or not all(isinstance(of, Mapping) for of in variants.values()):
        raise UserError(f"{where}: variants: each is a name with a mapping of words to values")
    if variant is None and variants:
        raise UserError(f"{where}: has variants, choose one: {', '.join(variants)}")
    if variant is not None:
        if variant not in variants:
            raise UserError(f"{where}: no variant {variant!r}.{did_you_mean(variant, variants)}")
        raw = _filled(raw, variant, variants[variant], where)
    stem = path.stem if variant is None else f"{path.stem}:{variant}"
    return Loaded(_validated(raw, where), path.parent, stem)


def load_as(model: type[D], name: str, variant: str | None = None) -> Loaded[D]:
    """Reads a definition of a certain kind; see :func:`load`.

    Raises:
        UserError: also if the file is of another kind.
    """
    found = load(name, variant)
    if not isinstance(found.definition, model):
        raise UserError(f"definition {name!r} is of the kind {found.definition.kind}: run it by the task 'definition'")
    return Loaded(found.definition, found.folder, found.name)


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _document(path: Path) -> tuple[dict[str, Any], str]:
    where = str(path) if path.parent != HOME else f"definition {path.stem!r}"
    try:
        text = _shipped(path) if path.parent == HOME else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = did_you_mean(path.stem, (file.stem for file in HOME.glob("*.yaml"))) if path.parent == HOME else ""
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{where}: cannot be read ({reason}).{hint}") from None
    raw = config_source.parse(text, where)
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: should hold keys and values (title: ..., kind: ...), found {str(raw)[:40]!r}")
    return dict(raw), where


@cache
def _shipped(path: Path) -> str:
    """Returns the text of a shipped file, which several variants share."""
    return path.read_text(encoding="utf-8")


def _validated(raw: Mapping[str, Any], where: str) -> Definition:
    kind = raw.get("kind")
    if kind is None:
        raise UserError(f"{where}: kind: is needed and missing; one of {', '.join(ENGINES)}")
    if kind not in ENGINES:
        raise UserError(f"{where}: kind: found {kind!r}.{did_you_mean(str(kind), ENGINES)}")
    model: type[Definition] = named(ENGINES[kind].definition)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise explain(error, raw, model, lambda _: where) from None


def _filled(raw: Mapping[str, Any], variant: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Puts a variant's values in the place of the {words} of a definition, and its keys over the definition's own."""
    engine = ENGINES.get(str(raw.get("kind")))
    model: type[Definition] = Definition if engine is None else named(engine.definition)
    keys = {*raw, *model.model_fields}
    over = {key: value for key, value in values.items() if key in keys or not isinstance(value, str)}
    words = {"variant": variant, **{key: value for key, value in values.items() if key not in over}}
    rest = {key: value for key, value in raw.items() if key != "variants"}
    filled = {key: _replaced(value, words, where) for key, value in config_source.merge(rest, over).items()}
    return {**filled, "variants": raw["variants"]}


def _replaced(value: Any, words: Mapping[str, str], where: str) -> Any:
    if isinstance(value, str):

        def word(match: re.Match[str]) -> str:
            if match[1] not in words:
                raise UserError(f"{where}: {{{match[1]}}} has no value in this variant; it has {', '.join(words)}")
            return words[match[1]]

        return re.sub(r"\{(\w+)\}", word, value)
    if isinstance(value, Mapping):
        return {key: _replaced(inner, words, where) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_replaced(inner, words, where) for inner in value]
    return value
