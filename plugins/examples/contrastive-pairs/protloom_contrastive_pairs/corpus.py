"""``pairs:FILE.tsv``: a line holds an id and two sequences, separated by tabs; ``.gz`` is fine."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pydantic import Field

from protloom.contracts import Record
from protloom.errors import UserError
from protloom.settings import Section


class PairsConfig(Section):
    """Options, as in ``pairs:FILE.tsv?header=true``."""

    header: bool = Field(default=False, description="The first line names the columns")


def read(config: PairsConfig, uri: str) -> Iterator[Record]:
    """Yields both sequences of each line as one group, so that they come into the same batch.

    Raises:
        UserError: the file is missing, or a line has other than three fields; names it.
    """
    path = _path(uri)
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or (config.header and number == 1):
                continue
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 3:
                raise UserError(f"{path}, line {number}: {len(fields)} fields; a pair is: id, sequence, sequence")
            name, *pair = fields
            for member, residues in zip("ab", pair, strict=True):
                yield Record(f"{name}/{member}", residues.strip().encode(), group=name)


def identity(config: PairsConfig, uri: str) -> str:
    """Returns the hash of the file: a store that was built of other content is not used."""
    try:
        with _path(uri).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{_path(uri)}: cannot be read ({error.strerror})") from None


def _path(uri: str) -> Path:
    return Path(uri.partition(":")[2].partition("?")[0]).expanduser()


def _open(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8"))
        return path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
