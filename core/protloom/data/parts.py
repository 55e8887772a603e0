"""A cleaned corpus while its store is built: facts in memory, residues and ids in files, put in their final order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from protloom.data.chunk import offsets_of
from protloom.data.layout import ARRAYS, MANIFEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

SORT_BYTES = 1 << 28
"""Residues that are put in their final order at once; a larger corpus takes several passes over the source's order."""
INDEX_ROWS = 1 << 15
"""Ids put in order at once."""
WRITE_ROWS = 512
"""Sequences joined and written at once: few enough that the garbage collector never sees their views."""


@dataclass
class Parts:
    """A cleaned corpus in the order of its source; residues and ids are in files."""

    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    id_starts: NDArray[np.int64]
    id_lengths: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    numbers: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    bounds: NDArray[np.int64]  # [inputs + 1] the record at which each input begins
    residue_file: Path
    id_file: Path

    def __len__(self) -> int:
        return len(self.lengths)

    def owners(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the number of the input of each record."""
        found: NDArray[np.int64] = np.searchsorted(self.bounds, records, side="right") - 1
        return found

    def split(self, records: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yields the number of an input and those of the records that are its own, for inputs that have any."""
        owners = self.owners(records)
        for number in np.unique(owners).tolist():
            yield number, records[owners == number]

    def names(self) -> Callable[[int], bytes]:
        """Returns what gives the id of a record, as the file of ids is now."""
        text = np.memmap(self.id_file, dtype=np.uint8, mode="r").data
        return lambda i: bytes(text[self.id_starts[i] : self.id_starts[i] + self.id_lengths[i]])

    def gather(self, order: NDArray[np.int64], file: IO[bytes]) -> None:
        """Writes the residues of records in the given order."""
        data = np.memmap(self.residue_file, dtype=np.uint8, mode="r").data
        bounds = offsets_of(self.lengths)
        starts, ends = bounds[order], bounds[order + 1]
        if len(data) > SORT_BYTES:
            _gather_sorted(data, starts, ends, file)
            return
        for first in range(0, len(order), WRITE_ROWS):
            rows = slice(first, first + WRITE_ROWS)
            slices = zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)
            file.write(b"".join([data[a:b] for a, b in slices]))


def write_arrays(
    folder: Path, parts: Parts, order: NDArray[np.int64], groups: NDArray[np.int64] | None, manifest: dict[str, Any]
) -> None:
    """Writes the arrays in their final order, then the manifest."""
    arrays: dict[str, NDArray[Any]] = {
        "offsets": offsets_of(parts.lengths[order]),
        "hashes": parts.hashes[order],
    }
    if groups is not None:
        arrays["groups"] = groups
    with (folder / "residues.npy").open("wb") as file:
        _header(file, "residues", int(arrays["offsets"][-1]))
        parts.gather(order, file)
    parts.residue_file.unlink()
    arrays["id_offsets"] = _write_ids(folder, parts, order)
    parts.id_file.unlink()
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            _header(file, name, len(array))
            file.write(np.ascontiguousarray(array, dtype=ARRAYS[name]).data)
    lengths = {name: len(array) for name, array in arrays.items()}
    lengths |= {"residues": int(arrays["offsets"][-1]), "ids": int(arrays["id_offsets"][-1])}
    manifest["arrays"] = {name: {"length": n} for name, n in sorted(lengths.items())}
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _header(file: IO[bytes], name: str, length: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": ARRAYS[name], "fortran_order": False, "shape": (length,)})


def _write_ids(folder: Path, parts: Parts, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Writes the ids in the given order; returns their offsets."""
    text = np.memmap(parts.id_file, dtype=np.uint8, mode="r").view(np.ndarray)
    starts, lengths = parts.id_starts[order], parts.id_lengths[order]
    offsets = offsets_of(lengths)
    with (folder / "ids.npy").open("wb") as file:
        _header(file, "ids", int(offsets[-1]))
        for first in range(0, len(order), INDEX_ROWS):
            rows = slice(first, first + INDEX_ROWS)
            # ids are short: an index of every byte is faster than a slice of every id
            at = np.repeat(starts[rows] - offsets[:-1][rows], lengths[rows])
            at += np.arange(offsets[first], offsets[first] + len(at))
            file.write(text[at].data)
    return offsets


def _gather_sorted(data: memoryview, starts: NDArray[np.int64], ends: NDArray[np.int64], file: IO[bytes]) -> None:
    """The same for a source that may be larger than memory: a disk is read forwards, not at random places."""
    for first, last in _blocks(ends - starts, SORT_BYTES):
        parts = [b""] * (last - first)
        for i in np.argsort(starts[first:last]).tolist():
            parts[i] = bytes(data[starts[first + i] : ends[first + i]])
        file.write(b"".join(parts))


def _blocks(lengths: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Cuts a list of lengths into runs of about ``size`` in total."""
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // size)) + 1
    return itertools.pairwise([0, *cuts.tolist(), len(lengths)])
