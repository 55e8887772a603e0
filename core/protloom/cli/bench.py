"""``protloom bench``: how fast variants of a training run are, side by side, and beside another program."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from protloom.cli import common
from protloom.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = (
        "Takes training steps of several variants in turns and prints tokens per second with their spread, ratios of "
        "the same rounds with an interval, the share of the machine's matrix product (MFU), padding, memory, and where "
        "a step's time goes. Without a corpus it draws sequences with lengths as proteins have them. Nothing is saved."
    )
    parser.add_argument("run_file", nargs="?", metavar="RUN.yaml", help="run file, or recipe:NAME")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options, as of 'train'")
    parser.add_argument("--arch", metavar="NAME[:SIZE]", help="architecture, e.g. esm2:8M")
    parser.add_argument("--data", metavar="FILE", help="corpus: FASTA, CSV, Parquet, a store, or demo:")
    parser.add_argument("--objective", metavar="A,B", help="objectives side by side; '{name: a, x: 1}' with options")
    parser.add_argument("--precision", metavar="P,Q", help="fp32, bf16 or both")
    parser.add_argument("--kernels", metavar="A,B", help="kernel backends side by side, e.g. auto,reference")
    parser.add_argument("--compile", action="store_true", help="measure every variant compiled too")
    parser.add_argument("--against", metavar="PROGRAM", help="beside another program, e.g. transformers")
    parser.add_argument("--tokens", metavar="N", type=positive, help="tokens of a step (the run file's, or 4,096)")
    parser.add_argument("--lengths", metavar="real|fixed:N", default="real", help="of the corpus, or N residues each")
    parser.add_argument("--rounds", metavar="R", type=positive, help="rounds (as many as fit into --seconds, 3 to 25)")
    parser.add_argument("--seconds", metavar="S", type=positive, default=60, help="time for the rounds (60)")
    parser.add_argument(
        "--sweep", action="store_true", help="also what a token costs in sequences of 64, 128 … residues"
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers; - prints them instead of the tables")
    parser.add_argument("--chart", metavar="FILE.svg", type=Path, help="draw a bar for each variant")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    common.example(
        parser,
        "protloom bench --arch esm2:8M",
        "protloom bench --arch esm2:8M --precision fp32,bf16 --compile --against transformers --chart bench.svg",
        "protloom bench run.yaml --data proteins.fasta --objective mlm,acme/span-mlm --json bench.json",
        "protloom bench recipe:ankh3-small --lengths fixed:256 --kernels auto,reference --sweep",
    )


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, should be a whole number above 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from protloom.bench import variants
    from protloom.cli.train import run_file_and_overrides

    _refuse_targets(args)
    registry = common.registry(args)
    path, overrides = run_file_and_overrides(args)
    asked = variants.Asked(
        run_file=path,
        overrides=overrides,
        architecture=args.arch,
        data=args.data,
        tokens=args.tokens,
        lengths=args.lengths,
        objectives=variants.parse_list("--objective", args.objective) if args.objective is not None else (),
        precisions=args.precision.split(",") if args.precision is not None else (),
        kernels=variants.parse_list("--kernels", args.kernels) if args.kernels is not None else (),
        compiled=args.compile,
        against=args.against,
        rounds=args.rounds,
        seconds=args.seconds,
        sweep=args.sweep,
    )
    variants.drawn_needed(asked, registry)  # PyTorch takes seconds: not before a mistake is told
    from protloom.bench import run as measuring

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = measuring.bench(asked, registry, tell=tell)
    _write(args, result)
    return 0


def _refuse_targets(args: argparse.Namespace) -> None:
    """Raises UserError if a result could not be written, before anything is measured."""
    named = [("--json", None if args.json in (None, "-") else Path(args.json)), ("--chart", args.chart)]
    for option, path in named:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UserError(f"{option} {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; name a file")
        if path.exists() and not args.overwrite:
            raise UserError(f"{option}: {path} exists: choose another name, or give --overwrite")
    if args.chart is not None:
        if args.chart.suffix.lower() != ".svg":
            raise UserError(f"--chart {args.chart}: a chart is SVG, its name ends in .svg")
        from protloom.bench import chart

        chart.refuse_if_missing()


def _write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from protloom.bench import chart, tables
    from protloom.files import write_text
    from protloom.plain_data import plain

    if args.json == "-":
        common.print_json(result)
    else:
        tables.show(result)
    if args.json not in (None, "-"):
        write_text(Path(args.json), json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
        print(f"numbers  {args.json}", file=sys.stderr)
    if args.chart is not None:
        write_text(args.chart, chart.draw(result))
        print(f"chart    {args.chart}", file=sys.stderr)
