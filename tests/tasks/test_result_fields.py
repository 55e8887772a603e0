"""What a result holds is told on its page, and what an earlier version kept can still be read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from protloom.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "task_results.md"
TEXT = """
title: t
kind: multiclass
sequence: s
label: y
splits: {train: {file: t.csv, where: {p: train}}, test: {file: t.csv, where: {p: test}}}
origin: here
licence: none
"""
UNTOLD = {"format", "name", "summary", "written", "simulated", "definition", "error"}
"""Fields that say of themselves what they are."""


@pytest.fixture
def task(tmp_path: Path) -> str:
    rows = [
        f"MKTA{a}{b}IAKQ,{'ab'[a in 'ACDEFG']},{'test' if b in 'HI' else 'train'}"
        for a in "ACDEFGHIKL"
        for b in "HIKLV"
    ]
    (tmp_path / "t.csv").write_text("\n".join(["s,y,p", *rows]) + "\n")
    (tmp_path / "t.yaml").write_text(TEXT)
    return str(tmp_path / "t.yaml")


def run(task: str, out: Path, floor: str = "composition") -> None:
    assert main(["task", "run", task, "--model", f"floor:{floor}", "--test", "--out", str(out)]) == 0


def kept(folder: Path, floor: str = "composition") -> tuple[Path, dict[str, Any]]:
    (path,) = (folder / "results").glob(f"floor_{floor}-*/*.json")
    return path, json.loads(path.read_text())


def test_every_field_is_told(task: str, tmp_path: Path) -> None:
    run(task, tmp_path / "folder")
    run(task, tmp_path / "file.json")
    _, record = kept(tmp_path / "folder")
    (report,) = json.loads((tmp_path / "file.json").read_text())["tasks"]
    (entry,) = report.pop("results")
    section = PAGE.read_text().partition("## What a result holds")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([^`]+)`", section))
    assert {*record, *report, *entry} - UNTOLD <= told
    columns = {re.sub("^score .*", "score CLASS", name) for name in record["predictions"]}
    assert columns == {"id", "sequence", "label", "output", "score CLASS"} <= told
    assert {"per_item_is", "output_is", "score_is"} <= {*record["details"]} & told


def test_results_of_an_earlier_version(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They lack ids, scores by class and words: they are compared as they are, and computed anew when asked for."""
    folder = tmp_path / "folder"
    run(task, folder)
    run(task, folder, "length")
    path, record = kept(folder)
    whole = record["predictions"]
    record["predictions"] = {name: whole[name] for name in ("sequence", "label", "output")}
    record["details"] = {name: value for name, value in record["details"].items() if not name.endswith("_is")}
    record["key"]["code"]["task"] = "of an earlier version"
    path.write_text(json.dumps(record))
    assert main(["task", "compare", f"{folder}#floor:composition", f"{folder}#floor:length"]) == 0
    capsys.readouterr()
    run(task, folder)
    assert "done before" not in capsys.readouterr().err
    assert kept(folder)[1]["predictions"] == whole
    run(task, folder)
    assert "done before" in capsys.readouterr().err
