"""``protloom.task.open_task``: what ``task run`` finds by a name, a program does too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protloom.cli import main
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.task import open_task

TEXT = """
title: "{what}"
kind: regression
sequence: s
label: y
splits: {train: {file: t.csv, where: {p: train}}, test: {file: t.csv, where: {p: test}}}
carve: [{split: valid, from: train, share: 0.3}]
origin: here
licence: none
variants: {near: {what: close}, far: {what: wide}}
"""


def mine(folder: Path) -> Path:
    rows = [
        f"MKTA{a}{b}IAKQ,{a.count('K') + i / 7},{'test' if i % 3 else 'train'}"
        for i, a in enumerate("ACDEFGHIKLMN")
        for b in "HIKLV"
    ]
    (folder / "t.csv").write_text("\n".join(["s,y,p", *rows]) + "\n")
    (folder / "t.yaml").write_text(TEXT)
    return folder / "t.yaml"


def test_a_program_gets_the_numbers_of_the_command(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{mine(tmp_path)}:far"
    task = open_task(name, registry, split="test", rows=17)
    assert task.card()["title"] == "wide"
    result = task.run(task.floors()["floor:composition"], seed=3)
    words = ["--model", "floor:composition", "--test", "--seed", "3", "--set", "rows=17", "--json"]
    assert main(["task", "run", name, *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    assert (result.value, list(result.interval)) == (found["value"], found["interval95"])
    assert result.details["rows"] == len(result.predictions["id"]) == 17
    default = open_task(name, registry)
    assert default.run(default.floors()["floor:length"]).details["split"] == "valid"


def test_names_and_options_that_are_wrong(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    path = mine(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'sim-ss3'"):
        open_task("sim-ss4", registry)
    with pytest.raises(UserError, match=r"gb1 means 5 tasks: name one of gb1:low-vs-high, "):
        open_task("gb1", registry)
    with pytest.raises(UserError, match="row"):
        open_task(f"{path}:near", registry, rwos=3)
    with pytest.raises(UserError, match="needs solubility_deepsol/"):  # at once, not when it is run
        open_task("solubility", registry)
    with pytest.raises(UserError, match=r"has variants, choose one: near, far"):
        open_task(str(path), registry)
