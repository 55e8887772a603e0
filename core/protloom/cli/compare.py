"""``protloom compare``: trains recipes under the same budget and tells on which tasks they differ."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.plugins import Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("file", metavar="COMPARE.yaml", type=Path, help="recipes, budget, seeds and tasks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options on top, e.g. budget.seconds=480")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder; one that was begun goes on")
    parser.add_argument("--report-only", action="store_true", help="train and evaluate nothing, write the report again")
    common.json_option(parser)
    common.example(
        parser,
        "protloom compare compare.yaml --out comparisons/jepa",
        "protloom compare compare.yaml --out comparisons/trial budget.seconds=60 'seeds=[0]'",
    )


def run(args: argparse.Namespace) -> int:
    """Compares; returns 1 if a task failed for some model."""
    from protloom.compare import analysis, plan, tables
    from protloom.compare.claim import claim, keep_recipes
    from protloom.compare.runner import Runner
    from protloom.stopping import exit_on_sigterm

    registry = common.registry(args)
    planned = plan.load(args.file, args.overrides, registry)
    claim(args.out, planned)
    if not args.report_only:
        keep_recipes(args.out, planned, registry)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    runner = Runner(planned, args.out, registry, tell, debug=args.debug)
    runner.tasks()  # a task that cannot run is told before hours of training
    with exit_on_sigterm():
        failures = [] if args.report_only else runner.run()
    unreadable: list[str] = []
    found = analysis.analyse(planned, args.out, unreadable.append)
    if args.report_only and unreadable:  # the report that is there may have been made with it
        raise UserError(f"{unreadable[0]}; without --report-only it is computed again")
    for line in unreadable:
        common.warn(f"{line}; left out")
    report = _write(args.out, found, analysis.curves(planned, args.out), registry, tell)
    if args.json:
        common.print_json(found)
    else:
        for sentence in tables.verdict(found):
            print(sentence)
        for sentence in tables.cautions(found):
            print(f"caution: {sentence}")
        print(f"report: {report}")
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found["failures"] else 0


def _write(folder: Path, found: dict[str, Any], curves: dict[str, Any], registry: Registry, tell: Any) -> Path:
    """Writes the report in every form, and returns the one to read.

    Without the packages that a page needs it says so and writes the other forms.
    """
    from protloom.compare import tables
    from protloom.files import write_text
    from protloom.plain_data import plain
    from protloom.report import charts, comparison_page, page, run_facts

    write_text(folder / "report.json", json.dumps(plain(found), indent=1, allow_nan=False))
    write_text(folder / "report.csv", tables.csv_text(found))
    write_text(folder / "report.md", tables.markdown(found))
    if absent := charts.missing():
        tell(f"report.html is not written, it needs {' and '.join(absent)}: {charts.INSTALL}")
        return folder / "report.md"
    folders = {name: folder / "runs" / name for name, lines in curves.items() if lines}
    runs = [run_facts.read(path, registry, name=name, lines=curves[name]) for name, path in folders.items()]
    plan = (folder / "comparison.yaml").read_text(encoding="utf-8")
    write_text(folder / "report.html", page.render(comparison_page.build(found, runs, plan)))
    return folder / "report.html"
