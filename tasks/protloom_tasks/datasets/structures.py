"""Protein structures as Cβ coordinates, one JSON record a line, and the contacts in them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from protloom.errors import UserError, did_you_mean
from protloom_tasks.datasets.files import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS = ("id", "source", "sequence", "cb", "resnum")
"""What every record must have; further keys are not read."""
SPLITS: Mapping[str, str] = {"train": "bm5_unbound", "valid": "ts50", "test": "metl-pub"}
"""Which source is which split: there is no official one, and sources were made free of each other's near copies."""
CONTACT = 8.0
"""Residues are in contact if their Cβ are nearer than this, in Å."""
FARTHEST = 1e4
"""Largest coordinate that a file of the PDB can hold, in Å."""

STRUCTURES = Source(
    "contacts/structures.jsonl.gz",
    "github.com/gitter-lab/metl-pub data/pdb_files at 40d8fbf (test), github.com/drorlab/gvp-pytorch data/ts50.json at"
    " 82af6b2 (valid), github.com/haddocking/BM5-clean structures-matched at ff8ee22 (train), each protein a JSON line"
    f" with {', '.join(KEYS)}",
    "MIT (test, valid), Apache-2.0 (train)",
    KEYS,
)


@dataclass(frozen=True)
class Structure:
    """A chain.

    Attributes:
        id: its name.
        source: the set that it comes from.
        sequence: residues seen in the file, as letters.
        cb: ``[L, 3]`` Cβ coordinates in Å (a virtual Cβ for glycine), NaN where unknown.
        numbers: ``[L]`` residue numbers of the PDB file, increasing; gaps are residues not seen.
    """

    id: str
    source: str
    sequence: str
    cb: NDArray[np.float32]
    numbers: NDArray[np.int64]


def read_structures(path: Path) -> list[Structure]:
    """Reads JSON lines, which may be gzip; blank lines are passed over.

    An id may come again with another sequence (a longer piece of the same chain).

    Raises:
        UserError: if the file is damaged or a record wrong; names file and line.
    """
    found: dict[tuple[str, str], Structure] = {}
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                structure = _structure(line, f"{path}, line {number}")
                key = structure.id, structure.sequence
                if key in found:
                    raise UserError(f"{path}, line {number}: {structure.id!r} is there twice with one sequence")
                found[key] = structure
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again from {STRUCTURES.origin}") from error
    return list(found.values())


def contacts_of(structure: Structure) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which residues touch, ``[L, L]`` symmetric, and which have known coordinates, ``[L]``.

    Every pair of known residues nearer than :data:`CONTACT` touches, neighbours in sequence too; a residue does not
    touch itself.
    """
    resolved = np.asarray(np.isfinite(structure.cb).all(axis=1), dtype=np.bool_)
    place = np.where(resolved[:, None], structure.cb, 0).astype(np.float64)
    squares = np.square(place[:, None, :] - place[None, :, :]).sum(axis=-1)  # [L, L]
    near = (squares < CONTACT**2) & resolved[:, None] & resolved[None, :]
    np.fill_diagonal(near, False)
    return near, resolved


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def _structure(line: str, where: str) -> Structure:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error}); a record is an object with {', '.join(KEYS)}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a {type(record).__name__}; a record is an object with {', '.join(KEYS)}")
    absent = [key for key in KEYS if key not in record]
    if absent:
        raise UserError(f"{where}: no {absent[0]!r}; it has {', '.join(map(str, record)) or 'nothing'}")
    name, source, sequence = (str(record[key]) for key in ("id", "source", "sequence"))
    if source not in SPLITS.values():
        raise UserError(f"{where}: source {source!r}.{did_you_mean(source, SPLITS.values())}")
    if not (sequence.isascii() and sequence.isalpha() and sequence.isupper()):
        raise UserError(f"{where} ({name}): sequence {sequence[:20]!r}; give residues as capital letters")
    for key in ("cb", "resnum"):
        values = record[key]
        if not isinstance(values, list) or len(values) != len(sequence):
            size = f"{len(values)} values" if isinstance(values, list) else f"a {type(values).__name__}"
            raise UserError(f"{where} ({name}): {key!r} holds {size} for {len(sequence)} residues; give one for each")
    return Structure(name, source, sequence, _coordinates(record["cb"], f"{where} ({name})"), _numbers(record, where))


def _coordinates(values: list[Any], where: str) -> NDArray[np.float32]:
    """Returns ``[L, 3]``, NaN for null."""
    found = np.full((len(values), 3), np.nan, dtype=np.float32)
    for at, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != 3 or not all(map(_coordinate, value)):
            shown = json.dumps(value)[:60]
            raise UserError(f"{where}: 'cb' of residue {at + 1} is {shown}; give [x, y, z] in Å, or null if unknown")
        found[at] = value
    return found


def _coordinate(value: object) -> bool:
    # the comparison is false for NaN
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FARTHEST


def _numbers(record: Mapping[str, Any], where: str) -> NDArray[np.int64]:
    values = record["resnum"]
    for at, (last, value) in enumerate(zip([None, *values], values, strict=False)):
        if not isinstance(value, int) or isinstance(value, bool) or (last is not None and value <= last):
            raise UserError(
                f"{where} ({record['id']}): 'resnum' of residue {at + 1} is {json.dumps(value)[:20]} after {last};"
                " give whole numbers that increase"
            )
    return np.array(values, dtype=np.int64)
