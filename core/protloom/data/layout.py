"""The store: a corpus as a folder of flat arrays that is memory-mapped, never loaded.

Files: ``residues.npy`` ``[R]`` uint8 ASCII, ``offsets.npy`` ``[N + 1]`` int64, ``ids.npy`` uint8 UTF-8 with
``id_offsets.npy`` ``[N + 1]`` int64, ``hashes.npy`` ``[N]`` uint64, ``groups.npy`` ``[G + 1]`` int64 (sequence numbers
where groups begin; only where the source has groups) and ``manifest.json``. Groups were shuffled once when the store
was built, so consecutive ones are a random sample of the corpus.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.data.chunk import hash_slices
from protloom.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT = "protloom-store"
VERSION = 1
"""Version of the folder's layout; a store of another version is refused."""

MANIFEST = "manifest.json"
ARRAYS: Mapping[str, str] = {
    "residues": "|u1",
    "offsets": "<i8",
    "ids": "|u1",
    "id_offsets": "<i8",
    "hashes": "<u8",
    "groups": "<i8",
}
"""The arrays of a store and their types; ``groups`` may be missing."""


def content_hash(hashes: NDArray[np.uint64], groups: NDArray[np.int64] | None) -> str:
    """Returns the SHA-256 that identifies the sequences of a store, their order and their groups (not their ids)."""
    digest = hashlib.sha256(f"{FORMAT} {VERSION} {len(hashes)}\n".encode())
    digest.update(np.ascontiguousarray(hashes, dtype="<u8").data)
    if groups is not None:
        digest.update(np.ascontiguousarray(groups, dtype="<i8").data)
    return digest.hexdigest()


class Store:
    """An open store; make one with :meth:`open` or :func:`protloom.data.build.build_store`.

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` says: sources, counts by policy, statistics, licence.
        residues: ``[R]`` uint8, all sequences end to end, upper-case ASCII.
        offsets: ``[N + 1]`` int64, where each sequence begins.
        hashes: ``[N]`` uint64, a hash of each sequence's residues (:func:`protloom.data.chunk.hash_slices`).
        groups: ``[G + 1]`` int64, the sequence where each group begins, or None: every sequence is its own group.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.path = path
        self.manifest = manifest
        self.residues: NDArray[np.uint8] = arrays["residues"]
        self.offsets: NDArray[np.int64] = arrays["offsets"]
        self.hashes: NDArray[np.uint64] = arrays["hashes"]
        self.groups: NDArray[np.int64] | None = arrays.get("groups")
        self._ids: NDArray[np.uint8] = arrays["ids"]
        self._id_offsets: NDArray[np.int64] = arrays["id_offsets"]

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Opens a store folder; costs the same for any size.

        Raises:
            UserError: if the folder is not a store, or a file of it is missing or does not fit the manifest.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        arrays = {name: _map(folder, name, facts) for name, facts in manifest["arrays"].items()}
        store = cls(folder, manifest, arrays)
        store._check_ends()
        return store

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self):,} sequences, {len(self.residues):,} residues)"

    @property
    def n_groups(self) -> int:
        """Number of groups G: the unit of sampling."""
        return len(self) if self.groups is None else len(self.groups) - 1

    @property
    def content_hash(self) -> str:
        """Identifies the data: equal for equal sequences in the same order and groups."""
        return str(self.manifest["content_hash"])

    @property
    def name(self) -> str:
        """What the store was made of, such as ``proteins.fasta`` or ``demo:?n=2000``."""
        return ", ".join(str(source.get("name", "?")) for source in self.manifest.get("sources", [])) or self.path.name

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        lengths = np.diff(self.offsets)
        lengths.flags.writeable = False
        return lengths

    def lengths(self) -> NDArray[np.int64]:
        """Returns ``[N]`` residues of each sequence; computed once, read-only."""
        return self._lengths

    def sequence(self, i: int) -> NDArray[np.uint8]:
        """Returns a view of sequence ``i``: uint8 ASCII, read-only."""
        i = self._number(i)
        return self.residues[self.offsets[i] : self.offsets[i + 1]]

    def id(self, i: int) -> str:
        """Returns the id of sequence ``i``."""
        i = self._number(i)
        return self._ids[self._id_offsets[i] : self._id_offsets[i + 1]].tobytes().decode()

    def ids(self) -> list[str]:
        """Returns all ids in order; for large stores prefer :meth:`id`."""
        text, bounds = self._ids.tobytes(), self._id_offsets.tolist()
        return [text[a:b].decode() for a, b in itertools.pairwise(bounds)]

    def verify(self, block: int = 1 << 16) -> None:
        """Reads everything once and compares it with the hashes.

        Raises:
            UserError: if anything changed since the store was built.
        """
        for start in range(0, len(self), block):
            offsets = self.offsets[start : start + block + 1]
            if (np.diff(offsets) <= 0).any():
                raise _damaged(self.path, "offsets.npy", "offsets do not increase")
            data = self.residues[offsets[0] : offsets[-1]].tobytes()
            wrong = hash_slices(data, offsets - offsets[0]) != self.hashes[start : start + block]
            if wrong.any():
                raise _damaged(
                    self.path, "residues.npy", f"sequence {start + int(np.argmax(wrong))} has other residues"
                )
        if content_hash(self.hashes, self.groups) != self.content_hash:
            raise _damaged(self.path, "hashes.npy", "the content hash of the manifest is another")

    def _number(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        return int(i)

    def _check_ends(self) -> None:
        for name, offsets, total in (
            ("offsets", self.offsets, len(self.residues)),
            ("id_offsets", self._id_offsets, len(self._ids)),
            ("groups", self.groups, len(self)),
        ):
            if offsets is None:
                continue
            if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != total:
                raise _damaged(self.path, f"{name}.npy", "its offsets do not span the data")
        if not len(self.hashes) == len(self) == len(self._id_offsets) - 1:
            raise _damaged(self.path, "hashes.npy", "its length is not the number of sequences")


def is_store(path: Path) -> bool:
    """Tells whether a folder looks like a store, sound or not."""
    return (path / MANIFEST).is_file()


def _damaged(folder: Path, file: str, why: str) -> UserError:
    return UserError(f"store {folder} is damaged: {file}: {why}; build it again with 'protloom data prepare'")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a store: it has no manifest.json" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; make one with 'protloom data prepare FILE --out {folder}'") from None
    except OSError as error:
        raise UserError(f"cannot read {folder / MANIFEST}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _damaged(folder, MANIFEST, "it is not text") from error
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise _damaged(folder, MANIFEST, f"it is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{folder} is not a store: its manifest.json is of another program")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"store {folder} has version {manifest.get('version')}, this protloom reads {VERSION}: build it again"
        )
    arrays = manifest.get("arrays")
    if (
        not isinstance(arrays, dict)
        or not set(ARRAYS) - {"groups"} <= set(arrays) <= set(ARRAYS)
        or not all(isinstance(a, dict) and isinstance(a.get("length"), int) for a in arrays.values())
        or not isinstance(manifest.get("content_hash"), str)
    ):
        raise _damaged(folder, MANIFEST, "it does not list the arrays")
    return manifest


def _map(folder: Path, name: str, facts: Mapping[str, Any]) -> NDArray[Any]:
    """Maps one array; its file must have the type and the length that the manifest states."""
    file = folder / f"{name}.npy"
    if not file.is_file():
        raise _damaged(folder, file.name, "it is missing")
    try:
        if facts["length"] == 0:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
        else:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(folder, file.name, f"it cannot be mapped ({error})") from error
    if array.dtype != np.dtype(ARRAYS[name]) or array.shape != (facts["length"],):
        raise _damaged(folder, file.name, f"expected {facts['length']} × {ARRAYS[name]}, found {array.shape}")
    # a plain array over the map: slicing np.memmap objects costs ten times as much
    return array.view(np.ndarray)
