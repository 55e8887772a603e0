"""Rows of tables in the formats that task data come in: CSV, TSV, JSON and JSONL, each plain or gzip."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from protloom.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from protloom_tasks.datasets.files import Source

Cell = str | list[str]
"""A text, or the texts of a list; what is missing is empty, a number is as JSON writes it."""

Cells = dict[str, Cell]

LONGEST_CELL = 1 << 24
"""Characters of a CSV cell: a mask of decimals beside a titin is longer than Python's 131072."""


def rows(path: Path, source: Source, names: Sequence[str] = ()) -> Iterator[tuple[str, Cells]]:
    """Yields (place, cells) of every row; the place, ``line 7``, is for messages.

    Args:
        path: of the file; its ending says the format.
        source: columns that it must have, and where it comes from.
        names: of the columns, for a CSV or TSV file that has no header line.

    Raises:
        UserError: a column is missing, a row is ragged, or the file is damaged; names file and line.
    """
    ending = _ending(path)
    try:
        with _open(path) as file:
            if ending in ("csv", "tsv"):
                yield from _separated(file, path, source, names, "," if ending == "csv" else "\t")
            else:
                lines = ending == "jsonl"
                yield from _checked(_json_lines(file) if lines else _json_document(json.load(file), path), path, source)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}{_not_utf8(path)}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); get it again from {source.origin}") from error


def _ending(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] == ".gz":
        endings.pop()
    ending = endings[-1].removeprefix(".") if endings else ""
    if ending not in ("csv", "tsv", "json", "jsonl"):
        raise UserError(f"{path}: a table ends in .csv, .tsv, .json or .jsonl, each with or without .gz")
    return ending


def _open(path: Path) -> IO[str]:
    # utf-8-sig: spreadsheets write a mark before the first column's name
    if path.suffix.lower() == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _not_utf8(path: Path) -> str:
    """Returns the first line that is no UTF-8: an error of a text file counts bytes within a block that it read."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number}"
    return ""


def _separated(
    file: IO[str], path: Path, source: Source, names: Sequence[str], delimiter: str
) -> Iterator[tuple[str, Cells]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(file, delimiter=delimiter)
    header = list(names) or next(reader, [])
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are named {twice!r}")
    _check_columns(header, path, source)
    for row in reader:
        if not row:
            continue  # a blank line
        if len(row) != len(header):
            raise UserError(f"{path}, line {reader.line_num}: not {len(header)} cells, but {len(row)}")
        yield f"line {reader.line_num}", dict(zip(header, row, strict=True))


def _json_lines(file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, "\n" * (number - 1), number - 1) from None


def _json_document(document: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the records of a list, or of columns as pandas writes them: name -> {row: value} or a list."""
    if isinstance(document, list):
        for number, record in enumerate(document, start=1):
            yield f"record {number}", record
        return
    columns = document if isinstance(document, Mapping) else {}
    by_row = {name: dict(enumerate(column)) if isinstance(column, list) else column for name, column in columns.items()}
    if not by_row or not all(isinstance(column, Mapping) for column in by_row.values()):
        raise UserError(f"{path}: should be a list of records, or columns of values, found {str(document)[:40]!r}")
    first = next(iter(by_row))
    for name, column in by_row.items():
        if column.keys() != by_row[first].keys():
            raise UserError(f"{path}: columns {first!r} and {name!r} do not have the same rows")
    for number, key in enumerate(by_row[first], start=1):
        yield f"record {number}", {name: column[key] for name, column in by_row.items()}


def _checked(records: Iterator[tuple[str, Any]], path: Path, source: Source) -> Iterator[tuple[str, Cells]]:
    for place, record in records:
        if not isinstance(record, Mapping):
            raise UserError(f"{path}, {place}: should be a record (column: value), found {str(record)[:40]!r}")
        _check_columns(list(record), f"{path}, {place}", source)
        yield place, {str(name): _cell(value, f"{path}, {place}: {name}") for name, value in record.items()}


def _check_columns(names: Sequence[str], where: Path | str, source: Source) -> None:
    absent = [name for name in source.columns if name not in names]
    if absent:
        raise UserError(f"{where}: no column {absent[0]!r}; it has {', '.join(names) or 'none'}")


def _cell(value: Any, where: str) -> Cell:
    if isinstance(value, list):
        return [_text(inner, where) for inner in value]
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, list | Mapping):
        raise UserError(f"{where}: should be a text, a number or a list of them, found {str(value)[:40]!r}")
    return "" if value is None else str(value)
