"""The page of a comparison: the verdict first, then differences with intervals, curves, and what was used."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protloom.compare import tables
from protloom.report import charts, figures, run_warnings
from protloom.report.charts import Difference
from protloom.report.figures import Drawn
from protloom.report.page import Drawing, Figure, Listing, Page, Part, Section, Table, Words
from protloom.report.run_facts import Run
from protloom.report.wording import defined, interval, p_value, plural, short, signed

Analysis = Mapping[str, Any]
UNEVEN = 0.25
"""Cores busy for others: from so large a difference between runs on, equal seconds were not equal work."""


def build(analysis: Analysis, runs: Sequence[Run], plan: str) -> Page:
    """Puts a page together.

    Args:
        analysis: of :func:`protloom.compare.analysis.analyse`.
        runs: those that have logged anything, named as their folders.
        plan: the file of the comparison.
    """
    drawn = [_drawn(analysis, run) for run in runs]
    curves = [figures.losses(drawn), figures.further(drawn)] if drawn else []
    states = figures.collapse(drawn) if drawn else None
    speed = [figures.rates(drawn), figures.speed(drawn)] if drawn else []
    configs = [Listing(f"{run.name}: config.yaml", run.config_text) for run in runs]
    return Page(
        title=f"{', '.join(analysis['arms'])} under the same budget: {tables.budget_words(analysis)}",
        verdict=[*tables.verdict(analysis), *_circumstances(analysis)],
        warnings=list(_warnings(analysis, runs)),
        sections=[
            Section("Differences", list(_differences(analysis))),
            Section("Wins, losses and ties", [_counts(analysis, point) for point in _latest_first(analysis)]),
            Section("Tasks", list(_tasks(analysis))),
            Section("Loss", [figure for figure in curves if figure is not None]),
            Section("Latent states", [states] if states is not None else []),
            Section("What was used", [_used(analysis), *(figure for figure in speed if figure is not None)]),
            Section("Single runs", _single_runs(runs)),
            Section("Failed", [Words(analysis["failures"])] if analysis["failures"] else []),
            Section("The plan", [Listing("comparison.yaml", plan, open=True), *configs]),
        ],
    )


def _drawn(analysis: Analysis, run: Run) -> Drawn:
    """Returns a run in the colour of its recipe; run folders are called RECIPE-sSEED."""
    arm = run.name.rpartition("-s")[0]
    return Drawn(run, arm, analysis["arms"].index(arm))


def _latest_first(analysis: Analysis) -> list[Mapping[str, Any]]:
    return list(reversed(analysis["points"]))


def _others(analysis: Analysis) -> list[str]:
    return [arm for arm in analysis["arms"] if arm != analysis["baseline"]]


def _after(analysis: Analysis, point: Mapping[str, Any]) -> str:
    return f"after {short(point['point'], 6)} {analysis['budget']['unit']}"


# ----------------------------------------------------------------------------------------------------- what is said


def _circumstances(analysis: Analysis) -> Iterator[str]:
    simulated = [task for task, facts in analysis["tasks"].items() if facts.get("simulated")]
    if simulated:
        yield f"SIMULATED proteins: {', '.join(simulated)}"
    if analysis["precision"]:
        yield f"Precision of the networks: {' and '.join(analysis['precision'])}"
    seeds = analysis["seeds"]
    alone = " (one seed: chance of training is not told)" if len(seeds) == 1 else ""
    yield f"Seeds: {', '.join(map(str, seeds))}{alone}"
    if analysis["allowed_differences"]:
        yield f"Differences between recipes that were allowed: {', '.join(analysis['allowed_differences'])}"


def _warnings(analysis: Analysis, runs: Sequence[Run]) -> Iterator[str]:
    """Yields what concerns the comparison as a whole."""
    if analysis["failures"]:
        yield f"{plural(len(analysis['failures']), 'evaluation')} failed: see below"
    yield from analysis["undefined"]
    load = [facts["foreign_cores"] for facts in analysis["training"] if facts["foreign_cores"] is not None]
    if analysis["budget"]["unit"] == "seconds" and load and max(load) - min(load) > UNEVEN:
        yield (
            f"others kept {min(load):.2f} to {max(load):.2f} cores busy while recipes trained for equal seconds: "
            "they did not have the same machine; compare the tokens of each, or repeat on a quiet one"
        )
    told = _told_of(runs)
    yield from (f"all runs: {sentence}" for sentence, names in told.items() if len(names) == len(runs))
    few = {sentence: names for sentence, names in told.items() if len(names) < len(runs)}
    if few:
        yield f"{plural(len(few), 'remark')} on single runs: see below"


def _told_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns what is worth a look in runs, each sentence with the runs that it is true of."""
    found: dict[str, list[str]] = {}
    for name, sentences in run_warnings.by_run(runs).items():
        for sentence in sentences:
            found.setdefault(sentence, []).append(name)
    return found


def _single_runs(runs: Sequence[Run]) -> list[Part]:
    told = [f"{', '.join(names)}: {line}" for line, names in _told_of(runs).items() if len(names) < len(runs)]
    return [Words(told)] if told else []


# ------------------------------------------------------------------------------------------------------- differences


def _differences(analysis: Analysis) -> Iterator[Part]:
    last = analysis["points"][-1]
    rows = {
        arm: [_difference(analysis, task, found) for task, found in last["arms"][arm]["differences"].items()]
        for arm in _others(analysis)
    }
    everything = [row for found in rows.values() for row in found]
    drawings = [
        Drawing(
            f"{arm} minus {analysis['baseline']}, {_after(analysis, last)}",
            charts.differences(found, "Δ in the task's metric; right of 0 is better", everything),
            wide=True,
        )
        for arm, found in rows.items()
        if found
    ]
    if drawings:
        caption = (
            "Bars are means over seeds, lines 95 % intervals over test items, small strokes the single seeds. Filled: "
            "the interval leaves out 0. Hollow and dashed: undecided."
        )
        yield Figure("differences", caption, drawings, differences_csv(analysis))
    for point in _latest_first(analysis):
        yield _difference_table(analysis, point)


def _difference(analysis: Analysis, task: str, found: Mapping[str, Any]) -> Difference:
    low, high = found["interval95"]
    mark = " SIMULATED" if analysis["tasks"][task].get("simulated") else ""
    label = f"{task} ({analysis['tasks'][task]['metric']}){mark}"
    return Difference(label, found["delta"], low, high, found["verdict"], tuple(found["seeds"]))


def _difference_table(analysis: Analysis, point: Mapping[str, Any]) -> Table:
    arms, rows = point["arms"], []
    for task, facts in analysis["tasks"].items():
        for arm in analysis["arms"]:
            value, found = arms[arm]["values"].get(task), arms[arm]["differences"].get(task)
            cells = [task, arm, str(facts["metric"]), "–" if value is None else f"{value['mean']:.4f}"]
            if found is None:
                cells += ["", "", "baseline" if arm == analysis["baseline"] else "–", ""]
            else:
                seeds = ", ".join(signed(value) for value in found["seeds"])
                cells += [signed(found["delta"]), interval(found["interval95"], "+"), found["verdict"], seeds]
            rows.append(cells)
    header = ["task", "recipe", "metric", "value", "Δ", "95 % interval", "verdict", "single seeds"]
    after = _after(analysis, point)
    return Table(header, rows, f"{after[0].upper()}{after[1:]}; values are means over seeds.", text_columns=3)


def differences_csv(analysis: Analysis) -> str:
    """Returns a row for every point, recipe and task that has a difference from the baseline."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    base = analysis["baseline"]
    columns = [f"seed_{seed}" for seed in analysis["seeds"]]
    writer.writerow(["point", "unit", "recipe", "baseline", "task", "metric", *_DIFFERENCE, *columns])
    for point in analysis["points"]:
        arms = point["arms"]
        for arm in _others(analysis):
            for task, found in arms[arm]["differences"].items():
                where = [point["point"], analysis["budget"]["unit"], arm, base, task, analysis["tasks"][task]["metric"]]
                # a seed that failed on either side has no difference, and its column stays empty
                known = [set(arms[name]["values"][task]["seeds"]) for name in (arm, base)]
                differences = iter(found["seeds"])
                seeds = [next(differences) if str(s) in known[0] & known[1] else "" for s in analysis["seeds"]]
                ends = ["" if math.isnan(end) else end for end in found["interval95"]]
                writer.writerow([*where, found["delta"], *ends, found["verdict"], *seeds])
    return out.getvalue()


_DIFFERENCE = ("delta", "low95", "high95", "verdict")


def _counts(analysis: Analysis, point: Mapping[str, Any]) -> Table:
    rows = []
    for arm in _others(analysis):
        entry = point["arms"][arm]
        for at, counts in enumerate(entry["counts"]):
            tests = [p_value(entry["wilcoxon_p"]), p_value(entry["wilcoxon_p_holm"])] if at == 0 else ["", ""]
            numbers = [f"{counts['margin']:g}", *(str(counts[key]) for key in ("wins", "losses", "ties"))]
            rows.append([arm, *numbers, p_value(counts["sign_test_p"]), *tests])
    header = ["recipe", "margin", "wins", "losses", "ties", "sign test p", "Wilcoxon p", "with Holm"]
    after = _after(analysis, point)
    caption = (
        f"{after[0].upper()}{after[1:]}, against {analysis['baseline']}. A difference within the margin is a tie; the "
        "sign test is one-sided, Wilcoxon's signed-rank test two-sided over all tasks, Holm's correction for the "
        "number of recipes."
    )
    return Table(header, rows, caption)


# ------------------------------------------------------------------------------------------- tasks and what was used


def _tasks(analysis: Analysis) -> Iterator[Part]:
    rows = [
        [
            f"{task} (SIMULATED)" if facts.get("simulated") else task,
            str(facts["metric"]),
            facts.get("better", "–"),
            f"{facts['n']:,} {facts['unit']}" if "n" in facts else "–",
        ]
        for task, facts in analysis["tasks"].items()
    ]
    yield Table(["task", "metric", "better is", "resampled test items"], rows, text_columns=4)
    references = [
        [task, who, defined(entry["value"]), interval(entry["interval95"])]
        for task, facts in analysis["tasks"].items()
        for who, entry in facts["references"].items()
    ]
    if references:
        header = ["task", "for comparison", "value", "95 % interval"]
        yield Table(header, references, "The start of all recipes, and what reaches something without training.", 2)


def _used(analysis: Analysis) -> Table:
    rows = []
    for facts in analysis["training"]:
        foreign = facts["foreign_cores"]
        numbers = [f"{facts['steps']:,}", f"{facts['tokens']:,}", f"{facts['seconds']:.1f}", f"{facts['flops']:.3g}"]
        load = "unknown" if foreign is None else f"{foreign:.2f}"
        rows.append([facts["arm"], str(facts["seed"]), short(facts["point"], 6), *numbers, load])
    header = ["recipe", "seed", f"up to {analysis['budget']['unit']}", "steps", "tokens", "seconds", "FLOPs"]
    return Table([*header, "cores busy for others"], rows, "Seconds are those of training steps alone.")
