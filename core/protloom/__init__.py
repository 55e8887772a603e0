"""Protloom weaves training objectives into protein language models.

What a plugin states is exported here: its specs and ``hookimpl``. What else plugins and programs may import is listed
in :mod:`protloom.public`; ``docs/`` has a tutorial. Importing this package loads neither numpy nor torch: names are
fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from protloom.hookspecs import hookimpl as hookimpl
    from protloom.specs import ArchitectureSpec as ArchitectureSpec
    from protloom.specs import CallbackSpec as CallbackSpec
    from protloom.specs import CorpusSpec as CorpusSpec
    from protloom.specs import FloorSpec as FloorSpec
    from protloom.specs import GeneratorSpec as GeneratorSpec
    from protloom.specs import KernelSpec as KernelSpec
    from protloom.specs import ObjectiveSpec as ObjectiveSpec
    from protloom.specs import OptimizerSpec as OptimizerSpec
    from protloom.specs import TaskSpec as TaskSpec
    from protloom.specs import TokenizerSpec as TokenizerSpec

_HOME = {
    "hookimpl": "protloom.hookspecs",
    "ArchitectureSpec": "protloom.specs",
    "CallbackSpec": "protloom.specs",
    "CorpusSpec": "protloom.specs",
    "FloorSpec": "protloom.specs",
    "GeneratorSpec": "protloom.specs",
    "KernelSpec": "protloom.specs",
    "ObjectiveSpec": "protloom.specs",
    "OptimizerSpec": "protloom.specs",
    "TaskSpec": "protloom.specs",
    "TokenizerSpec": "protloom.specs",
}

__all__ = [*sorted(_HOME), "__version__"]  # noqa: PLE0604 - names are resolved by __getattr__


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'protloom' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
