"""Writes an analysed comparison as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protloom.metrics import clock
from protloom.report.wording import defined, interval
from protloom.scoring import VERDICTS

Analysis = Mapping[str, Any]
SPLITS = {"valid": "validation", "test": "test"}
HEADER = ("point", "unit", "arm", "task", "metric", "value", "delta", "low95", "high95", "verdict", "seed_std")


def markdown(analysis: Analysis) -> str:
    """Returns the report as text: the verdict first, then intervals, counts, what was used, and what failed."""
    return "\n".join([*_verdict(analysis), *_tables(analysis), *_training(analysis), *_failures(analysis)]) + "\n"


def verdict(analysis: Analysis) -> list[str]:
    """Returns one sentence for each recipe but the baseline, at the end of the budget."""
    told = []
    last = analysis["points"][-1]["arms"]
    for arm in analysis["arms"]:
        if arm == analysis["baseline"]:
            continue
        entry, n = last[arm], len(last[arm]["differences"])
        if not n:
            told.append(f"{arm}: no task was evaluated for both it and {analysis['baseline']}")
            continue
        decided = entry["decided"]
        words = [f"{decided[word]} {word}" for word in VERDICTS if decided[word]]
        counts = entry["counts"][0]
        p = counts["sign_test_p"]
        told.append(
            f"{arm} against {analysis['baseline']}, {n} task{'s' * (n != 1)}: {', '.join(words)} by 95 % intervals; "
            f"wins/losses/ties {counts['wins']}/{counts['losses']}/{counts['ties']} at a margin of {counts['margin']:g}"
            + ("" if p is None else f" (one-sided sign test p = {p:.3g})")
            + f"; mean difference {entry['mean_delta']:+.4f}"
        )
    return told


def cautions(analysis: Analysis) -> list[str]:
    """Returns a sentence for everything that makes the verdict worth less."""
    last = analysis["points"][-1]["point"]
    told = [
        f"{facts['arm']}, seed {facts['seed']}: the budget ended within the warm-up ({facts['steps']} of "
        f"{facts['warmup_steps']} steps), so its learning rate never reached the peak"
        for facts in analysis["training"]
        if facts["point"] == last and facts["steps"] < facts.get("warmup_steps", 0)
    ]
    if len(analysis["seeds"]) == 1:
        told.append("one seed: how far chance in training moves the differences is not known")
    return told + list(analysis["undefined"])


def budget_words(analysis: Analysis) -> str:
    """Returns the budget as a person says it."""
    unit, number = analysis["budget"]["unit"], analysis["budget"]["number"]
    return clock(number) + " of training" if unit == "seconds" else f"{number:,.6g} {unit}"


def _verdict(analysis: Analysis) -> Iterator[str]:
    yield f"# {', '.join(analysis['arms'])} under the same budget: {budget_words(analysis)}"
    yield ""
    for sentence in verdict(analysis):
        yield f"- {sentence}"
    if any(facts.get("simulated") for facts in analysis["tasks"].values()):
        names = [name for name, facts in analysis["tasks"].items() if facts.get("simulated")]
        yield f"- SIMULATED proteins: {', '.join(names)}"
    yield f"- scored: the {SPLITS[analysis['split']]} split, of tasks that have several"
    if analysis["precision"]:
        yield f"- tasks asked the networks in {' and '.join(analysis['precision'])}"
    seeds = analysis["seeds"]
    yield f"- seeds: {', '.join(map(str, seeds))}"
    for sentence in cautions(analysis):
        yield f"- caution: {sentence}"
    if analysis["allowed_differences"]:
        yield f"- differences between recipes that were allowed: {', '.join(analysis['allowed_differences'])}"
    yield ""


def _tables(analysis: Analysis) -> Iterator[str]:
    unit = analysis["budget"]["unit"]
    for point in reversed(analysis["points"]):
        yield f"## After {point['point']:g} {unit}"
        yield ""
        others = [arm for arm in analysis["arms"] if arm != analysis["baseline"]]
        yield from _row(["task", "metric", "n", analysis["baseline"], *(f"Δ {arm}" for arm in others)])
        yield from _row(["---"] * (4 + len(others)))
        for task, facts in analysis["tasks"].items():
            base = point["arms"][analysis["baseline"]]["values"].get(task)
            n = f"{facts['n']:,}" if "n" in facts else "–"
            cells = [task, str(facts["metric"]), n, "–" if base is None else f"{base['mean']:.4f}"]
            for arm in others:
                difference = point["arms"][arm]["differences"].get(task)
                cells.append("–" if difference is None else _interval(difference))
            yield from _row(cells)
        yield ""
        yield from _row(["recipe", "margin", "wins", "losses", "ties", "sign test p", "Wilcoxon p", "Holm"])
        yield from _row(["---"] * 8)
        for arm in others:
            entry = point["arms"][arm]
            for at, counts in enumerate(entry["counts"]):
                tests = [_p(entry["wilcoxon_p"]), _p(entry["wilcoxon_p_holm"])] if at == 0 else ["", ""]
                numbers = [f"{counts['margin']:g}", *(str(counts[key]) for key in ("wins", "losses", "ties"))]
                yield from _row([arm, *numbers, _p(counts["sign_test_p"]), *tests])
        yield ""
    yield "Δ is the mean over seeds; brackets are 95 % intervals over the n scored items, braces the single seeds."
    yield ""
    yield from _references(analysis)


def _references(analysis: Analysis) -> Iterator[str]:
    rows = [
        (task, who, entry["value"], entry["interval95"])
        for task, facts in analysis["tasks"].items()
        for who, entry in facts["references"].items()
    ]
    if not rows:
        return
    yield from _row(["task", "for comparison", "value", "95 % interval"])
    yield from _row(["---"] * 4)
    for task, who, value, ends in rows:
        yield from _row([task, who, defined(value), interval(ends)])
    yield ""


def _training(analysis: Analysis) -> Iterator[str]:
    yield "## What was used"
    yield ""
    yield from _row(["recipe", "seed", "up to", "steps", "tokens", "seconds", "FLOPs", "cores busy for others"])
    yield from _row(["---"] * 8)
    for facts in analysis["training"]:
        foreign = facts["foreign_cores"]
        numbers = [f"{facts['steps']:,}", f"{facts['tokens']:,}", f"{facts['seconds']:.1f}", f"{facts['flops']:.3g}"]
        load = "unknown" if foreign is None else f"{foreign:.2f}"
        yield from _row([facts["arm"], str(facts["seed"]), f"{facts['point']:g}", *numbers, load])
    yield ""


def _failures(analysis: Analysis) -> Iterator[str]:
    if analysis["failures"]:
        yield "## Failed"
        yield ""
        for line in analysis["failures"]:
            yield f"- {line}"
        yield ""


def _interval(difference: Mapping[str, Any]) -> str:
    seeds = ", ".join(f"{value:+.4f}" for value in difference["seeds"])
    ends = interval(difference["interval95"], "+")
    return f"{difference['delta']:+.4f} {ends} {difference['verdict']} {{{seeds}}}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _row(cells: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def csv_text(analysis: Analysis) -> str:
    """Returns a line for every point, recipe and task."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for point in analysis["points"]:
        for arm, entry in point["arms"].items():
            for task, value in entry["values"].items():
                difference = entry["differences"].get(task)
                found = ["", "", "", "", ""]
                if difference is not None:
                    low, high = ("" if math.isnan(end) else end for end in difference["interval95"])
                    std = difference["seed_std"]
                    found = [difference["delta"], low, high, difference["verdict"], "" if std is None else std]
                where = [point["point"], analysis["budget"]["unit"], arm, task, analysis["tasks"][task]["metric"]]
                writer.writerow([*where, value["mean"], *found])
    return out.getvalue()
