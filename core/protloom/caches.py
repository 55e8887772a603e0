"""Where protloom keeps what it can make or download again: stores, embeddings, weights from a hub.

One folder holds a subfolder for each. ``PROTLOOM_CACHE`` names it; otherwise it is ``protloom`` in the user's cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Part = Literal["embeddings", "hub", "stores"]


def cache_folder(part: Part, environment: Mapping[str, str] | None = None) -> Path:
    """Returns the folder of one kind of things; it need not exist.

    Args:
        part: the kind.
        environment: variables; by default those of the process.

    Returns:
        The folder ``part`` in ``$PROTLOOM_CACHE``, else in ``$XDG_CACHE_HOME/protloom``, else in ``~/.cache/protloom``.
    """
    environment = os.environ if environment is None else environment
    if named := environment.get("PROTLOOM_CACHE"):
        return Path(named).expanduser() / part
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "protloom" / part
