"""Embeddings on disk: HDF5 as biotrainer reads it, npz, Parquet; written as they are computed.

*HDF5* has one dataset a distinct sequence, ``[D]`` or ``[L, D]`` float32, in the order of the input. As in biotrainer
(its guide "H5 File Standardization"), the key is the SHA-256 of ``<sequence>_<length>`` in hexadecimal, and the
attribute ``original_id`` is the sequence's id; further ids of the same sequence are in the attribute ``other_ids``. The
file's attribute ``protloom`` states what the values were made with, as JSON. A file grows by commits, so that it can be
read and continued after the writer was killed.

*npz* has the arrays ``ids`` ``[n]`` and ``embeddings`` ``[n, D]``, or one array ``[L, D]`` an id where nothing is
pooled. *Parquet* has a row for each id: ``id``, ``length``, ``embedding``. Both appear only when they are complete.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from protloom.data.streams import WriteError
from protloom.errors import UserError, did_you_mean
from protloom.journaled_file import JournaledFile, journal_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.data.records import Entry

    F32 = NDArray[np.float32]

COMMIT_BYTES, COMMIT_SECONDS = 256 << 20, 20.0
"""After how many bytes or seconds an HDF5 file is committed: what a kill can lose."""
BLOCK_BYTES = 32 << 20
"""Bytes of values that go into a Parquet row group, about."""
ID_ROWS = 1 << 16
"""Ids that are written into an npz at once."""


class EmbeddingFile(Protocol):
    """A file that takes embeddings in the order of the input."""

    def holds(self, sequence: str) -> bool:
        """Tells whether the values of a sequence are there already."""

    def add(self, entries: Sequence[Entry], values: Mapping[str, F32]) -> None:
        """Adds sequences; ``values`` has those that the file does not hold, by sequence."""


def sequence_key(sequence: str) -> str:
    """Returns the key of a sequence in an HDF5 file: SHA-256 of ``<sequence>_<length>`` in hexadecimal (biotrainer)."""
    return hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises UserError if embeddings cannot be written to ``path``: before the long part, not after it."""
    if path.suffix not in _FORMATS:
        raise UserError(f"-o {path}: no format for {path.suffix!r}.{did_you_mean(path.suffix, _FORMATS)}")
    for module in _FORMATS[path.suffix][1]:
        _need(module, path)
    if path.is_dir():
        raise UserError(f"-o {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"-o {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite and _FORMATS[path.suffix][0] is not _hdf5:
        raise UserError(f"{path} exists: choose another -o, or --overwrite (only HDF5 files can be continued)")


@contextmanager
def open_embeddings(
    path: Path, settings: Mapping[str, Any], width: int, *, pooled: bool, overwrite: bool = False
) -> Iterator[EmbeddingFile]:
    """Opens a file for embeddings; its suffix chooses the format.

    Args:
        path: ends in ``.h5``, ``.hdf5``, ``.npz`` or ``.parquet``.
        settings: what identifies the values; an HDF5 file is continued only if its own are equal.
        width: D, the number of features.
        pooled: one vector a sequence, not one a residue.
        overwrite: begin a new file where one is.

    Raises:
        UserError: the file cannot be continued or written; what existed is unchanged.
    """
    check_target(path, overwrite=overwrite)
    with _FORMATS[path.suffix][0](path, settings, width, pooled, overwrite) as file:
        yield file


def _need(module: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"-o {path}: {path.suffix} needs {module}: pip install 'protloom[embed]'") from None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission into one line."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Gives the name of a file beside ``path`` that takes its place if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------- HDF5


class _Hdf5:
    """See the module."""

    def __init__(self, h5py: ModuleType, file: Any, journal: JournaledFile) -> None:
        self._h5py, self._file, self._journal = h5py, file, journal
        self._text = h5py.string_dtype()
        self._text_type = h5py.h5t.py_create(self._text, logical=True)
        self._one = h5py.h5s.create(h5py.h5s.SCALAR)
        self._written, self._since = 0, time.monotonic()
        self.committed = False

    def holds(self, sequence: str) -> bool:
        return sequence_key(sequence) in self._file

    def add(self, entries: Sequence[Entry], values: Mapping[str, F32]) -> None:
        further: dict[str, list[str]] = {}
        for entry in entries:
            key = sequence_key(entry.sequence)
            if key not in self._file:
                self._create(key, values[entry.sequence], entry.id)
            elif self._file[key].attrs["original_id"] != entry.id:
                further.setdefault(key, []).append(entry.id)
        for key, ids in further.items():
            attributes = self._file[key].attrs
            before = list(attributes.get("other_ids", ()))
            together = list(dict.fromkeys([*before, *ids]))
            if len(together) > len(before):
                attributes["other_ids"] = together
        self._journal.check()
        if self._written >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self._file.flush()
            self._journal.commit()
            self.committed = True
            self._written, self._since = 0, time.monotonic()

    def _create(self, key: str, array: F32, name: str) -> None:
        """Does what ``create_dataset`` and ``attrs`` do in half the time, which limits small networks on a GPU."""
        low, everything = self._h5py, self._h5py.h5s.ALL
        shape = low.h5s.create_simple(array.shape)
        dataset = low.h5d.create(self._file.id, key.encode(), low.h5t.IEEE_F32LE, shape)
        if array.size:
            dataset.write(everything, everything, np.ascontiguousarray(array))
        attribute = low.h5a.create(dataset, b"original_id", self._text_type, self._one)
        attribute.write(np.array(name, dtype=self._text))
        self._written += array.nbytes


@contextmanager
def _hdf5(path: Path, settings: Mapping[str, Any], width: int, pooled: bool, overwrite: bool) -> Iterator[_Hdf5]:
    h5py = _need("h5py", path)
    with _explained(path):
        if not overwrite and path.exists():
            with _continued(h5py, path, settings) as embeddings:
                yield embeddings
            return
        with _replaced(path) as wanted:
            _begin(h5py, path, settings)
            with _continued(h5py, path, settings) as embeddings:
                try:
                    yield embeddings
                finally:
                    wanted.append(embeddings.committed)


def _begin(h5py: ModuleType, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a file without embeddings."""
    # 1.8 (2008): earlier formats keep no order and no long attributes, later ones mark a file in use
    with _beside(path) as part, h5py.File(part, "w", libver=("v108", "v108"), track_order=True) as file:
        file.attrs["protloom"] = json.dumps(dict(settings), sort_keys=True)


@contextmanager
def _continued(h5py: ModuleType, path: Path, settings: Mapping[str, Any]) -> Iterator[_Hdf5]:
    """Opens a file that this module wrote, to add to it."""
    journal = JournaledFile(path)
    try:
        _check_settings(h5py, journal, path, settings)
        journal.seek(0)
        try:
            with h5py.File(journal, "r+", libver=("v108", "v108")) as file:
                yield _Hdf5(h5py, file, journal)
            journal.commit()
        except OSError as error:
            kept = "what was there before and what was committed since is kept"
            raise UserError(f"cannot write {path}: {error.strerror or error}; {kept}") from error
    finally:
        journal.close()


@contextmanager
def _replaced(path: Path) -> Iterator[list[bool]]:
    """Puts a file aside while a new one is begun; puts it back if that fails before anything worth keeping is in it.

    Yields:
        A list whose last element tells whether the new file holds anything to go on from.
    """
    aside = path.with_name(f".{path.name}.old")
    wanted: list[bool] = []
    if path.exists():
        path.replace(aside)
    journal_of(path).unlink(missing_ok=True)
    try:
        yield wanted
    except BaseException:
        if not any(wanted):
            for leftover in (path, journal_of(path)):
                leftover.unlink(missing_ok=True)
            if aside.exists():
                aside.replace(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def _check_settings(h5py: ModuleType, journal: JournaledFile, path: Path, settings: Mapping[str, Any]) -> None:
    advice = "choose another -o, or --overwrite"
    try:
        with h5py.File(journal, "r") as file:
            text = file.attrs.get("protloom")
    except OSError:
        raise UserError(f"{path} is not a readable HDF5 file: {advice}") from None
    try:
        before: Any = json.loads(text)
    except (TypeError, ValueError):
        raise UserError(f"{path} was not written by 'protloom embed', so it cannot be continued: {advice}") from None
    differing = [
        f"{key} {before.get(key)!r} (now {settings.get(key)!r})"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if differing:
        raise UserError(f"{path} holds embeddings made with {', '.join(differing)}: {advice}")


# ------------------------------------------------------------------------------------------------------------ npz


class _Npz:
    """One array an id."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def holds(self, sequence: str) -> bool:
        return False

    def add(self, entries: Sequence[Entry], values: Mapping[str, F32]) -> None:
        for entry in entries:
            with self._archive.open(f"{entry.id}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values[entry.sequence]), allow_pickle=False)


class _NpzPooled:
    """Rows gathered in a file of their own: an array's header states how many there are."""

    def __init__(self, rows: Any) -> None:
        self._rows, self.ids = rows, list[str]()

    def holds(self, sequence: str) -> bool:
        return False

    def add(self, entries: Sequence[Entry], values: Mapping[str, F32]) -> None:
        for entry in entries:
            self._rows.write(np.ascontiguousarray(values[entry.sequence], dtype="<f4").data)
            self.ids.append(entry.id)


@contextmanager
def _npz(path: Path, settings: Mapping[str, Any], width: int, pooled: bool, overwrite: bool) -> Iterator[EmbeddingFile]:
    with _beside(path) as part, zipfile.ZipFile(part, "w") as archive:
        archive.comment = json.dumps(dict(settings), sort_keys=True).encode()
        if not pooled:
            yield _Npz(archive)
            return
        raw = part.with_suffix(".rows.tmp")
        try:
            with raw.open("wb") as rows:
                gathered = _NpzPooled(rows)
                yield gathered
            _write_ids(archive, gathered.ids)
            with raw.open("rb") as rows:
                blocks = iter(lambda: rows.read(1 << 20), b"")
                _write_blocks(archive, "embeddings", "<f4", (len(gathered.ids), width), blocks)
        finally:
            raw.unlink(missing_ok=True)


def _write_ids(archive: zipfile.ZipFile, ids: Sequence[str]) -> None:
    kind = f"<U{max(map(len, ids), default=1)}"
    blocks = (np.array(ids[i : i + ID_ROWS], dtype=kind).tobytes() for i in range(0, len(ids), ID_ROWS))
    _write_blocks(archive, "ids", kind, (len(ids),), blocks)


def _write_blocks(
    archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...], blocks: Iterable[bytes]
) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(block)


# -------------------------------------------------------------------------------------------------------- Parquet


class _Parquet:
    """See the module."""

    def __init__(self, pyarrow: ModuleType, writer: Any, width: int, pooled: bool) -> None:
        self._pyarrow, self._writer, self._width, self._pooled = pyarrow, writer, width, pooled
        self._entries: list[Entry] = []
        self._values: list[F32] = []
        self._bytes = 0

    def holds(self, sequence: str) -> bool:
        return False

    def add(self, entries: Sequence[Entry], values: Mapping[str, F32]) -> None:
        self._entries += entries
        self._values += [values[entry.sequence] for entry in entries]
        self._bytes += sum(values[entry.sequence].nbytes for entry in entries)
        if self._bytes >= BLOCK_BYTES:
            self.write()

    def write(self) -> None:
        """Writes what was gathered as one row group."""
        if not self._entries:
            return
        arrow = self._pyarrow
        parts = [np.atleast_2d(value) for value in self._values]  # each [1, D] or [L, D]
        flat = np.concatenate(parts).reshape(-1)
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), self._width)
        if not self._pooled:
            ends = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
            vectors = arrow.ListArray.from_arrays(arrow.array(ends), vectors)
        columns = [
            arrow.array([entry.id for entry in self._entries], arrow.string()),
            arrow.array([len(entry.sequence) for entry in self._entries], arrow.int32()),
            vectors,
        ]
        self._writer.write_table(arrow.Table.from_arrays(columns, schema=self._writer.schema))
        self._entries, self._values, self._bytes = [], [], 0


@contextmanager
def _parquet(path: Path, settings: Mapping[str, Any], width: int, pooled: bool, overwrite: bool) -> Iterator[_Parquet]:
    arrow, parquet = _need("pyarrow", path), _need("pyarrow.parquet", path)
    kind = arrow.list_(arrow.float32(), width)
    fields = [("id", arrow.string()), ("length", arrow.int32()), ("embedding", kind if pooled else arrow.list_(kind))]
    schema = arrow.schema(fields, metadata={"protloom": json.dumps(dict(settings), sort_keys=True)})
    # values of a network hardly compress
    options = {"compression": "none", "use_dictionary": ["id"]}
    with _beside(path) as part, parquet.ParquetWriter(part, schema, **options) as writer:
        file = _Parquet(arrow, writer, width, pooled)
        yield file
        file.write()


_FORMATS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    ".h5": (_hdf5, ("h5py",)),
    ".hdf5": (_hdf5, ("h5py",)),
    ".npz": (_npz, ()),
    ".parquet": (_parquet, ("pyarrow",)),
}
