"""``protloom report``: writes one offline page about runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from protloom.cli import common
from protloom.errors import UserError

SUFFIXES = (".html", ".htm")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = (
        "Writes one HTML file with everything in it: what was trained, losses, validation, speed, collapse, and in "
        "words what is worth a look. Several runs stand side by side."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders")
    parser.add_argument("-o", "--out", metavar="PAGE.html", type=Path, help="default for one run: RUN/report.html")
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        default=[],
        metavar="F",
        type=Path,
        help="files or folders of task run --out",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    common.json_option(parser)
    common.example(
        parser,
        "protloom report runs/first",
        "protloom report runs/mlm runs/jepa -o both.html --tasks mlm.json jepa.json",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page."""
    out = _target(args.runs, args.out, overwrite=args.overwrite)
    from protloom.report import charts

    charts.refuse_if_missing()
    registry = common.registry(args)
    from protloom.files import write_text
    from protloom.report import page, run_facts, run_page, run_warnings, task_results

    names = _names(args.runs)
    runs = [run_facts.read(folder, registry, name=name) for folder, name in zip(args.runs, names, strict=True)]
    tasks = [found for path in args.tasks for found in task_results.read_all(path)]
    built = run_page.build(runs, tasks)
    write_text(out, page.render(built))
    warned = run_warnings.by_run(runs)
    if args.json:
        told = {run.name: {**run_page.identity(run), "warnings": warned.get(run.name, [])} for run in runs}
        common.print_json({"page": out, "verdict": built.verdict, "runs": told})
        return 0
    for sentence in built.verdict:
        print(sentence)
    for name, sentences in warned.items():
        for sentence in sentences:
            print(f"worth a look: {name}: {sentence}")
    print(f"report: {out}")
    return 0


def _target(runs: Sequence[Path], out: Path | None, *, overwrite: bool) -> Path:
    """Returns where the page goes; raises UserError if it cannot go there, before anything is read."""
    if out is None:
        if len(runs) > 1:
            raise UserError(f"{len(runs)} runs: say where the page goes, -o page.html")
        out = runs[0] / "report.html"
        if not runs[0].is_dir():
            return out  # what is wrong with the run is told when it is read
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"-o {out}: a page is HTML, its name ends in .html")
    if not out.parent.is_dir():
        raise UserError(f"-o {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"-o {out}: is a folder; name a file")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: choose another -o, or give --overwrite")
    return out


def _names(runs: Sequence[Path]) -> list[str]:
    """Returns what runs are called: the folder's name, or as much of the path as tells them apart."""
    resolved = [folder.expanduser().resolve() for folder in runs]
    twice = next((path for path, times in Counter(resolved).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice: name different runs")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
