"""How a comparison asks its tasks: what is kept, what is taken from there, what is asked again, what fails."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import toy_tasks
from toy_tasks import computed

from protloom import subjects
from protloom.budget import Amount
from protloom.compare.evaluation import FAILURES, START, Evaluation, read_failures
from protloom.compare.plan import ComparisonConfig, Plan
from protloom.plugins import Registry

MODEL = "random-init(esm2:tiny)"
OTHER = "random-init(esm2:mini)"


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy tasks, installed; returns the file that tells what was computed."""
    return toy_tasks.enter(tmp_path, monkeypatch)


def planned(*tasks: str, init: str | None = None, **options: Any) -> Plan:
    whole = {"recipes": {"a": {}, "b": {}}, "budget": {"steps": 3}, "tasks": list(tasks or ["toy:plain"]), **options}
    config = ComparisonConfig.model_validate(whole)
    return Plan(config, "a", Amount("steps", 3.0), (3.0,), (3.0,), {"a": (None, ()), "b": (None, ())}, init, {})


def evaluation(plan: Plan, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Evaluation:
    return Evaluation(plan, folder, Registry.discover(), tell)


def records(folder: Path) -> dict[tuple[str, str], Any]:
    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    paths = sorted((folder / "results").glob("*/*.json"))
    found = [json.loads(path.read_text(), parse_constant=refuse) for path in paths]
    assert len({(record["task"], record["subject"]) for record in found}) == len(found)
    return {(record["task"], record["subject"]): record for record in found}


def test_a_result_is_reused_only_where_all_that_it_depends_on_is_the_same(tmp_path: Path, toys: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    data.mkdir()
    (data / "toy.txt").write_text("one")
    plan = planned("toy:plain", "toy:data", data_dir=str(data))
    both = ["plain a-s0@3", "data a-s0@3"]

    def asked(plan: Plan, source: str = MODEL) -> list[str]:
        assert evaluation(plan, out).model("a-s0@3", source) == []
        return computed(toys)

    assert asked(plan) == both
    assert asked(plan) == []
    (data / "toy.txt").write_text("another")
    assert asked(plan) == ["data a-s0@3"]
    assert asked(plan, OTHER) == both
    assert asked(plan, OTHER) == []
    changes: list[dict[str, Any]] = [{"task_options": ["shift=1"]}, {"limit": 2}, {"precision": "bf16"}]
    for change in changes:
        other = planned("toy:plain", "toy:data", data_dir=str(data), **change)
        assert asked(other, OTHER) == both
        assert asked(other, OTHER) == []
    found = records(out)["toy:plain", "a-s0@3"]
    assert found["identity"]["precision"] == "bfloat16"
    assert found["metrics"]["undefined"] is None


def test_start_and_floors_are_asked_beside_the_recipes(tmp_path: Path, toys: Path) -> None:
    out = tmp_path / "out"
    plan = planned("toy:plain", "toy:lower", init=MODEL)
    assert evaluation(plan, out).references() == []
    each = {f"{kind} {who}" for kind in ("plain", "lower") for who in (START, "floor:toy")}
    assert set(computed(toys)) == each
    assert evaluation(plan, out).references() == []
    assert computed(toys) == []
    roles = {who: record["role"] for (_, who), record in records(out).items()}
    assert roles == {START: "model", "floor:toy": "floor"}


def test_names_that_differ_in_a_character_keep_their_own_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ("a:b-s0@3", "a_b-s0@3", "a/b-s0@3")
    for who in names:
        assert evaluation(planned(), out).model(who, MODEL) == []
    assert set(records(out)) == {("toy:plain", who) for who in names}


def test_a_failure_is_kept_until_it_succeeds(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    plan = planned("toy:broken", "toy:plain")
    (line,) = evaluation(plan, out).model("a-s0@3", MODEL)
    assert line.startswith("toy:broken: a-s0@3: ValueError: two lines, at ")
    assert " in toy-tasks (a bug in toy-tasks/toy:broken " in line
    assert list(read_failures(out).values()) == [line]
    assert computed(toys) == ["broken a-s0@3", "plain a-s0@3"]
    toytasks = importlib.import_module("toytasks")

    with monkeypatch.context() as patched:
        patched.setattr(toytasks.Toy, "run", lambda self, subject, **options: {"score": 1.0})
        (line,) = evaluation(planned("toy:broken"), out).model("a-s0@3", MODEL)
    assert "run() returned a dict, not a TaskResult" in line
    assert list(read_failures(out).values()) == [line]
    whole = toytasks.Toy.run

    def mended(self: Any, subject: Any, **options: Any) -> Any:
        self.config = self.config.model_copy(update={"kind": "plain"})
        return whole(self, subject, **options)

    with monkeypatch.context() as patched:
        patched.setattr(toytasks.Toy, "run", mended)
        assert evaluation(plan, out).model("a-s0@3", MODEL) == []
    assert json.loads((out / FAILURES).read_text()) == []
    assert set(records(out)) == {("toy:broken", "a-s0@3"), ("toy:plain", "a-s0@3")}


def test_a_model_that_cannot_be_opened_fails_in_every_task(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = evaluation(planned("toy:plain", "toy:lower"), out).model("a-s0@3", str(tmp_path / "nothing"))
    assert [line.split(": ")[:2] for line in lines] == [["toy:plain", "a-s0@3"], ["toy:lower", "a-s0@3"]]
    assert list(read_failures(out).values()) == lines


def test_what_the_maker_of_a_model_has_to_say_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subjects.open_subjects

    def noted(*arguments: Any, **options: Any) -> Any:
        model, twin, notes = whole(*arguments, **options)
        return model, twin, (*notes, "its head is random")

    monkeypatch.setattr(subjects, "open_subjects", noted)
    told: list[str] = []
    assert evaluation(planned(), tmp_path / "out", told.append).model("a-s0@3", MODEL) == []
    assert "warning: a-s0@3: its head is random" in told
