"""``protloom task run --out DIR``: what is kept, what is taken from there, what is computed again; ``task compare``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toy_tasks
from toy_tasks import MODEL, computed, run

from protloom.cli import main
from protloom.contracts import Extent
from protloom.errors import UserError
from protloom.report.task_results import read_all, verdict
from protloom.task import run as task_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy tasks, installed; returns the file that tells what was computed."""
    return toy_tasks.enter(tmp_path, monkeypatch)


def records(folder: Path) -> dict[tuple[str, str], Any]:
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*/*.json")]
    return {(record["task"], record["subject"]): record for record in found}


def test_what_is_kept(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run("toy:plain", "toy:lower", "--out", str(out)) == 0
    found = records(out)
    assert set(found) == {(f"toy:{kind}", who) for kind in ("plain", "lower") for who in (MODEL, "floor:toy")}
    record = found["toy:plain", MODEL]
    assert record["split"] == "valid"
    assert record["key"]["seed"] == 0
    assert record["key"]["options"]["rows"] == 5
    assert len(record["identity"]["weights"]) == 16
    assert record["identity"]["layer"] == 2
    assert record["metrics"]["undefined"] is None
    assert record["intervals95"]["double"] == pytest.approx([2 * end for end in record["interval95"]])
    outputs = record["predictions"]["output"]
    assert np.mean(outputs) == pytest.approx(record["value"])
    assert len(record["replicates"]) == 200
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 4 * 3
    main_rows = [row for row in rows if row["main"] == "True" and row["subject"] == MODEL]
    assert [float(row["value"]) for row in main_rows] == [found[f"toy:{k}", MODEL]["value"] for k in ("lower", "plain")]
    assert {row["split"] for row in rows} == {"valid"}
    table = (out / "results.md").read_text()
    assert "## Split: valid" in table
    assert f"| task | metric | n | {MODEL} | best floor |" in table
    assert "Validation was scored" in capsys.readouterr().out


def test_what_was_done_is_not_done_again(tmp_path: Path, toys: Path, capsys: Capture) -> None:
    out = ("--out", str(tmp_path / "out"))
    run("toy:plain", *out)
    first = records(tmp_path / "out")["toy:plain", MODEL]
    assert computed(toys) == [f"plain {MODEL}", "plain floor:toy"]
    capsys.readouterr()
    assert run("toy:plain", *out, "--json") == 0
    assert computed(toys) == []
    shown = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    assert shown[0]["value"] == first["value"]
    assert shown[0]["interval95"] == first["interval95"]
    assert shown[1]["model_minus_this"]["value"] == pytest.approx(first["value"] - 0.5)
    assert records(tmp_path / "out")["toy:plain", MODEL]["written"] == first["written"]
    run("toy:plain", *out, "--force")
    assert len(computed(toys)) == 2


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (("--seed", "1"), 2),
        (("--limit", "3"), 2),
        (("--set", "shift=1"), 2),
        (("--full",), 2),
        (("--test",), 2),
        (("--layer", "1"), 1),
        (("--max-length", "64"), 1),
    ],
)
def test_what_changes_a_result_makes_it_anew(change: tuple[str, ...], again: int, tmp_path: Path, toys: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    run("toy:plain", *out)
    computed(toys)
    run("toy:plain", *out, *change)
    assert len(computed(toys)) == again


def test_other_data_and_other_code_make_it_anew(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "toy.txt").write_text("one")
    arguments = ("toy:data", "--out", str(tmp_path / "out"), "--data-dir", str(data))
    for _ in range(2):
        run(*arguments)
    assert len(computed(toys)) == 2
    (data / "toy.txt").write_text("two")
    run(*arguments)
    assert len(computed(toys)) == 2
    run("toy:data", "--out", str(tmp_path / "out"))  # where the data are is not known: nothing can be compared
    assert len(computed(toys)) == 2
    from protloom import provenance

    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "0.1"})
    run(*arguments)
    assert len(computed(toys)) == 2
    monkeypatch.setattr(provenance, "code_hash", lambda modules: "of other code")
    run(*arguments)
    assert len(computed(toys)) == 2


def test_the_modules_that_decide_features_are_there() -> None:
    """A name without a module would count by its name alone, and its code could change unnoticed."""
    from importlib.util import find_spec

    from protloom import provenance

    assert [name for name in provenance.FEATURES if find_spec(name) is None] == []


def test_a_kill_loses_one_task(tmp_path: Path, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("toy:plain", "toy:killed", "toy:lower", "--out", str(tmp_path / "out"))
    monkeypatch.setenv("TOY_KILL", "1")
    assert run(*names) == 130
    assert set(records(tmp_path / "out")) == {("toy:plain", MODEL), ("toy:plain", "floor:toy")}
    monkeypatch.delenv("TOY_KILL")
    computed(toys)
    assert run(*names) == 0
    assert {line.split()[0] for line in computed(toys)} == {"killed", "lower"}
    assert len(records(tmp_path / "out")) == 6


def test_damaged_results_are_told_and_made_anew(tmp_path: Path, toys: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    run("toy:plain", "--out", str(out))
    computed(toys)
    path = next((out / "results").glob("random-init*/*.json"))
    path.write_text(path.read_text()[:-40])
    capsys.readouterr()
    assert run("toy:plain", "--out", str(out)) == 0
    assert f"warning: {path}: no result of a task, or damaged" in capsys.readouterr().err
    assert computed(toys) == [f"plain {MODEL}"]


def test_a_full_disk_is_told_and_nothing_is_half_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.write_text

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.parent.parent.name == "results":
            whole(self, "{")
            raise OSError(28, "No space left on device", str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert run("toy:plain", "--out", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err.splitlines()[-2]
    assert error.startswith(f"error: toy:plain: no space left to write {tmp_path / 'out' / 'results'}")
    assert error.endswith("free some or choose another place; nothing was changed")
    assert list((tmp_path / "out" / "results").rglob("*.json")) == []


def test_the_tables_show_what_is_in_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("toy:plain", "toy:lower", "--out", str(out))
    for path in (out / "results").glob("*/toy_plain*.json"):
        path.unlink()
    run("toy:sim", "--out", str(out))
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {row["task"] for row in rows} == {"toy:lower", "toy:sim"}
    assert {row["task"]: row["simulated"] for row in rows} == {"toy:lower": "False", "toy:sim": "True"}
    assert "| toy:sim (SIMULATED) |" in (out / "results.md").read_text()


def test_what_was_not_scored_on_the_same_stands_without_a_comparison(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: Any, **__: Any) -> None:
        raise UserError("not about the same items")

    monkeypatch.setattr(task_run, "paired_difference", other)
    assert run("toy:plain", "--json") == 0
    told = capsys.readouterr()
    assert "toy:plain: floor:toy stands without a comparison: not about the same items\n" in told.err
    assert [of["model_minus_this"] for of in json.loads(told.out)["tasks"][0]["results"]] == [None, None]


def test_a_floor_that_has_an_extent_of_its_own_keeps_it() -> None:
    class Network:
        @property
        def extent(self) -> Extent:
            return Extent("window", 7)

    floor: Any = Network()
    task_run.see(floor, Extent("skip", 3))
    assert floor.extent == Extent("window", 7)
    floor = SimpleNamespace(extent=Extent())
    task_run.see(floor, Extent("skip", 3))
    assert floor.extent == Extent("skip", 3)


def test_failures_do_not_stop_the_others(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run("toy:broken", "toy:missing", "toy:plain", "--out", str(out)) == 1
    err = capsys.readouterr().err
    assert "error: toy:missing: no file toy.txt" in err
    assert re.search(r"error: toy:broken: ValueError: two.* \(a bug in toy-tasks/toy:broken 1\.0; --debug shows", err)
    assert "2 of 3 tasks failed: toy:broken, toy:missing" in err
    assert "Traceback" not in err
    assert {task for task, _ in records(out)} == {"toy:plain"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy:plain", "--set", "split=test"), "--set split: validation is scored by default"),
        (("toy:plain", "--force"), "--force: without --out DIR"),
        (("toy:plain", "--out", "full"), "is not empty and holds no results of tasks"),
        (("toy:plain", "--out", "full/file"), "is a file; name a folder"),
        (("toy:plain", "--max-length", "0"), "--max-length 0: must be at least 1"),
        (("no.toy",), "no.toy: there is no such file"),
        (("suite:toy-tasks/iner",), "no suite 'toy-tasks/iner'. Did you mean 'toy-tasks/inner'?"),
        (("suite:circle",), "suite:circle: contains itself"),
        (("suite:wrong",), "suite:wrong: task: unknown key. Did you mean 'tasks'?"),
        (("suite:inner", "suite:outer"), "suite:inner and suite:outer give it different options (shift)"),
    ],
)
def test_mistakes_are_told_at_once(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- what names mean


def results(capsys: Capture) -> dict[str, Any]:
    return {task["task"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}


def test_splits(capsys: Capture) -> None:
    run("toy:plain", "--json")
    valid = results(capsys)["toy:plain"]
    run("toy:plain", "--json", "--test")
    test = results(capsys)["toy:plain"]
    assert (valid["split"], valid["results"][0]["n"]) == ("valid", 5)
    assert (test["split"], test["results"][0]["n"]) == ("test", 4)


def test_suites_give_options_and_full_lifts_caps(capsys: Capture) -> None:
    run("suite:inner", "--json", model="floor:toy")
    inner = results(capsys)["toy:plain"]["results"][0]
    assert (inner["n"], inner["value"]) == (2, 1.5)
    run("suite:outer", "--json", model="floor:toy")
    outer = results(capsys)
    # the outer suite's shift is on top of the inner one's, and its other task has no cap of the inner one
    assert [(r["results"][0]["n"], r["results"][0]["value"]) for r in outer.values()] == [(2, 2.5), (5, 2.5)]
    run("suite:outer", "--json", "--full", "--set", "shift=0", model="floor:toy")
    assert [(r["results"][0]["n"], r["results"][0]["value"]) for r in results(capsys).values()] == [(6, 0.5), (6, 0.5)]


def test_a_suite_goes_on_without_a_task_that_is_not_installed(capsys: Capture) -> None:
    assert run("suite:gone", "--json", model="floor:toy") == 1
    captured = capsys.readouterr()
    assert "suite:gone: no task 'protien'" in captured.err
    found = {task["task"]: task["error"] for task in json.loads(captured.out)["tasks"]}
    assert found["toy:plain"] is None
    assert "no task 'protien'" in found["protien"]


def test_list_shows_suites_and_no_makers_of_tasks(capsys: Capture) -> None:
    assert main(["task", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["suites"]["toy-tasks/outer"] == "an outer suite"
    assert "broken" in found["suites"]["toy-tasks/wrong"]
    names = {task["name"] for task in found["tasks"]}
    assert "toy:plain" in names
    assert "toy-file" not in names


def test_a_file_becomes_a_task(tmp_path: Path, toys: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.toy"
    file.write_text("a definition")
    arguments = (str(file), "--out", str(tmp_path / "out"), "--json")
    assert run(*arguments) == 0
    assert results(capsys)[str(file)]["split"] == "valid"
    record = records(tmp_path / "out")[str(file), MODEL]
    assert record["key"]["options"]["file"] == str(file)
    computed(toys)
    file.write_text("another definition")
    run(*arguments)
    assert len(computed(toys)) == 2


def test_any_floor_can_be_judged_on_any_task(capsys: Capture) -> None:
    run("toy:plain", "--json", model="floor:toy")
    assert results(capsys)["toy:plain"]["results"][0]["value"] == 0.5  # as the task offers it
    run("toy:plain", "--json", model="floor:toy-quarter")
    assert results(capsys)["toy:plain"]["results"][0]["value"] == 0.25
    assert run("toy:plain", "--json", model="floor:length") == 0
    assert run("toy:plain", model="floor:separation") == 1
    assert "floor:separation has no features of whole sequences" in capsys.readouterr().err


def test_random_init_of_an_architecture(capsys: Capture) -> None:
    values = []
    for arguments in ((MODEL,), (f"floor:{MODEL}",), (MODEL, "--seed", "1")):
        run("toy:plain", "--json", *arguments[1:], model=arguments[0])
        entries = results(capsys)["toy:plain"]["results"]
        assert [entry["role"] for entry in entries] == ["model", "floor"]
        values.append(entries[0]["value"])
    assert values[0] == values[1] != values[2]
    assert run("toy:plain", model="random-init(esm3:tiny)") == 2
    assert "Did you mean 'esm2'?" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- compare


def compare(capsys: Capture, *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main(["task", "compare", *arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else None


def test_compare_two_folders(tmp_path: Path, capsys: Capture) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    run("toy:plain", "toy:lower", "toy:sim", "--out", one)
    run("toy:plain", "toy:lower", "--out", other, "--layer", "0")
    code, found = compare(capsys, one, other)
    assert code == 0
    records_of = [records(Path(folder)) for folder in (one, other)]
    labels = (MODEL, f"{MODEL} (layer 0)")
    assert [found["first"], found["second"]] == list(labels)
    for task in found["tasks"]:
        a, b = (of[task["task"], label] for of, label in zip(records_of, labels, strict=True))
        sign = -1 if task["task"] == "toy:lower" else 1
        assert task["difference"] == pytest.approx(sign * (a["value"] - b["value"]))
        replicates = sign * (np.array(a["replicates"]) - np.array(b["replicates"]))
        assert task["interval95"] == pytest.approx(np.quantile(replicates, [0.025, 0.975]).tolist())
    assert {task["task"] for task in found["tasks"]} == {"toy:plain", "toy:lower"}
    assert found["lacking"] == {labels[1]: ["toy:sim (valid)"]}
    counts = found["counts"][0]
    assert counts["margin"] == 0.005
    assert counts["wins"] + counts["losses"] + counts["ties"] == 2
    assert (counts["wins"], counts["losses"]) == (1, 1)  # the same gap, and lower is better in one of them
    assert counts["sign_test_p"] == 0.75
    assert main(["task", "compare", one, other]) == 0
    text = capsys.readouterr().out
    assert "score, lower is better" in text
    assert f"{labels[1]} lacks: toy:sim (valid)" in text


def test_compare_within_one_folder(tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    run("toy:plain", "--out", out)
    run("toy:plain", "--out", out, "--layer", "1")
    code = main(["task", "compare", out, f"{out}#floor:toy"])
    assert code == 2
    assert f"holds 2 models; write one of '{out}#{MODEL}'" in capsys.readouterr().err
    code, found = compare(capsys, f"{out}#{MODEL}", f"{out}#floor:toy")
    assert code == 0
    value = records(Path(out))["toy:plain", MODEL]["value"]
    assert found["tasks"][0]["difference"] == pytest.approx(value - 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", "1"), "toy:plain (valid): the two results differ in seed (0 and 1)"),
        (("--limit", "3"), "differ in limit (None and 3)"),
        (("--set", "pool=max"), "differ in option pool (mean and max)"),
    ],
)
def test_unlike_results_are_not_compared(
    change: tuple[str, ...], message: str, tmp_path: Path, capsys: Capture
) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    run("toy:plain", "--out", one)
    run("toy:plain", "--out", other, *change)
    capsys.readouterr()
    assert main(["task", "compare", one, other]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    if "pool" in message:
        assert compare(capsys, one, other, "--allow", "pool")[0] == 0


def test_results_of_two_splits_are_not_compared(tmp_path: Path, capsys: Capture) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    run("toy:plain", "--out", one)
    run("toy:plain", "--out", other, "--test")
    assert main(["task", "compare", one, other]) == 2
    assert "toy:plain: one was scored on valid, the other on test" in capsys.readouterr().err
    run("toy:plain", "--out", other)
    code, found = compare(capsys, one, other)
    assert code == 0
    assert found["lacking"] == {one: ["toy:plain (test)"]}


def test_compare_without_results(tmp_path: Path, capsys: Capture) -> None:
    assert main(["task", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no folder of results" in capsys.readouterr().err


def test_a_report_reads_a_folder(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    run("toy:plain", "toy:lower", "--out", str(out), "--json")
    printed = json.loads(capsys.readouterr().out)["tasks"]
    run("toy:plain", "--out", str(out), "--layer", "0", "--test")
    first, second = read_all(out)
    assert [first.model, second.model] == [MODEL, f"{MODEL} (layer 0)"]
    assert [(task["task"], task["split"]) for task in second.tasks] == [("toy:plain", "test")]
    entries = {task["task"]: task["results"] for task in printed}
    for task in first.tasks:
        for kept, told in zip(task["results"], entries[task["task"]], strict=True):
            assert {**kept, "details": None} == {**told, "details": None}
    sentences = verdict([first])
    assert any(line.startswith("toy:lower (valid): score") and "floor:toy" in line for line in sentences)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no results of a model"):
        read_all(tmp_path / "empty")
    next((out / "results").glob("*/*.json")).write_text("{")
    with pytest.raises(UserError, match="no result of a task, or damaged"):
        read_all(out)
