"""``protloom task run --layers … --pool …``: one network at several layers and poolings, on validation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.embedding.layers import Sweep
    from protloom.plugins import Registry
    from protloom.task.run import Built, Entry, Request
    from protloom.task.suite import Choice


def configure(run: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    run.add_argument(
        "--layers",
        metavar="0,3,6|all",
        help="sweep: several hidden states, chosen by validation; a table for each task",
    )
    run.add_argument("--pool", metavar="mean,max,cls", help="how residue states become one vector; several: sweep")


def is_sweep(args: argparse.Namespace) -> bool:
    """Tells whether several layers or poolings are asked for; one of each is put where single options are."""
    if args.layers is not None and args.layer is not None:
        raise UserError("--layers and --layer say the same: give one")
    if args.layers is None and (args.pool is None or "," not in args.pool):
        if args.pool is not None:
            args.set.append(f"pool={args.pool}")
        return False
    if args.test:
        raise UserError(
            "--layers and --pool choose, and nothing is chosen by a test set: leave --test out, then score the choice "
            "with --layer K --pool P --test"
        )
    if args.out is not None and args.out.endswith(".json"):
        raise UserError(f"--out {args.out}: a sweep keeps its results in a folder")
    return True


def run(choices: Sequence[Choice], args: argparse.Namespace, registry: Registry, request: Request) -> int:
    """Runs every task for every layer and pooling; returns 1 if one failed."""
    from protloom.cli import task_tables
    from protloom.embedding import Embedder
    from protloom.embedding.layers import Sweep, parse_layers
    from protloom.task import run as task_run

    base = request.model
    if not isinstance(base, Embedder):
        raise UserError(f"--model {args.model}: a floor has no layers and poolings")
    layers = [base.layer] if args.layers is None else parse_layers(args.layers, base.model.depth)
    pools = [] if args.pool is None else args.pool.split(",")
    sweep = Sweep(base, layers, pools or ["mean"])
    failed: list[str] = []
    found: list[dict[str, Any]] = []
    for choice in choices:
        table, errors = _task(choice, sweep, pools, request, lambda c: task_run.build(c, registry, args.data_dir))
        failed += [choice.name] if errors else []
        for error in dict.fromkeys(errors):
            print(f"error: {task_tables.fault([choice.name], error)}", file=sys.stderr)
        if table:
            found.append(_record(choice.name, table))
            if not args.json:
                _print(found[-1], args.model)
    if args.json:
        common.print_json({"model": args.model, "seed": args.seed, "limit": args.limit, "sweeps": found})
    elif args.out is not None:
        task_tables.print_place(args.out)
    return 1 if failed else 0


def _task(
    choice: Choice, sweep: Sweep, pools: Sequence[str], request: Request, build: Callable[[Choice], Built]
) -> tuple[dict[tuple[int, str], tuple[Built, Entry]], list[str]]:
    """Returns what every layer and pooling reaches, and what went wrong."""
    from protloom.task import run as task_run

    table: dict[tuple[int, str], tuple[Built, Entry]] = {}
    errors: list[str] = []
    try:
        first = build(choice)
        own = dict(first.card.get("options") or first.options)
        # a task without poolings (of residues, of pairs) takes part with its layers alone
        each = [build(replace(choice, options={**choice.options, "pool": pool})) for pool in pools if "pool" in own]
    except UserError as error:
        return table, [str(error)]
    for built in each or [first]:
        pool = str(dict(built.card.get("options") or built.options).get("pool", "-"))
        for layer, view in sweep.views.items():
            variant = f"layer {layer}" if pool == "-" else f"layer {layer}, {pool}"
            report = task_run.run(built, replace(request, model=view, twin=None, floors=False, variant=variant))
            if report.error is not None:
                errors.append(report.error)
            for entry in report.entries:
                table[layer, pool] = built, entry
    sweep.forget()
    return table, errors


def _record(task: str, table: dict[tuple[int, str], tuple[Built, Entry]]) -> dict[str, Any]:
    from protloom.task.run import number

    built, first = next(iter(table.values()))
    sign = -1 if built.card.get("better") == "lower" else 1
    best = max(table, key=lambda key: sign * table[key][1].result.value)
    return {
        "task": task,
        "split": built.split,
        "simulated": bool(built.card.get("simulated")),
        "metric": first.result.metric,
        # one set of rows is the test set, and nothing is chosen by that
        "best": None if built.split is None else {"layer": best[0], "pool": best[1]},
        "values": [
            {
                "layer": layer,
                "pool": pool,
                "value": number(entry.result.value),
                "interval95": [number(end) for end in entry.result.interval],
            }
            for (layer, pool), (_, entry) in table.items()
        ],
    }


def _print(record: dict[str, Any], model: str) -> None:
    """Prints layers down, poolings across; the best is marked where it may be chosen."""
    title = f"{record['task']} (SIMULATED)" if record["simulated"] else record["task"]
    split = "one set of rows, the test set" if record["split"] is None else f"split {record['split']}"
    print(f"\n{title}: {record['metric']}, {split}, {model}\n")
    pools = list(dict.fromkeys(value["pool"] for value in record["values"]))
    cells = {(value["layer"], value["pool"]): value for value in record["values"]}
    best = None if record["best"] is None else (record["best"]["layer"], record["best"]["pool"])
    rows = [
        (f"  {layer}", *(_cell(cells.get((layer, pool)), (layer, pool) == best) for pool in pools))
        for layer in dict.fromkeys(value["layer"] for value in record["values"])
    ]
    common.print_table(("  layer", *pools), rows)
    if best is None:
        print(
            "  caution: these rows are a test set, and nothing is chosen by one: choose layer and pool by other tasks"
        )
        return
    pool = "" if best[1] == "-" else f" --pool {best[1]}"
    print(f"  * best here; to score it on the test split: --layer {best[0]}{pool} --test")


def _cell(value: dict[str, Any] | None, best: bool) -> str:
    if value is None or value["value"] is None:
        return "–"
    low, high = value["interval95"]
    ends = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value['value']:.3f}{ends}{' *' if best else ''}"
