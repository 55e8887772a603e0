"""Puts generated parts into pages: a line ``% generated: WHAT`` becomes Markdown made from the installed protloom.

Nothing is written to disk: the page is changed as it is read, so it never differs from the code that it tells of.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import protloom_reference

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

MARK = re.compile(r"^% generated: (.+)$", flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects to Sphinx."""
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", _outdated)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _escape, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda match: protloom_reference.part(match[1].strip()), source[0])


def _outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Names the pages to read again although their files are the same: the code may not be."""
    pages = env.found_docs - added - removed
    return [page for page in pages if "generated:" in env.doc2path(page).read_text(encoding="utf-8")]


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what Python itself writes of the fields of a named tuple; the class describes them."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def _escape(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Keeps the end of ``np.bool_`` from being read as a link, in the types that napoleon adds."""
    lines[:] = [line.replace("_]", "\\_]") if line.startswith(":vartype") else line for line in lines]
