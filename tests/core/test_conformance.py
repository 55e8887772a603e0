"""Every installed component keeps the contract of its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.specs import TaskSpec
from protloom.testing import conformance
from protloom.testing.checks import KINDS

INSTALLED = Registry.discover()


def checks_of_everything() -> list[Any]:
    """One case for each promise of each built-in component: a new component is covered once it is registered."""
    found = []
    for kind in KINDS:
        for component in INSTALLED.components(kind):
            # tasks that need data, and those that simulate them, are in tests of their own
            if component.builtin and kind != "task":
                found += [
                    pytest.param(check, id=f"{kind}-{component.name}-{check}")
                    for check in conformance(kind, component.name, registry=INSTALLED)
                ]
    return found


@pytest.mark.parametrize("check", checks_of_everything())
def test_built_in_components_keep_their_contract(check: Callable[[], None]) -> None:
    check()


def complete_tasks() -> list[str]:
    """Tasks that need no options: not the one that is made of a user's own file."""
    found = []
    for component in INSTALLED.components("task"):
        model = component.load_config()
        needed = set() if model is None else {name for name, field in model.model_fields.items() if field.is_required()}
        assert isinstance(component.spec, TaskSpec)
        if needed <= set(component.spec.options):
            found.append(INSTALLED.shortest(component))
    return found


@pytest.mark.parametrize("name", complete_tasks())
def test_built_in_tasks_describe_themselves(name: str) -> None:
    for check in conformance("task", name, registry=INSTALLED)[:3]:
        check()


@pytest.mark.slow
@pytest.mark.parametrize("name", complete_tasks())
def test_built_in_tasks_keep_their_contract(name: str, request: pytest.FixtureRequest) -> None:
    """On real data where the task has them; a file that is missing there leaves out what needs it."""
    simulated = name.startswith("sim-")
    options = {"proteome_size": 2000} if simulated else {}
    data = None if simulated else request.getfixturevalue("shared_data")
    limit = 1500 if name == "scope-retrieval" else 40  # of 40 domains none has a relative
    for check in conformance("task", name, registry=INSTALLED, data_dir=data, options=options, limit=limit):
        check()


@pytest.mark.parametrize("preset", ["proteinjepa-v2", "all-position", "jepa-only"])
def test_objectives_with_a_teacher_keep_their_contract(preset: str) -> None:
    for check in conformance("objective", "jepa", registry=INSTALLED, options={"preset": preset})[1:]:
        check()


def test_what_has_no_checks() -> None:
    with pytest.raises(UserError, match="there are no checks for a corpus"):
        conformance("corpus", "demo")
    with pytest.raises(UserError, match="Did you mean 'mlm'"):
        conformance("objective", "mlmm")
