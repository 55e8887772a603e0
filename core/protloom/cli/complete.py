"""``protloom complete``: lets a model write the rest of proteins and compares it with the true rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common, network
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.completion import Comparison, Completion, Identity
    from protloom.contracts import Record
    from protloom.data.records import Entry

DEFAULT_PREFIX = "S2S"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="F", help="FASTA, CSV, TSV, Parquet (.gz, .zst too), a store, '-', or demo:")
    parser.add_argument("--keep", type=float, required=True, metavar="X", help="share of each that is given: 0.5")
    parser.add_argument("--model", metavar="M", required=True, help="a run, a checkpoint, a folder, a file or a hub id")
    parser.add_argument("-o", "--out", metavar="F.fasta", type=Path, help="FASTA to write (new); else standard output")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest residue; above: drawn (0)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that have probability P")
    parser.add_argument("--beam", type=int, default=1, metavar="N", help="look for the likeliest rest with N beams (1)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most residues to write (twice what --keep lets expect, and 16)"
    )
    parser.add_argument(
        "--prefix", metavar="NAME", help=f"what stands before the beginning ({DEFAULT_PREFIX} where there is one)"
    )
    network.options(parser)
    parser.add_argument("--column", metavar="C", help="sequence column of a table")
    parser.add_argument("--strict", action="store_true", help="refuse input that would be changed or dropped")
    common.json_option(parser)
    common.example(
        parser,
        "protloom complete proteins.fasta --keep 0.5 --model runs/ankh3 -o completed.fasta",
        "protloom complete proteins.fasta --keep 0.3 --model runs/ankh3 --temperature 0.8 --top-p 0.95 --seed 1",
    )


def run(args: argparse.Namespace) -> int:
    """Completes the sequences, writes them and prints how near they come to the true ones."""
    from protloom.completion import Comparison, complete, cut
    from protloom.data.fasta import write_fasta
    from protloom.data.records import Source
    from protloom.generation import Decoding
    from protloom.subjects import prefix_ids

    cut("", args.keep)  # says at once what is wrong with it
    network.refuse_mistakes(args)
    decoding = Decoding(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, beams=args.beam, seed=args.seed
    )
    registry = common.registry(args)
    source = Source(args.source, registry, column=args.column, strict=args.strict)
    pretrained, dtype = network.open_network(args, registry, "complete")
    tokenizer = pretrained.tokenizer
    prefix = args.prefix
    if prefix is None and DEFAULT_PREFIX in getattr(tokenizer, "prefixes", {}):
        prefix = DEFAULT_PREFIX
    short: list[str] = []
    completions = complete(
        pretrained.architecture,
        tokenizer,
        _long_enough(source.entries(), args.keep, short),
        args.keep,
        decoding,
        max_length=args.max_length,
        prefix=None if prefix is None else prefix_ids(tokenizer, prefix),
        tokens_per_batch=args.tokens_per_batch,
        dtype=dtype,
    )
    comparison = Comparison()
    records = _records(completions, comparison)
    if args.out is not None:
        write_fasta(records, args.out)
    else:
        for record in records:
            if not args.json:
                print(f">{record.id}\n{record.residues.decode()}", flush=True)
    common.warn_of_cleaning(source.tally)
    if short:
        common.warn(f"{len(short):,} sequences are too short to cut at {args.keep} and left out, first {short[0]!r}")
    _report(args, comparison, len(short))
    return 0


def _long_enough(entries: Iterable[Entry], keep: float, short: list[str]) -> Iterator[Entry]:
    """Passes sequences that can be cut and gathers the ids of the others."""
    from protloom.completion import cut

    passed = False
    for entry in entries:
        if cut(entry.sequence, keep)[0]:
            passed = True
            yield entry
        else:
            short.append(entry.id)
    if not passed:
        raise UserError(f"no sequence is long enough to be cut at {keep}; the first is {short[0]!r}")


def _records(completions: Iterable[Completion], comparison: Comparison) -> Iterator[Record]:
    """Counts completions as they pass and gives them as FASTA records."""
    from protloom.contracts import Record

    for done in completions:
        comparison.add(done)
        facts = {
            "kept": len(done.kept),
            "written": len(done.written),
            "true": len(done.truth),
            "identity": f"{done.equal / len(done.truth):.4f}",
            "ended": "yes" if done.ended else "no",
        }
        header = " ".join([done.id, *(f"{key}={value}" for key, value in facts.items())])
        yield Record(header, (done.kept + done.written).encode())


def _report(args: argparse.Namespace, comparison: Comparison, short: int) -> None:
    """Prints identities beside the floors: on stdout, or on stderr where that holds the sequences."""
    result = comparison.result()
    if args.json:
        common.print_json(_document(args, comparison, result, short))
        return
    out = sys.stdout if args.out is not None else sys.stderr
    rows = []
    for name, what in (
        ("model", "written by the model"),
        ("unigram", f"{comparison.commonest} everywhere, the commonest residue of the beginnings"),
        ("copy", "the beginning once more"),
    ):
        found = result[name]
        gap = ""
        if found.ahead is not None and found.interval is not None:
            gap = f"{found.ahead:+.4f} [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]"
        rows.append((name, f"{found.value:.4f}", f"{found.equal:,} of {found.positions:,}", gap, what))
    common.print_table(("rest", "identity", "positions", "model minus this", "what it is"), rows, out=out)
    print(
        f"{comparison.sequences:,} sequences, {comparison.kept:,} residues given, {comparison.written:,} written; "
        f"{comparison.ended:,} rests ended by the model, the others cut; identity without alignment",
        file=out,
    )
    if args.out is not None:
        print(f"sequences: {args.out}")


def _document(
    args: argparse.Namespace, comparison: Comparison, result: Mapping[str, Identity], short: int
) -> dict[str, Any]:
    return {
        "model": args.model,
        "keep": args.keep,
        "file": args.out,
        "sequences": comparison.sequences,
        "too_short": short,
        "kept": comparison.kept,
        "written": comparison.written,
        "ended": comparison.ended,
        "commonest": comparison.commonest,
        "identity": {
            name: {
                "value": found.value,
                "equal": found.equal,
                "positions": found.positions,
                "model_minus_this": found.ahead,
                "interval": found.interval,
            }
            for name, found in result.items()
        },
    }
