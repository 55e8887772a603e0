"""Bytes of a file or of standard input, decompressed while they are read and hashed while they pass.

gzip (also of several members, as bgzip writes) and Zstandard are recognised by their first bytes, never by the name.
A compressed file that ends early is an error: the usual cause is a download that was cut off.
"""

from __future__ import annotations

import errno
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from protloom.errors import UserError, did_you_mean

READ_BYTES = 1 << 18
"""Bytes read at once; small, because what follows a gzip member is copied once for every member."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive: unpack it first",
    b"BZh": "compressed with bzip2: unpack it with bunzip2, or compress it with gzip or zstd",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it with unxz, or compress it with gzip or zstd",
    b"PAR1": "a Parquet file: give it the ending .parquet",
    b"\x89HDF": "an HDF5 file: export its sequences as FASTA, CSV or Parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class ByteSource:
    """A file, or standard input for ``-``.

    Args:
        path: the file.

    Attributes:
        name: what error messages call it.
        size: bytes read so far, as they lie on disk.

    Raises:
        UserError: the file is missing, is a folder or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = "standard input" if str(path) == "-" else str(path)
        self.size = 0
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = sys.stdin.buffer if str(path) == "-" else open_binary(Path(path))

    def facts(self) -> dict[str, Any]:
        """Returns name, size in bytes and SHA-256 of what was read; complete once :meth:`blocks` is exhausted."""
        return {"name": Path(self.name).name, "bytes": self.size, "sha256": self._hash.hexdigest()}

    def read_through(self) -> None:
        """Reads the file only to hash it, for formats that another library opens by name; closes it."""
        with self._file:
            for _ in self._raw():
                pass

    def blocks(self) -> Iterator[bytes]:
        """Yields the decompressed bytes in pieces of any size; can be iterated once, and closes the file.

        Raises:
            UserError: the file is empty, truncated, damaged, or of another kind.
        """
        raw = self._raw()
        with self._file:
            first = next(raw, b"")
            if not first:
                raise UserError(f"{self.name} is empty: expected sequences in FASTA, CSV or Parquet")
            for magic, what in _FOREIGN.items():
                if first.startswith(magic):
                    raise UserError(f"{self.name} is {what}")
            if first.startswith(_GZIP):
                yield from self._decompress(first, raw, "gzip", lambda: zlib.decompressobj(wbits=31), _GZIP)
            elif first.startswith(_ZSTD):
                yield from self._decompress(first, raw, "zstd", zstd_decompressor(self.name), _ZSTD)
            else:
                yield first
                yield from raw

    def _raw(self) -> Iterator[bytes]:
        try:
            while data := self._file.read(READ_BYTES):
                self.size += len(data)
                self._hash.update(data)
                yield data
        except OSError as error:
            raise UserError(f"cannot read {self.name}: {error.strerror or error}") from error

    def _decompress(
        self, data: bytes, raw: Iterator[bytes], kind: str, new: Callable[[], _Decompressor], magic: bytes
    ) -> Iterator[bytes]:
        engine = new()
        while True:
            try:
                text = engine.decompress(data)
            except Exception as error:  # each library raises its own class: zlib.error, ZstdError
                raise UserError(
                    f"{self.name} is damaged: its {kind} data cannot be read ({error}); fetch or compress it again"
                ) from error
            if text:
                yield text
            if not engine.eof:
                data = next(raw, b"")
                if not data:
                    raise UserError(
                        f"{self.name} is truncated: its {kind} data ends too early, after {self.size:,} bytes; "
                        "the download or copy was cut off, so fetch it again"
                    )
                continue
            # gzip files may be padded with zeros after the last member (tapes and some servers do)
            data = engine.unused_data.lstrip(b"\0") or next(raw, b"").lstrip(b"\0")
            while len(data) < len(magic) and (more := next(raw, b"")):
                data += more
            if not data:
                return
            if not data.startswith(magic):
                raise UserError(f"{self.name} is damaged: after its {kind} data come other bytes; fetch it again")
            engine = new()


def open_binary(path: Path) -> io.BufferedReader:
    """Opens a file for reading; raises UserError where it is missing (naming the nearest), a folder or unreadable."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise UserError(f"no such file: {path} (there is no folder {folder} either)") from None
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        raise UserError(f"no such file: {path}.{did_you_mean(path.name, others, most=6)}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file of sequences; a store folder has a manifest.json") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def zstd_decompressor(name: str) -> Callable[[], _Decompressor]:
    """Returns what makes a Zstandard decompressor: the standard library's from Python 3.14 on, else ``zstandard``'s."""
    try:
        from compression.zstd import ZstdDecompressor
    except ImportError:
        pass
    else:
        return cast("Callable[[], _Decompressor]", ZstdDecompressor)
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{name} is compressed with zstd: pip install 'protloom[zstd]', or unpack it first") from None
    return cast("Callable[[], _Decompressor]", lambda: zstandard.ZstdDecompressor().decompressobj())


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file; raises UserError where it cannot be read."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class WriteError(UserError):
    """Something could not be written: which place, why, and that what existed is unchanged.

    Args:
        out: the file or folder.
        error: what the system said.
    """

    def __init__(self, out: Path, error: OSError) -> None:
        self.error = error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text = f"no space left to write {out}: free some or choose another place"
        else:
            reason = error.strerror or str(error)
            text = f"cannot write {out}: {reason}; choose a place that you can write to"
        super().__init__(f"{text}; nothing was changed")
