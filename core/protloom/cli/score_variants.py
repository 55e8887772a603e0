"""``protloom score --wild-type``: what a model thinks of variants of a protein."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.data.records import Entry
    from protloom.likelihood import Reader
    from protloom.plugins import Registry
    from protloom.variants import Variant
    from protloom.variants.scores import Scores
    from protloom.variants.table import VariantTable


DEFAULTS: Mapping[str, object] = {"first_residue": 1, "max_length": 1024, "score_column": "score"}
"""Options that mean nothing without a wild type."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    options = parser.add_argument_group("variants of one protein")
    options.add_argument("--wild-type", metavar="F", help="FASTA with the protein: F names its variants, a row each")
    options.add_argument(
        "--method",
        metavar="NAME",
        help="masked-marginals: a pass for each mutated position (the default); wt-marginals: one pass; pll: a pass for"
        " each residue of each variant, which may have any length; sentinel-pll: encoder-decoders, a pass for each"
        " mutation",
    )
    options.add_argument("--first-residue", type=int, metavar="N", help="number of the wild type's first residue (1)")
    options.add_argument("--max-length", type=int, metavar="N", help="residues seen at once, round a mutation (1024)")
    options.add_argument("--score-column", metavar="NAME", help="name of the column of scores (score)")
    parser.set_defaults(**DEFAULTS)


def asked(args: argparse.Namespace) -> bool:
    """Tells whether variants are to be scored, not sequences."""
    if args.wild_type is not None:
        return True
    if args.method is not None:
        raise UserError(f"--method {args.method} compares variants with a wild type: give its FASTA by --wild-type")
    for name, default in DEFAULTS.items():
        if getattr(args, name) != default:
            raise UserError(f"--{name.replace('_', '-')} is for variants: give their protein by --wild-type")
    return False


def run(args: argparse.Namespace, registry: Registry, reader_of: Callable[[int], Reader]) -> int:
    """Scores the variants, writes the table and says what was done.

    Args:
        args: the command line.
        registry: where sources are found.
        reader_of: opens the model that sees so many residues at once; called when the input is known to be good.
    """
    from protloom.files import write_text
    from protloom.variants import METHODS
    from protloom.variants.scores import check_method, known_method, score_variants
    from protloom.variants.table import read_variants

    if args.residues:
        raise UserError("--residues is for sequences: leave it out, or leave --wild-type out")
    if args.max_length < 1:
        raise UserError(f"--max-length {args.max_length}: must be at least 1")
    method = known_method(args.method or METHODS[0])
    table = read_variants(args.source, args.column)
    if args.score_column in table.header or args.score_column == "window":
        raise UserError(f"{table.name} has a column {args.score_column!r}: give another name by --score-column")
    wild_type = _wild_type(args, registry)
    variants = table.variants(wild_type.sequence, args.first_residue)
    reader = reader_of(args.max_length)
    check_method(method, reader)
    found = score_variants(reader, wild_type.sequence, variants, method, tell=_progress(), where=table.place)
    summary = _summary(args, table, wild_type, variants, found)
    text = table.with_scores(found, args.score_column)
    if args.out is not None:
        write_text(args.out, text)
    elif not args.json:
        print(text, end="")
    if args.json:
        common.print_json(summary if args.out is not None else {**summary, "scores": found.values})
    else:
        print(_told(summary), file=sys.stderr)
    return 0


def _wild_type(args: argparse.Namespace, registry: Registry) -> Entry:
    from protloom.data.records import Source

    source = Source(args.wild_type, registry, strict=args.strict)
    found = list(islice(source.entries(), 2))
    common.warn_of_cleaning(source.tally)
    if len(found) > 1:
        raise UserError(f"--wild-type {args.wild_type}: holds more than one sequence ({found[0].id}, {found[1].id} …)")
    return found[0]


def _progress() -> Callable[[int, int], None] | None:
    """Returns what counts passes on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        if done == total or done % 32 == 0:
            print(f"\r{done:,} of {total:,} passes", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return tell


def _summary(
    args: argparse.Namespace, table: VariantTable, wild_type: Entry, variants: Sequence[Variant], found: Scores
) -> dict[str, Any]:
    from statistics import median

    from protloom.variants.table import rank_correlation

    rows, measured = table.measured()
    sizes = Counter("other length" if v.mutations is None else len(v.mutations) for v in variants)
    values: list[float] = found.values.tolist()
    return {
        "model": args.model,
        "method": found.method,
        "wild_type": {"id": wild_type.id, "length": len(wild_type.sequence)},
        "variants": len(variants),
        "mutations": {str(size): sizes[size] for size in sorted(sizes, key=str)},
        "passes": found.passes,
        "max_length": args.max_length,
        "windowed": found.windowed,
        "score": {"lowest": min(values), "median": median(values), "highest": max(values)},
        "measured": len(rows),
        "spearman": rank_correlation([values[row] for row in rows], measured) if rows else None,
        "out": args.out,
    }


def _told(summary: dict[str, Any]) -> str:
    """Says in one line what was done."""
    passes, score, protein = summary["passes"], summary["score"], summary["wild_type"]
    parts = [
        f"{summary['variants']:,} variants of {protein['id']} ({protein['length']:,} residues): {summary['method']},"
        f" {passes:,} pass{'es' * (passes != 1)}"
    ]
    if summary["windowed"]:
        parts.append(f"{summary['windowed']:,} variants seen in windows of {summary['max_length']:,} residues")
    parts.append(f"score from {score['lowest']:.3f} to {score['highest']:.3f}, median {score['median']:.3f}")
    if summary["spearman"] is not None:
        parts.append(f"Spearman with DMS_score {summary['spearman']:.3f} ({summary['measured']:,} rows)")
    if summary["out"] is not None:
        parts.append(f"written to {summary['out']}")
    return "; ".join(parts)
