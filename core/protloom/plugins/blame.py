"""Tells whose code an exception comes from: its author needs the line, its user the author."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from protloom.plugins.loader import OWN, installed, normalise, one_line

if TYPE_CHECKING:
    from types import FrameType


def explain(error: BaseException) -> str:
    """Returns ``Type: message, at file:line in distribution`` of an exception; what is not known is left out.

    The line is the innermost one of a third party's plugin, or else of Protloom: what fails inside torch is told by who
    called it, and what a plugin made Protloom do is told by the plugin's call.
    """
    try:
        found = place(error)
    except Exception:  # what explains a failure must not be another one
        found = ""
    return f"{one_line(error)}, at {found}" if found else one_line(error)


def place(error: BaseException) -> str:
    """Returns ``file:line in distribution`` as :func:`explain` says; empty where neither's code was running."""
    owners = _owners()
    ours, theirs = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = owners.get(_package(frame))
        if owner is None:
            continue
        told = f"{_short(frame.f_code.co_filename)}:{line} in {owner}"
        if owner == OWN:
            ours = told
        else:
            theirs = told
    return theirs or ours


def _owners() -> Mapping[str, str]:
    """Returns the distribution of each top-level package that holds plugins; Protloom's own among them."""
    found = {OWN: OWN}
    for point in installed([]):
        package = point.value.partition(":")[0].partition(".")[0].strip()
        found[package] = normalise(point.dist.name) if point.dist else "unknown"
    return found


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _short(path: str) -> str:
    """Returns a path from here where it lies below here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
