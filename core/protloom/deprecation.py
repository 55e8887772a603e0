"""How a name that plugins rely on is withdrawn: it goes on working for a while, and each use of it is told.

One function raises the warning, :func:`warn`; the others put it where names are renamed or moved. Nothing needs them
yet: see ``docs/concepts/api_versions.md`` for when something does.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def warn(what: str, *, instead: str, removed_in: str, stacklevel: int = 2) -> None:
    """Raises a DeprecationWarning that names the replacement and the release in which the old name goes.

    Args:
        what: the old name, in full.
        instead: what to write.
        removed_in: the release of protloom that no longer has it.
        stacklevel: whose line is shown, as for :func:`warnings.warn`; 2: that of who called the caller of this.
    """
    message = f"{what} is deprecated and goes in protloom {removed_in}: use {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def renamed_fields(names: Mapping[str, str], *, removed_in: str) -> Callable[[C], C]:
    """Makes old names of a data class's fields work, as arguments and as attributes; stands above ``@dataclass``.

    A subclass that is a data class has a constructor of its own: it needs the decorator too.

    Args:
        names: old name -> new name.
        removed_in: the release of protloom that no longer has the old ones.

    Raises:
        TypeError: from the constructor, if both names of one field are given.
    """

    def decorate(cls: C) -> C:
        made = cls.__init__  # type: ignore[misc]

        @functools.wraps(made)
        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{cls.__name__} was given {old!r} and {new!r}, two names of one field")
                warn(f"{cls.__name__}({old}=...)", instead=f"{new}=...", removed_in=removed_in)
                kwargs[new] = kwargs.pop(old)
            made(self, *args, **kwargs)

        cls.__init__ = construct  # type: ignore[misc]
        for old, new in names.items():
            setattr(cls, old, _forwarding(cls.__name__, old, new, removed_in))
        return cls

    return decorate


def _forwarding(owner: str, old: str, new: str, removed_in: str) -> property:
    def read(self: Any) -> Any:
        warn(f"{owner}.{old}", instead=f"{owner}.{new}", removed_in=removed_in)
        return getattr(self, new)

    return property(read, doc=f"Deprecated: use ``{new}``.")


def moved(module: str, names: Mapping[str, str], *, removed_in: str) -> Callable[[str], Any]:
    """Returns a module's ``__getattr__`` that finds in their new places the names that the module once held.

    What is left of a module that moved as a whole is ``__getattr__ = moved(__name__, {...}, removed_in=...)``.

    Args:
        module: the old place.
        names: name in the old place -> ``"package.module:name"``, imported at the first use.
        removed_in: the release of protloom in which the old place goes.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].partition(":")
        warn(f"{module}.{name}", instead=f"{home}.{new}", removed_in=removed_in)
        return getattr(importlib.import_module(home), new)

    return find
