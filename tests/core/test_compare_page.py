"""The page that ``protloom compare`` writes beside its other reports; results and logs are written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kept_results import found as result_of
from kept_results import keep
from report_pages import Reader, healthy, read_page, write_run

from protloom.cli import main
from protloom.report import comparison_page
from protloom.report.run_facts import Run

PLAN: dict[str, Any] = {
    "recipes": {"plain": {"set": ["objective=mlm"]}, "wide": {"set": ["objective=mlm"]}, "deep": {}},
    "shared": ["architecture=esm2:tiny", "data.corpus=demo:?n=50"],
    "budget": {"steps": 100},
    "checkpoints": [50],
    "seeds": [0, 1],
    "tasks": ["sim-retrieval"],
    "margins": [0.02, 0.0],
}
VALUES = {"plain": (0.50, 0.52), "wide": (0.60, 0.62), "deep": (0.51, 0.49)}
"""Recipe -> value of each seed: wide is better than plain by 0.1, deep is not told from it."""


def write_result(folder: Path, who: str, task: str, value: float, noise: int) -> None:
    replicates = value + np.random.default_rng(noise).normal(0, 0.01, 500)
    result = result_of(value, replicates, metric="Recall@1", n=40, unit="families")
    keep(folder, who, task, result, {"better": "higher", "simulated": True})


def write_comparison(folder: Path) -> Path:
    """Writes a comparison with three recipes, two seeds and two points, as if it had been trained and evaluated."""
    (folder / "parts").mkdir(parents=True)
    for at, (arm, values) in enumerate(VALUES.items()):
        for seed in (0, 1):
            for point in (50, 100):
                name = f"{arm}-s{seed}@{point}"
                write_result(folder, name, "sim-retrieval", values[seed], noise=10 * at + seed)
                used = {"steps": point, "tokens": 1000 * point, "seconds": 0.5 * point, "flops": 1e9 * point}
                facts = {**used, "corpora": ["abc"], "foreign_cores": 0.25 * seed}
                (folder / "parts" / f"{name}.json").write_text(json.dumps(facts))
            state = {"step": 100, "tokens": 100_000, "seconds": 50.0, "corpora": ["abc"]}
            write_run(folder / "runs" / f"{arm}-s{seed}", healthy(), state, data__corpus="demo:?n=50")
    write_result(folder, "floor:composition", "sim-retrieval", 0.25, noise=99)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a comparison that was reported on, and the command line that did it."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "compare.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    words = ["compare", str(folder / "compare.yaml"), "--out", str(folder / "out"), "--report-only"]
    assert main(words) == 0  # nothing was evaluated yet: this claims the folder
    write_comparison(folder / "out")
    assert main(words) == 0
    return folder / "out", words


@pytest.fixture(scope="module")
def page(compared: tuple[Path, list[str]]) -> Reader:
    return read_page(compared[0] / "report.html")


def test_the_verdict_comes_first(page: Reader) -> None:
    assert page.text.startswith(
        "plain, wide, deep under the same budget: 100 steps plain, wide, deep under the same budget: 100 steps "
        "wide against plain, 1 task: 1 better by 95 % intervals; wins/losses/ties 1/0/0 at a margin of 0.02"
    )
    assert "deep against plain, 1 task: 1 undecided by 95 % intervals; wins/losses/ties 0/0/1" in page.text
    assert page.text.index("SIMULATED proteins: sim-retrieval") < page.text.index("wide minus plain, after 100 steps")


def test_differences_are_those_of_the_report(compared: tuple[Path, list[str]], page: Reader) -> None:
    report = json.loads((compared[0] / "report.json").read_text())
    rows = page.rows("differences.csv")
    assert [(row["point"], row["recipe"]) for row in rows] == [
        (point, arm) for point in ("50.0", "100.0") for arm in ("wide", "deep")
    ]
    for row in rows:
        point = next(p for p in report["points"] if p["point"] == float(row["point"]))
        found = point["arms"][row["recipe"]]["differences"]["sim-retrieval"]
        assert [float(row[key]) for key in ("delta", "low95", "high95")] == [found["delta"], *found["interval95"]]
        assert [float(row["seed_0"]), float(row["seed_1"])] == found["seeds"]
        assert row["verdict"] == found["verdict"] == {"wide": "better", "deep": "undecided"}[row["recipe"]]
        low, high = found["interval95"]
        # the table, and the words beside the bar
        assert [f"{found['delta']:+.4f}", f"[{low:+.4f}, {high:+.4f}]"] in [
            cells[4:6] for table in page.tables for cells in table
        ]
        assert f"{found['delta']:+.4f} [{low:+.4f}, {high:+.4f}] {found['verdict']}" in page.text


def test_tests_tasks_and_what_was_used(page: Reader) -> None:
    counted = next(table for table in page.tables if table[0][0] == "recipe" and "margin" in table[0])
    assert counted[1:] == [
        ["wide", "0.02", "1", "0", "0", "0.5", "1", "1"],
        ["wide", "0", "1", "0", "0", "0.5", "", ""],
        ["deep", "0.02", "0", "0", "1", "–", "1", "1"],
        ["deep", "0", "0", "1", "0", "1", "", ""],
    ]
    references = next(table for table in page.tables if table[0][1] == "for comparison")
    assert references[1] == ["sim-retrieval", "floor:composition", "0.2500", "[0.2300, 0.2700]"]
    used = next(table for table in page.tables if table[0][1] == "seed")
    assert used[1] == ["plain", "0", "50", "50", "50,000", "25.0", "5e+10", "0.00"]
    assert len(used) == 1 + 3 * 2 * 2


def test_curves_are_those_of_the_runs(page: Reader) -> None:
    rows = page.rows("losses.csv")
    assert {row["run"] for row in rows} == {f"{arm}-s{seed}" for arm in VALUES for seed in (0, 1)}
    own = [float(row["loss/mlm"]) for row in rows if row["run"] == "deep-s1" and row["lines of"] == "training"]
    assert own == [line["loss/mlm"] for line in healthy() if "tokens" in line]
    assert "mlm by tokens" in page.text
    assert "mlm by time" in page.text
    assert "all runs: SIMULATED corpus (demo:?n=50)" in page.text  # once, not once a run
    assert "- objective=mlm" in page.text  # the plan


def test_equal_input_gives_equal_bytes(compared: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, words = compared
    before = (out / "report.html").read_bytes()
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"report: {out / 'report.html'}\n")
    assert (out / "report.html").read_bytes() == before


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra_the_other_forms_are_written(
    package: str,
    compared: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, words = tmp_path / "out", [*compared[1]]
    words[words.index("--out") + 1] = str(out)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == f"report.html is not written, it needs {package}: pip install 'protloom[report]'\n"
    assert printed.out.endswith(f"report: {out / 'report.md'}\n")
    assert {path.name for path in out.glob("report.*")} == {"report.json", "report.csv", "report.md"}


def test_nothing_evaluated_yet_is_a_page_too(compared: tuple[Path, list[str]], tmp_path: Path) -> None:
    words = [*compared[1]]
    words[words.index("--out") + 1] = str(tmp_path / "out")
    assert main(words) == 0
    assert "wide: no task was evaluated for both it and plain" in read_page(tmp_path / "out" / "report.html").text


def analysis(**changes: Any) -> dict[str, Any]:
    """Returns an analysis by hand: two recipes, a task that one seed failed on, and one that failed altogether."""
    arms = {
        "a-s": {"values": {"t": {"mean": 0.5, "seeds": {"0": 0.4, "1": 0.6}}}, "differences": {}},
        "b": {
            "values": {"t": {"mean": 0.7, "seeds": {"1": 0.7}}},
            "differences": {
                "t": {"delta": 0.1, "interval95": [0.05, 0.15], "verdict": "better", "seeds": [0.1], "seed_std": None}
            },
            "counts": [{"margin": 0.0, "wins": 1, "losses": 0, "ties": 0, "sign_test_p": 0.5}],
            "decided": {"better": 1, "worse": 0, "undecided": 0},
            "mean_delta": 0.1,
            "median_delta": 0.1,
            "wilcoxon_p": None,
            "wilcoxon_p_holm": None,
        },
    }
    used = {"steps": 9, "tokens": 9000, "seconds": 4.5, "flops": 1e9, "corpora": ["x"]}
    return {
        "baseline": "a-s",
        "arms": ["a-s", "b"],
        "budget": {"unit": "seconds", "number": 4.0},
        "seeds": [0, 1],
        "margins": [0.0],
        "init": None,
        "precision": ["fp32"],
        "undefined": [],
        "allowed_differences": ["batch"],
        "tasks": {
            "t": {"metric": "Q3", "better": "higher", "n": 5, "unit": "proteins", "simulated": False, "references": {}},
            "u": {"metric": None, "references": {}},
        },
        "training": [
            {"arm": arm, "seed": 0, "point": 4.0, "foreign_cores": load, **used}
            for arm, load in (("a-s", 0.125), ("b", 1.5))
        ],
        "points": [{"point": 4.0, "arms": arms}],
        "failures": ["u: b-s0@4: RuntimeError: out of luck"],
        **changes,
    }


def test_failed_seeds_tasks_and_a_busy_machine() -> None:
    runs = [Run(name, {}, "", tuple(healthy()), {}) for name in ("a-s-s0", "b-s0")]
    built = comparison_page.build(analysis(), runs, "seeds: [0, 1]")
    assert built.warnings[0] == "1 evaluation failed: see below"
    assert built.warnings[1].startswith("others kept 0.12 to 1.50 cores busy while recipes trained for equal seconds")
    assert "Differences between recipes that were allowed: batch" in built.verdict
    failed = next(section for section in built.sections if section.title == "Failed")
    assert failed.parts[0].lines == ["u: b-s0@4: RuntimeError: out of luck"]  # type: ignore[union-attr]
    (row,) = comparison_page.differences_csv(analysis()).splitlines()[1:]
    assert row == "4.0,seconds,b,a-s,t,Q3,0.1,0.05,0.15,better,,0.1"  # the seed that failed is left empty
    assert not comparison_page.build(analysis(failures=[], training=[]), [], "").warnings


def test_remarks_on_single_runs_are_gathered() -> None:
    skipped = tuple({**line, "skipped": 1} if "tokens" in line else line for line in healthy())
    runs = [Run("a-s-s0", {}, "", tuple(healthy()), {}), Run("b-s0", {}, "", skipped, {})]
    built = comparison_page.build(analysis(failures=[], training=[]), runs, "")
    assert list(built.warnings) == ["1 remark on single runs: see below"]
    single = next(section for section in built.sections if section.title == "Single runs")
    assert single.parts[0].lines[0].startswith("b-s0: 1 step of 100 skipped")  # type: ignore[union-attr]
