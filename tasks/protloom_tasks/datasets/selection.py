"""The rows that a definition selects from its files, the splits that it carves, and the sequences of its ids."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Generic, TypeVar

from protloom.data.fasta import read_fasta
from protloom.errors import UserError, did_you_mean
from protloom_tasks.datasets import formats
from protloom_tasks.datasets.files import Source, locate, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from protloom_tasks.datasets.formats import Cell, Cells
    from protloom_tasks.definition import Carve, Table
    from protloom_tasks.definition_kinds import TableDefinition

R = TypeVar("R")

VALUES_SHOWN = 8
"""Values of a column that a message lists."""


def source_of(definition: TableDefinition, table: Table) -> Source:
    """Returns what a table's file is and where it comes from."""
    own = table.columns if isinstance(table.columns, Mapping) else {}
    named = [*(own.get(name, name) for name in definition.all_columns()), *own.values()]
    columns = dict.fromkeys(name for name in named if name is not None)
    return Source(table.file, table.origin or definition.origin, table.licence or definition.licence, tuple(columns))


def sources(definition: TableDefinition, tables: Iterable[Table]) -> list[Source]:
    """Returns the files that hold tables of a definition, and its FASTA files, each once."""
    found = {table.file: source_of(definition, table) for table in tables}
    found |= {path: Source(path, definition.origin, definition.licence) for path in definition.fasta}
    return list(found.values())


def find(source: Source, data_dir: str | None, beside: Path) -> Path:
    """Returns the path of a file, which may lie beside the definition; raises UserError if it is nowhere."""
    from protloom_tasks.definition import HOME

    near = beside / source.path
    # nobody puts data beside a definition that is shipped
    return near if near.is_file() else locate(data_dir, source, None if beside == HOME else beside)


class Reader:
    """Reads the tables of a definition.

    Args:
        definition: which columns and files.
        data_dir: the data folder.
        beside: folder of the definition's file, where its files may lie too.

    Attributes:
        counts: what was left out or changed, by reason.
        files: path -> SHA-256 of its bytes, of what was read.
    """

    def __init__(self, definition: TableDefinition, data_dir: str | None, beside: Path) -> None:
        self._definition, self._data_dir, self._beside = definition, data_dir, beside
        self.counts: Counter[str] = Counter()
        self.files: dict[str, str] = {}
        self._by_id: dict[str, str] | None = None

    def rows(self, tables: Iterable[Table]) -> Iterator[tuple[str, Cells]]:
        """Yields (file and line, cells by the definition's names) of the rows that the tables select.

        Raises:
            UserError: a file or column is missing, or nothing is selected.
        """
        for table in tables:
            yield from self._selected(table)

    def _selected(self, table: Table) -> Iterator[tuple[str, Cells]]:
        source = source_of(self._definition, table)
        path = self._found(source)
        header = table.columns if isinstance(table.columns, list) else ()
        renamed = table.columns if isinstance(table.columns, Mapping) else {}
        seen: dict[str, dict[str, None]] = {column: {} for column in table.where}
        selected = total = 0
        for place, cells in formats.rows(path, source, header):
            total += 1
            row = {**cells, **{here: cells[there] for here, there in renamed.items() if there is not None}}
            for column in table.where:
                if column not in row:
                    raise UserError(f"{path}: no column {column!r} for 'where'.{did_you_mean(column, row)}")
                seen[column].setdefault(str(row[column]))
            if all(row[column] in values for column, values in table.where.items()):
                selected += 1
                yield f"{path}, {place}", row
        if not total:
            raise UserError(f"{path}: holds no rows")
        if not selected:
            raise UserError(f"{path}: no row is selected: {_conditions(table.where, seen)}")

    def _found(self, source: Source) -> Path:
        path = find(source, self._data_dir, self._beside)
        if source.path not in self.files:
            self.files[source.path] = sha256(path)
        return path

    def sequence(self, cells: Cells, columns: Sequence[str], where: str) -> str:
        """Returns the residues of one or several columns, upper case; the columns hold ids if there is a FASTA file.

        Raises:
            UserError: the FASTA files lack an id, or a sequence has something other than letters and ``*``.
        """
        texts = [text_of(cells, column, where).strip() for column in columns]
        if self._definition.fasta:
            texts = [self._of_id(name, where) for name in texts]
        letters = "".join("".join(texts).upper().split())
        plain = letters.replace("*", "")
        if plain and not (plain.isascii() and plain.isalpha()):
            odd = next(c for c in plain if not (c.isascii() and c.isalpha()))
            raise UserError(f"{where}: a sequence holds {odd!r}; residues are letters")
        return letters

    def name_of(self, cells: Cells, columns: Sequence[str], where: str) -> str:
        """Returns what a result calls a row: its id, those of the FASTA file in these columns, or its file and line."""
        if self._definition.id:
            return text_of(cells, self._definition.id, where).strip()
        if self._definition.fasta:
            return "+".join(text_of(cells, column, where).strip() for column in columns)
        file, _, place = where.rpartition(", ")
        return f"{PurePath(file).name}:{place.split()[-1]}"  # as compilers name a line: short, and still to be found

    def _of_id(self, name: str, where: str) -> str:
        if self._by_id is None:
            self._by_id = {}
            for file in self._definition.fasta:
                path = self._found(Source(file, self._definition.origin, self._definition.licence))
                for record in read_fasta(path):
                    if self._by_id.setdefault(record.id, (found := record.residues.decode())) != found:
                        raise UserError(f"{path}: two sequences are named {record.id!r}")
        if name not in self._by_id:
            raise UserError(f"{where}: no sequence is named {name!r} in {', '.join(self._definition.fasta)}")
        return self._by_id[name]


def text_of(cells: Mapping[str, Cell], column: str, where: str) -> str:
    """Returns a cell that has to be one text; raises UserError for a list."""
    cell = cells[column]
    if isinstance(cell, str):
        return cell
    raise UserError(f"{where}: {column} is a list of {len(cell)}, should be one text or number")


def _conditions(where: Mapping[str, Sequence[str]], seen: Mapping[str, Iterable[str]]) -> str:
    parts = []
    for column, values in where.items():
        there = sorted(seen[column])
        more = ", ..." if len(there) > VALUES_SHOWN else ""
        parts.append(f"'where' wants {column} = {' or '.join(values)}; it is {', '.join(there[:VALUES_SHOWN])}{more}")
    return "; ".join(parts)


@dataclass(frozen=True)
class Item(Generic[R]):
    """A row on its way into a split.

    Attributes:
        row: the row.
        keys: for each carve, what it is chosen by: one text, or that of both partners.
        order: its place among all rows.
    """

    row: R
    keys: tuple[tuple[str, ...], ...]
    order: int


def carved(
    splits: Mapping[str, Sequence[Item[R]]], carves: Sequence[Carve], scored: str, counts: Counter[str]
) -> dict[str, list[R]]:
    """Returns the splits after shares of them became others.

    Validation rows that were carved of training go back to it where ``test`` is scored: they are ours to choose by,
    and the published training set holds them.

    Args:
        splits: name -> rows, as the tables say.
        carves: what to carve, in this order.
        scored: the split that results are about.
        counts: told what was left out.
    """
    found = {name: list(items) for name, items in splits.items()}
    returned: list[Item[R]] = []
    of_valid = any(carve.source == "valid" for carve in carves)
    for at, carve in enumerate(carves):
        back = scored == "test" and (carve.split, carve.source) == ("valid", "train") and not of_valid
        kept: list[Item[R]] = []
        moved: list[Item[R]] = []
        neither: list[Item[R]] = []
        for item in found[carve.source]:
            inside = {_inside(key, carve) for key in item.keys[at]}
            (neither if len(inside) > 1 else moved if inside == {True} else kept).append(item)
        found[carve.source] = kept
        if back:
            returned = [*moved, *neither]
            continue
        found[carve.split] = moved
        if neither:
            counts[f"pairs of one protein inside and one outside of {carve.split}"] += len(neither)
    if returned:
        found["train"] = sorted([*found["train"], *returned], key=lambda item: item.order)
    return {name: [item.row for item in items] for name, items in found.items()}


def _inside(key: str, carve: Carve) -> bool:
    digest = hashlib.sha256(f"{carve.split}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < carve.share * 2**64
