"""What is wrong with a task becomes one line that names its distribution, so that it costs no other task anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from protloom.contracts import Task, TaskResult
from protloom.errors import UserError
from protloom.plain_data import plain
from protloom.plugins.blame import explain

if TYPE_CHECKING:
    from protloom.plugins.loader import Component

T = TypeVar("T")


def bug(what: str, component: str) -> str:
    """Says that something is for the author of a component, ``distribution/name version``, to mend."""
    return f"{what} (a bug in {component}; --debug shows the traceback)"


def title(component: Component) -> str:
    """Returns what tells an author that a component is meant: ``distribution/name version``."""
    return f"{component.full_name} {component.version}"


def asked(component: Component, call: Callable[[], T]) -> T:
    """Returns what a task answers.

    Raises:
        UserError: what the task itself raises as one, or names distribution and cause of anything else that went wrong.
    """
    try:
        return call()
    except (UserError, OSError):
        raise
    except Exception as error:  # a bug of one task must not cost the others
        raise UserError(bug(explain(error), title(component))) from error


def made(component: Component, options: Any) -> Task:
    """Builds a task; raises UserError as :func:`asked` does, also where what is built is no task."""
    task: Task = asked(component, lambda: component.build(options, of=Task))
    return task


def card(component: Component, task: Task) -> Mapping[str, Any]:
    """Returns the card of a task; raises UserError as :func:`asked` does, also where it is none."""
    found = asked(component, task.card)
    if not isinstance(found, Mapping):
        raise UserError(bug(f"card() returned {_kind(found)}, not a mapping", title(component)))
    return found


def check_result(result: object, component: str) -> None:
    """Refuses what is no result, before it is printed, written or compared.

    Raises:
        UserError: says what is wrong with it, and whose it is.
    """
    if not isinstance(result, TaskResult):
        raise UserError(bug(f"run() returned {_kind(result)}, not a TaskResult", component))
    for wrong in _wrong(result):
        raise UserError(bug(f"run() returned a result {wrong}", component))


def _wrong(result: TaskResult) -> Iterator[str]:
    """Yields what is wrong with a result."""
    told = {"value": result.value, **{f"metrics[{name!r}]": value for name, value in result.metrics.items()}}
    for name, value in told.items():
        if not _is_number(value):
            yield f"whose {name} is {_kind(value)}, not a number"
    if result.metric not in result.metrics:
        yield f"whose main metric {result.metric!r} is not among its metrics ({', '.join(result.metrics)})"
    for name, ends in {result.metric: result.interval, **result.intervals}.items():
        if not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(_is_number, ends))):
            yield f"whose interval of {name} is {ends!r}, not two numbers"
    for name in ("replicates", "per_item"):
        array = getattr(result, name)
        if not (isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "fiub"):
            yield f"whose {name} is {_kind(array)}, not an array of numbers in one dimension"
    try:
        plain({"details": result.details, "predictions": result.predictions})
    except TypeError as error:
        yield f"whose details or predictions are no plain data: {error}"


def _is_number(value: object) -> bool:
    try:
        math.isnan(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
