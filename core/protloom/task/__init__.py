"""Downstream tasks by name: what was asked for, running it, results that last, comparisons of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protloom.contracts import Task
    from protloom.plugins import Registry


def open_task(
    name: str, registry: Registry, *, split: str | None = None, data_dir: str | None = None, **options: Any
) -> Task:
    """Returns a task that is ready to run, by the name that ``task run`` takes.

    Args:
        name: of an installed task, or a file that one is made of: ``sim-ss3``, ``melting.yaml``, ``melting.yaml:far``.
        registry: where tasks are found.
        split: what is scored, ``valid`` or ``test``; None: the default, ``valid`` where there are splits.
        data_dir: folder of real data; None: what PROTLOOM_DATA says.
        options: of the task, as ``--set`` gives them.

    Raises:
        protloom.errors.UserError: there is no such task, the name means several, it does not take an option, or its
            data are missing.
    """
    from protloom.errors import UserError
    from protloom.task import faults, suite

    selection = suite.select([name], registry, split=split)
    if selection.unable:
        raise UserError("; ".join(selection.unable.values()))
    if len(selection.choices) != 1:
        names = ", ".join(choice.name for choice in selection.choices)
        raise UserError(f"{name} means {len(selection.choices)} tasks: name one of {names}")
    (choice,) = selection.choices
    task = suite.build(choice.component, registry, data_dir=data_dir, options={**choice.options, **options})
    faults.asked(registry.resolve("task", choice.component), task.check)
    return task
