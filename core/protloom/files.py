"""Small files that are never half written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file beside and renames it, so that a reader sees the old text or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Gives a file the permissions that any new file has; safetensors writes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Lets one process at a time pass; the lock ends with the process, however that ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
