"""``protloom score``: how likely a model holds proteins, residue by residue, or variants of one protein."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common, network, score_variants

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protloom.data.records import Entry
    from protloom.likelihood import Reader
    from protloom.plugins import Registry

COLUMNS = ("id", "length", "pseudo_log_likelihood", "perplexity")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = (
        "Hides every residue once, alone, and sums log p of the true one (pseudo-log-likelihood, in nats): by the mask "
        "symbol, or by a decoder's first sentinel. Perplexity is exp(-mean) a residue. L residues cost L passes. With "
        "--wild-type, F holds variants of one protein in ProteinGym's columns (mutant, mutated_sequence); each gets a "
        "score, higher where it should be borne better, 0 for the wild type."
    )
    parser.add_argument("source", metavar="F", help="FASTA, CSV, TSV, Parquet (.gz, .zst too), a store, '-', or demo:")
    parser.add_argument("--model", metavar="M", required=True, help="a run, a checkpoint, a folder, a file or a hub id")
    parser.add_argument("-o", "--out", metavar="F.csv", type=Path, help="CSV to write (new); else standard output")
    parser.add_argument("--residues", action="store_true", help="a row for each residue instead of each sequence")
    parser.add_argument("--prefix", metavar="NAME", help="mode that stands in front (the tokenizer's own)")
    network.options(parser)
    parser.add_argument("--column", metavar="C", help="sequence column of a table; of variants: that of substitutions")
    parser.add_argument("--strict", action="store_true", help="refuse input that would be changed or dropped")
    score_variants.configure(parser)
    common.json_option(parser)
    common.example(
        parser,
        "protloom score proteins.fasta --model runs/first",
        "protloom score designs.csv --column sequence --model facebook/esm2_t12_35M_UR50D -o scores.csv",
        "protloom score variants.csv --wild-type blat.fasta --method masked-marginals --model runs/first -o scores.csv",
    )


def run(args: argparse.Namespace) -> int:
    """Scores the sequences or variants and writes a table."""
    network.refuse_mistakes(args)
    registry = common.registry(args)
    if score_variants.asked(args):
        return score_variants.run(args, registry, lambda max_length: _open(args, registry, max_length))
    return _sequences(args, registry)


def _open(args: argparse.Namespace, registry: Registry, max_length: int | None = None) -> Reader:
    """Opens the model to be asked."""
    from protloom.likelihood import Reader
    from protloom.subjects import prefix_ids

    pretrained, dtype = network.open_network(args, registry, "score")
    prefix = None if args.prefix is None else prefix_ids(pretrained.tokenizer, args.prefix)
    return Reader(pretrained.architecture, pretrained.tokenizer, prefix, args.tokens_per_batch, max_length, dtype)


def _sequences(args: argparse.Namespace, registry: Registry) -> int:
    from protloom.data.records import Source
    from protloom.files import write_text

    source = Source(args.source, registry, column=args.column, strict=args.strict)
    entries = list(source.entries())
    common.warn_of_cleaning(source.tally)
    found = _open(args, registry).residues([entry.sequence for entry in entries])
    header = ("id", "position", "residue", "log_p") if args.residues else COLUMNS
    rows = _rows(_shown(zip(entries, found, strict=True), len(entries)), residues=args.residues)
    if args.out is None and not args.json:
        for row in (header, *rows):
            print(_line(row), end="", flush=True)
        return 0
    table = list(rows)
    if args.out is not None:
        write_text(args.out, "".join(map(_line, (header, *table))))
    if args.json:
        common.print_json({"model": args.model, "rows": [dict(zip(header, row, strict=True)) for row in table]})
    return 0


def _shown(scored: Iterable[tuple[Entry, Any]], total: int) -> Iterator[tuple[Entry, Any]]:
    """Passes results on and counts them on a terminal: every sequence costs as many passes as it has residues."""
    for number, one in enumerate(scored, start=1):
        if sys.stderr.isatty():
            print(f"\r{number:,} of {total:,}", end="\n" if number == total else "", file=sys.stderr, flush=True)
        yield one


def _rows(scored: Iterable[tuple[Entry, Any]], *, residues: bool) -> Iterator[tuple[object, ...]]:
    for entry, log_p in scored:
        if residues:
            for position, (letter, value) in enumerate(zip(entry.sequence, log_p.tolist(), strict=True), start=1):
                yield entry.id, position, letter, value
        else:
            total = float(log_p.sum(dtype="float64"))
            yield entry.id, len(log_p), total, math.exp(-total / len(log_p))


def _line(row: tuple[object, ...]) -> str:
    text = io.StringIO()
    cells = (f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row)
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
