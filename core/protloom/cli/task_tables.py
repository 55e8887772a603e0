"""What ``protloom task run`` prints: a table for each task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common
from protloom.scoring import FEWEST

if TYPE_CHECKING:
    from protloom.task.run import Report

LEGEND = (
    "Brackets are 95 % intervals. 'model minus this' compares both on the same resampled items: the model is 'better'"
    " where the whole interval lies above 0, 'worse' where it lies below, else it is 'undecided', as it is with"
    f" fewer than {FEWEST} items."
)
SIZES = {
    "train_proteins": "train proteins",
    "test_proteins": "scored proteins",  # of whichever split is scored
    "train_rows": "train rows",
    "rows": "rows",
    "queries": "queries",
    "limit": "limit",
    "seed": "seed",
}
"""Entries of a result's details that the head of a table shows, and what it calls them."""
VALIDATION = "Validation was scored, which is what choices may use; --test scores the test split."


ONE_SET = "A task with one set of rows is scored on its test set, with --test and without: choose nothing by it."


def fault(names: Sequence[str], reason: str) -> str:
    """Returns why tasks do not run; a reason that begins with the task's name (a file's) does not get it twice."""
    lead = ", ".join(names)
    return reason if reason.startswith((f"{lead}:", f"{Path(lead)}:")) else f"{lead}: {reason}"


def print_place(out: str) -> None:
    """Says where results are; nothing where every task failed and no folder was made."""
    from protloom.task.results import HOME

    if out.endswith(".json") or (Path(out) / HOME).is_dir():
        print(f"results: {out}")


def print_report(report: Report) -> None:
    """Prints what a task found; nothing if it found nothing."""
    if not report.entries:
        return
    first = report.entries[0].result
    title = str(report.card.get("title", ""))
    if report.card.get("simulated") and "SIMULATED" not in title:
        title += " (SIMULATED data)"
    print(f"\n{report.task}: {title}")
    print(f"  metric {first.metric}: {report.card.get('definition', '')}")
    print(f"  {_size(report, first.details)}; intervals by resampling {first.n} {first.unit}\n")
    rows = []
    for entry in report.entries:
        gap = entry.difference
        rows.append(
            (
                f"  {entry.name}",
                entry.summary,
                signed(entry.result.value, entry.result.interval, plus=False),
                "" if gap is None else signed(gap.value, gap.interval, plus=True),
                "" if gap is None else gap.verdict,
            )
        )
    common.print_table(("  subject", "what it is", first.metric, "model minus this", "the model is"), rows)
    _print_also(report)
    for note in _notes(report):
        print(f"  note: {note}")


def print_legend(reports: Sequence[Report]) -> None:
    """Prints what the tables mean, where there is one."""
    told = [LEGEND] if any(len(report.entries) > 1 for report in reports) else []
    told += [VALIDATION] if any(report.split == "valid" and report.entries for report in reports) else []
    told += [ONE_SET] if any(report.split is None and report.entries for report in reports) else []
    if told:
        print(f"\n{' '.join(told)}")


def _size(report: Report, details: Mapping[str, Any]) -> str:
    told = [f"{word} {details[key]}" for key, word in SIZES.items() if details.get(key) is not None]
    return ", ".join(["one set of rows, the test set" if report.split is None else f"split {report.split}", *told])


def _notes(report: Report) -> Iterator[str]:
    from protloom.run.corpus import describe
    from protloom.task import notes
    from protloom.task.results import LONG

    first = report.entries[0].result
    if len(report.entries) > 1:
        yield from notes.of_size(first.n, first.unit)
    for entry in report.entries:
        yield from notes.of_metric(entry.name, entry.result)
    yield from notes.of_data(first.details)
    yield from notes.of_subject(first.details)
    if any(entry.result.details.get("converged") is False for entry in report.entries):
        yield "a probe stopped before it converged; see 'converged' in --json"
    entry = report.entries[0]
    told = [f"{entry.counts[word]:,} {word}" for word in LONG if entry.counts.get(word)]
    if told:
        yield f"sequences over {entry.identity.get('max_length')} residues: {', '.join(told)}"
    line = describe(entry.result.details)
    if line is not None:
        yield line


def _print_also(report: Report) -> None:
    """Prints further metrics, a column a subject."""
    metrics = report.entries[0].result.metrics
    names = [name for name in report.card.get("also", ()) if name in metrics]
    if names:
        print()
        header = ("  also", *(entry.name for entry in report.entries))
        rows = [(f"  {n}", *(_also(entry.result, n) for entry in report.entries)) for n in names]
        common.print_table(header, rows)


def _also(result: Any, name: str) -> str:
    if name not in result.metrics:
        return "–"
    if name not in result.intervals:
        return f"{result.metrics[name]:.3f}"
    return signed(result.metrics[name], result.intervals[name], plus=False)


def signed(value: float, interval: tuple[float, float], *, plus: bool) -> str:
    """Returns a value with its interval."""
    sign = "+" if plus else ""
    low, high = interval
    if math.isnan(value):
        return "undefined"
    ends = "no interval" if math.isnan(low) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f} {ends}"
