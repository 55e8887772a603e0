"""Tasks of a third party through the command line: one that works, others broken in every way; as files, as a wheel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import acme_tasks
import pytest
from plugin_files import Site
from test_plugin_wheel import fresh_environment
from test_plugin_wheel import run as call

from protloom.cli import main

Capture = pytest.CaptureFixture[str]
FLOOR = ("--model", "floor:composition")


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution, installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    Site(folder).add("acme-tasks", "acme_tasks", "", version="1.2.3", points=acme_tasks.ENTRY_POINTS)
    (folder / "acme_tasks.py").unlink()
    acme_tasks.write_package(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "acme_tasks" and name != "acme_tasks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "acme_tasks")  # the module of these tests


def check_errors(err: str, names: list[str]) -> None:
    """Makes sure that each broken task has one line that names it, the distribution and the cause."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(names)
    for name in names:
        (line,) = [line for line in lines if line.startswith(f"error: {name}: ")]
        assert acme_tasks.BROKEN[name] in line
        assert "acme-tasks" in line
        assert "1.2.3" in line
    assert "Traceback" not in err


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("words", [(), ("--json",), ("--out", "results")])
def test_broken_tasks_cost_the_others_nothing(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    names = list(acme_tasks.BROKEN)
    assert main(["task", "run", *names[:4], "charge", *names[4:], *FLOOR, *words]) == 1
    out, err = capsys.readouterr()
    check_errors(err, names)
    assert f"{len(names)} of {len(names) + 1} tasks failed: " in err
    if words == ("--json",):
        errors = {task["task"]: task["error"] for task in json.loads(out)["tasks"]}
        assert errors.pop("charge") is None
        assert set(errors) == set(names)
        assert all(errors.values())
    else:
        assert "charge: net charge (SIMULATED data)" in out
        assert "floor:composition" in out
    if words[:1] == ("--out",):
        assert [path.name for path in Path("results/results").glob("*/*")] == ["charge.valid.json"]


@pytest.mark.usefixtures("acme")
def test_a_plugin_that_cannot_be_imported_costs_its_own_tasks_alone(capsys: Capture) -> None:
    assert main(["task", "run", "charge", "charge-far", *FLOOR]) == 1
    out, err = capsys.readouterr()
    assert "charge: net charge" in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: charge-far: no task 'charge-far'. Did you mean")
    assert line.endswith(acme_tasks.LOST)
    assert "1 of 2 tasks failed: charge-far" in err
    # with nothing left, what is wrong with the options is no matter
    assert main(["task", "run", "charge-far", "charge-import", *FLOOR, "--set", "rows=3"]) == 1
    assert "no such option" not in capsys.readouterr().err


@pytest.mark.usefixtures("acme")
def test_list_and_show(capsys: Capture) -> None:
    assert main(["task", "list", "--json"]) == 0
    tasks = {task["name"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}
    assert (tasks["charge"]["metric"], tasks["charge"]["data"]) == ("r", "simulated")
    for name in ("charge-import", "charge-build", "charge-dict", "charge-options", "charge-card"):
        assert tasks[name]["data"].startswith("broken: ")
        assert acme_tasks.BROKEN[name] in tasks[name]["data"]
    assert main(["task", "show", "charge"]) == 0
    assert "definition: Pearson's r" in capsys.readouterr().out
    assert main(["task", "show", "charge-card"]) == 1
    check_errors(capsys.readouterr().err, ["charge-card"])
    assert main(["task", "show", "charge*"]) == 1
    out, err = capsys.readouterr()
    assert "definition: Pearson's r" in out
    check_errors(err, ["charge-import", "charge-build", "charge-dict", "charge-options", "charge-card"])


@pytest.mark.usefixtures("acme")
def test_corpora_are_compared_with_what_works(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "c.fasta").write_text(">a\nMKTAYIAKQRQISFVK\n")
    command = ["data", "overlap", str(tmp_path / "c.fasta"), "--tasks", "charge-check", "charge-build", "sim-ss3"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "sim-ss3" in out
    check_errors(err, ["charge-check", "charge-build"])
    assert main(["data", "fetch", "charge-build", "charge-options", "--out", str(tmp_path / "data")]) == 1
    check_errors(capsys.readouterr().err, ["charge-build", "charge-options"])


@pytest.mark.usefixtures("acme")
def test_debug_shows_where(capsys: Capture) -> None:
    assert main(["--debug", "task", "run", "charge-build", "charge-run", "charge-text", *FLOOR]) == 1
    err = capsys.readouterr().err
    for line in ('raise RuntimeError("no weights', "1 / 0"):
        assert line in err


@pytest.mark.slow
def test_a_wheel_adds_tasks_and_its_removal_takes_them_away(tmp_path: Path) -> None:
    for package in ("build", "hatchling", "pip"):
        pytest.importorskip(package)
    acme_tasks.write_project(tmp_path / "source")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    call(*build, "--outdir", tmp_path / "dist", tmp_path / "source")
    python = fresh_environment(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "--no-deps", "--no-index", *(tmp_path / "dist").glob("*.whl"))
    task = (python, "-m", "protloom", "task")

    listed: dict[str, Any] = {t["name"]: t for t in json.loads(call(*task, "list", "--json"))["tasks"]}
    assert listed["charge"]["summary"] == "net charge of made-up peptides"
    assert listed["charge-build"]["data"].startswith("broken: ")
    assert "probe: least squares" in call(*task, "show", "charge")
    assert "floor:composition" in call(*task, "run", "charge", *FLOOR, "--test", "--out", tmp_path / "results")
    (path,) = (tmp_path / "results" / "results").glob("*/charge.test.json")
    kept = json.loads(path.read_text())
    assert (kept["subject"], kept["n"]) == ("floor:composition", 30)
    assert kept["value"] > 0.999  # charge is a sum over residues
    assert kept["key"]["task"] == "acme-tasks/charge 1.2.3"

    names = list(acme_tasks.BROKEN)
    told = call(*task, "run", *names, "charge-far", "charge", *FLOOR, code=1)
    assert "charge: net charge" in told
    (line,) = [line for line in told.splitlines() if line.startswith("error: charge-far: no task 'charge-far'")]
    assert line.endswith(acme_tasks.LOST)
    check_errors(told.replace(line, ""), names)

    call(*pip, "uninstall", "--yes", "acme-tasks")
    assert "no task 'charge'" in call(*task, "run", "charge", *FLOOR, code=2)
