"""``protloom generate``: lets a trained model write new sequences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common, network
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.contracts import Record
    from protloom.plugins import Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", metavar="MODEL", help="a run, a checkpoint, a folder, a file or a hub id")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="options of the generator, e.g. temperature=0.9"
    )
    parser.add_argument("--length", type=int, metavar="L", help="residues of each sequence")
    parser.add_argument("--like", metavar="F", help="as many residues as the sequences of this file have, one by one")
    parser.add_argument("--n", type=int, metavar="N", help="sequences (5; with --like: as many as the file has)")
    parser.add_argument(
        "--generator", metavar="NAME", help="how to write; default: the way that is for the model's objective"
    )
    parser.add_argument("-o", "--out", metavar="F.fasta", type=Path, help="FASTA to write (new); else standard output")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    network.options(parser)
    common.json_option(parser)
    common.example(
        parser,
        "protloom generate runs/diffusion --n 5 --length 120",
        "protloom generate runs/diffusion steps=128 temperature=0.9 --like proteins.fasta --seed 1 -o written.fasta",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the sequences."""
    network.refuse_mistakes(args)
    registry = common.registry(args)
    lengths = _lengths(args, registry)
    from protloom import generators
    from protloom.data.fasta import write_fasta

    chosen = generators.choose(args.model, args.generator, _options(args.options), registry)
    pretrained, dtype = network.open_network(args, registry, "generate")
    written = generators.generate(
        chosen,
        pretrained.architecture,
        pretrained.tokenizer,
        lengths,
        seed=args.seed,
        tokens_per_batch=args.tokens_per_batch,
        dtype=dtype,
    )
    about = {"model": args.model, "generator": chosen.section(), "seed": args.seed}
    records = _records(written, args.seed)
    if args.out is not None:
        found = write_fasta(records, args.out)
        if args.json:
            common.print_json({**about, "file": args.out, "sequences": found})
        else:
            print(f"sequences: {args.out}  ({found:,}, by {chosen.name})")
    elif args.json:
        common.print_json({**about, "sequences": [record.residues.decode() for record in records]})
    else:
        for record in records:
            print(f">{record.id}\n{record.residues.decode()}", flush=True)
        print(f"{len(lengths):,} sequences, by {chosen.name}", file=sys.stderr)
    return 0


def _lengths(args: argparse.Namespace, registry: Registry) -> Sequence[int]:
    """Returns the residues of each sequence that is asked for."""
    if (args.length is None) == (args.like is None):
        raise UserError("how long? Give --length L, or --like FILE for the lengths of its sequences, and not both")
    if args.n is not None and args.n < 1:
        raise UserError(f"--n {args.n}: must be at least 1")
    if args.length is not None:
        if args.length < 1:
            raise UserError(f"--length {args.length}: must be at least 1")
        return [args.length] * (5 if args.n is None else args.n)
    from protloom.data.records import Source

    source = Source(args.like, registry)
    found: list[int] = []
    for entry in source.entries():
        found.append(len(entry.sequence))
        if len(found) == args.n:
            break
    common.warn_of_cleaning(source.tally)
    if args.n is not None and len(found) < args.n:
        raise UserError(f"--n {args.n}: {args.like} holds {len(found):,} sequences")
    return found


def _options(words: Sequence[str]) -> dict[str, Any]:
    from protloom.config.source import split_override

    options: dict[str, Any] = {}
    for word in words:
        keys, value = split_override(word)
        options[".".join(keys)] = value
    return options


def _records(written: Iterator[str], seed: int) -> Iterator[Record]:
    from protloom.contracts import Record

    for number, sequence in enumerate(written, start=1):
        yield Record(f"generated-{number} length={len(sequence)} seed={seed}", sequence.encode())
