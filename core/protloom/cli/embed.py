"""``protloom embed``: writes the features that a network gives to sequences."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.allocator import keep_freed_memory
from protloom.cli import common, network
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.data.records import Source
    from protloom.embedding import Embedder
    from protloom.embedding.corpus import Summary

POOLS = ("mean", "max", "cls", "none")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="F", help="FASTA, CSV, TSV, Parquet (.gz, .zst too), a store, '-', or demo:")
    parser.add_argument("-o", "--out", metavar="F", type=Path, required=True, help=".h5 (.hdf5), .npz or .parquet")
    parser.add_argument("--model", metavar="M", required=True, help="a run, a checkpoint, a folder, a file or a hub id")
    parser.add_argument(
        "--pool", choices=POOLS, default="mean", help="one vector a sequence; none: one a residue (mean)"
    )
    parser.add_argument("--layer", type=int, metavar="K", help="hidden state: 0 embedding … depth, or -1 … (final)")
    parser.add_argument("--prefix", metavar="NAME", help="what stands before each sequence, e.g. NLU or S2S (Ankh3)")
    parser.add_argument("--include-specials", action="store_true", help="mean and max see the special symbols too")
    parser.add_argument(
        "--max-length", type=int, default=1024, metavar="N", help="residues that the network sees at once (1024)"
    )
    parser.add_argument(
        "--long",
        choices=("auto", "crop", "window", "skip"),
        default="auto",
        help="longer sequences: their first N residues; overlapping windows; or left out (crop; window for none)",
    )
    network.options(parser)
    parser.add_argument("--column", metavar="C", help="sequence column of a table")
    parser.add_argument("--strict", action="store_true", help="refuse input that would be changed or dropped")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file; without it an .h5 file is continued"
    )
    common.json_option(parser)
    common.example(
        parser,
        "protloom embed proteins.fasta -o proteins.h5 --model runs/first",
        "protloom embed proteins.fasta -o residues.h5 --model facebook/esm2_t12_35M_UR50D --pool none --long window",
    )


def run(args: argparse.Namespace) -> int:
    """Embeds the sequences and prints what was done."""
    from protloom.data.records import Source
    from protloom.embedding.corpus import embed_corpus
    from protloom.embedding.files import check_target, open_embeddings
    from protloom.subjects import open_subjects

    if args.include_specials and args.pool in ("none", "cls"):
        raise UserError(f"--include-specials has no meaning with --pool {args.pool}: use mean or max")
    network.refuse_sizes(args)
    if args.max_length < 1:
        raise UserError(f"--max-length {args.max_length}: must be at least 1")
    check_target(args.out, overwrite=args.overwrite)  # before the long part
    registry = common.registry(args)
    source = Source(args.source, registry, column=args.column, strict=args.strict)
    embedder, _, notes = open_subjects(
        args.model,
        registry,
        layer=args.layer,
        device=args.device,
        precision=args.precision,
        tokens_per_batch=args.tokens_per_batch,
        max_length=args.max_length,
        long_policy=args.long,
        prefix=args.prefix,
        twin=None,
    )
    for note in notes:
        common.warn(note)
    if embedder.device.type == "cpu":
        keep_freed_memory()  # an allocator that cannot is as good as before
    if args.pool == "cls":
        embedder.pooled([], "cls")  # says at once if there is no first symbol
    with open_embeddings(
        args.out,
        _settings(args, embedder),
        embedder.width,
        pooled=args.pool != "none",
        overwrite=args.overwrite,
    ) as file:
        summary = embed_corpus(
            source.entries(),
            embedder,
            file,
            pool=args.pool,
            include_specials=args.include_specials,
            progress=_show if sys.stderr.isatty() else None,
        )
    _report(args, source, embedder, summary)
    return 0


def _settings(args: argparse.Namespace, embedder: Embedder) -> dict[str, Any]:
    """Returns what identifies the values; not how they were computed fast, nor the name of the model's folder."""
    known = embedder.provenance
    dtype = "float32" if embedder.dtype is None else str(embedder.dtype).removeprefix("torch.")
    return {
        "architecture": known["architecture"],
        "weights": known["weights"],
        "tokenizer": embedder.tokenizer.fingerprint,
        "prefix": embedder.tokenizer.decode(embedder.prefix),
        "layer": embedder.layer,
        "pool": args.pool,
        "include_specials": args.include_specials,
        "max_length": args.max_length,
        "long": args.long,
        "precision": dtype,
        "width": embedder.width,
    }


def _show(summary: Summary) -> None:
    speed = summary.tokens / max(summary.seconds, 1e-9)
    print(f"\r{summary.ids:,} sequences, {speed:,.0f} tokens/s", end="\r", file=sys.stderr, flush=True)


def _report(args: argparse.Namespace, source: Source, embedder: Embedder, summary: Summary) -> None:
    speed = summary.tokens / max(summary.seconds, 1e-9)
    long = {word: embedder.counts[word] for word in ("cropped", "windowed")}
    if args.json:
        common.print_json(
            {
                "file": args.out,
                "records": source.tally.read,
                "policies": source.tally.as_dict(),
                "sequences": summary.ids,
                "added": summary.added,
                "already_there": summary.present,
                "skipped": summary.skipped,
                **long,
                "tokens": summary.tokens,
                "seconds": summary.seconds,
                "tokens_per_second": speed,
                "width": embedder.width,
                "layer": embedder.layer,
            }
        )
        return
    rows = [(f"{n:,}", rule, first) for rule, n, first in source.tally.table()]
    if rows:
        common.print_table(("records", "policy", "first"), rows)
    parts = [f"{summary.added:,} added"]
    parts += [f"{n:,} {what}" for n, what in ((summary.present, "already there"), (summary.skipped, "skipped")) if n]
    print(f"{args.out}: {source.tally.read:,} records read, {', '.join(parts)}")
    details = [f"{n:,} {word} (longer than {args.max_length:,})" for word, n in long.items() if n]
    shape = "residues x " if args.pool == "none" else ""
    details += [f"{shape}{embedder.width} float32 of layer {embedder.layer}, pool {args.pool}"]
    print(f"{'; '.join(details)}; {summary.tokens:,} tokens in {summary.seconds:,.1f} s, {speed:,.0f} tokens/s")
