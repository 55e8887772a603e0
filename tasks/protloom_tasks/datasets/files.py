"""Where real data are: a folder that the user names, files with a stated origin and licence."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from protloom.errors import UserError

VARIABLE = "PROTLOOM_DATA"
"""Environment variable: the data folder, where ``--data-dir`` is not given."""


@dataclass(frozen=True)
class Source:
    """A data file and where to get it.

    Attributes:
        path: below the data folder.
        origin: repository, path and commit that it was made from.
        licence: as the origin states it.
        columns: that a CSV file must have.
    """

    path: str
    origin: str
    licence: str
    columns: tuple[str, ...] = ()


def locate(data_dir: str | None, source: Source) -> Path:
    """Returns the path of a data file.

    Args:
        data_dir: the data folder; None: what the environment variable PROTLOOM_DATA says.
        source: which file.

    Raises:
        UserError: if there is no folder or no file; says where the file comes from and its licence.
    """
    chosen = data_dir or os.environ.get(VARIABLE)
    get_it = f"it comes from {source.origin} (licence: {source.licence})"
    if not chosen:
        raise UserError(f"needs {source.path}: give the data folder by --data-dir or {VARIABLE}; {get_it}")
    path = Path(chosen) / source.path
    if not path.is_file():
        missing = "no file" if Path(chosen).is_dir() else "no folder"
        where = path if missing == "no file" else chosen
        raise UserError(f"{missing} {where}: put {source.path} into the data folder; {get_it}")
    return path


def status(data_dir: str | None, source: Source) -> str:
    """Returns ``ready``, or what is missing, for ``task list``."""
    try:
        locate(data_dir, source)
    except UserError:
        return f"missing {source.path}"
    return "ready"


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_csv(path: Path, source: Source) -> Iterator[Mapping[str, str]]:
    """Yields the rows of a CSV file, which may be gzip.

    Raises:
        UserError: if a column is missing, a row is ragged, or the file is damaged; names file and line.
    """
    try:
        with _open(path) as file:
            reader = csv.DictReader(file)
            absent = [name for name in source.columns if name not in (reader.fieldnames or ())]
            if absent:
                raise UserError(
                    f"{path}: no column {absent[0]!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            for row in reader:
                if None in row or any(value is None for value in row.values()):
                    raise UserError(f"{path}, line {reader.line_num}: not {len(reader.fieldnames or ())} cells")
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); get it again from {source.origin}") from error


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8", newline=""))
    return path.open(encoding="utf-8", newline="")
