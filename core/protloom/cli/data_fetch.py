"""``protloom data fetch``: downloads what tasks read, or tells how to get it by hand."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.contracts import Download
    from protloom.plugins import Registry

VARIABLE = "PROTLOOM_DATA"
INCOMING = ".downloads"
"""Folder, in the data folder, of published files that are being downloaded or turned into tables; its lock stays, since
another process may be waiting for it."""


def configure(commands: Any) -> None:
    """Declares the command."""
    parser: argparse.ArgumentParser = commands.add_parser("fetch", help="download the data files of tasks")
    parser.description = (
        "Downloads the files that tasks read, shows their licences first, and turns them into the tables that the "
        "tasks expect. Files that are there are left alone; a download that was cut goes on where it stopped."
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="tasks, groups (ss3), patterns ('gb1:*'), suites")
    parser.add_argument("--out", metavar="DIR", help=f"the data folder; default: {VARIABLE}")
    parser.add_argument("--url-base", metavar="URL", help="a mirror: takes the place of https://HOST in every address")
    parser.add_argument("--list", action="store_true", help="tell files, licences and addresses, download nothing")
    common.json_option(parser)
    common.example(
        parser,
        "protloom data fetch solubility 'gb1:*' --out data",
        "protloom data fetch suite:quick --out data --list",
    )


@dataclass
class _Wanted:
    """Files of the tasks that were named.

    Attributes:
        files: by path.
        tasks: path -> the tasks that read it.
        failed: task -> why its files are not known.
        beside: path -> where it lies beside the file of its task, where ``task run`` looks first.
    """

    files: dict[str, Download] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Path] = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    """Does what was asked; returns 1 if a file is missing at the end."""
    wanted = _wanted(args.names, common.registry(args))
    chosen = args.out or os.environ.get(VARIABLE)  # an empty variable says nothing
    if not chosen and not args.list:
        raise UserError(f"where to: give the data folder by --out or {VARIABLE}")
    folder = Path(chosen or ".").expanduser()
    if args.url_base is not None and not args.url_base.startswith(("http://", "https://")):
        raise UserError(f"--url-base {args.url_base}: an address of a web server (https://...)")
    if not args.json:
        _print_files(wanted, folder, args.url_base)
    states = _states(wanted, folder) if args.list else _get(wanted, folder, args)
    for name, reason in wanted.failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    if args.json:
        common.print_json({"folder": folder, "files": [_record(wanted, path, state) for path, state in states.items()]})
    missing = [path for path, state in states.items() if state not in ("ready", "fetched")]
    if missing and not args.list:
        print(f"{len(missing)} of {len(states)} files are not there: {', '.join(missing)}", file=sys.stderr)
    return 1 if wanted.failed or (missing and not args.list) else 0


def _wanted(names: Sequence[str], registry: Registry) -> _Wanted:
    from protloom.contracts import HasDownloads
    from protloom.task import faults as task_faults
    from protloom.task import suite as task_suite

    found = _Wanted()
    selection = task_suite.select(names, registry)
    found.failed.update(selection.unable)
    for choice in selection.choices:
        try:
            task = task_suite.build(choice.component, registry, options=choice.options)
            if not isinstance(task, HasDownloads):
                raise UserError("tells of no files; 'protloom task show' may say where its data come from")
            component = registry.resolve("task", choice.component)
            for file in task_faults.asked(component, task.downloads):
                found.files.setdefault(file.path, file)
                found.tasks.setdefault(file.path, []).append(choice.name)
                if choice.file is not None and (near := choice.file.parent / file.path).is_file():
                    found.beside[file.path] = near
        except UserError as error:
            found.failed[choice.name] = str(error)
    return found


def _states(wanted: _Wanted, folder: Path) -> dict[str, str]:
    there = {path for path in wanted.files if path in wanted.beside or (folder / path).is_file()}
    return {path: "ready" if path in there else "missing" for path in wanted.files}


def _record(wanted: _Wanted, path: str, state: str) -> dict[str, Any]:
    file = wanted.files[path]
    told = {"path": path, "state": state, "origin": file.origin, "licence": file.licence, "columns": file.columns}
    return {**told, "urls": file.urls, "sha256": file.sha256, "tasks": wanted.tasks[path]}


def _print_files(wanted: _Wanted, folder: Path, base: str | None) -> None:
    """Shows every file with its licence, before anything is downloaded."""
    if not wanted.files and not wanted.failed:
        print("nothing to fetch: these tasks read no files")
    for path, file in wanted.files.items():
        near = wanted.beside.get(path)
        there = "is there" if (folder / path).is_file() else _size(file)
        print(f"{path}: {there}" if near is None else f"{path}: is there, beside the task's file: {near}")
        print(f"  licence: {file.licence}")
        print(f"  origin: {file.origin}")
        for url in file.urls:
            print(f"  address: {_mirrored(url, base)}")
        if not file.urls and near is None:
            print(f"  by hand: {_by_hand(file)}")


def _size(file: Download) -> str:
    sizes = [size for size in file.sizes if size is not None]
    if not file.urls:
        return "missing"
    return f"{sum(sizes) / 1e6:,.1f} MB to download" if len(sizes) == len(file.urls) else "to download"


def _by_hand(file: Download) -> str:
    columns = f" with the columns {', '.join(file.columns)}" if file.columns else ""
    return f"make {file.path} of it{columns}; 'protloom task show' tells more"


def _mirrored(url: str, base: str | None) -> str:
    """Returns an address with a mirror's beginning in the place of its own."""
    if base is None:
        return url
    whole = urlsplit(url)
    return base.rstrip("/") + whole.path + (f"?{whole.query}" if whole.query else "")


# ---------------------------------------------------------------------------------------------------------- downloads


def _get(wanted: _Wanted, folder: Path, args: argparse.Namespace) -> dict[str, str]:
    """Makes what is not there; one file that cannot be had does not stop the others."""
    from protloom.data.streams import WriteError
    from protloom.files import locked

    states = _states(wanted, folder)
    if all(state == "ready" for state in states.values()):
        return states
    incoming = folder / INCOMING
    with ExitStack() as stack:
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(incoming / ".lock"))
        except OSError as error:
            raise WriteError(folder, error) from error
        states = _states(wanted, folder)  # another process may have made some meanwhile
        for path, file in wanted.files.items():
            if states[path] == "ready":
                continue
            try:
                _make(file, folder, incoming, args)
                states[path] = "fetched"
            except UserError as error:
                print(f"error: {path}: {error}", file=sys.stderr)
        _clear(incoming, wanted, states)
    return states


def _make(file: Download, folder: Path, incoming: Path, args: argparse.Namespace) -> None:
    """Downloads and converts one file."""
    from protloom.data.streams import WriteError
    from protloom.download import download

    if not file.urls:
        raise UserError(
            f"nobody can download it; it comes from {file.origin} (licence: {file.licence}): {_by_hand(file)}"
        )
    parts = []
    for i, url in enumerate(file.urls):
        raw = incoming / _raw_name(url)
        known = file.sha256[i] if file.sha256 else None, file.sizes[i] if file.sizes else None
        parts.append(
            download(_mirrored(url, args.url_base), raw, sha256=known[0], size=known[1], progress=_progress(url))
        )
    target = folder / file.path
    made = incoming / "made" / target.name
    try:
        made.parent.mkdir(exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.convert is None:
            shutil.copyfile(parts[0], made)
        else:
            file.convert(made, parts)
        made.replace(target)
    except OSError as error:
        raise WriteError(target, error) from error
    finally:
        made.unlink(missing_ok=True)
    if not args.json:
        print(f"fetched  {target}: {target.stat().st_size:,} bytes")


def _raw_name(url: str) -> str:
    """Returns a name for a published file; two files of one name do not meet."""
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{PurePosixPath(urlsplit(url).path).name}"


def _progress(url: str) -> Any:
    """Returns a line on stderr, on a terminal only."""

    def show(done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            whole = f" of {total / 1e6:,.1f}" if total else ""
            print(f"\r{PurePosixPath(urlsplit(url).path).name}: {done / 1e6:,.1f}{whole} MB", end="\r", file=sys.stderr)

    return show


def _clear(incoming: Path, wanted: _Wanted, states: dict[str, str]) -> None:
    """Removes published files that are not needed any more; those of files that could not be made stay."""
    keep = {_raw_name(url) for path, file in wanted.files.items() if states[path] == "missing" for url in file.urls}
    for path, file in wanted.files.items():
        for url in file.urls if states[path] == "fetched" else ():
            if _raw_name(url) not in keep:
                (incoming / _raw_name(url)).unlink(missing_ok=True)
    shutil.rmtree(incoming / "made", ignore_errors=True)
