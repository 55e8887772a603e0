"""Promises of contracts as functions, and how they are found and run for a component."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protloom.errors import UserError
from protloom.plugins.blame import explain

if TYPE_CHECKING:
    from protloom.plugins import Component, Registry


class Violation(AssertionError):
    """A component breaks a promise of its contract."""


@dataclass(frozen=True)
class Request:
    """What is checked, and with what.

    Attributes:
        component: the component under test.
        registry: where others are found to test it with.
        options: of the component's config.
        extra: what the checks of a kind take beside: see their modules.
    """

    component: Component
    registry: Registry
    options: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


Promise = Callable[[Request], None]

PROMISES: dict[str, list[Promise]] = {}
"""The promises of each kind of component, in the order in which they are best read."""

KINDS: Mapping[str, str] = {
    kind: f"protloom.testing.{kind}s"
    for kind in ("objective", "architecture", "tokenizer", "task", "kernel", "optimizer", "generator")
}
"""Where the promises of a kind are."""


def promise(kind: str) -> Callable[[Promise], Promise]:
    """Marks a function as a promise that every component of a kind makes; its first line says which."""

    def add(function: Promise) -> Promise:
        PROMISES.setdefault(kind, []).append(function)
        return function

    return add


@dataclass(frozen=True)
class Check:
    """One promise, for one component; call it to check it.

    Attributes:
        name: of the promise.
        promise: what is promised, in a line.
    """

    name: str
    promise: str
    _request: Request
    _function: Promise

    def __call__(self) -> None:
        """Checks it; raises Violation if it does not hold."""
        label = self._request.component.label
        try:
            self._function(self._request)
        except Violation as violation:
            raise Violation(f"{label} breaks a promise. {self.promise} {violation}") from None
        except UserError as error:
            raise Violation(f"{label}: {str(error).removeprefix(f'{label}: ')}") from error
        except Exception as error:
            raise Violation(f"{label} failed while this was checked: {explain(error)}") from error

    def __str__(self) -> str:
        return self.name.replace("_", "-")


def conformance(
    kind: str,
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    **extra: Any,
) -> list[Check]:
    """Returns the checks of a component.

    Args:
        kind: ``objective``, ``architecture``, ``tokenizer``, ``task``, ``kernel``, ``optimizer`` or ``generator``.
        name: as the registry knows it.
        options: of its config; needed where it has options without a default.
        registry: where it is found; by default what is installed.
        extra: what the checks of a kind take beside: ``architecture`` and ``batch`` for objectives, for example.

    Raises:
        UserError: there is no such component, or the kind has no checks.
    """
    from protloom.plugins import Registry as Installed

    if kind not in KINDS:
        raise UserError(f"there are no checks for a {kind}; there are for: {', '.join(KINDS)}")
    importlib.import_module(KINDS[kind])
    found = registry or Installed.discover()
    request = Request(found.resolve(kind, name), found, options or {}, extra)
    return [
        Check(function.__name__, " ".join((function.__doc__ or "").split("\n\n")[0].split()), request, function)
        for function in PROMISES[kind]
    ]


def require(holds: bool, found: str) -> None:
    """Raises Violation, saying what was found, unless something holds."""
    if not holds:
        raise Violation(found)
