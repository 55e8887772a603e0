"""A store folder is made beside its place and renamed; what a killed process left behind is removed by the next one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from protloom.data.layout import is_store
from protloom.data.streams import WriteError
from protloom.errors import UserError

_TAG = r"\.([0-9a-f]{6})-(\d+)-[0-9a-f]{6}"


def check_target(out: Path) -> None:
    """Raises UserError if a store cannot be put there without harm."""
    if out.is_dir():
        if not is_store(out) and any(out.iterdir()):
            raise UserError(f"{out} exists and is not a store: choose another --out, or empty the folder")
    elif out.exists():
        raise UserError(f"{out} is a file: --out names the folder to make")


def own_name(stem: str) -> str:
    """Returns a name that no other process uses: machine, process and a random part are added to it."""
    return f"{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(3)}"


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Makes a folder beside ``out`` that is removed at the end unless it was renamed; explains failures of writing."""
    folder = out.parent / f".{own_name(out.name)}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent, out.name)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise WriteError(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Puts the finished folder in its place; a store that is there is replaced."""
    if not is_store(out):
        folder.rename(out)
        return
    old = folder.with_suffix(".old")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(parent: Path, stem: str) -> None:
    """Removes the folders that processes of this machine left when they were killed while they made a store.

    A store that such a process had moved away to replace it comes back if nothing is in its place.

    Args:
        parent: folder that holds the stores.
        stem: name of the store.
    """
    shape = re.compile(rf"\.?{re.escape(stem)}((?:{_TAG})+)(\.tmp|\.old)?")
    try:
        entries = sorted(parent.iterdir())
    except OSError:
        return  # not there yet, or one that may be written to but not listed
    for folder in entries:
        found = shape.fullmatch(folder.name)
        if found is None or not folder.is_dir() or not all(_is_gone(*tag) for tag in re.findall(_TAG, found[1])):
            continue
        if found[4] == ".old" and is_store(folder) and not (parent / stem).exists():
            folder.rename(parent / stem)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _machine() -> str:
    """Returns what tells machines apart that share a folder: a number means a process on one of them only."""
    return hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()


def _is_gone(machine: str, number: str) -> bool:
    """Tells whether a process of this machine is no more; one of another machine is taken to be there."""
    if machine != _machine() or sys.platform == "win32":  # Windows has no signal that only asks
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
