"""Sequences from tables: CSV and TSV (also compressed) with the standard library, Parquet with pyarrow."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.contracts import Record
from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from protloom.data.streams import ByteSource

SEQUENCE_COLUMNS = ("sequence", "seq", "primary", "input", "sequences")
"""Names by which a sequence column is recognised, in any case."""
ID_COLUMNS = ("id", "name", "accession")
"""Names by which an id column is recognised, the first one that is there; otherwise the row number is the id."""
GROUP_COLUMN = "group"
"""Rows with the same value are sampled together."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_table(name: str) -> bool:
    """Tells by the ending whether a file is CSV, TSV or Parquet."""
    return _kind(name) in (*_DELIMITERS, ".parquet")


def _kind(name: str) -> str:
    path = Path(name.lower())
    inner = Path(path.stem).suffix
    return inner if path.suffix in (".gz", ".zst") and inner in _DELIMITERS else path.suffix


def table_records(source: ByteSource, column: str | None = None) -> Iterator[Record]:
    """Yields the rows of a table as records.

    Args:
        source: a CSV, TSV or Parquet file.
        column: the sequence column; guessed among :data:`SEQUENCE_COLUMNS` if None.

    Raises:
        UserError: no such column, none or several that could be meant, a row of another width, or pyarrow is missing.
    """
    yield from (_delimited if is_delimited(source.name) else _parquet)(source, column)


def choose_column(columns: Sequence[str], wanted: str | None, name: str) -> str:
    """Returns the sequence column; raises UserError naming the columns that there are."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(f"{name} has no column {wanted!r}.{did_you_mean(wanted, columns)}")
    listed = ", ".join(repr(c) for c in columns)
    found = [c for c in columns if c.strip().lower() in SEQUENCE_COLUMNS]
    if len(found) == 1:
        return found[0]
    what = "several columns that may hold sequences" if found else "no column named 'sequence'"
    raise UserError(f"{name} has {what}: choose one with --column; its columns are {listed}")


def _companion(columns: Sequence[str], names: Sequence[str], taken: str) -> str | None:
    lower = {c.strip().lower(): c for c in columns if c != taken}
    return next((lower[n] for n in names if n in lower), None)


def delimited_rows(source: ByteSource) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of a CSV or TSV file, the header first; every row is as wide as the header.

    Raises:
        UserError: no header, two columns of one name, a row of another width, or no valid table; names the line.
    """
    rows = csv.reader(_lines(source), delimiter=_DELIMITERS[_kind(source.name)], strict=True)
    # one field may be a very long sequence: the default limit is 131,072 characters
    csv.field_size_limit(1 << 30)
    try:
        header = next(rows, None)
        if header is None:
            raise UserError(f"{source.name} holds no header line: the first line names the columns")
        if len(set(header)) < len(header):
            twice = next(c for c in header if header.count(c) > 1)
            raise UserError(f"{source.name} has two columns {twice!r}: rename one")
        yield rows.line_num, header
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{source.name}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}; "
                    "quote fields that contain the separator"
                )
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{source.name}, line {rows.line_num}: not a valid table ({error})") from error


def is_delimited(name: str) -> bool:
    """Tells by the ending whether a file is CSV or TSV."""
    return _kind(name) in _DELIMITERS


def _delimited(source: ByteSource, column: str | None) -> Iterator[Record]:
    rows = delimited_rows(source)
    _, header = next(rows)
    sequence = header.index(choose_column(header, column, source.name))
    name = _companion(header, ID_COLUMNS, header[sequence])
    group = _companion(header, (GROUP_COLUMN,), header[sequence])
    at_id = None if name is None else header.index(name)
    at_group = None if group is None else header.index(group)
    for number, (_, row) in enumerate(rows, start=1):
        yield Record(
            id=str(number) if at_id is None else row[at_id].strip(),
            residues=row[sequence].strip().encode(),
            group=None if at_group is None else row[at_group] or None,
        )


def _lines(source: ByteSource) -> Iterator[str]:
    """Yields decoded lines with their ends."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    try:
        for block in source.blocks():
            lines = (rest + decoder.decode(block)).splitlines(keepends=True)
            # the last line may go on, and a CR may be half of a CRLF
            rest = lines.pop() if lines else ""
            yield from lines
        rest += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    if "\0" in rest:
        raise UserError(f"{source.name} is a binary file, not a table")
    yield from rest.splitlines(keepends=True)


def _parquet(source: ByteSource, column: str | None) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{source.name}: reading Parquet needs pyarrow: pip install 'protloom[parquet]'") from None
    source.read_through()
    try:
        # Parquet is read at random places, row group after row group, so never whole in memory
        table = parquet.ParquetFile(source.name)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source, error) from error
    columns = table.schema_arrow.names
    sequence = choose_column(columns, column, source.name)
    name = _companion(columns, ID_COLUMNS, sequence)
    group = _companion(columns, (GROUP_COLUMN,), sequence)
    number = 0
    for batch in _batches(source, table, [c for c in (sequence, name, group) if c is not None]):
        values = {c: batch.column(c).to_pylist() for c in batch.schema.names}
        for i, residues in enumerate(values[sequence]):
            number += 1
            if residues is not None and not isinstance(residues, str | bytes):
                raise UserError(f"{source.name}: column {sequence!r} does not hold text; choose one with --column")
            yield Record(
                id=str(number) if name is None else _text(values[name][i]) or "",
                residues=residues.encode() if isinstance(residues, str) else residues or b"",
                group=None if group is None else _text(values[group][i]),
            )


def _batches(source: ByteSource, table: Any, columns: list[str]) -> Iterator[Any]:
    """Yields batches of rows; damage inside the file shows only when it is reached."""
    import pyarrow

    try:
        yield from table.iter_batches(columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source, error) from error


def _text(value: Any) -> str | None:
    """Returns a cell as text; a null and an empty cell are None."""
    return None if value is None else str(value) or None


def _damaged(source: ByteSource, error: Exception) -> UserError:
    return UserError(f"{source.name} is not a readable Parquet file: {' '.join(str(error).split())}")
