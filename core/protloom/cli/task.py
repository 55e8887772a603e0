"""``protloom task``: lists, describes and runs downstream tasks."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.contracts import Task
    from protloom.plugins import Registry
    from protloom.task_suite import Report, Request

LEGEND = (
    "Brackets are 95 % intervals. 'model minus this' compares both on the same resampled items: the model is 'better'"
    " where the whole interval lies above 0, 'worse' where it lies below, else the two are not separable."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    common.example(
        parser,
        "protloom task list",
        "protloom task run sim-ss3 sim-contact --model runs/first",
        "protloom task run ss3 --model runs/first --data-dir data --out results.json",
    )
    commands = parser.add_subparsers(dest="action", metavar="list|show|run", required=True)
    listing = commands.add_parser("list", help="list the tasks", description="Lists the tasks.")
    _data_option(listing)
    common.json_option(listing)
    show = commands.add_parser("show", help="describe a task", description="Describes a task.")
    show.add_argument("name", metavar="NAME")
    _data_option(show)
    common.json_option(show)
    _configure_run(commands.add_parser("run", help="score a model", description="Scores a model on tasks."))


def _configure_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("names", nargs="+", metavar="NAME", help="tasks, groups (ss3) or patterns ('sim-*')")
    run.add_argument("--model", required=True, metavar="MODEL", help="a run, a model folder, a hub id, or floor:NAME")
    _data_option(run)
    run.add_argument("--layer", type=int, metavar="K", help="hidden state to use; -2: the last but one; default: last")
    run.add_argument("--limit", type=int, metavar="N", help="use at most N items of each split, for a quick look")
    run.add_argument("--seed", type=int, default=0, metavar="S", help="seed of samples, probes and bootstrap (0)")
    run.add_argument("--floors", action=argparse.BooleanOptionalAction, default=True, help="run the tasks' floors too")
    run.add_argument(
        "--random-init", action=argparse.BooleanOptionalAction, default=True, help="run the untrained network too"
    )
    run.add_argument("--set", action="append", default=[], metavar="key=value", help="an option of the tasks")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--precision", default="fp32", metavar="fp32|bf16|auto", help="of the network (fp32)")
    run.add_argument("--out", metavar="FILE.json", help="write everything here, with each item's metric")
    common.json_option(run)
    common.example(run, "protloom task run sim-ss3 sim-contact --model runs/first", "protloom task run ss3 --model M")


def _data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="folder of real data; default: PROTLOOM_DATA")


def run(args: argparse.Namespace) -> int:
    """Does what was asked; returns 1 if a task failed."""
    registry = common.registry(args)
    if args.action == "list":
        return _list(args, registry)
    if args.action == "show":
        return _show(args, registry)
    return _run(args, registry)


# ------------------------------------------------------------------------------------------------------ list, show


def _list(args: argparse.Namespace, registry: Registry) -> int:
    from protloom import task_suite

    records: list[dict[str, Any]] = []
    for name in registry.names("task"):
        spec = registry.resolve("task", name).spec
        record: dict[str, Any] = {"name": name, "summary": spec.summary, "tags": list(getattr(spec, "tags", ()))}
        try:
            card = task_suite.build(name, registry, data_dir=args.data_dir).card()
            record |= {"metric": card.get("metric"), "simulated": card.get("simulated"), "data": _status(card)}
        except UserError as error:  # one broken task must not hide the others
            record |= {"metric": None, "simulated": None, "data": f"broken: {error}"}
        records.append(record)
    if args.json:
        common.print_json({"tasks": records})
        return 0
    rows = [(r["name"], r["metric"] or "-", ", ".join(r["tags"]), r["data"], r["summary"]) for r in records]
    common.print_table(("task", "metric", "tags", "data", "what it is"), rows)
    print("\n'protloom task show NAME' explains one, 'protloom task run NAME --model RUN' runs it.")
    return 0


def _status(card: Mapping[str, Any]) -> str:
    states = [str(state) for state in dict(card.get("status", {})).values()]
    if not states:
        return "simulated" if card.get("simulated") else "ready"
    return next((state for state in states if state != "ready"), "ready")


def _show(args: argparse.Namespace, registry: Registry) -> int:
    from protloom import task_suite

    names = task_suite.expand([args.name], registry.names("task"))
    cards = {name: dict(task_suite.build(name, registry, data_dir=args.data_dir).card()) for name in names}
    if args.json:
        common.print_json(cards)
        return 0
    for at, (name, card) in enumerate(cards.items()):
        print(f"{'' if at == 0 else chr(10)}{name}")
        for key, value in card.items():
            _print_field(key, value, 2)
    return 0


def _print_field(key: str, value: Any, indent: int) -> None:
    if isinstance(value, Mapping):
        if value:
            print(f"{' ' * indent}{key}:")
        for inner, content in value.items():
            _print_field(str(inner), content, indent + 2)
        return
    if isinstance(value, bool | None):
        value = {True: "yes", False: "no", None: "-"}[value]
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    print(f"{' ' * indent}{key}: {shown}")


# ------------------------------------------------------------------------------------------------------------ run


def _run(args: argparse.Namespace, registry: Registry) -> int:
    from protloom import task_suite

    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    if args.out is not None:
        _check_writable(Path(args.out))
    names = task_suite.expand(args.names, registry.names("task"))
    options = task_suite.options_of(args.set, names, registry)
    tasks, unable = _build(names, options, args, registry)
    request = _request(args, registry) if tasks else None
    reports = []
    for name in names:
        report = unable.get(name) or task_suite.run(name, tasks[name], cast("Request", request))
        if not args.json:
            _print_report(report)
        if report.error is not None and name not in unable:
            print(f"error: {name}: {report.error}", file=sys.stderr)
        reports.append(report)
    _finish(args, reports, request)
    failed = [report.task for report in reports if report.error is not None]
    if failed:
        print(f"{len(failed)} of {len(reports)} tasks failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _build(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]], args: argparse.Namespace, registry: Registry
) -> tuple[dict[str, Task], dict[str, Report]]:
    """Builds the tasks; those that cannot run are told at once, before a model is opened, and once a reason."""
    from protloom import task_suite

    tasks: dict[str, Task] = {}
    reasons: dict[str, list[str]] = {}
    for name in names:
        try:
            task = task_suite.build(name, registry, data_dir=args.data_dir, options=options[name])
            task.check()
        except UserError as error:
            reasons.setdefault(str(error), []).append(name)
        else:
            tasks[name] = task
    for reason, concerned in reasons.items():
        print(f"error: {', '.join(concerned)}: {reason}", file=sys.stderr)
    return tasks, {
        name: task_suite.Report(name, {}, error=reason) for reason, concerned in reasons.items() for name in concerned
    }


def _request(args: argparse.Namespace, registry: Registry) -> Request:
    from protloom.task_suite import FLOOR, TWIN, Request

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.model.startswith(FLOOR):
        return Request(None, floor=args.model, seed=args.seed, limit=args.limit, tell=tell)
    from protloom.subjects import open_subjects

    model, twin, notes = open_subjects(
        args.model,
        registry,
        layer=args.layer,
        device=args.device,
        precision=args.precision,
        twin=TWIN if args.random_init else None,
        seed=args.seed,
    )
    for note in notes:
        common.warn(note)
    return Request(model, twin, floors=args.floors, seed=args.seed, limit=args.limit, tell=tell)


def _check_writable(path: Path) -> None:
    """Raises before hours of work rather than after them."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"--out {path}: {what}; name a file in a folder that exists")


def _finish(args: argparse.Namespace, reports: Sequence[Report], request: Request | None) -> None:
    """Writes the results where they were asked for."""
    from protloom import __version__
    from protloom.files import write_text
    from protloom.task_suite import as_record

    def document(*, items: bool) -> dict[str, Any]:
        asked = (request.model, request.twin) if request is not None else ()
        subjects = [subject for subject in asked if subject is not None]
        return {
            "protloom": __version__,
            "model": args.model,
            "seed": args.seed,
            "limit": args.limit,
            "subjects": {
                subject.name: {**getattr(subject, "provenance", {}), **getattr(subject, "counts", {})}
                for subject in subjects
            },
            "tasks": [as_record(report, items=items) for report in reports],
        }

    if args.json:
        common.print_json(document(items=False))
    elif any(len(report.entries) > 1 for report in reports):
        print(f"\n{LEGEND}")
    if args.out is not None:
        write_text(Path(args.out), json.dumps(document(items=True), indent=1, allow_nan=False) + "\n")
        if not args.json:
            print(f"results: {args.out}")


# ---------------------------------------------------------------------------------------------------------- tables


def _print_report(report: Report) -> None:
    if not report.entries:
        return
    first = report.entries[0].result
    title = str(report.card.get("title", ""))
    if report.card.get("simulated") and "SIMULATED" not in title:
        title += " (SIMULATED data)"
    print(f"\n{report.task}: {title}")
    print(f"  metric {first.metric}: {report.card.get('definition', '')}")
    print(f"  {_size(first.details)}; intervals by resampling {first.n} {first.unit}\n")
    rows = []
    for entry in report.entries:
        gap = entry.difference
        rows.append(
            (
                f"  {entry.name}",
                entry.summary,
                _signed(entry.result.value, entry.result.interval, plus=False),
                "" if gap is None else _signed(gap.value, gap.interval, plus=True),
                "" if gap is None else gap.verdict,
            )
        )
    common.print_table(("  subject", "what it is", first.metric, "model minus this", "the model is"), rows)
    _print_also(report)
    if any(entry.result.details.get("converged") is False for entry in report.entries):
        print("  note: a probe stopped before it converged; see 'converged' in --json")


def _size(details: Mapping[str, Any]) -> str:
    words = ("train_proteins", "test_proteins", "queries", "limit", "seed")
    return ", ".join(f"{word.replace('_', ' ')} {details[word]}" for word in words if details.get(word) is not None)


def _print_also(report: Report) -> None:
    """Prints further metrics, a column a subject."""
    metrics = report.entries[0].result.metrics
    names = [name for name in report.card.get("also", ()) if name in metrics]
    if names:
        print()
        header = ("  also", *(entry.name for entry in report.entries))
        rows = [(f"  {n}", *(f"{entry.result.metrics[n]:.3f}" for entry in report.entries)) for n in names]
        common.print_table(header, rows)


def _signed(value: float, interval: tuple[float, float], *, plus: bool) -> str:
    sign = "+" if plus else ""
    low, high = interval
    ends = "no interval" if math.isnan(low) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f} {ends}"
