"""What ``protloom task`` calls subjects, files and folders, and what ``check-plugin`` says of an unknown name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_tasks
from toy_tasks import MODEL, run

from protloom.cli import main
from protloom.task.compare import find_records

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy tasks, installed; returns the file that tells what was computed."""
    return toy_tasks.enter(tmp_path, monkeypatch)


def test_the_name_of_the_table_means_a_subject_where_one_alone_has_it(tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    run("toy:plain", "--out", out, "--max-length", "512", "--long", "crop")
    label = f"{MODEL} (crop, 512 residues)"
    _, found = find_records(f"{out}#{MODEL}", print)
    assert [record["subject"] for record in found] == [label]
    assert main(["task", "compare", f"{out}#{MODEL}", f"{out}#floor:toy"]) == 0
    assert capsys.readouterr().out.rpartition("A: ")[2].startswith(label)
    run("toy:plain", "--out", out, "--layer", "1")
    capsys.readouterr()
    assert main(["task", "compare", f"{out}#{MODEL}", f"{out}#floor:toy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"2 subjects are called '{MODEL}'; write one of " in line
    assert f"'{out}#{label}'" in line
    run("toy:plain", "--out", out)  # a label goes before a name
    _, found = find_records(f"{out}#{MODEL}", print)
    assert [record["subject"] for record in found] == [MODEL]


def test_results_are_named_only_where_there_are_any(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run("toy:missing", "--out", str(out)) == 1
    assert "results: " not in capsys.readouterr().out
    assert not out.exists()
    assert run("toy:plain", "--out", str(out)) == 0
    assert f"results: {out}\n" in capsys.readouterr().out


def test_the_name_of_a_file_comes_once(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("title: no kind\n")
    for command in (["run", str(file), "--model", "floor:toy"], ["show", str(file)]):
        assert main(["task", *command]) != 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {file}: kind: is needed and missing")


def test_show_says_where_options_are_explained(capsys: Capture) -> None:
    assert main(["task", "show", "sim-retrieval"]) == 0
    assert capsys.readouterr().out.endswith("\n'protloom show task sim-retrieval' says what each option means.\n")
    assert main(["show", "task", "sim-retrieval"]) == 0
    assert "Queries, drawn by seed" in capsys.readouterr().out
    assert main(["task", "show", "toy:plain"]) == 0  # its card tells no options
    assert "says what each option means" not in capsys.readouterr().out


def test_a_name_that_is_like_none_is_answered_with_the_distributions(capsys: Capture) -> None:
    assert main(["check-plugin", "qqqqq"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no plugin or component 'qqqqq'. Installed are " in line
    assert "toy-tasks, protloom;" in line  # other people's first
    assert main(["check-plugin", "toy-task"]) == 2
    assert "Did you mean 'toy-tasks'?" in capsys.readouterr().err


def test_few_items_decide_nothing(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run("toy:plain", "--out", str(out)) == 0
    text = capsys.readouterr().out
    caution = "5 sequences: intervals from fewer than 10 are too narrow, so no difference counts as decided"
    assert f"note: {caution}" in text
    assert f"toy:plain (valid): {caution}.\n" in (out / "results.md").read_text()
    assert main(["task", "compare", f"{out}#{MODEL}", f"{out}#floor:toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (task,) = found["tasks"]
    low, high = task["interval95"]
    assert low > 0 or high < 0  # which would be a verdict
    assert task["first_is"] == "undecided"
    assert found["cautions"] == [f"toy:plain (valid): {caution}"]
