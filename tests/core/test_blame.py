"""Whose line an exception is said to come from."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from protloom.plugins import blame
from protloom.plugins.loader import LONGEST, one_line

SOURCE = """
import torch
from protloom.config.source import split_override


def own():
    raise ValueError("why\\n  indeed")


def of_torch():
    return torch.ones(2) @ torch.ones(3)


def of_protloom():
    return split_override("no equals sign")


def asks(answer):
    return answer()
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of a distribution ``Acme_Tools`` that is a plugin."""
    path = tmp_path / "acme_tools.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("acme_tools", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "acme_tools", module)
    spec.loader.exec_module(module)
    point: Any = metadata.EntryPoint("acme", "acme_tools:plugin", "protloom")
    vars(point)["dist"] = SimpleNamespace(name="Acme_Tools")
    monkeypatch.setattr(blame, "installed", lambda problems: [point])
    return module


def caught(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if text in line)


def test_a_plugins_own_line_is_told_with_its_distribution(acme: ModuleType, tmp_path: Path) -> None:
    where = f"{tmp_path / 'acme_tools.py'}:{line_of('raise')} in acme-tools"
    assert blame.explain(caught(acme.own)) == f"ValueError: why indeed, at {where}"


@pytest.mark.parametrize(("name", "line"), [("of_torch", "@"), ("of_protloom", "return split_override")])
def test_what_fails_in_a_library_or_in_protloom_is_told_by_the_plugins_call(
    name: str, line: str, acme: ModuleType, tmp_path: Path
) -> None:
    told = blame.place(caught(getattr(acme, name)))
    assert told == f"{tmp_path / 'acme_tools.py'}:{line_of(line)} in acme-tools"


def test_a_plugins_line_below_another_plugins_is_the_one(acme: ModuleType, tmp_path: Path) -> None:
    told = blame.place(caught(lambda: acme.asks(acme.own)))
    assert told.startswith(f"{tmp_path / 'acme_tools.py'}:{line_of('raise')} ")


def test_protlooms_line_is_told_where_no_plugin_runs() -> None:
    from protloom.config.source import split_override

    told = blame.place(caught(lambda: split_override("no equals sign")))
    assert "source.py:" in told
    assert told.endswith(" in protloom")


def test_a_path_below_here_is_short(acme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blame.place(caught(acme.own)) == f"acme_tools.py:{line_of('raise')} in acme-tools"


def test_nobody_is_blamed_for_what_ran_in_neither() -> None:
    error = caught(lambda: torch.ones(2) @ torch.ones(3))
    assert blame.place(error) == ""
    assert blame.explain(error) == one_line(error)


@pytest.mark.parametrize("value", ["my-plugin.hooks", "", "acme_tools:plugin"])
def test_explaining_never_fails(value: str, acme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "installed", lambda problems: [metadata.EntryPoint("x", value, "protloom")])
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert blame.explain(caught(acme.own)).startswith("ValueError: why indeed")


def test_long_messages_are_cut() -> None:
    told = one_line(ValueError("word " * 1000))
    assert len(told) == len("ValueError: ") + LONGEST
    assert told.endswith("...")
