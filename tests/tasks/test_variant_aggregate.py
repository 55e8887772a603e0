"""The mean over assays: by hand, against a computation written out, and through the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.cli import main
from protloom.plugins import Registry
from protloom.task import aggregate as task_aggregate
from protloom.task.aggregate import AssayValue, aggregate
from protloom.task.suite import select
from protloom_tasks.variant_metrics import METRICS

Capture = pytest.CaptureFixture[str]

TABLE = [
    AssayValue("a1", "P1", "Activity", 0.2),
    AssayValue("a2", "P1", "Activity", 0.4),  # P1: 0.3
    AssayValue("a3", "P2", "Activity", 0.7),  # Activity: (0.3 + 0.7) / 2 = 0.5
    AssayValue("s1", "P1", "Stability", 0.1),  # the same protein under another type counts there
    AssayValue("s2", "P3", "Stability", 0.3),  # Stability: 0.2
    AssayValue("b1", "P4", "Binding", 0.8),  # Binding: 0.8
]


def test_the_mean_over_assays_by_hand() -> None:
    found = aggregate(TABLE)
    assert found.selections == pytest.approx({"Activity": 0.5, "Stability": 0.2, "Binding": 0.8})
    assert found.value == pytest.approx(0.5)
    assert (found.assays, list(found.left_out)) == (6, [])
    # drawing two of (0.3, 0.7) has a mean of variance 0.04 / 2, of (0.1, 0.3) of 0.01 / 2, of (0.8) of 0
    assert found.standard_error == pytest.approx(np.sqrt(0.02 + 0.005) / 3, rel=0.03)
    assert aggregate(TABLE) == found
    assert aggregate(reversed(TABLE)) == found
    assert aggregate(TABLE, seed=1).standard_error != found.standard_error


def test_assays_without_a_value_are_left_out_and_told() -> None:
    found = aggregate([*TABLE, AssayValue("x", "P9", "Expression", float("nan"))])
    assert (found.value, list(found.left_out), found.assays) == (pytest.approx(0.5), ["x"], 6)
    nothing = aggregate([AssayValue("x", "P9", "Expression", float("nan"))])
    assert np.isnan(nothing.value)
    assert nothing.assays == 0
    alone = aggregate([TABLE[0]])
    assert alone.value == pytest.approx(0.2)
    assert np.isnan(alone.standard_error)  # one protein: nothing says how far the mean may be off
    assert task_aggregate.DRAWS == 10_000


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_over_assays_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds, proteins = ["Activity", "Binding", "Expression", "OrganismalFitness", "Stability"], ["P1", "P2", "P3", "P4"]
    values = [
        AssayValue(f"a{i}", str(rng.choice(proteins)), str(rng.choice(kinds)), float(rng.normal())) for i in range(30)
    ]
    found = aggregate(values)
    by_kind = {}
    for kind in sorted({one.selection for one in values}):
        of_kind = [one for one in values if one.selection == kind]
        means = [
            sum(one.value for one in of_kind if one.protein == protein) / sum(one.protein == protein for one in of_kind)
            for protein in sorted({one.protein for one in of_kind})
        ]
        by_kind[kind] = means
    expected = {kind: sum(means) / len(means) for kind, means in by_kind.items()}
    assert found.selections == pytest.approx(expected)
    assert found.value == pytest.approx(sum(expected.values()) / len(expected))
    # the variance of a mean of n drawn from n values is their variance over n
    exact = sum(np.var(means) / len(means) for means in by_kind.values()) ** 0.5 / len(by_kind)
    assert found.standard_error == pytest.approx(exact, rel=0.05)


# ----------------------------------------------------------------------------------------------------- command line

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ASSAYS = {
    "growth": ("P1", "OrganismalFitness"),
    "heat": ("P1", "OrganismalFitness"),
    "other": ("P2", "OrganismalFitness"),
    "binds": ("P1", "Binding"),
    "glows": ("P3", "Activity"),
}


def scan(folder: Path, name: str, seed: int, more: str = "") -> str:
    """Writes a scan of 60 variants with numbers that follow letters, and noise."""
    rng = np.random.default_rng(seed)
    every = [(i, w, m) for i, w in enumerate(WILD_TYPE, start=1) for m in LETTERS if m != w]
    rows = [
        (f"{w}{i}{m}", round(LETTERS.index(m) + (3 + seed) * rng.normal(), 3))
        for i, w, m in (every[k] for k in sorted(rng.choice(len(every), 60, replace=False)))
    ]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("mutant", "DMS_score"), *rows])
    text = f"title: {name}\nkind: variant-effect\nfile: {name}.csv\nwild_type: {WILD_TYPE}\norigin: o\nlicence: none\n"
    (folder / f"{name}.yaml").write_text(text + more)
    return str(folder / f"{name}.yaml")


def tasks(folder: Path) -> dict[str, str]:
    return {
        name: scan(folder, name, seed, f"protein: {protein}\nselection: {selection}\n")
        for seed, (name, (protein, selection)) in enumerate(ASSAYS.items())
    }


def run(names: Sequence[str], model: str, out: Path, *words: str) -> None:
    assert main(["task", "run", *names, "--model", model, "--out", str(out), *words]) == 0


def told(capsys: Capture, *words: str | Path) -> Any:
    capsys.readouterr()
    assert main(["task", "aggregate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def kept(out: Path, subject: str) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in (out / "results").glob("*/*.json")]
    return {Path(record["task"]).stem: record for record in records if record["subject"] == subject}


def brute(values: dict[str, float]) -> float:
    """The mean over types of the mean over proteins of the mean over assays, loop by loop."""
    by_kind = []
    for kind in {selection for _, selection in ASSAYS.values()}:
        by_protein = []
        for protein in {p for p, s in ASSAYS.values() if s == kind}:
            own = [values[name] for name, of in ASSAYS.items() if of == (protein, kind)]
            by_protein.append(sum(own) / len(own))
        by_kind.append(sum(by_protein) / len(by_protein))
    return sum(by_kind) / len(by_kind)


def test_results_are_averaged_from_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    names = tasks(tmp_path)
    floors = ("floor:substitution", "floor:hydrophobicity")
    for floor in floors:
        run(list(names.values()), floor, tmp_path / "out")
    run([scan(tmp_path, "lone", 9)], floors[0], tmp_path / "out")
    found = told(capsys, tmp_path / "out")
    assert {(a["protein"], a["selection"]) for a in found["assays"]} == set(ASSAYS.values())
    assert (len(found["assays"]), found["proteins"]) == (5, 3)
    assert [Path(task).stem for task in found["left_out"]] == ["lone"]
    assert "states no protein and selection" in next(iter(found["left_out"].values()))
    by_name = {subject["subject"]: subject for subject in found["subjects"]}
    assert set(by_name) == set(floors)
    for floor in floors:
        assert list(by_name[floor]["metrics"]) == list(METRICS)
        for metric in METRICS:
            expected = brute(
                {
                    name: record["metrics"][metric]
                    for name, record in kept(tmp_path / "out", floor).items()
                    if name in ASSAYS
                }
            )
            assert by_name[floor]["metrics"][metric]["value"] == pytest.approx(expected), (floor, metric)
    # what the first is ahead of the other, with the standard error of that difference
    first, second = (subject["subject"] for subject in found["subjects"])
    assert by_name[first]["first_minus_this"] is None
    one, two = kept(tmp_path / "out", first), kept(tmp_path / "out", second)
    gaps = {name: one[name]["metrics"]["Spearman"] - two[name]["metrics"]["Spearman"] for name in ASSAYS}
    ahead = by_name[second]["first_minus_this"]["Spearman"]
    assert ahead["value"] == pytest.approx(brute(gaps))
    values = [AssayValue(name, *ASSAYS[name], gap) for name, gap in gaps.items()]
    assert ahead["standard_error"] == pytest.approx(aggregate(values).standard_error)
    assert main(["task", "aggregate", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("5 assays of 3 proteins, 3 selection types: mean over the assays of a protein")
    spearman = by_name[first]["metrics"]["Spearman"]
    assert f"{first}  {spearman['value']:.3f} ± {spearman['standard_error']:.3f}" in " ".join(out.split()).replace(
        first, f"{first} "
    )
    assert f"{first} better than" in out
    assert "left out: " in out


def test_subjects_of_several_folders(tmp_path: Path, capsys: Capture) -> None:
    names = list(tasks(tmp_path).values())
    model = "random-init(esm2:tiny)"
    run(names, model, tmp_path / "a")
    run(names[:4], model, tmp_path / "b", "--seed", "1", "--no-floors")
    run(names[:4], "floor:hydrophobicity", tmp_path / "c")
    # the folder of a model has its floors; one that another folder has too is there once
    found = told(capsys, tmp_path / "a", tmp_path / "c")
    assert [subject["subject"] for subject in found["subjects"]] == [
        model,
        f"{tmp_path / 'a'}#floor:hydrophobicity",
        "floor:substitution",
        f"{tmp_path / 'c'}#floor:hydrophobicity",
    ]
    assert len(found["assays"]) == 4
    assert list(found["left_out"].values()) == [f"no result of {tmp_path / 'c'}#floor:hydrophobicity"]
    run(names[4:], "floor:hydrophobicity", tmp_path / "c")
    found = told(capsys, tmp_path / "a", tmp_path / "c")
    assert [subject["subject"] for subject in found["subjects"]] == [
        model,
        "floor:hydrophobicity",
        "floor:substitution",
    ]
    # one subject alone
    found = told(capsys, f"{tmp_path / 'a'}#floor:substitution")
    assert [subject["subject"] for subject in found["subjects"]] == ["floor:substitution"]
    # a resampling by another seed pairs with nothing
    assert main(["task", "aggregate", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "are about other items: run one of them again with the same rows, seed and limit" in capsys.readouterr().err


def test_mistakes(tmp_path: Path, capsys: Capture) -> None:
    def refused(*words: str | Path) -> str:
        capsys.readouterr()
        assert main(["task", "aggregate", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no folder of results" in refused(tmp_path)
    run([scan(tmp_path, "lone", 0)], "floor:substitution", tmp_path / "out", "--limit", "20")
    line = refused(tmp_path / "out")
    assert "no results of mutations that all subjects have (" in line
    assert "lone.yaml: its definition states no protein and selection)" in line
    assert "Did you mean 'floor:substitution'" in refused(f"{tmp_path / 'out'}#floor:substitutin")
    run(
        [scan(tmp_path, "lone", 0, "protein: P\nselection: S\n")],
        "floor:substitution",
        tmp_path / "out",
        "--limit",
        "20",
    )
    assert "--seed -1" in refused(tmp_path / "out", "--seed", "-1")
    found = told(capsys, tmp_path / "out")
    assert found["cautions"] == [
        "at most 20 variants of each assay were used: a quick look",
        "one protein of S: standard errors know nothing of how proteins of a type differ",
    ]
    alone = found["subjects"][0]["metrics"]["Spearman"]
    assert (alone["assays"], alone["standard_error"]) == (1, None)


def test_the_suite_names_the_scans(registry: Registry) -> None:
    names = [choice.name for choice in select(["suite:variant-effect"], registry).choices]
    assert names == [choice.name for choice in select(["variant-effect"], registry).choices]
    assert len(names) == 7


def test_real_scans(shared_data: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("--data-dir", str(shared_data), "--set", "rows=200")
    run(["suite:variant-effect"], "floor:substitution", tmp_path / "out", *words)
    found = told(capsys, tmp_path / "out")
    assert (len(found["assays"]), found["proteins"]) == (7, 6)
    selections = found["subjects"][0]["metrics"]["Spearman"]["selections"]
    assert set(selections) == {"Activity", "Binding", "Expression", "OrganismalFitness"}
    assert found["subjects"][0]["metrics"]["Spearman"]["value"] == pytest.approx(sum(selections.values()) / 4)
