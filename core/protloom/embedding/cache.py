"""Features that were computed before, on disk: found by what they depend on, whoever computed them.

::

    SPACE/space.json     what all entries below depend on besides their sequence: weights, layer, pooling …
    SPACE/NAME.emb       features of some sequences, written once and never changed

A file is written beside and renamed, so processes that share a folder need no lock: each adds files of its own, and an
entry that two of them computed at once is there twice. A file holds a sorted index of 128-bit hashes of sequences, a
checksum of the index and one of every entry, then the numbers, which are mapped into memory. What fails its checksum is
removed, counted and computed again. Beyond the size limit the files that were used longest ago go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.files import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]

GIGABYTES = 10.0
"""Size limit where none is given, in GiB."""
ENDING = ".emb"
MAGIC = b"PLEMB001"
STALE = 3600.0
"""Seconds after which an unfinished file is taken for that of a dead process; so often is a use noted, too."""
_HEAD = struct.Struct("<8sQQQII")  # magic, entries, rows, width, checksum of the index, reserved


class Damaged(Exception):
    """A file of the cache is not what was written."""


@dataclass(frozen=True)
class _Segment:
    """One file: index in memory, numbers mapped."""

    path: Path
    keys: NDArray[np.uint64]  # [n, 2], sorted by the first half
    starts: NDArray[np.uint64]  # [n + 1], rows
    sums: NDArray[np.uint32]  # [n]
    rows: NDArray[np.float32]  # [rows, D]

    @classmethod
    def open(cls, path: Path) -> _Segment:
        """Reads the index; raises Damaged, or OSError."""
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise Damaged
            magic, n, rows, width, checksum, _ = _HEAD.unpack(head)
            size = os.fstat(file.fileno()).st_size
            if magic != MAGIC or _data_offset(n) + 4 * rows * width != size:
                raise Damaged
            index = file.read(_index_size(n))
        if zlib.crc32(index, zlib.crc32(head[: _HEAD.size - 8])) != checksum:
            raise Damaged
        keys = np.frombuffer(index, np.uint64, 2 * n).reshape(n, 2)
        starts = np.frombuffer(index, np.uint64, n + 1, 16 * n)
        sums = np.frombuffer(index, np.uint32, n, 16 * n + 8 * (n + 1))
        data: F32 = np.zeros((rows, width), np.float32)
        if rows * width:  # what is empty cannot be mapped
            data = np.memmap(path, np.float32, "r", _data_offset(n), (rows, width))
        return cls(path, keys, starts, sums, data)

    def entry(self, i: int) -> F32 | None:
        """Returns a copy of an entry's rows, None where it fails its checksum."""
        found = np.array(self.rows[int(self.starts[i]) : int(self.starts[i + 1])], dtype=np.float32)
        return found if _checksum(self.keys[i], found) == self.sums[i] else None


class EmbeddingCache:
    """A folder of embeddings; see the module.

    Args:
        folder: made when something is kept.
        gigabytes: size limit in GiB, over all files of the folder.
        warn: receives a line when something was damaged, and when the cache cannot go on being written.

    Attributes:
        counts: ``found``, ``missing``, ``kept`` and ``corrupt`` entries, ``evicted`` files.
    """

    def __init__(
        self, folder: Path, *, gigabytes: float = GIGABYTES, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder, self._most, self._warn = folder, int(gigabytes * 2**30), warn
        self.counts: Counter[str] = Counter()
        self._spaces: dict[str, _Space] = {}
        self._writable = True

    def get(self, space: Mapping[str, Any], sequences: Sequence[str]) -> dict[int, F32]:
        """Returns what is known: position in ``sequences`` -> ``[rows, D]``.

        Args:
            space: all that a feature depends on besides the sequence, as plain data.
            sequences: residues as letters.
        """
        place = self._space(space)
        found, corrupt = place.get(sequences)
        self.counts.update(found=len(found), missing=len(sequences) - len(found))
        if corrupt:
            self.counts["corrupt"] += corrupt
            what = "1 cached embedding was" if corrupt == 1 else f"{corrupt:,} cached embeddings or files of them were"
            self._warn(f"{what} damaged: dropped and computed again ({self.folder})")
        return found

    def put(self, space: Mapping[str, Any], sequences: Sequence[str], values: Sequence[F32]) -> None:
        """Keeps features ``[rows, D]`` of sequences; where the disk does not take them, says so once and goes on."""
        if not self._writable or not len(sequences):
            return
        content = _packed(sequences, values)
        if len(content) > self._most:
            return
        place = self._space(space)
        try:
            self._make_room(len(content))
            place.add(content)
        except OSError as error:
            self._writable = False
            self._warn(
                f"embeddings cannot be kept in {self.folder} ({error.strerror or error}): going on without;"
                f" --cache-dir names another folder"
            )
            return
        self.counts["kept"] += len(sequences)

    def _space(self, space: Mapping[str, Any]) -> _Space:
        text = json.dumps(space, sort_keys=True, default=str)
        if text not in self._spaces:
            self._spaces[text] = _Space(self.folder / hashlib.sha256(text.encode()).hexdigest()[:32], text)
        return self._spaces[text]

    def _make_room(self, size: int) -> None:
        """Removes the files that were used longest ago, and what dead processes left half written."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == ".tmp" and time.time() - status.st_mtime > STALE:
                path.unlink(missing_ok=True)
            elif path.suffix == ENDING:
                files.append((status.st_mtime, status.st_size, path))
        excess = sum(length for _, length, _ in files) + size - self._most
        for _, length, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)  # a process that has it mapped keeps reading it
            excess -= length
            self.counts["evicted"] += 1


class _Space:
    """The files whose entries depend on the same but the sequence.

    Args:
        folder: of these files.
        text: what it stands for.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self._folder, self._text = folder, text
        self._segments: dict[Path, _Segment] = {}
        self._used: dict[Path, float] = {}
        self._index = (np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._order: list[Path] = []
        self._fresh = True

    def get(self, sequences: Sequence[str]) -> tuple[dict[int, F32], int]:
        """Returns what is known by position, and how many entries were removed as damaged."""
        corrupt = self._refresh()
        keys, owner, row = self._index
        found: dict[int, F32] = {}
        bad: dict[Path, list[int]] = {}
        if not len(keys) or not len(sequences):
            return found, corrupt
        wanted = _keys(sequences)
        first = np.searchsorted(keys[:, 0], wanted[:, 0], side="left")
        last = np.searchsorted(keys[:, 0], wanted[:, 0], side="right")
        for i in np.flatnonzero(last > first).tolist():
            for at in range(int(first[i]), int(last[i])):  # an entry may be there several times
                if keys[at, 1] != wanted[i, 1]:
                    continue
                path = self._order[owner[at]]
                values = self._segments[path].entry(int(row[at]))
                if values is None:
                    bad.setdefault(path, []).append(int(row[at]))
                    continue
                found[i] = values
                self._note_use(path)
                break
        for path, rows in bad.items():
            corrupt += self._remove(path, rows)
        return found, corrupt

    def add(self, content: bytes) -> None:
        """Writes a file; raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        about = self._folder / "space.json"
        if not about.is_file():
            write_text(about, self._text + "\n")
        path = self._folder / f"{time.time_ns():x}-{secrets.token_hex(4)}{ENDING}"
        part = path.with_suffix(".tmp")
        try:
            with part.open("wb") as file:
                file.write(content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _refresh(self) -> int:
        """Looks for files of others; returns how many entries were lost with files that are damaged as a whole."""
        lost = 0
        try:
            present = {path for path in self._folder.iterdir() if path.suffix == ENDING}
        except OSError:
            present = set()
        if self._fresh and present == set(self._segments):
            return 0
        for path in set(self._segments) - present:
            del self._segments[path]
        for path in sorted(present - set(self._segments)):
            try:
                self._segments[path] = _Segment.open(path)
            except Damaged:
                path.unlink(missing_ok=True)
                lost += 1
            except OSError:  # another process made room
                continue
        self._order = sorted(self._segments)
        segments = [self._segments[path] for path in self._order]
        keys = np.concatenate([np.zeros((0, 2), np.uint64), *(s.keys for s in segments)])
        sizes = [len(s.keys) for s in segments]
        owner = np.repeat(np.arange(len(segments)), sizes)
        row = np.concatenate([np.zeros(0, np.int64), *(np.arange(n) for n in sizes)])
        order = np.argsort(keys[:, 0], kind="stable")
        self._index = keys[order], owner[order], row[order]
        self._fresh = True
        return lost

    def _note_use(self, path: Path) -> None:
        now = time.time()
        if now - self._used.get(path, 0.0) > STALE:
            self._used[path] = now
            with contextlib.suppress(OSError):  # a folder that may only be read, or a file that had to go
                os.utime(path)

    def _remove(self, path: Path, rows: Sequence[int]) -> int:
        """Takes damaged entries out of a file: writes the others anew and removes it; returns how many there were."""
        segment = self._segments.pop(path)
        self._fresh = False
        kept = [(i, segment.entry(i)) for i in range(len(segment.keys)) if i not in rows]
        whole = [(i, values) for i, values in kept if values is not None]
        with contextlib.suppress(OSError):  # then it stays, and is found damaged again
            if whole:
                self.add(_assembled(segment.keys[[i for i, _ in whole]], [values for _, values in whole]))
            path.unlink(missing_ok=True)
        return len(segment.keys) - len(whole)


# ---------------------------------------------------------------------------------------------------------- layout


def _index_size(n: int) -> int:
    return 16 * n + 8 * (n + 1) + 4 * n


def _data_offset(n: int) -> int:
    return -(-(_HEAD.size + _index_size(n)) // 64) * 64


def _keys(sequences: Sequence[str]) -> NDArray[np.uint64]:
    """Returns the two halves of each sequence's hash, ``[n, 2]``."""
    digests = b"".join(hashlib.blake2b(s.encode("ascii"), digest_size=16).digest() for s in sequences)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def _checksum(key: NDArray[np.uint64], values: F32) -> int:
    """Returns the checksum of an entry, its key included: numbers under another key are damage too."""
    return zlib.crc32(np.ascontiguousarray(values, dtype="<f4").tobytes(), zlib.crc32(key.tobytes()))


def _packed(sequences: Sequence[str], values: Sequence[F32]) -> bytes:
    return _assembled(_keys(sequences), [np.atleast_2d(value) for value in values])


def _assembled(keys: NDArray[np.uint64], values: Sequence[F32]) -> bytes:
    """Returns the bytes of a file."""
    order = np.argsort(keys[:, 0], kind="stable")
    keys, values = keys[order], [values[i] for i in order.tolist()]
    starts = np.cumsum([0, *(len(value) for value in values)]).astype(np.uint64)
    sums = np.array([_checksum(key, value) for key, value in zip(keys, values, strict=True)], dtype=np.uint32)
    index = keys.tobytes() + starts.tobytes() + sums.tobytes()
    width = values[0].shape[1]
    head = _HEAD.pack(MAGIC, len(keys), int(starts[-1]), width, 0, 0)[: _HEAD.size - 8]
    head += struct.pack("<II", zlib.crc32(index, zlib.crc32(head)), 0)
    padding = bytes(_data_offset(len(keys)) - len(head) - len(index))
    return b"".join([head, index, padding, *(np.ascontiguousarray(v, dtype="<f4").tobytes() for v in values)])
