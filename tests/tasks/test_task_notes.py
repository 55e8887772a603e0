"""What tables of results say of rows: which set they are, which were left out, why a metric has no value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.cli import main
from protloom.task import notes
from protloom_tasks.metrics import why_undefined

Capture = pytest.CaptureFixture[str]
MODEL = "random-init(esm2:tiny)"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
HEAD = "title: a test\norigin: made for a test\nlicence: none\n"
SPLITS = """
sequence: sequence
label: label
splits:
  train: {file: rows.csv, where: {part: train}}
  valid: {file: rows.csv, where: {part: valid}}
  test: {file: rows.csv, where: {part: test}}
"""


def retrieval(folder: Path) -> str:
    """Domains of two families, each family one letter much; one row has no sequence."""
    rows = [f"{letter * n}{LETTERS[n]}{LETTERS[:n]},{letter}" for letter in "AW" for n in range(3, 12)]
    (folder / "own.csv").write_text("\n".join(["sequence,family", *rows, ",A"]) + "\n")
    text = "kind: retrieval\nrows: own.csv\nsequence: sequence\nlevels: [family]\nlevel: family\n"
    (folder / "own.yaml").write_text(HEAD + text)
    return str(folder / "own.yaml")


def scan(folder: Path) -> str:
    rows = [
        f"{wild}{at}{m},{at * LETTERS.index(m)}" for at, wild in enumerate(WILD_TYPE, 1) for m in "ACD" if m != wild
    ]
    (folder / "scan.csv").write_text("\n".join(["mutant,DMS_score", *rows, "M1*,0.5"]) + "\n")
    text = f"kind: variant-effect\nfile: scan.csv\nwild_type: {WILD_TYPE}\n"
    (folder / "scan.yaml").write_text(HEAD + text)
    return str(folder / "scan.yaml")


def table(folder: Path, kind: str, labels: dict[str, list[Any]], length: int | None = None) -> str:
    """A definition of whole sequences, a row a label; of one length where it is given."""
    rng = np.random.default_rng(0)
    lines = ["sequence,label,part"]
    for part, of in labels.items():
        for label in of:
            n = length or int(rng.integers(8, 20))
            lines.append(f"{''.join(rng.choice(list(LETTERS), size=n))},{label},{part}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "rows.yaml").write_text(f"{HEAD}kind: {kind}{SPLITS}")
    return str(folder / "rows.yaml")


def run(capsys: Capture, *words: str, model: str = "floor:kmer2") -> str:
    capsys.readouterr()
    assert main(["task", "run", *words, "--model", model]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("make", [retrieval, scan])
def test_one_set_of_rows_is_the_test_set(make: Any, tmp_path: Path, capsys: Capture) -> None:
    file, out = make(tmp_path), tmp_path / "out"
    model = "floor:kmer2" if make is retrieval else "floor:substitution"
    text = run(capsys, file, "--out", str(out), model=model)
    assert "  one set of rows, the test set, " in text
    assert "A task with one set of rows is scored on its test set" in text
    assert "split valid" not in text
    assert "Validation was scored" not in text
    (kept,) = (out / "results").glob("*/*.json")
    first = json.loads(kept.read_text())
    assert first["split"] is None
    assert "## One set of rows, which is the test set\n" in (out / "results.md").read_text()
    # the same rows, so the same result, and nothing is computed
    run(capsys, file, "--out", str(out), "--test", model=model)
    assert json.loads(kept.read_text())["written"] == first["written"]
    assert len(list((out / "results").glob("*/*.json"))) == 1


@pytest.mark.parametrize("name", ["file", "sim-retrieval"])
def test_a_sweep_chooses_nothing_on_test_rows(name: str, tmp_path: Path, capsys: Capture) -> None:
    task = retrieval(tmp_path) if name == "file" else name
    words = (task, "--layers", "0,2", "--limit", "18", "--set", "pool=mean")
    text = run(capsys, *words, model=MODEL)
    best = json.loads(run(capsys, *words, "--json", model=MODEL))["sweeps"][0]["best"]
    if name == "file":
        assert "own.yaml: Recall@10:family, one set of rows, the test set, " in text
        assert "caution: these rows are a test set, and nothing is chosen by one" in text
        assert "best here" not in text
        assert "] *" not in text
        assert best is None
    else:
        assert "split valid" in text
        assert "* best here; to score it on the test split" in text
        assert best["layer"] in (0, 2)


def test_rows_left_out_are_told(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    text = run(capsys, retrieval(tmp_path), "--out", str(out))
    assert "note: rows left out or changed: 1 (no sequence)\n" in text
    assert ": rows left out or changed: 1 (no sequence).\n" in (out / "results.md").read_text()
    assert "note: rows left out or changed: 1 (with a stop)\n" in run(
        capsys, scan(tmp_path), model="floor:substitution"
    )
    labels = {"train": ["a", "b"] * 10, "valid": ["a", "b", "c", "c"] * 4, "test": ["a", "b"]}
    text = run(capsys, table(tmp_path, "multiclass", labels), "--out", str(out))
    line = "scored rows of classes that no training row has, which can only be missed: 8"
    assert f"note: {line}\n" in text
    markdown = (out / "results.md").read_text()
    assert markdown.count(f"rows.yaml (valid): {line}.\n") == 1
    labels = {"train": ["1", "2"] * 10, "valid": ["1", "nan", "2"] * 8, "test": ["1", "2"]}
    text = run(capsys, table(tmp_path, "regression", labels))
    assert "note: rows left out or changed: 8 (no label)\n" in text


def test_nothing_is_told_where_nothing_was_left_out(tmp_path: Path, capsys: Capture) -> None:
    labels = {"train": [1, 2] * 10, "valid": [1, 2, 3] * 8, "test": [1, 2]}
    assert "note: " not in run(capsys, table(tmp_path, "regression", labels))
    assert list(notes.of_data({"left_out": {"no label": 0}, "duplicates_of_test_removed_from_train": 0})) == []


def test_counts_of_every_form() -> None:
    assert list(notes.of_data({"left_out": {"too_long": 1200}, "labels_unseen_in_training": 3})) == [
        "rows left out or changed: 1,200 (too long)",
        "labels of scored rows that no training row has, which cannot be predicted: 3",
    ]
    assert list(notes.of_subject({"without_features": {"train": 0, "scored": 2}})) == [
        "rows without features of this subject: 2 (scored)"
    ]
    assert list(notes.of_subject({"without_features": 4})) == ["rows without features of this subject: 4"]


@pytest.mark.parametrize(
    ("kind", "valid", "length", "floor", "why"),
    [
        (
            "regression",
            [1.5, 2, 3] * 6,
            12,
            "floor:length",
            "Spearman of floor:length is undefined: it predicts the same",
        ),
        (
            "regression",
            [2] * 12,
            None,
            "floor:kmer2",
            "Spearman of floor:kmer2 is undefined: all 12 labels are the same",
        ),
        ("binary", [1] * 12, None, "floor:kmer2", "is undefined: all 12 labels are the same"),
    ],
)
def test_a_metric_without_a_value_comes_with_the_reason(
    kind: str, valid: list[Any], length: int | None, floor: str, why: str, tmp_path: Path, capsys: Capture
) -> None:
    labels = {"train": [0, 1] * 10, "valid": valid, "test": [0, 1]}
    file, out = table(tmp_path, kind, labels, length), tmp_path / "out"
    text = run(capsys, file, "--out", str(out), model=floor)
    assert "nan" not in text
    assert why in text
    assert why in (out / "results.md").read_text()


def test_why_a_metric_is_undefined() -> None:
    some = np.arange(3.0)
    assert why_undefined(some, np.zeros(3)) == "it predicts the same for all 3"
    assert why_undefined(np.zeros(0), np.zeros(0)) == "nothing was scored"
    assert "do not define it" in why_undefined(some, np.array([0.0, math.inf, 1.0]))


def test_one_item_has_no_interval(tmp_path: Path, capsys: Capture) -> None:
    text = run(capsys, "sim-ss3", "--limit", "1", "--set", "proteome_size=400", model="floor:onehot")
    assert "Q3 of floor:onehot has no interval: 1 families to resample, and it takes two" in text
    assert "scored proteins 1" in text
    assert "test proteins" not in text.split("metric Q3")[1]


@pytest.mark.parametrize("name", ["sim-retrieval", "scope-retrieval"])
def test_the_main_metric_is_not_repeated(name: str, registry: Any) -> None:
    from protloom.task.suite import build

    card = build(name, registry).card()
    assert card["metric"] not in card["also"]
    assert len(card["also"]) in (5, 17)
