"""Where real data are: a folder that the user names, files with a stated origin and licence."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

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


def locate(data_dir: str | None, source: Source, beside: Path | None = None) -> Path:
    """Returns the path of a data file.

    Args:
        data_dir: the data folder; None: what the environment variable PROTLOOM_DATA says.
        source: which file.
        beside: a folder where it was looked for already, for the message.

    Raises:
        UserError: if there is no folder or no file; says where the file comes from and its licence.
    """
    chosen = data_dir or os.environ.get(VARIABLE)
    get_it = f"it comes from {source.origin} (licence: {source.licence})"
    if not chosen:
        what = f"needs {source.path}: give" if beside is None else f"needs {source.path}: put it into {beside}, or give"
        raise UserError(f"{what} the data folder by --data-dir or {VARIABLE}; {get_it}")
    path = Path(chosen) / source.path
    if not path.is_file():
        missing = "no file" if Path(chosen).is_dir() else "no folder"
        where = path if missing == "no file" else chosen
        near = "" if beside is None else f", and no file {beside / source.path}"
        raise UserError(f"{missing} {where}{near}: put {source.path} into the data folder; {get_it}")
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
