"""Reads the rows that a definition names: sequences with labels, split as it says, with everything left out counted."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.errors import UserError
from protloom_tasks.datasets.files import Source, locate, read_csv, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from protloom_tasks.definition import Carve, Definition, Table

Value = float | str | tuple[str, ...]
"""A label as read: a number, a class, or classes."""


@dataclass(frozen=True)
class Row:
    """A labelled sequence, or a pair of them.

    Attributes:
        sequence: residues as letters.
        partner: the second one of a pair, else empty.
        value: its label.
        group: rows of one group are resampled together.
        key: what a carved split is chosen by.
    """

    sequence: str
    partner: str
    value: Value
    group: str
    key: str


@dataclass
class Rows:
    """The splits of a definition.

    Attributes:
        splits: name -> rows, in the order of the files.
        counts: what was left out or changed, by reason.
        files: path -> SHA-256 of its bytes.
        repeated: training rows that were left out because another split has them.
    """

    splits: dict[str, list[Row]]
    counts: Counter[str] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)
    repeated: list[Row] = field(default_factory=list)

    def sequences(self, split: str) -> list[str]:
        """Returns every sequence of a split as the data have it, both of a pair."""
        rows = [*self.splits.get(split, ()), *(self.repeated if split == "train" else ())]
        return [letters for row in rows for letters in (row.sequence, row.partner) if letters]


def sources(definition: Definition) -> list[Source]:
    """Returns the files of a definition, each once."""
    columns = [*definition.sequence, definition.label.column]
    columns += [name for name in (definition.partner, definition.group) if name]
    paths = dict.fromkeys(table.file for tables in definition.splits.values() for table in tables)
    return [Source(path, definition.origin, definition.licence, tuple(columns)) for path in paths]


def read(definition: Definition, data_dir: str | None, beside: Path) -> Rows:
    """Reads all splits of a definition.

    Args:
        definition: which rows of which files.
        data_dir: the data folder.
        beside: folder of the definition's file, where its files may lie too.

    Raises:
        UserError: a file or column is missing, a cell is not what the kind of task needs, or a split is empty.
    """
    found = Rows({})
    by_path = {source.path: source for source in sources(definition)}
    for split, tables in definition.splits.items():
        rows: list[Row] = []
        for table in tables:
            source = by_path[table.file]
            path = find(source, data_dir, beside)
            found.files.setdefault(source.path, sha256(path))
            rows += _rows_of(path, source, table, definition, found.counts)
        found.splits[split] = rows
    for carve in definition.carve:
        _carve(found.splits, carve)
    for split in ("train", "test"):
        if not found.splits[split]:
            raise UserError(f"the {split} split is empty: look at 'splits' of the definition; {dict(found.counts)}")
    _remove_tested(found)
    return found


def find(source: Source, data_dir: str | None, beside: Path) -> Path:
    """Returns the path of a file, which may lie beside the definition; raises UserError if it is nowhere."""
    near = beside / source.path
    return near if near.is_file() else locate(data_dir, source)


def _rows_of(path: Path, source: Source, table: Table, definition: Definition, counts: Counter[str]) -> Iterator[Row]:
    label = definition.label
    for number, cells in enumerate(read_csv(path, source), start=2):
        for column in table.where:
            if column not in cells:
                raise UserError(f"{path}: no column {column!r} for 'where'; it has {', '.join(cells)}")
        if any(cells[column] not in values for column, values in table.where.items()):
            continue
        text = cells[label.column].strip()
        if text in label.drop:
            counts[f"label {text!r} dropped"] += 1
            continue
        value = _value(text, definition, f"{path}, line {number}")
        if value is None:
            counts["no label"] += 1
            continue
        sequence, stops = _sequence(cells, definition.sequence)
        partner, more = _sequence(cells, [definition.partner]) if definition.partner else ("", False)
        counts["stop codons cut out"] += stops or more
        if not sequence or (definition.partner and not partner):
            counts["no sequence"] += 1
            continue
        whole = sequence + partner
        group = cells[definition.group] if definition.group else whole
        yield Row(
            sequence, partner, value, group, "\n".join(cells[c.by or ""] for c in definition.carve if c.by) or whole
        )


def _sequence(cells: Mapping[str, str], columns: Sequence[str]) -> tuple[str, bool]:
    """Returns the residues of one or several columns, and whether a stop codon was cut out of them."""
    letters = "".join(cells[column].strip().upper() for column in columns)
    return letters.replace("*", ""), "*" in letters


def _value(text: str, definition: Definition, where: str) -> Value | None:
    """Returns a label, None where there is none."""
    label = definition.label
    if definition.kind == "multilabel":
        return tuple(part.strip() for part in text.split(label.separator or ",") if part.strip())
    if not text:
        return None
    if definition.kind != "regression":
        return text
    parts = text.split(label.separator) if label.separator else [text]
    try:
        numbers = [number for number in map(float, parts) if math.isfinite(number)]
    except ValueError:
        raise UserError(f"{where}: {label.column} is {text[:40]!r}, which is not a number") from None
    if len(parts) > 1 and not label.mean:
        raise UserError(f"{where}: {label.column} holds {len(parts)} numbers: say 'mean: true' if their mean is meant")
    return math.fsum(numbers) / len(numbers) if numbers else None


def _carve(splits: dict[str, list[Row]], carve: Carve) -> None:
    """Moves a share of a split's rows into a new one, by a hash of what they are told apart by."""
    kept: list[Row] = []
    moved: list[Row] = []
    for row in splits[carve.source]:
        digest = hashlib.sha256(f"{carve.split}\n{row.key}".encode()).digest()
        inside = int.from_bytes(digest[:8], "big") < carve.share * 2**64
        (moved if inside else kept).append(row)
    splits[carve.source], splits[carve.split] = kept, moved


def _remove_tested(found: Rows) -> None:
    """Leaves out the training rows that occur in another split."""
    elsewhere = {
        (row.sequence, row.partner) for split, rows in found.splits.items() if split != "train" for row in rows
    }
    train = found.splits["train"]
    found.repeated = [row for row in train if (row.sequence, row.partner) in elsewhere]
    found.splits["train"] = [row for row in train if (row.sequence, row.partner) not in elsewhere]
    found.counts["in training and another split: left out of training"] += len(found.repeated)


def encode(rows: Mapping[str, Sequence[Row]], definition: Definition) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Returns the labels of each split as arrays, and the names of the classes.

    Regression: ``[n]`` numbers. Binary: ``[n]`` 0 or 1, the class named last is 1 (of 0 and 1, the one). Multiclass:
    ``[n]`` class numbers; a class that training does not hold is numbered after those it does. Multilabel: ``[n, C]``
    of 0 and 1, over the classes of training.

    Raises:
        UserError: a binary task with other than two classes, or training rows of one class only.
    """
    if definition.kind == "regression":
        return {split: np.array([row.value for row in of], dtype=np.float64) for split, of in rows.items()}, []
    trained = sorted({name for row in rows["train"] for name in _classes(row)})
    other = sorted({name for of in rows.values() for row in of for name in _classes(row)} - set(trained))
    if definition.kind == "binary" and (len(trained) != 2 or other):
        raise UserError(f"a binary task needs two classes, in training too; it has {', '.join([*trained, *other])}")
    if len(trained) < 2:
        raise UserError(f"the training rows hold {len(trained)} class: there is nothing to tell apart")
    number = {name: i for i, name in enumerate([*trained, *other])}
    if definition.kind == "multilabel":
        return {split: _indicators(of, number, len(trained)) for split, of in rows.items()}, trained
    labels = {split: np.array([number[str(row.value)] for row in of], dtype=np.int64) for split, of in rows.items()}
    return labels, [*trained, *other]


def _classes(row: Row) -> tuple[str, ...]:
    return row.value if isinstance(row.value, tuple) else (str(row.value),)


def _indicators(rows: Sequence[Row], number: Mapping[str, int], size: int) -> NDArray[np.int64]:
    found = np.zeros((len(rows), size), dtype=np.int64)
    for i, row in enumerate(rows):
        found[i, [number[name] for name in _classes(row) if number[name] < size]] = 1
    return found
