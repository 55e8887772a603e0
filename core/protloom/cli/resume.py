"""``protloom resume``: goes on with a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from protloom.cli.common import example, pause_option, registry
from protloom.cli.train import report


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed options, e.g. trainer.steps=2000")
    pause_option(parser)
    example(parser, "protloom resume runs/first", "protloom resume runs/first trainer.steps=2000")


def run(args: argparse.Namespace) -> int:
    """Resumes, and returns 0 when the run ended as it should."""
    from protloom.budget import Amount
    from protloom.run import folder as run_folder

    pause = Amount.parse(args.pause_at) if args.pause_at else None

    run_folder.refuse_if_none(args.run_dir, args.overrides)
    from protloom import launch  # PyTorch takes seconds: not before a mistake is told

    return report(launch.resume(args.run_dir, args.overrides, registry(args), pause=pause))
