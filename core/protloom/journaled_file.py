"""A file that is always, as others find it, as it was at its last commit, whenever the writer is killed.

HDF5 changes its index in place, so a process that dies while it adds to a file may leave one that nobody can read. Here
what lies beyond the committed end is written at once, where a reader of the old index never looks; changes of what was
there before wait in memory. A commit writes those to a journal beside the file, then into the file, then removes the
journal; opening the file finishes a commit that was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from pathlib import Path
from typing import IO

from protloom.errors import UserError

PAGE = 4096
MAGIC = b"PLJRNL01"
_HEAD = struct.Struct("<QQ")  # size of the file, number of changed pieces
_PIECE = struct.Struct("<QQ")  # where a piece goes, its length


def journal_of(path: Path) -> Path:
    """Returns where the journal of a file lies."""
    return path.with_name(f".{path.name}.journal")


def recover(path: Path) -> None:
    """Finishes a commit of ``path`` that was interrupted; does nothing where none was."""
    journal = journal_of(path)
    if not journal.is_file():
        return
    data = journal.read_bytes()
    if data.startswith(MAGIC) and hashlib.sha256(data[40:]).digest() == data[8:40]:
        with path.open("r+b", buffering=0) as file:
            _apply(file, data[40:])
    journal.unlink()


def _apply(file: IO[bytes], payload: bytes) -> None:
    size, pieces = _HEAD.unpack_from(payload)
    at = _HEAD.size
    for _ in range(pieces):
        place, length = _PIECE.unpack_from(payload, at)
        at += _PIECE.size
        file.seek(place)
        _write_all(file, memoryview(payload)[at : at + length])
        at += length
    file.truncate(size)
    os.fsync(file.fileno())


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


class JournaledFile:
    """A file for h5py's ``fileobj`` driver; see the module.

    Memory holds the pages that were changed since the last commit, so commit now and then. HDF5 cannot pass on an error
    of the system from within, so a failure to write is kept for :meth:`check`, and nothing is committed after it.

    Args:
        path: a file that exists. An interrupted commit of it is finished first.

    Raises:
        UserError: if another process has it open in this way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("r+b", buffering=0)
        try:
            _lock(self._file, path)
            recover(path)
            self._size = self._committed = self._file.seek(0, io.SEEK_END)
        except BaseException:
            self._file.close()
            raise
        self._pages: dict[int, bytearray] = {}  # changed pages of the committed part, by number
        self._at = 0
        self._failure: OSError | None = None

    # ------------------------------------------------------------------------------------- what h5py's driver calls

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Returns the place."""
        return self._at

    def readinto(self, buffer: memoryview | bytearray) -> int:
        """Fills ``buffer`` with the file as it will be after the next commit; returns the bytes read."""
        view = memoryview(buffer).cast("B")
        start, stop = self._at, max(self._at, min(self._at + len(view), self._size))
        self._read_file(start, view[: stop - start])
        for number in range(start // PAGE, min(stop, self._committed) // PAGE + 1):
            page = self._pages.get(number)
            if page is not None:
                a, b = max(start, number * PAGE), min(stop, number * PAGE + len(page))
                if a < b:
                    view[a - start : b - start] = page[a - number * PAGE : b - number * PAGE]
        self._at = stop
        return stop - start

    def read(self, size: int = -1) -> bytes:
        """Returns up to ``size`` bytes."""
        data = bytearray(max(0, self._size - self._at) if size < 0 else size)
        return bytes(data[: self.readinto(data)])

    def write(self, data: bytes | memoryview) -> int:
        """Writes ``data``: at once where nothing was committed, else into memory."""
        view = memoryview(data).cast("B")
        at, stop = self._at, self._at + len(view)
        inside = max(0, min(stop, self._committed) - at)
        done = 0
        while done < inside:
            number, offset = divmod(at + done, PAGE)
            page = self._page(number)
            length = min(len(page) - offset, inside - done)
            page[offset : offset + length] = view[done : done + length]
            done += length
        if inside < len(view):
            try:
                self._file.seek(at + inside)
                _write_all(self._file, view[inside:])
            except OSError as error:
                self._failure = self._failure or error
        self._at = stop
        self._size = max(self._size, stop)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size; a committed file becomes shorter only with the next commit."""
        self._size = self._at if size is None else size
        if self._size >= self._committed:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self._failure = self._failure or error
        return self._size

    def flush(self) -> None:
        """Does nothing: only a commit changes what others see."""

    # ---------------------------------------------------------------------------------------------------- commits

    def check(self) -> None:
        """Raises OSError if something could not be written."""
        if self._failure is not None:
            raise self._failure

    def commit(self) -> None:
        """Makes everything written so far the content of the file.

        Raises:
            OSError: if it could not be written; the last commit stays.
        """
        self.check()
        os.fsync(self._file.fileno())
        if self._pages or self._size < self._committed:
            pieces = [
                part
                for number, page in sorted(self._pages.items())
                for part in (_PIECE.pack(number * PAGE, len(page)), bytes(page))
            ]
            payload = b"".join([_HEAD.pack(self._size, len(self._pages)), *pieces])
            journal = journal_of(self._path)
            part = journal.with_name(f"{journal.name}.tmp")
            try:
                with part.open("wb") as file:
                    file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(journal)
            finally:
                part.unlink(missing_ok=True)
            _apply(self._file, payload)
            journal.unlink()
        self._pages.clear()
        self._committed = self._size

    def close(self) -> None:
        """Closes the file; what was not committed is forgotten."""
        if not self._file.closed:
            self._file.truncate(self._committed)
            self._file.close()

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            start = number * PAGE
            page = bytearray(min(PAGE, self._committed - start))
            self._read_file(start, memoryview(page))
            self._pages[number] = page
        return page

    def _read_file(self, start: int, view: memoryview) -> None:
        """Reads ``view`` from the file itself; what the file does not have yet is left as it is."""
        self._file.seek(start)
        done = 0
        while done < len(view):
            block = self._file.read(len(view) - done)
            if not block:
                return
            view[done : done + len(block)] = block
            done += len(block)


def _lock(file: IO[bytes], path: Path) -> None:
    """Refuses a second writer; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process: wait for it, or choose another -o") from None
