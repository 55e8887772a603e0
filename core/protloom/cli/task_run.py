"""``protloom task run``: scores a model on tasks, beside its random initialisation and floors."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.allocator import keep_freed_memory
from protloom.cli import common, task_sweep
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.contracts import Extent, Subject
    from protloom.embedding.cache import EmbeddingCache
    from protloom.plugins import Registry
    from protloom.task.results import ResultFolder
    from protloom.task.run import Built, Report, Request
    from protloom.task.suite import Selection


def configure(run: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    run.add_argument(
        "names", nargs="+", metavar="NAME", help="tasks, groups (ss3), patterns ('sim-*'), suite:NAME, or FILE.yaml"
    )
    run.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a run, a model folder, a hub id, floor:NAME or random-init(ARCH)",
    )
    data_option(run)
    run.add_argument(
        "--test", action="store_true", help="score the test split; without it validation, which is what choices use"
    )
    run.add_argument("--full", action="store_true", help="lift the caps on how much data is used; may take hours")
    run.add_argument("--layer", type=int, metavar="K", help="hidden state to use; -2: the last but one; default: last")
    task_sweep.configure(run)
    run.add_argument(
        "--long",
        choices=("auto", "crop", "window", "skip"),
        default="auto",
        help="sequences over --max-length: their beginning; overlapping windows; left out (auto: crop; window for"
        " residues)",
    )
    run.add_argument(
        "--max-length", type=int, default=1024, metavar="N", help="residues that the network sees at once (1024)"
    )
    run.add_argument("--limit", type=int, metavar="N", help="use at most N items of each split, for a quick look")
    run.add_argument("--seed", type=int, default=0, metavar="S", help="seed of samples, probes and bootstrap (0)")
    run.add_argument("--floors", action=argparse.BooleanOptionalAction, default=True, help="run the tasks' floors too")
    run.add_argument(
        "--random-init", action=argparse.BooleanOptionalAction, default=True, help="run the untrained network too"
    )
    run.add_argument("--set", action="append", default=[], metavar="key=value", help="an option of the tasks")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    run.add_argument(
        "--precision", default="auto", metavar="fp32|bf16|auto", help="of the network; auto: bf16 where it is fast"
    )
    run.add_argument(
        "--out", metavar="DIR", help="keep every result here, and go on from what is there; or FILE.json, written last"
    )
    run.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where embeddings are kept; default: embeddings in PROTLOOM_CACHE, or in ~/.cache/protloom",
    )
    run.add_argument("--cache-gb", type=float, metavar="G", help="size of that folder at most, in GiB (10)")
    run.add_argument("--no-cache", action="store_true", help="compute every embedding, keep none")
    run.add_argument("--force", action="store_true", help="compute what is in --out DIR again")
    common.json_option(run)
    common.example(
        run,
        "protloom task run sim-ss3 sim-contact --model runs/first",
        "protloom task run suite:proteinjepa16 --model runs/first --data-dir data --out results/first",
        "protloom task run my-task.yaml --model floor:kmer2 --test",
        "protloom task run suite:quick --model runs/first --data-dir data --layers all --pool mean,max",
    )


def data_option(parser: argparse.ArgumentParser) -> None:
    """Declares ``--data-dir``."""
    parser.add_argument("--data-dir", metavar="DIR", help="folder of real data; default: PROTLOOM_DATA")


def run(args: argparse.Namespace, registry: Registry) -> int:
    """Runs the tasks; returns 1 if one failed."""
    from protloom.cli import task_tables
    from protloom.task import run as task_run
    from protloom.task import suite as task_suite

    _check(args)
    sweep = task_sweep.is_sweep(args)
    folder = _folder(args)
    chosen = task_suite.select(
        args.names, registry, settings=args.set, split="test" if args.test else "valid", full=args.full
    )
    if sweep:
        for name, reason in chosen.unable.items():
            print(f"error: {task_tables.fault([name], reason)}", file=sys.stderr)
        code = task_sweep.run(chosen.choices, args, registry, _request(args, registry, folder))
        return 1 if chosen.unable else code
    built, unable = _build(chosen, args, registry)
    request = _request(args, registry, folder) if built else None
    found: dict[str, Report] = {report.task: report for report in unable}
    for task in built:
        assert request is not None
        report = task_run.run(task, request)
        if not args.json:
            task_tables.print_report(report)
        if report.error is not None:
            print(f"error: {task_tables.fault([report.task], report.error)}", file=sys.stderr)
        found[report.task] = report
    reports = [found[name] for name in (*chosen.unable, *(choice.name for choice in chosen.choices))]
    _finish(args, reports, request)
    failed = [report.task for report in reports if report.error is not None]
    if failed:
        print(f"{len(failed)} of {len(reports)} tasks failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    for option, least in (("limit", 1), ("seed", 0), ("max_length", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least {least}")
    if args.cache_gb is not None and not args.cache_gb > 0:
        raise UserError(f"--cache-gb {args.cache_gb}: must be above 0")
    if args.no_cache and (args.cache_dir is not None or args.cache_gb is not None):
        raise UserError("--no-cache: nothing is kept, so leave --cache-dir and --cache-gb out")


def _folder(args: argparse.Namespace) -> ResultFolder | None:
    """Returns the folder of results; raises before hours of work rather than after them."""
    if args.out is None or args.out.endswith(".json"):
        if args.force:
            raise UserError("--force: without --out DIR nothing is kept, so everything is computed anyway")
        if args.out is not None and not Path(args.out).parent.is_dir():
            raise UserError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
        return None
    from protloom.task.results import ResultFolder

    return ResultFolder(Path(args.out), common.warn)


def _build(chosen: Selection, args: argparse.Namespace, registry: Registry) -> tuple[list[Built], list[Report]]:
    """Builds the tasks; those that cannot run are told at once, before a model is opened, and once a reason."""
    from protloom.cli import task_tables
    from protloom.task import run as task_run

    built: list[Built] = []
    reasons: dict[str, list[str]] = {}
    for name, reason in chosen.unable.items():
        reasons.setdefault(reason, []).append(name)
    for choice in chosen.choices:
        try:
            built.append(task_run.build(choice, registry, args.data_dir))
        except UserError as error:
            if args.debug and error.__cause__ is not None:
                traceback.print_exception(error)
            reasons.setdefault(str(error), []).append(choice.name)
    for reason, concerned in reasons.items():
        print(f"error: {task_tables.fault(concerned, reason)}", file=sys.stderr)
    unable = [task_run.Report(name, {}, error=reason) for reason, concerned in reasons.items() for name in concerned]
    return built, unable


def _request(args: argparse.Namespace, registry: Registry, folder: ResultFolder | None) -> Request:
    from protloom import subjects
    from protloom.contracts import Extent
    from protloom.run.corpus import open_run_corpus
    from protloom.task.run import FLOOR, TWIN, Request

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    shared: dict[str, Any] = {
        "floors": args.floors,
        "seed": args.seed,
        "limit": args.limit,
        "folder": folder,
        "force": args.force,
        "debug": args.debug,
        "tell": tell,
    }
    if args.model.startswith(FLOOR) and not subjects.is_random_init(args.model):
        extent = Extent(args.long, args.max_length)
        others = partial(_other_floor, registry=registry, extent=extent)
        return Request(None, floor=args.model, others=others, extent=extent, **shared)
    model, twin, notes = subjects.open_subjects(
        args.model,
        registry,
        layer=args.layer,
        device=args.device,
        precision=args.precision,
        max_length=args.max_length,
        long_policy=args.long,
        twin=TWIN if args.random_init and args.layers is None else None,
        seed=args.seed,
        cache=_cache(args),
    )
    for note in notes:
        common.warn(note)
    if model.device.type == "cpu":
        keep_freed_memory()  # an allocator that cannot is as good as before
    corpus = None if subjects.is_random_init(args.model) else open_run_corpus(args.model, registry)
    return Request(model, twin, variant=_variant(args), corpus=corpus, **shared)


def _other_floor(name: str, registry: Registry, extent: Extent) -> Subject:
    """Returns a floor that a task does not offer itself; raises UserError."""
    from protloom import subjects
    from protloom.task.run import see

    floor = subjects.find_floor(name, registry)
    see(floor, extent)
    return floor


def _cache(args: argparse.Namespace) -> EmbeddingCache | None:
    from protloom.caches import cache_folder
    from protloom.embedding.cache import GIGABYTES, EmbeddingCache

    if args.no_cache:
        return None
    folder = cache_folder("embeddings") if args.cache_dir is None else Path(args.cache_dir).expanduser()
    return EmbeddingCache(folder, gigabytes=args.cache_gb or GIGABYTES, warn=common.warn)


def _variant(args: argparse.Namespace) -> str:
    """Returns what sets this subject apart from the same model with default options."""
    words = [] if args.layer is None else [f"layer {args.layer}"]
    words += [] if args.long == "auto" else [args.long]
    words += [] if args.max_length == 1024 else [f"{args.max_length} residues"]
    words += [] if args.precision == "auto" else [args.precision]
    return ", ".join(words)


def _finish(args: argparse.Namespace, reports: Sequence[Report], request: Request | None) -> None:
    """Writes the results where they were asked for."""
    from protloom import __version__
    from protloom.cli import task_tables
    from protloom.files import write_text
    from protloom.plain_data import plain
    from protloom.task.run import as_record

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
    else:
        task_tables.print_legend(reports)
    if args.out is None:
        return
    if args.out.endswith(".json"):
        write_text(Path(args.out), json.dumps(plain(document(items=True)), indent=1, allow_nan=False) + "\n")
    if not args.json:
        task_tables.print_place(args.out)
