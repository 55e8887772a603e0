"""``protloom task compare``: two models by the results that were kept, task by task."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.task.compare import Comparison


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("first", metavar="A", help="folder of 'task run --out'; of several models FOLDER#SUBJECT")
    parser.add_argument("second", metavar="B", help="the same; differences are A minus B")
    parser.add_argument(
        "--margin",
        type=float,
        action="append",
        metavar="M",
        help="differences within M are ties (0.005, 0, 0.001, 0.01)",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="OPTION", help="an option of tasks that may differ, e.g. pool"
    )
    common.json_option(parser)
    common.example(
        parser,
        "protloom task compare results/first results/second",
        "protloom task compare 'results#runs/first' 'results#random init of runs/first'",
    )


def run(args: argparse.Namespace) -> int:
    """Compares; returns 1 if no task is common to both."""
    from protloom.scoring import MARGINS
    from protloom.task import compare as task_compare

    margins = tuple(args.margin or MARGINS)
    if any(not margin >= 0 for margin in margins):
        raise UserError("--margin: must be at least 0")
    found = task_compare.compare(args.first, args.second, allow=args.allow, warn=common.warn)
    if args.json:
        common.print_json(task_compare.summary(found, margins))
    else:
        _print(found, margins)
    return 0 if found.pairs else 1


def _print(found: Comparison, margins: tuple[float, ...]) -> None:
    from protloom.cli.task_tables import signed
    from protloom.task.compare import summary

    print(f"A: {found.first}\nB: {found.second}\n")
    rows = []
    for pair in found.pairs:
        title = f"{pair.task} (SIMULATED)" if pair.simulated else pair.task
        metric = f"{pair.metric}, lower is better" if pair.lower else pair.metric
        gap = signed(pair.difference.value, pair.difference.interval, plus=True)
        numbers = (f"{pair.first:.3f}", f"{pair.second:.3f}", gap, pair.difference.verdict)
        rows.append((title, pair.split or "-", metric, *numbers))
    if rows:
        common.print_table(("task", "split", "metric", "A", "B", "A better than B by", "A is"), rows)
        _print_counts(summary(found, margins))
    else:
        print("no task has results of both")
    for label, tasks in found.lacking.items():
        if tasks:
            print(f"{label} lacks: {', '.join(tasks)}")
    for caution in found.cautions:
        print(f"caution: {caution}")


def _print_counts(told: dict[str, object]) -> None:
    """Prints wins, losses and ties at every margin, with the tests over tasks."""
    counts = told["counts"]
    assert isinstance(counts, list)
    rows = []
    for line in counts:
        p = "-" if line["sign_test_p"] is None else f"{line['sign_test_p']:.3g}"
        rows.append((f"{line['margin']:g}", line["wins"], line["losses"], line["ties"], p))
    print()
    common.print_table(("margin", "wins of A", "losses", "ties", "one-sided sign test p"), rows)
    if isinstance(told["wilcoxon_p"], float):
        print(f"Wilcoxon signed ranks, two-sided: p = {told['wilcoxon_p']:.3g}")
    print("Tests over tasks treat each task as one draw; the intervals resample the items of a task.")
