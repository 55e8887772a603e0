"""``protloom task aggregate``: what models reach over assays of mutations, averaged as ProteinGym does."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.task.aggregate import Aggregate, Table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "sources", nargs="+", metavar="RESULTS", help="folders of 'task run --out'; of one subject FOLDER#SUBJECT"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the standard errors (0)")
    common.json_option(parser)
    common.example(
        parser,
        "protloom task run suite:variant-effect --model runs/first --data-dir data --out results/first",
        "protloom task aggregate results/first",
        "protloom task aggregate 'results/first#runs/first' 'results/second#runs/second' --json",
    )


def run(args: argparse.Namespace) -> int:
    """Averages and prints."""
    from protloom.task import aggregate as task_aggregate

    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    table = task_aggregate.tabulate(args.sources, seed=args.seed, warn=common.warn)
    if args.json:
        common.print_json(task_aggregate.summary(table))
    else:
        _print(table)
    return 0


def _print(table: Table) -> None:
    """Prints all metrics, then the first one by type, and what the first subject is ahead."""
    proteins = len({assay.protein for assay in table.assays})
    metrics = list(table.standings[0].metrics)
    kinds = list(dict.fromkeys(assay.selection for assay in table.assays))
    print(
        f"{_many(len(table.assays), 'assay')} of {_many(proteins, 'protein')}, {_many(len(kinds), 'selection type')}: "
        "mean over the assays of a protein, over the proteins of a type, over the types\n"
    )
    common.print_table(
        ("subject", *metrics), [(one.subject, *(_shown(one.metrics[m]) for m in metrics)) for one in table.standings]
    )
    print()
    common.print_table(
        (f"{metrics[0]} by type", *(f"{kind} ({_assays(table, kind)})" for kind in kinds)),
        [(one.subject, *(_of(one.metrics[metrics[0]], kind) for kind in kinds)) for one in table.standings],
    )
    behind = [one for one in table.standings if one.behind is not None]
    if behind:
        (first,) = [one.subject for one in table.standings if one.behind is None]
        print()
        rows = [(one.subject, *(_shown(one.behind[m], "+") for m in metrics)) for one in behind if one.behind]
        common.print_table((f"{first} better than", *metrics), rows)
    known = [one.metrics[m] for one in table.standings for m in metrics if math.isfinite(one.metrics[m].value)]
    one_each = bool(known) and all(math.isnan(found.standard_error) for found in known)
    print(
        "\nNo standard error: it is from drawing the proteins of each type again, and each type has one."
        if one_each
        else "\n± is one standard error, from drawing the proteins of each type again."
    )
    for one in table.standings:
        for metric, found in one.metrics.items():
            if found.left_out:
                print(f"note: {metric} of {one.subject} is not defined for {', '.join(found.left_out)}, left out there")
    for task, why in table.left_out.items():
        print(f"left out: {task}: {why}")
    for caution in table.cautions:
        print(f"caution: {caution}")


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _assays(table: Table, kind: str) -> int:
    return sum(assay.selection == kind for assay in table.assays)


def _shown(found: Aggregate, sign: str = "") -> str:
    if math.isnan(found.standard_error):
        return f"{found.value:{sign}.3f}"
    return f"{found.value:{sign}.3f} ± {found.standard_error:.3f}"


def _of(found: Aggregate, kind: str) -> str:
    return f"{found.selections[kind]:.3f}" if kind in found.selections else "–"
