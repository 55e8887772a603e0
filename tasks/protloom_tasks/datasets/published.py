"""From a file as its authors publish it to the table that a definition reads: downloads, and what to do with them.

A definition says it in ``fetch``, a list with an entry for each of its files::

    fetch:
      - file: mine/melting.csv.gz
        parts:
          - url: https://example.org/archive.zip
            sha256: 5f0c…                          # of what is downloaded
            member: tables/melting.fasta           # in a zip
            header: '(?P<id>\\S+) TM=(?P<tm>\\S+)'   # of FASTA: fields by name; 'sequence' is one more
            columns: {sequence: sequence, tm: tm}  # of the table: a field, or several that are joined by '/'

A part without ``member``, ``header`` and ``columns`` is the data file itself. Several parts are joined by the column
that ``join`` names, or line by line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, field_validator

from protloom.contracts import Download
from protloom.errors import UserError
from protloom.settings import Section
from protloom_tasks.datasets.files import Source

Form = Literal["csv", "tsv", "json", "fasta", "lines"]
ENDINGS: Mapping[str, Form] = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".fasta": "fasta", ".fa": "fasta"}

Fields = dict[str, str]


class Part(Section):
    """A published file."""

    url: str = Field(description="Where it is")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="That it must have")
    bytes: int | None = Field(default=None, ge=0, description="That it must have")
    member: str | None = Field(default=None, description="The file meant, if it is a zip archive")
    form: Form | None = Field(default=None, description="By default what its ending says; 'lines' has a field 'line'")
    header: str = Field(default=r"(?P<id>\S+)", description="Pattern of FASTA headers; its named groups are fields")
    columns: dict[str, list[str]] = Field(
        default={}, description="Column: field, or fields that are joined by '/'; default: every field by its name"
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {column: fields if isinstance(fields, list) else [fields] for column, fields in value.items()}

    @field_validator("header")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a pattern: {error}") from None
        return value

    @property
    def is_table(self) -> bool:
        """Whether anything is to be read out of it; else it is taken as it is."""
        return bool(self.columns) or not self.model_fields_set.isdisjoint({"member", "form", "header"})


class Fetch(Section):
    """How one data file is made of published ones."""

    file: str = Field(description="The data file, below the data folder")
    parts: list[Part] = Field(min_length=1, description="What it is made of; the first one says which rows there are")
    join: str | None = Field(default=None, description="Column by which rows of parts belong together")
    replace: dict[str, dict[str, str]] = Field(
        default={}, description="Column: value there -> value here; one by one where ';' separates several"
    )
    log10: list[str] = Field(default=[], description="Columns whose decimal logarithm is wanted")


def download_of(source: Source, recipes: Sequence[Fetch]) -> Download:
    """Returns how a data file is had; without a recipe for it, that nobody can download it."""
    recipe = next((recipe for recipe in recipes if recipe.file == source.path), None)
    if recipe is None:
        return Download(source.path, source.origin, source.licence, source.columns)
    by_url: dict[str, Part] = {}
    for part in recipe.parts:
        by_url.setdefault(part.url, part)  # what is said of an archive stands at its first use
    return Download(
        source.path,
        source.origin,
        source.licence,
        source.columns,
        urls=tuple(by_url),
        sha256=tuple(part.sha256 for part in by_url.values()),
        sizes=tuple(part.bytes for part in by_url.values()),
        convert=partial(convert, recipe),
    )


def convert(recipe: Fetch, target: Path, files: Sequence[Path]) -> None:
    """Writes a data file.

    Args:
        recipe: what it is made of.
        target: to write; compressed if its name ends in ``.gz``.
        files: the published files, one for each address of the recipe, in the order of their first use.

    Raises:
        UserError: a published file is not what the recipe says.
    """
    by_url = dict(zip(dict.fromkeys(part.url for part in recipe.parts), files, strict=True))
    compress = target.name.endswith(".gz")
    first = recipe.parts[0]
    if len(recipe.parts) == 1 and not first.is_table:
        with by_url[first.url].open("rb") as published, _binary(target, compress) as out:
            shutil.copyfileobj(published, out)
        return
    rows = _joined(recipe, by_url)
    with _binary(target, compress) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as out:
        head = next(rows, None)
        if head is None:
            raise UserError(f"{first.url}: no rows for {recipe.file}")
        table = csv.writer(out, lineterminator="\n")
        table.writerow(head)
        table.writerow(head.values())
        for row in rows:
            if row.keys() != head.keys():
                raise UserError(f"{first.url}: a row has the fields {', '.join(row)}, the first one {', '.join(head)}")
            table.writerow(row.values())


@contextmanager
def _binary(target: Path, compress: bool) -> Iterator[IO[bytes]]:
    with target.open("wb") as file:
        if not compress:
            yield file
            return
        # no name and no time: the same content gives the same bytes
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # GzipFile is such a file, but typeshed does not say so


def _joined(recipe: Fetch, files: Mapping[str, Path]) -> Iterator[Fields]:
    """Yields the rows of the table."""
    first, *others = (_table(part, files[part.url]) for part in recipe.parts)
    for row in _by_key(recipe, first, others) if recipe.join is not None else _by_line(recipe, first, others):
        for column, values in recipe.replace.items():
            if column in row:
                row[column] = ";".join(values.get(value, value) for value in row[column].split(";"))
        for column in recipe.log10:
            row[column] = _log10(row.get(column, ""), column, recipe)
        yield row


def _by_line(recipe: Fetch, first: Iterator[Fields], others: Sequence[Iterator[Fields]]) -> Iterator[Fields]:
    try:
        for rows in zip(first, *others, strict=True):
            yield {column: value for row in rows for column, value in row.items()}
    except ValueError:
        raise UserError(f"the parts of {recipe.file} do not have as many rows: {_urls(recipe)}") from None


def _by_key(recipe: Fetch, first: Iterator[Fields], others: Sequence[Iterator[Fields]]) -> Iterator[Fields]:
    key = recipe.join or ""
    known = [{row.get(key, ""): row for row in rows} for rows in others]
    for row in first:
        whole = dict(row)
        for part in known:
            if row.get(key, "") not in part:
                raise UserError(f"{recipe.file}: {key} {row.get(key)!r} is in one part only: {_urls(recipe)}")
            whole |= part[row[key]]
        yield whole


def _urls(recipe: Fetch) -> str:
    return ", ".join(dict.fromkeys(part.url for part in recipe.parts))


def _log10(value: str, column: str, recipe: Fetch) -> str:
    try:
        return repr(math.log10(float(value)))
    except ValueError:
        raise UserError(f"{recipe.file}: {column} is {value!r}, which has no logarithm; see {_urls(recipe)}") from None


# ------------------------------------------------------------------------------------------------- published files


def _table(part: Part, file: Path) -> Iterator[Fields]:
    """Yields the columns of each row of a published file."""
    form = part.form or ENDINGS.get(Path((part.member or part.url).removesuffix(".gz")).suffix.lower())
    if form is None:
        raise UserError(f"{part.url}: its ending does not say what it is: 'form' must be given")
    try:
        with _text(part, file) as text:
            for number, fields in enumerate(_READERS[form](text, part), start=1):
                try:
                    row = {c: "/".join(fields[name] for name in names) for c, names in part.columns.items()}
                except KeyError as error:
                    raise UserError(f"{part.url}, row {number}: no field {error}; it has {', '.join(fields)}") from None
                yield row or fields
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{part.url}: cannot be read as {form} ({error})") from error


@contextmanager
def _text(part: Part, file: Path) -> Iterator[IO[str]]:
    with file.open("rb") as published:
        if part.member is not None:
            with zipfile.ZipFile(published) as archive:
                if part.member not in archive.namelist():
                    raise UserError(f"{part.url}: no {part.member} in it; it has {', '.join(archive.namelist()[:8])}")
                with archive.open(part.member) as member:
                    yield io.TextIOWrapper(member, encoding="utf-8-sig", newline="")
            return
        packed = published.read(2) == b"\x1f\x8b"
        published.seek(0)
        stream: Any = gzip.GzipFile(fileobj=published) if packed else published
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _separated(text: IO[str], part: Part, delimiter: str) -> Iterator[Fields]:
    csv.field_size_limit(1 << 24)
    for row in csv.DictReader(text, delimiter=delimiter, strict=True):
        if None in row or None in row.values():
            raise ValueError("a row has more or fewer cells than the first line")
        yield row


def _json(text: IO[str], part: Part) -> Iterator[Fields]:
    """Yields the records of a list, or of columns: name -> list, or name -> row -> value."""
    document = json.load(text)
    if isinstance(document, Mapping):
        columns = [c.values() if isinstance(c, Mapping) else c for c in document.values()]
        document = [dict(zip(document, values, strict=True)) for values in zip(*columns, strict=True)]
    for record in document:
        yield {str(name): _cell(value) for name, value in record.items()}


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    return "" if value is None else str(value)


def _fasta(text: IO[str], part: Part) -> Iterator[Fields]:
    """Yields the named groups of each header and the upper-case letters below it as ``sequence``."""
    pattern = re.compile(part.header)
    fields: Fields | None = None
    letters: list[str] = []
    for line in text:
        if not line.startswith(">"):
            letters.append(line.strip())
            continue
        if fields is not None:
            yield {**fields, "sequence": "".join(letters).upper()}
        found = pattern.match(line[1:].strip())
        if found is None:
            raise ValueError(f"the header {line.strip()[:60]!r} does not fit {part.header!r}")
        fields, letters = {name: value or "" for name, value in found.groupdict().items()}, []
    if fields is not None:
        yield {**fields, "sequence": "".join(letters).upper()}


def _lines(text: IO[str], part: Part) -> Iterator[Fields]:
    for line in text:
        yield {"line": line.strip()}


_READERS: Mapping[Form, Callable[[IO[str], Part], Iterator[Fields]]] = {
    "csv": partial(_separated, delimiter=","),
    "tsv": partial(_separated, delimiter="\t"),
    "json": _json,
    "fasta": _fasta,
    "lines": _lines,
}
