"""``protloom task``: lists, describes, runs and compares by downstream tasks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protloom.cli import common, task_aggregate, task_compare, task_run
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.plugins import Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    common.example(
        parser,
        "protloom task list",
        "protloom task run suite:quick --model runs/first --data-dir data --out results/first",
        "protloom task run sim-ss3 sim-contact --model runs/first",
        "protloom task compare results/first results/second",
    )
    commands = parser.add_subparsers(dest="action", metavar="list|show|run|compare|aggregate", required=True)
    listing = commands.add_parser("list", help="list the tasks", description="Lists tasks and suites.")
    task_run.data_option(listing)
    common.json_option(listing)
    show = commands.add_parser("show", help="describe a task", description="Describes a task.")
    show.add_argument("name", metavar="NAME", help="a task, a group, a pattern, suite:NAME or FILE.yaml")
    task_run.data_option(show)
    common.json_option(show)
    task_run.configure(commands.add_parser("run", help="score a model", description="Scores a model on tasks."))
    task_compare.configure(
        commands.add_parser("compare", help="compare two models", description="Compares two models by their results.")
    )
    task_aggregate.configure(
        commands.add_parser(
            "aggregate",
            help="average over assays of mutations",
            description="Averages what models reach over assays of mutations, as ProteinGym does: the assays of a"
            " protein, the proteins of a selection type, the types.",
        )
    )


def run(args: argparse.Namespace) -> int:
    """Does what was asked; returns 1 if a task failed."""
    if args.action == "compare":
        return task_compare.run(args)
    if args.action == "aggregate":
        return task_aggregate.run(args)
    registry = common.registry(args)
    if args.action == "list":
        return _list(args, registry)
    if args.action == "show":
        return _show(args, registry)
    return task_run.run(args, registry)


def _list(args: argparse.Namespace, registry: Registry) -> int:
    from protloom.task import suite as task_suite

    records: list[dict[str, Any]] = []
    for name in task_suite.names(registry):
        spec = registry.resolve("task", name).spec
        record: dict[str, Any] = {"name": name, "summary": spec.summary, "tags": list(getattr(spec, "tags", ()))}
        try:
            card = _card(name, {}, args, registry)
            record |= {"metric": card.get("metric"), "simulated": card.get("simulated"), "data": _status(card)}
        except UserError as error:  # one broken task must not hide the others
            record |= {"metric": None, "simulated": None, "data": f"broken: {error}"}
        records.append(record)
    suites = task_suite.suites(registry)
    if args.json:
        common.print_json({"tasks": records, "suites": suites})
        return 0
    rows = [(r["name"], r["metric"] or "-", ", ".join(r["tags"]), r["data"], r["summary"]) for r in records]
    common.print_table(("task", "metric", "tags", "data", "what it is"), rows)
    if suites:
        print()
        titles = [(f"{task_suite.SUITE}{name}", title) for name, title in suites.items()]
        common.print_table(("suite", "what it is"), titles)
    print("\n'protloom task show NAME' explains one, 'protloom task run NAME --model RUN' runs it.")
    return 0


def _status(card: Mapping[str, Any]) -> str:
    states = [str(state) for state in dict(card.get("status", {})).values()]
    if not states:
        return "simulated" if card.get("simulated") else "ready"
    return next((state for state in states if state != "ready"), "ready")


def _show(args: argparse.Namespace, registry: Registry) -> int:
    from protloom.cli import task_tables
    from protloom.task import suite as task_suite

    chosen = task_suite.select([args.name], registry)
    failed = dict(chosen.unable)
    cards: dict[str, dict[str, Any]] = {}
    for choice in chosen.choices:
        try:
            cards[choice.name] = dict(_card(choice.component, choice.options, args, registry))
        except UserError as error:
            failed[choice.name] = str(error)
    for name, reason in failed.items():
        print(f"error: {task_tables.fault([name], reason)}", file=sys.stderr)
    code = 1 if failed else 0
    if args.json:
        common.print_json(cards)
        return code
    for at, (name, card) in enumerate(cards.items()):
        print(f"{'' if at == 0 else chr(10)}{name}")
        for key, value in card.items():
            _print_field(key, value, 2)
    described = {choice.component for choice in chosen.choices if cards.get(choice.name, {}).get("options")}
    if described:
        name = described.pop() if len(described) == 1 else "NAME"
        print(f"\n'protloom show task {name}' says what each option means.")
    return code


def _card(
    component: str, options: Mapping[str, Any], args: argparse.Namespace, registry: Registry
) -> Mapping[str, Any]:
    """Returns the card of a task; raises UserError where the task is broken."""
    from protloom.task import faults as task_faults
    from protloom.task import suite as task_suite

    task = task_suite.build(component, registry, data_dir=args.data_dir, options=options)
    return task_faults.card(registry.resolve("task", component), task)


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
