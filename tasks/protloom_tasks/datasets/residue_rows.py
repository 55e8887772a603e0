"""Proteins with labels of residues, split as a definition says, with everything left out counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.errors import UserError
from protloom_tasks.datasets.proteins import Labelled
from protloom_tasks.datasets.selection import Item, Reader, carved, text_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom_tasks.datasets.formats import Cell, Cells
    from protloom_tasks.definition import Split
    from protloom_tasks.definition_kinds import ResidueDefinition, ResidueLabel


def splits_read(definition: ResidueDefinition, wanted: Sequence[str]) -> list[Split]:
    """Returns the splits whose tables have to be read for those wanted: also those that they are carved of."""
    found = set(wanted)
    for carve in reversed(definition.carve):
        if carve.split in found or carve.source in found:
            found |= {carve.source}
    return [split for split in definition.splits if split in found]


def read(
    definition: ResidueDefinition, reader: Reader, wanted: Sequence[str], scored: str
) -> dict[str, list[Labelled]]:
    """Reads splits of a definition.

    Args:
        definition: which rows of which files, and how their labels are written.
        reader: opens the files and counts.
        wanted: the splits to read; those that they are carved of come too.
        scored: the split that results are about; see :func:`protloom_tasks.datasets.selection.carved`.

    Raises:
        UserError: a file or column is missing, a label is not what the kind of task needs, there are not as many labels
            as residues, or a split is empty.
    """
    items: dict[str, list[Item[Labelled]]] = {}
    read_so_far = 0
    there = splits_read(definition, wanted)
    for split in there:
        items[split] = list(_items(reader, split, definition, read_so_far))
        read_so_far += len(items[split])
    if any(carve.source not in there for carve in definition.carve):
        return {split: [item.row for item in of] for split, of in items.items()}
    found = carved(items, definition.carve, scored, reader.counts)
    for name, proteins in found.items():
        if not proteins:
            raise UserError(f"the {name} split is empty: 'splits' and 'carve' leave nothing for it")
    return found


def _items(reader: Reader, split: Split, definition: ResidueDefinition, first: int) -> Iterator[Item[Labelled]]:
    number = {state: i for i, state in enumerate(definition.label.classes)}
    for at, (where, cells) in enumerate(reader.rows(definition.splits[split])):
        sequence = reader.sequence(cells, definition.sequence, where)
        if not sequence:
            reader.counts["no sequence"] += 1
            continue
        if "*" in sequence:
            raise UserError(f"{where}: a sequence holds '*', which has no residue to label; cut it out of both")
        labels = _labels(cells, definition.label, number, len(sequence), where)
        name = reader.name_of(cells, definition.sequence, where)
        group = text_of(cells, definition.group, where) if definition.group else sequence
        keys = tuple(
            (text_of(cells, column, where) if (column := carve.by or definition.group) else sequence,)
            for carve in definition.carve
        )
        yield Item(Labelled(name, sequence, labels, group), keys, first + at)


def _labels(cells: Cells, label: ResidueLabel, number: Mapping[str, int], length: int, where: str) -> NDArray[Any]:
    """Returns the label of every residue: classes with −1, or numbers with NaN, where there is none or it is masked."""
    words = _words(cells[label.column], label.separator)
    # a table may say that it has no mask: then every residue counts
    mask = _mask(cells[label.mask], label.mask, where) if label.mask in cells else None
    if len(words) != length or (mask is not None and len(mask) != length):
        sizes = f"{length} residues, {len(words)} labels in {label.column}"
        sizes += "" if mask is None else f", {len(mask)} mask values in {label.mask}"
        raise UserError(f"{where}: {sizes}; they must be as many")
    found: NDArray[Any]
    if number:
        found = np.array([number.get(word, -1) for word in words], dtype=np.int64)
        if (found < 0).any():
            odd = next((word for word in words if word not in number and word not in label.unknown), None)
            if odd is not None:
                raise UserError(f"{where}: label {odd!r} of {label.column} is none of {', '.join(number)}")
    else:
        found = _numbers(words, label, where)
    if mask is not None:
        found[~mask] = -1 if number else np.nan
    return found


def _words(cell: Cell, separator: str | None) -> Sequence[str]:
    """Returns the label of each residue as text: the letters of a text, or its parts."""
    if isinstance(cell, list):
        return cell
    text = cell.strip()
    return [word.strip() for word in text.split(separator)] if separator else text


def _numbers(words: Sequence[str], label: ResidueLabel, where: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(word) if word else math.nan for word in words], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{where}: {label.column} holds what is no number ({error})") from None
    found[~np.isfinite(found)] = np.nan
    if label.below is not None:
        found[found >= label.below] = np.nan
    return found


def _mask(cell: Cell, column: str, where: str) -> NDArray[np.bool_]:
    """Reads 0 and 1, side by side or apart by spaces or commas, also as decimals; 1 is scored."""
    words: Sequence[str] = cell if isinstance(cell, list) else cell.replace(",", " ").split()
    if len(words) == 1 and set(words[0]) <= {"0", "1"}:
        words = words[0]
    try:
        return np.array([float(word) == 1.0 for word in words], dtype=np.bool_)
    except ValueError as error:
        raise UserError(f"{where}: {column} holds what is no number of a mask ({error})") from None
