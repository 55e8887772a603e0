"""What is withdrawn goes on working, and tells who uses it where to go."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from protloom.deprecation import renamed_fields, warn
from protloom.specs import ObjectiveSpec


@renamed_fields({"colour": "shade", "size": "extent"}, removed_in="0.4")
@dataclass(frozen=True, kw_only=True)
class Spec(ObjectiveSpec):
    """A spec two of whose fields had other names."""

    shade: str = "grey"
    extent: int = 1


def only(caught: Any) -> str:
    (record,) = caught.list
    assert record.filename == __file__, "the line shown is not that of who uses the old name"
    return str(record.message)


def test_an_old_argument_fills_the_new_field() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"^Spec\(colour=...\) is deprecated and goes in protloom 0.4: "
    ) as caught:
        spec: Any = Spec(name="x", factory="a:b", colour="red")  # type: ignore[call-arg]
    assert only(caught).endswith("use shade=...")
    assert (spec.shade, spec.extent) == ("red", 1)
    with pytest.warns(DeprecationWarning, match=r"^Spec\.colour is deprecated and goes in protloom 0.4: ") as caught:
        assert spec.colour == "red"
    assert only(caught).endswith("use Spec.shade")


def test_new_names_are_silent_and_the_class_is_what_it_was() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = Spec(name="x", factory="a:b", shade="red", extent=3)
        assert spec.shade == "red"
        assert replace(spec, extent=4).extent == 4
        assert spec == Spec(name="x", factory="a:b", shade="red", extent=3)
        assert "colour" not in repr(spec)
    with pytest.raises(FrozenInstanceError):
        spec.shade = "blue"  # type: ignore[misc]


def test_both_names_of_a_field_are_refused() -> None:
    with pytest.raises(TypeError, match="'colour' and 'shade', two names of one field"):
        Spec(name="x", factory="a:b", colour="red", shade="blue")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="color"):
        Spec(name="x", factory="a:b", color="red")  # type: ignore[call-arg]


@pytest.fixture
def old_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module whose names are now in the core."""
    source = (
        "from protloom.deprecation import moved\n"
        "names = {'Term': 'protloom.contracts:Term', 'sample': 'protloom.rng:uniform'}\n"
        "__getattr__ = moved(__name__, names, removed_in='0.4')\n"
    )
    (tmp_path / "acme_old_place.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield "acme_old_place"
    sys.modules.pop("acme_old_place", None)


def test_a_moved_module_leads_to_the_new_place(old_place: str) -> None:
    from protloom.contracts import Term
    from protloom.rng import uniform

    module = importlib.import_module(old_place)
    with pytest.warns(
        DeprecationWarning, match=r"^acme_old_place\.Term is deprecated and goes in protloom 0.4"
    ) as caught:
        assert module.Term is Term
    assert only(caught).endswith("use protloom.contracts.Term")
    with pytest.warns(DeprecationWarning, match=r"use protloom\.rng\.uniform") as caught:
        from acme_old_place import sample  # type: ignore[import-not-found]
    assert sample is uniform
    only(caught)
    with pytest.raises(AttributeError, match="module 'acme_old_place' has no attribute 'Terms'"):
        _ = module.Terms
    assert not hasattr(module, "__wrapped__")


def test_the_author_sees_it_in_the_tests_of_a_plugin(old_place: str, tmp_path: Path) -> None:
    """pytest shows these warnings without being asked, with the line that uses the old name."""
    (tmp_path / "test_plugin.py").write_text(f"def test_it():\n    from {old_place} import Term\n    assert Term\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*command, "test_plugin.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_plugin.py:2: DeprecationWarning: acme_old_place.Term is deprecated" in done.stdout


def test_who_stands_above_can_be_named() -> None:
    def old() -> None:
        warn("old()", instead="new()", removed_in="1.0")

    with pytest.warns(DeprecationWarning, match=r"^old\(\) is deprecated and goes in protloom 1\.0: use new\(\)$") as c:
        old()
    only(c)
