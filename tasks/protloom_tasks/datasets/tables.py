"""Labelled sequences, split as a definition says, with everything left out counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.errors import UserError
from protloom_tasks.datasets.selection import Item, Reader, carved, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from protloom_tasks.datasets.formats import Cell, Cells
    from protloom_tasks.definition import Table
    from protloom_tasks.definition_kinds import SequenceDefinition

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
        name: its id, or file and line.
    """

    sequence: str
    partner: str
    value: Value
    group: str
    name: str = ""

    @property
    def identity(self) -> frozenset[str]:
        """What makes two rows the same: the sequence, or both of a pair in either order."""
        return frozenset((self.sequence, self.partner))


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


def read(definition: SequenceDefinition, data_dir: str | None, beside: Path, scored: str = "valid") -> Rows:
    """Reads all splits of a definition.

    Args:
        definition: which rows of which files.
        data_dir: the data folder.
        beside: folder of the definition's file, where its files may lie too.
        scored: the split that results are about; see :func:`protloom_tasks.datasets.selection.carved`.

    Raises:
        UserError: a file or column is missing, a cell is not what the kind of task needs, or a split is empty.
    """
    reader = Reader(definition, data_dir, beside)
    items: dict[str, list[Item[Row]]] = {}
    read_so_far = 0
    for split, tables in definition.splits.items():
        items[split] = list(_items(reader, tables, definition, read_so_far))
        read_so_far += len(items[split])
    found = Rows(carved(items, definition.carve, scored, reader.counts), reader.counts, reader.files)
    for name, rows in found.splits.items():
        if not rows:
            raise UserError(f"the {name} split is empty: {_why(found.counts)}")
    _remove_tested(found)
    return found


def _items(reader: Reader, tables: Sequence[Table], definition: SequenceDefinition, first: int) -> Iterator[Item[Row]]:
    label, counts = definition.label, reader.counts
    for number, (where, cells) in enumerate(reader.rows(tables), start=first):
        cell = cells[label.column]
        if isinstance(cell, str) and cell.strip() in label.drop:
            counts[f"label {cell.strip()!r} dropped"] += 1
            continue
        value = _value(cell, definition, where)
        if value is None:
            counts["no label"] += 1
            continue
        sequence = reader.sequence(cells, definition.sequence, where)
        partner = reader.sequence(cells, [definition.partner], where) if definition.partner else ""
        counts["stop codons cut out"] += "*" in sequence + partner
        sequence, partner = sequence.replace("*", ""), partner.replace("*", "")
        if not sequence or (definition.partner and not partner):
            counts["no sequence"] += 1
            continue
        group = text_of(cells, definition.group, where) if definition.group else sequence + partner
        name = reader.name_of(cells, [*definition.sequence, *filter(None, [definition.partner])], where)
        keys = _keys(cells, definition, sequence, partner, where)
        yield Item(Row(sequence, partner, value, group, name), keys, number)


def _keys(
    cells: Cells, definition: SequenceDefinition, sequence: str, partner: str, where: str
) -> tuple[tuple[str, ...], ...]:
    keys: list[tuple[str, ...]] = []
    for carve in definition.carve:
        column = carve.by or definition.group
        if carve.partners:
            keys.append((sequence, partner))
        else:
            keys.append((text_of(cells, column, where) if column else sequence + partner,))
    return tuple(keys)


def _why(counts: Mapping[str, int]) -> str:
    left_out = ", ".join(f"{reason} ({n})" for reason, n in counts.items() if n)
    return f"left out were {left_out}" if left_out else "'splits' and 'carve' leave nothing for it"


def _value(cell: Cell, definition: SequenceDefinition, where: str) -> Value | None:
    """Returns a label, None where there is none."""
    label = definition.label
    if definition.kind == "multilabel":
        names = cell if isinstance(cell, list) else cell.split(label.separator or ",")
        return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if definition.kind == "regression":
        return _number(cell, definition, where)
    if isinstance(cell, list):
        raise UserError(f"{where}: {label.column} is a list; a {definition.kind} task has one class a row")
    text = cell.strip()
    return None if text.lower() in ("", "nan") else text


def _number(cell: Cell, definition: SequenceDefinition, where: str) -> float | None:
    label = definition.label
    if isinstance(cell, list):
        parts = cell
    else:
        parts = cell.strip().split(label.separator) if label.separator else [cell.strip()]
    try:
        numbers = [float(part) if part.strip() else math.nan for part in parts]
    except ValueError:
        odd = next(part for part in parts if not _is_number(part))
        raise UserError(f"{where}: {label.column} is {odd[:40]!r}, which is not a number") from None
    if len(parts) > 1 and not label.mean:
        raise UserError(f"{where}: {label.column} holds {len(parts)} numbers: say 'mean: true' if their mean is meant")
    limit = math.inf if label.below is None else label.below
    known = [number for number in numbers if math.isfinite(number) and number < limit]
    return math.fsum(known) / len(known) if known else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return not text.strip()
    return True


def _remove_tested(found: Rows) -> None:
    """Leaves out the training rows that occur in another split.

    Raises:
        UserError: if that leaves nothing to train on.
    """
    elsewhere = {row.identity for split, rows in found.splits.items() if split != "train" for row in rows}
    train = found.splits["train"]
    found.repeated = [row for row in train if row.identity in elsewhere]
    found.splits["train"] = [row for row in train if row.identity not in elsewhere]
    found.counts["in training and another split: left out of training"] += len(found.repeated)
    if not found.splits["train"]:
        raise UserError(f"all {len(train)} training rows are in another split too: nothing is left to train on")


def encode(
    rows: Mapping[str, Sequence[Row]], definition: SequenceDefinition
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Returns the labels of each split as arrays, and the names of the classes.

    Regression: ``[n]`` numbers. Binary: ``[n]`` 0 or 1, the class named last is 1 (of 0 and 1, the one) unless the
    definition names the positive one. Multiclass: ``[n]`` class numbers; a class that training does not hold is
    numbered after those it does. Multilabel: ``[n, C]`` of 0 and 1, over the classes of training.

    Raises:
        UserError: a binary task with other than two classes, or training rows of one class only.
    """
    if definition.kind == "regression":
        return {split: np.array([row.value for row in of], dtype=np.float64) for split, of in rows.items()}, []
    trained = sorted({name for row in rows["train"] for name in _classes(row)})
    other = sorted({name for of in rows.values() for row in of for name in _classes(row)} - set(trained))
    if definition.kind == "binary":
        trained = _two(trained, other, definition.label.positive)
    if len(trained) < 2:
        raise UserError(f"the training rows hold {len(trained)} class: there is nothing to tell apart")
    number = {name: i for i, name in enumerate([*trained, *other])}
    if definition.kind == "multilabel":
        return {split: _indicators(of, number, len(trained)) for split, of in rows.items()}, trained
    labels = {split: np.array([number[str(row.value)] for row in of], dtype=np.int64) for split, of in rows.items()}
    return labels, [*trained, *other]


def _two(trained: list[str], other: list[str], positive: str | None) -> list[str]:
    """Returns the classes of a binary task, the positive one last."""
    if len(trained) != 2 or other:
        every = [*trained, *other]
        shown = ", ".join(every[:10]) + (", ..." if len(every) > 10 else "")
        raise UserError(f"a binary task needs two classes, in training too; it has {len(every)}: {shown}")
    if positive is not None and positive not in trained:
        raise UserError(f"label.positive is {positive!r}, but the classes are {' and '.join(trained)}")
    return trained if positive in (None, trained[1]) else trained[::-1]


def _classes(row: Row) -> tuple[str, ...]:
    return row.value if isinstance(row.value, tuple) else (str(row.value),)


def _indicators(rows: Sequence[Row], number: Mapping[str, int], size: int) -> NDArray[np.int64]:
    found = np.zeros((len(rows), size), dtype=np.int64)
    for i, row in enumerate(rows):
        found[i, [number[name] for name in _classes(row) if number[name] < size]] = 1
    return found
