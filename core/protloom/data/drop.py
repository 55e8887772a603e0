"""Sequences that are left out of a corpus on request: a list of ids, such as ``protloom data overlap --out`` writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.data.chunk import hash_slices, lengths_of, offsets_of
from protloom.data.streams import open_binary
from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLES = 5
"""Ids that are not in the corpus and are named in the manifest."""


@dataclass(frozen=True)
class DropList:
    """Ids of sequences to leave out.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        ids: each once, in the order of the file.
    """

    name: str
    sha256: str
    ids: tuple[bytes, ...]

    @classmethod
    def read(cls, path: str | Path) -> DropList:
        """Reads a file with an id a line, or a TSV whose first column holds the ids.

        Empty lines and lines that begin with ``#`` are passed over, and so is a first line whose first cell is ``id``.

        Raises:
            UserError: no such file, not text, or no id in it.
        """
        with open_binary(Path(path)) as file:
            data = file.read()
        try:
            lines = data.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason}): a list of ids has an id a line") from None
        cells = [line.split("\t", 1)[0].strip() for line in lines if not line.startswith("#")]
        if cells and cells[0].lower() == "id":
            del cells[0]
        ids = tuple(dict.fromkeys(cell.encode() for cell in cells if cell))
        if not ids:
            raise UserError(f"{path} names no id: it needs an id a line, or ids in the first column of a TSV")
        return cls(Path(path).name, hashlib.sha256(data).hexdigest(), ids)

    def find(self, hashes: NDArray[np.uint64], name_of: Callable[[int], bytes]) -> tuple[list[int], list[bytes]]:
        """Finds the listed records of a corpus in which every id is there once.

        Args:
            hashes: ``[n]`` hash of each record's id.
            name_of: returns the id of a record.

        Returns:
            The numbers of the records, ascending, and the ids that no record has.
        """
        own = hash_slices(b"".join(self.ids), offsets_of(lengths_of(list(self.ids))))
        wanted = set(self.ids)
        names = {i: name_of(i) for i in np.flatnonzero(np.isin(hashes, own)).tolist()}
        there = wanted.intersection(names.values())
        return [i for i, name in names.items() if name in there], [name for name in self.ids if name not in there]

    def facts(self, missing: list[bytes]) -> dict[str, Any]:
        """Returns what a manifest says about the list."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "ids": len(self.ids),
            "not_found": len(missing),
            "first_not_found": [name.decode() for name in missing[:EXAMPLES]],
        }
