"""``protloom train``: trains a new run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from protloom.cli.common import example, pause_option, registry, warn

if TYPE_CHECKING:
    from protloom.config import ResolvedRun
    from protloom.plugins import Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    run_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="run folder (new)")
    parser.add_argument(
        "--profile", action="store_true", help="write a PyTorch trace of a few steps, and where their time went"
    )
    pause_option(parser)
    example(
        parser,
        "protloom train --data proteins.fasta --arch esm2:8M trainer.steps=300 objective.mask_rate=0.2",
        "protloom train run.yaml --out runs/first",
        "protloom train recipe:demo --profile trainer.steps=20",
        "torchrun --nproc-per-node 8 -m protloom train run.yaml trainer.parallel=fsdp2",
    )


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what names a run."""
    parser.add_argument("run_file", nargs="?", metavar="RUN.yaml", help="run file, or recipe:NAME")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="options, e.g. trainer.steps=300; 'protloom show run' lists them",
    )
    parser.add_argument("--data", metavar="FILE", help="corpus: FASTA, CSV, Parquet, a store, or demo:")
    parser.add_argument("--arch", metavar="NAME[:SIZE]", help="architecture, e.g. esm2:8M")
    parser.add_argument("--init", metavar="WEIGHTS", help="start from a run, a folder, a file or a hub id")


def run(args: argparse.Namespace) -> int:
    """Trains, and returns 0 when the run ended as it should."""
    from protloom.budget import Amount
    from protloom.run import folder as run_folder

    pause = Amount.parse(args.pause_at) if args.pause_at else None
    known = registry(args)
    resolved = resolve(args, known)
    run_folder.stated(resolved)
    from protloom import launch  # PyTorch takes seconds: not before a mistake is told

    return report(launch.start(resolved, known, pause=pause, profile=args.profile))


def resolve(args: argparse.Namespace, known: Registry) -> ResolvedRun:
    """Returns the run that a command line names; its corpora are there."""
    from protloom import config

    path, overrides = run_file_and_overrides(args)
    base: dict[str, Any] = {}
    flags = {"data.corpus": args.data, "architecture": args.arch, "init": args.init, "out": getattr(args, "out", None)}
    stated = [(key, value) for key, value in flags.items() if value is not None]
    if args.init is not None and args.arch is None:
        from protloom import weights

        base = weights.describe(args.init, known)
    resolved = config.load(path, [*stated, *overrides], known, base=base)
    for warning in resolved.warnings:
        warn(warning)
    _refuse_missing(resolved, known)
    return resolved


def _refuse_missing(resolved: ResolvedRun, known: Registry) -> None:
    """Raises UserError if no corpus is named or one of them is a file that is not there."""
    from protloom.data.store import refuse_missing

    data = resolved.settings.data
    for path in [*(part.path for part in data.parts()), *([data.validation] if data.validation else [])]:
        refuse_missing(path, known)


def run_file_and_overrides(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Tells the run file from the first override, since both are plain words."""
    overrides = list(args.overrides)
    if args.run_file is None:
        return None, overrides
    if "=" in args.run_file:
        return None, [args.run_file, *overrides]
    return args.run_file, overrides


def report(finished: Any) -> int:
    """Prints what a run did and what to do with it."""
    from protloom.metrics import say
    from protloom.run.log import summary

    if finished.main:
        say(f"{'done' if finished.complete else 'stopped'}: {summary(finished.state)}; run folder {finished.run_dir}")
    return 0
