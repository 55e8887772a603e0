"""``protloom report``: what stands on a page of runs, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import CONFIG, changed, healthy, read_page, training, validation, write_run

from protloom.cli import main
from protloom.plugins import Registry
from protloom.report import charts, figures, run_facts, run_page, run_warnings
from protloom.report.charts import Difference, Panel, Series
from protloom.report.run_facts import Run
from protloom.report.wording import short

STATE = {
    "step": 100,
    "tokens": 100_000,
    "seconds": 50.0,
    "flops": 1.5e12,
    "corpora": ["0123456789abcdef"],
    "skipped": 0,
}


def made(lines: list[dict[str, Any]], state: dict[str, Any] | None = None, **changes: Any) -> Run:
    config = changed(CONFIG, {key.replace("__", "."): value for key, value in changes.items()})
    return Run("made", config, "", tuple(lines), state or {})


# ----------------------------------------------------------------------------------------------------------- the page


def test_the_page_of_a_run_holds_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "first", healthy(), STATE)
    assert main(["report", str(run)]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    page = read_page(run / "report.html")
    assert page.text.startswith("Run first")
    assert (
        "100 steps, 100,000 tokens in 0:50 of training; on held-out sequences: mlm 2.5000 nats a scored token "
        "(residue frequencies alone: 2.9000), after step 100" in page.text
    )
    facts = dict(page.tables[0][1:])
    assert facts["architecture"] == "tower (layers 2, width 32)"
    assert facts["parameters"].startswith("17 ")
    assert facts["corpus"] == "proteins.fasta"
    assert facts["corpus content"] == "0123456789ab…"
    assert facts["training time"] == "0:50 (50.0 seconds)"
    assert facts["FLOPs"] == "1.5 T"
    assert facts["precision"].startswith("fp32")
    assert "mask_rate: 0.15" in page.text  # the resolved run file
    found = {row[0]: row[1:] for row in page.tables[1]}
    assert found["held-out sequences"] == ["first, after 0 tokens", "last, after 100 k tokens"]
    assert found["loss/mlm"] == ["3.5", "2.5"]
    assert "Worth a look" not in page.text


def test_every_number_of_the_log_can_be_saved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", healthy(), STATE)
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    for name, keys in {
        "losses.csv": ["loss/mlm"],
        "further-metrics.csv": ["accuracy/mlm"],
        "rates.csv": ["learning_rate", "grad_norm"],
        "speed.csv": ["tokens_per_second", "mfu", "padding_share", "memory_mib"],
    }.items():
        rows = {(row["lines of"], int(row["step"])): row for row in page.rows(name)}
        lines = [line for line in healthy() if "tokens" in line]
        assert len(lines) == 10
        for line in lines:
            row = rows["training", line["step"]]
            assert (float(row["tokens"]), float(row["seconds"])) == (line["tokens"], line["seconds"])
            assert [float(row[key]) for key in keys] == [line[key] for key in keys]
    held_out = [row for row in page.rows("losses.csv") if row["lines of"] == "validation"]
    assert [float(row["loss/mlm"]) for row in held_out] == pytest.approx([3.5, 3.3, 3.1, 2.9, 2.7, 2.5])
    assert [float(row["tokens"]) for row in held_out] == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert [float(row["unigram_entropy/mlm"]) for row in held_out] == [2.9] * 6


def test_equal_input_gives_equal_bytes_whatever_the_users_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    run = write_run(tmp_path / "first", healthy(), STATE)
    assert main(["report", str(run), "-o", str(tmp_path / "a.html")]) == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        assert main(["report", str(run), "-o", str(tmp_path / "b.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latent = [{"name": "mlm", "mask_rate": 0.15}, {"name": "jepa", "weight": 0.5, "depth": 2}]
    plain = write_run(tmp_path / "plain" / "run", healthy(), STATE)
    both = [
        {**line, "loss/jepa": 0.4, "target_rank/jepa": 9.0, "target_cosine/jepa": 0.2, "target_std/jepa": 0.875}
        if "tokens" in line
        else line
        for line in healthy()
    ]
    other = write_run(tmp_path / "both" / "run", both, STATE, objective=None, objectives=latent, seed=4)
    out = tmp_path / "page.html"
    assert main(["report", str(plain), str(other), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["runs"]) == ["plain/run", "both/run"]  # as much of the path as tells them apart
    assert told["runs"]["both/run"]["objectives"] == "mlm + jepa × 0.5, summed"
    page = read_page(out)
    differing = next(table for table in page.tables if table[0][0] == "differs in")
    assert differing[1:] == [["seed", "3", "4"], ["objectives.jepa", "–", "jepa (weight 0.5, depth 2)"]]
    rows = page.rows("losses.csv")
    assert {(row["run"], row["loss/jepa"]) for row in rows if row["lines of"] == "training"} == {
        ("plain/run", ""),
        ("both/run", "0.4"),
    }
    (row, *_), names = page.rows("collapse.csv"), ("target_rank/jepa", "target_cosine/jepa", "target_std/jepa")
    assert [float(row[name]) for name in names] == [9.0, 0.2, 0.875]
    assert "jepa: effective rank" in page.text


def test_odd_names_and_texts_do_no_harm(tmp_path: Path) -> None:
    name = "<b>&\"$x_{$\\1 'é"
    run = write_run(tmp_path / name, healthy(), STATE, data__corpus="</pre><script>alert(1)</script>")
    other = write_run(tmp_path / "other", healthy())
    assert main(["report", str(run), str(other), "-o", str(tmp_path / "page.html")]) == 0
    page = read_page(tmp_path / "page.html")
    assert page.text.startswith(f"Runs {name}, other")
    assert "<script>alert(1)</script>" in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "begun", [validation(0, 3.5)])
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    assert "the run has not ended: 0 of 100 steps" in page.text
    assert [row["loss/mlm"] for row in page.rows("losses.csv")] == ["3.5"]


def test_a_last_line_that_a_kill_cut_short_is_told_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "killed", healthy())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "lo')
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    assert "the last line of metrics.jsonl was cut short" in page.text
    assert max(int(row["step"]) for row in page.rows("losses.csv")) == 100


def test_steps_that_were_not_finite_leave_gaps(tmp_path: Path) -> None:
    lines = [training(step, None if step == 20 else 3.0) for step in (10, 20, 30)]
    run = write_run(tmp_path / "gap", [*lines, training(40, 3.0, skipped=1)])
    assert main(["report", str(run)]) == 0
    page = read_page(run / "report.html")
    assert [row["loss/mlm"] for row in page.rows("losses.csv")] == ["3.0", "", "3.0", "3.0"]
    assert "1 step of 40 skipped" in page.text


def test_simulated_corpora_are_marked(tmp_path: Path, registry: Registry) -> None:
    parts = [{"path": "demo:?n=50", "weight": 1.0}, {"path": "real.fasta", "weight": 2.0}]
    run = write_run(tmp_path / "mixed", healthy(), data__corpus=parts)
    found = run_facts.read(run, registry)
    assert found.simulated == ("demo:?n=50",)
    assert run_page.identity(found)["corpus"] == "demo:?n=50 (SIMULATED); real.fasta"
    assert any(line.startswith("SIMULATED corpus (demo:?n=50)") for line in run_warnings.warnings(found))


def test_a_simulated_store_is_marked(tmp_path: Path, small_fasta: Path, registry: Registry) -> None:
    from protloom.data.build import build_store

    for simulated in (True, False):
        build_store(small_fasta, tmp_path / f"store-{simulated}", simulated=simulated)
        corpus = str(tmp_path / f"store-{simulated}")
        found = run_facts.read(write_run(tmp_path / f"run-{simulated}", healthy(), data__corpus=corpus), registry)
        assert found.simulated == ((corpus,) if simulated else ())


# ------------------------------------------------------------------------------------------------------------ places


def test_validations_stand_between_their_neighbours() -> None:
    lines = [training(10, 3.0), validation(15, 3.0), training(20, 3.0), validation(24, 3.0), validation(30, 3.0)]
    lines[2] |= {"tokens": 30_000}
    run = made(lines)
    # halfway between 10,000 and 30,000; beyond the last, at the mean pace of 1,500 tokens a step
    assert run.positions(run.validation, "tokens") == pytest.approx([20_000, 36_000, 45_000])
    assert run.positions(run.validation, "steps") == [15, 24, 30]
    ended = made(lines, {"step": 24, "tokens": 33_000, "seconds": 12.0})
    assert ended.positions(ended.validation, "tokens")[1] == 33_000


def test_long_lines_are_drawn_by_means() -> None:
    x = [float(i) for i in range(1000)]
    y = [math.nan if i == 4 else 2.0 * i for i in range(1000)]
    drawn_x, drawn_y = figures.thinned(x, y)
    assert len(drawn_x) == 334  # groups of three; at most 400 points
    assert drawn_x[:2] == [1.0, 4.0]
    assert drawn_y[:2] == [2.0, 8.0]  # 6 and 10: what is not finite is left out of its mean
    assert drawn_x[-1] == 999.0
    assert figures.thinned(x[:400], y[5:405]) == (x[:400], y[5:405])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00512, "0.00512"), (999.4, "999"), (999.6, "1 k"), (40e6, "40 M"), (-1234.0, "-1.23 k"),
     (2.5e9, "2.5 B"), (1e12, "1 T"), (math.nan, "–")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


# ---------------------------------------------------------------------------------------------------------- warnings


def flat(*losses: float) -> list[dict[str, Any]]:
    steps = [training(step, 3.0) for step in range(10, 101, 10)]
    return [*steps, *(validation(20 * at, loss) for at, loss in enumerate(losses))]


def spread(rank: float, cosine: float) -> dict[str, float]:
    return {"target_rank/jepa": rank, "target_cosine/jepa": cosine, "target_dead/jepa": 0.0}


WARNINGS: dict[str, tuple[Run, str | None]] = {
    "nothing": (made(healthy()), None),
    "flat": (
        made(flat(3.5, 2.8, 2.6, 2.61, 2.5999, 2.62)),
        "mlm: validation loss has not fallen since 40 k tokens (2.6000 then, 2.6200 at 100 k)",
    ),
    "still falling": (made(flat(3.5, 2.8, 2.7, 2.69, 2.68, 2.67)), None),
    "flat too briefly": (made(flat(3.5, 2.8, 2.7, 2.69, 2.6, 2.62)), None),
    "frequencies": (
        made(flat(3.5, 3.4, 3.3, 3.2, 3.1, 2.95)),
        "mlm: 2.9500 nats a residue at the last validation, no better than residue frequencies alone (2.9000)",
    ),
    "residues apart": (
        made([*healthy(), validation(100, 2.5, **{"validation/residue_loss/mlm": 3.0})]),
        "mlm: 3.0000 nats a residue at the last validation",
    ),
    "no validation": (made([training(s, 3.0) for s in range(10, 101, 10)]), "no validation was run"),
    "unfinished": (made(healthy(), trainer__steps=400), "the run has not ended: 100 of 400 steps"),
    "unfinished seconds": (
        made(healthy(), trainer__steps=10**9, trainer__max_seconds=200.0),
        "the run has not ended: 50 of 200 seconds",
    ),
    "ended by its seconds": (made(healthy(), trainer__steps=10**9, trainer__max_seconds=50.0), None),
    "skipped": (made(healthy(), {"step": 100, "skipped": 2}), "2 steps of 100 skipped"),
    "rising": (
        made([*(training(s, 2.0 + s / 100) for s in range(10, 101, 10)), validation(100, 2.0)]),
        "mlm: the training loss is higher at the end (2.9000) than at the start (2.1000)",
    ),
    "collapsed": (
        made([{**line, **spread(1.5 if line["step"] > 50 else 8.0, 0.5)} for line in healthy() if "tokens" in line]),
        "collapse from step 60 to the end: jepa: the target states have collapsed (they span 1.5 directions)",
    ),
    "collapsed and recovered": (
        made([{**line, **spread(8.0, 0.99 if line["step"] == 30 else 0.1)} for line in healthy() if "tokens" in line]),
        "collapse at step 30, not at the end: jepa",
    ),
    "clipped": (
        made([{**line, "grad_norm": 40.0} if "tokens" in line else line for line in healthy()]),
        "the gradient norm is 40 in the median, clipping begins at 1",
    ),
    "padded": (
        made([{**line, "padding_share": 0.35} if "tokens" in line else line for line in healthy()]),
        "35 % of the tokens that were computed are padding",
    ),
    "slower": (
        made([{**line, "tokens_per_second": 5000 / line["step"]} if "tokens" in line else line for line in healthy()]),
        "the run has slowed down, from 375 tokens/s in its first quarter to 52.8 in its last",
    ),
}


@pytest.mark.parametrize("case", sorted(WARNINGS))
def test_warnings_in_words(case: str) -> None:
    run, says = WARNINGS[case]
    found = run_warnings.warnings(run)
    if says is None:
        assert found == []
    else:
        assert [line for line in found if line.startswith(says)], found


# ------------------------------------------------------------------------------------------------------------ charts


def linear(colour: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns linear RGB of an sRGB colour (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.asarray(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4))


def lab(rgb: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns CIELAB of linear RGB under D65."""
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.array(matrix) @ rgb.clip(0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes 2009, severity 1
BLIND = {
    "nobody": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("who", BLIND)
def test_colours_are_told_apart_by(who: str) -> None:
    seen = [lab(np.array(BLIND[who]) @ linear(colour)) for colour in charts.COLOURS]
    # 2.3 is a just noticeable difference
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


@pytest.mark.parametrize("background", ["#ffffff", "#14171b"])
def test_colours_are_seen_on(background: str, repository: Path) -> None:
    template = (repository / "core" / "protloom" / "report" / "page.html.j2").read_text()
    assert f"--back: {background}" in template
    for colour in (*charts.COLOURS, charts.GREY):
        lights = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (colour, background))
        assert lights[1] / lights[0] >= 3.0, colour  # WCAG 2.2, 1.4.11


def test_a_beginning_that_presses_the_rest_together_is_cut() -> None:
    x = [float(i) for i in range(21)]
    falling = Series("run", 0, x, [6.0, 5.0, 4.0, *(2.2 - 0.01 * i for i in range(18))])
    low, high = Panel("t", "x", "y", (falling,), falls=True).range() or (math.nan, math.nan)
    assert 1.9 < low < 2.03  # the last value
    assert 2.19 < high < 2.4  # from a fifth of the axis on
    assert Panel("t", "x", "y", (falling,)).range() is None
    gentle = Series("run", 0, x, [3.0 - 0.05 * i for i in range(21)])
    assert Panel("t", "x", "y", (gentle,), falls=True).range() is None


def test_axes_legends_and_levels_are_words_in_the_figure() -> None:
    solid = Series("one", 0, [0, 2e6], [3.0, 2.0], "training")
    dashed = Series("two", 1, [0, 2e6], [3.0, 2.5], "validation", second=True)
    svg = charts.lines(Panel("t", "tokens trained on", "nats", (solid, dashed), (("residue frequencies", 2.9),)))
    for word in ("tokens trained on", "nats", "one", "two", "training", "validation", "residue frequencies", "1 M"):
        assert f">{word}</text>" in svg
    assert "stroke-dasharray" in svg


def test_undecided_differences_look_and_read_differently() -> None:
    rows = [
        Difference("up", 0.2, 0.1, 0.3, "better", (0.15, 0.25)),
        Difference("open", 0.2, -0.1, 0.5, "undecided"),
        Difference("few", 0.1, math.nan, math.nan, "undecided"),
    ]
    up, undecided, few = (charts.differences([row], "Δ", rows) for row in rows)
    assert "+0.2000 [+0.1000, +0.3000] better" in up
    assert "+0.2000 [-0.1000, +0.5000] undecided" in undecided
    assert "+0.1000 no interval undecided" in few
    assert charts.BETTER in up
    assert charts.BETTER not in undecided
    assert charts.WORSE not in undecided


# ------------------------------------------------------------------------------------------------------------- tasks


def result(subject: str, value: float, gap: float | None, word: str | None = None) -> dict[str, Any]:
    return {
        "subject": subject,
        "role": "model" if gap is None else "floor",
        "summary": f"what {subject} is",
        "metric": "Q3",
        "value": value,
        "interval95": [value - 0.05, value + 0.05],
        "n": 60,
        "unit": "proteins",
        "model_minus_this": None
        if gap is None
        else {"value": gap, "interval95": [gap - 0.01, gap + 0.01], "model_is": word},
    }


def results_file(path: Path) -> Path:
    entries = [
        result("m", 0.7, None),
        result("floor:a", 0.5, 0.2, "better"),
        result("floor:b", 0.695, 0.005, "not separable"),  # an earlier word for it
    ]
    tasks = [
        {"task": "sim-x", "simulated": True, "error": None, "definition": "", "results": entries},
        {"task": "y", "simulated": False, "error": "no data", "definition": None, "results": []},
    ]
    path.write_text(json.dumps({"model": "runs/first", "tasks": tasks}))
    return path


def test_results_of_tasks_stand_on_the_page(tmp_path: Path) -> None:
    run, results = write_run(tmp_path / "first", healthy(), STATE), results_file(tmp_path / "results.json")
    assert main(["report", str(run), "--tasks", str(results)]) == 0
    page = read_page(run / "report.html")
    assert (
        "sim-x (SIMULATED): Q3 0.7000 [0.6500, 0.7500] for runs/first; better than floor:a (+0.2000 [+0.1900, "
        "+0.2100]); undecided against floor:b (+0.0050 [-0.0050, +0.0150])" in page.text
    )
    assert "y: failed: no data" in page.text
    rows = page.rows("tasks-1.csv")
    assert [(row["subject"], row["value"], row["model_minus_this"], row["model_is"]) for row in rows] == [
        ("m", "0.7", "", ""),
        ("floor:a", "0.5", "0.2", "better"),
        ("floor:b", "0.695", "0.005", "undecided"),
    ]


# ------------------------------------------------------------------------------------------------------------ refused


def without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        document = json.loads(path.read_text())
        del document["tasks"][0]["results"][1][key]
        path.write_text(json.dumps(document))

    return damage


def damage_line(folder: Path, text: str) -> None:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    (folder / "run" / "metrics.jsonl").write_text("\n".join([lines[0], text, *lines[2:]]) + "\n")


REFUSED: dict[str, tuple[list[str], Callable[[Path], object], str]] = {
    "no folder": (["rum"], lambda _: None, "there is no folder rum"),
    "a file": (["results.json"], lambda _: None, "results.json is a file: name the folder of a run; results of tasks"),
    "no run": (["empty", "-o", "p.html"], lambda f: (f / "empty").mkdir(), "empty holds no run (config.yaml is"),
    "a comparison": (
        ["run"],
        lambda f: (f / "run" / "comparison.yaml").write_text(""),
        "run holds a comparison, not a run",
    ),
    "no log": (["run"], lambda f: (f / "run" / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "empty log": (["run"], lambda f: (f / "run" / "metrics.jsonl").write_text("\n"), "is empty: the run has logged"),
    "cut line": (["run"], lambda f: damage_line(f, '{"step": 10, "lo'), "line 2 is damaged (not JSON"),
    "not an object": (["run"], lambda f: damage_line(f, "[1]"), "line 2 is damaged (not an object)"),
    "no step": (["run"], lambda f: damage_line(f, '{"loss": 1}'), "line 2 is damaged (it has no step)"),
    "binary": (["run"], lambda f: (f / "run" / "metrics.jsonl").write_bytes(b"\xff\x00\n" * 3), "line 1 is damaged"),
    "run file": (["run"], lambda f: (f / "run" / "config.yaml").write_text("a: [1"), "config.yaml: line 1"),
    "run file of words": (["run"], lambda f: (f / "run" / "config.yaml").write_text("run"), "config.yaml is damaged"),
    "state": (
        ["run"],
        lambda f: (f / "run" / "checkpoints" / "step-00000100" / "state.json").write_text("{"),
        "state.json is missing or damaged",
    ),
    "weights": (
        ["run"],
        lambda f: (f / "run/checkpoints/step-00000100/model/model.safetensors").write_bytes(b"no"),
        "model.safetensors is damaged",
    ),
    "existing page": (["run"], lambda f: (f / "run" / "report.html").write_text(""), "exists: choose another -o"),
    "type of page": (["run", "-o", "page.pdf"], lambda _: None, "-o page.pdf: a page is HTML"),
    "page nowhere": (["run", "-o", "no/page.html"], lambda _: None, "there is no folder no"),
    "page is a folder": (["run", "-o", "x.html"], lambda f: (f / "x.html").mkdir(), "is a folder; name a file"),
    "two runs, no page": (["run", "run"], lambda _: None, "2 runs: say where the page goes"),
    "one run twice": (["run", "./run", "-o", "p.html"], lambda _: None, "is given twice"),
    "type of results": (["run", "--tasks", "r.csv"], lambda _: None, "--tasks r.csv: expected a .json file"),
    "no results": (["run", "--tasks", "r.json"], lambda _: None, "--tasks r.json: there is no such file"),
    "damaged results": (
        ["run", "--tasks", "results.json"],
        lambda f: (f / "results.json").write_text('{"model"'),
        "damaged, not JSON",
    ),
    "other results": (
        ["run", "--tasks", "results.json"],
        lambda f: (f / "results.json").write_text('{"model": "m", "tasks": [{"name": "x"}]}'),
        "not what  protloom task run … --out  writes (KeyError: 'task')",
    ),
    "a list": (["run", "--tasks", "results.json"], lambda f: (f / "results.json").write_text("[]"), "TypeError"),
    "no value": (
        ["run", "--tasks", "results.json"],
        lambda f: without("value")(f / "results.json"),
        "KeyError: 'value'",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, spoil, says = REFUSED[case]
    write_run(tmp_path / "run", healthy(), STATE)
    results_file(tmp_path / "results.json")
    spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_page_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", healthy())
    (run / "report.html").write_text("old")
    assert main(["report", str(run)]) == 2
    assert (run / "report.html").read_text() == "old"
    assert main(["report", str(run), "--overwrite"]) == 0
    read_page(run / "report.html")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_told(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "first", healthy())
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err == f"error: a page needs {package}: pip install 'protloom[report]'\n"
    assert not (run / "report.html").exists()


def test_the_extra_names_what_a_page_needs_and_the_template_is_shipped(repository: Path) -> None:
    import tomllib

    from hatchling.builders.wheel import WheelBuilder

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    named = {requirement.partition(">")[0].lower() for requirement in project["optional-dependencies"]["report"]}
    assert named == set(charts.NEEDED)
    shipped = {file.distribution_path for file in WheelBuilder(str(repository)).recurse_included_files()}
    assert "protloom/report/page.html.j2" in shipped
