"""The folder of a run: where it may be, who has it, and the run file in it.

Nothing here needs PyTorch, so that a mistake is told at once.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import config
from protloom.errors import UserError
from protloom.files import write_text

if TYPE_CHECKING:
    from protloom.config import ResolvedRun

CONFIG = "config.yaml"
KERNELS = "kernels.json"
DEFAULT_PARENT = "runs"
LOCK = ".lock"


def stated(resolved: ResolvedRun) -> Path | None:
    """Returns the run folder that the run file names, or None if it names none.

    Raises:
        UserError: if it already holds a run or other files, or cannot be made.
    """
    name = resolved.settings.out
    folder = Path(DEFAULT_PARENT if name is None else name).expanduser()
    if name is not None and (folder / CONFIG).exists():
        raise UserError(f"{folder} holds a run already: go on with  protloom resume {folder}  or choose another --out")
    if name is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: choose another --out")
    # told now, not after hours of building a store
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise UserError(f"the run folder {folder} cannot be made: {there} is a file; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"the run folder {folder} cannot be made: no permission to write in {there}; choose another --out"
        )
    return None if name is None else folder


def claim(resolved: ResolvedRun) -> Path:
    """Makes the run folder: the one that the run file names, or ``runs/NAME-TIME``, which no other run has.

    Raises:
        UserError: as :func:`stated`.
    """
    named = stated(resolved)
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        return named
    name = f"{resolved.architecture.component.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = Path(DEFAULT_PARENT) / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1  # another run was started in the same second


def refuse_if_none(run_dir: Path, overrides: Sequence[str] = ()) -> None:
    """Refuses to resume what is no run, and to move one.

    Raises:
        UserError: there is no run file in the folder, or the overrides name another folder.
    """
    if not (run_dir / CONFIG).is_file():
        copies = sorted((run_dir / "checkpoints").glob(f"step-*/{CONFIG}"))
        advice = f"copy {copies[-1]} there" if copies else "name the folder that  protloom train  printed"
        raise UserError(f"{run_dir} holds no run ({CONFIG} is missing): {advice}")
    if any(override.partition("=")[0] == "out" for override in overrides):
        raise UserError(
            f"out cannot be changed: the run goes on in {run_dir}; start another one with train --init {run_dir}"
        )


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keeps the folder for this process; another one that wants to train there is refused until this one ends.

    The system takes the lock back however the process ends. On a file system without locks there is none.

    Raises:
        UserError: another process has it; names the process.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = run_dir / LOCK
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run_dir} is being trained by another process ({file.read().strip() or 'unknown'}): "
                "wait for it, or stop it first"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_config(run_dir: Path, resolved: ResolvedRun) -> None:
    """Writes the resolved run file, whole or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = config.dump(document(resolved))
    write_text(run_dir / CONFIG, "# the whole configuration of this run, defaults included\n" + text)


def write_kernels(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Writes which kernel backends this sitting uses, and why not the others; checkpoints keep a copy."""
    write_text(run_dir / KERNELS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def document(resolved: ResolvedRun) -> dict[str, Any]:
    """Returns the whole run file; paths of files are absolute, so that a run can be resumed from another folder."""
    whole = resolved.as_dict()
    data = whole["data"]
    if isinstance(data["corpus"], list):
        data["corpus"] = [{**part, "path": _absolute(part["path"])} for part in data["corpus"]]
    else:
        data["corpus"] = _absolute(data["corpus"])
    data["validation"] = _absolute(data["validation"])
    data["cache_dir"] = str(Path(data["cache_dir"]).expanduser().resolve()) if data["cache_dir"] else None
    whole["init"] = _absolute(whole["init"])
    return whole


def _absolute(text: str | None) -> str | None:
    """Returns an existing path in full; a URI, a hub id or None stays as it is."""
    return str(Path(text).expanduser().resolve()) if text and Path(text).expanduser().exists() else text
