"""``protloom data``: builds stores, tells what is in them and in test sets, and writes the simulated proteome."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common, corpora, data_fetch, data_overlap

if TYPE_CHECKING:
    from protloom.data.store import Store

FASTA_ENDINGS = (".fasta", ".fa", ".faa", ".fas", ".fasta.gz", ".fa.gz", ".faa.gz", ".fas.gz")
STANDARD = "ACDEFGHIKLMNPQRSTVWY"
SIMULATED = "SIMULATED sequences, made by a program: good for trying things out, not natural proteins"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    common.example(
        parser,
        "protloom data prepare proteins.fasta.gz --out corpus",
        "protloom data inspect corpus",
        "protloom data demo --n 20000 --out demo.fasta",
        "protloom data fetch solubility --out data",
        "protloom data overlap corpus --data-dir data --out drop.tsv",
    )
    metavar = "prepare|inspect|demo|fetch|overlap|duplicates"
    commands = parser.add_subparsers(dest="action", metavar=metavar, required=True)
    _configure_prepare(commands.add_parser("prepare", help="turn a sequence file into a store"))
    _configure_inspect(commands.add_parser("inspect", help="tell what is in a store or a file"))
    _configure_demo(commands.add_parser("demo", help="write the simulated proteome"))
    data_fetch.configure(commands)
    data_overlap.configure(commands)


def _configure_prepare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cleans sequences, counts what was changed or dropped, and writes a store for training. Several sources make "
        "one store, as if they stood one after the other in one file; the counts are told for each."
    )
    parser.add_argument(
        "sources", nargs="+", metavar="F", help="FASTA, CSV, TSV or Parquet (.gz, .zst too), '-', demo:, a store"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make; an older store is replaced")
    parser.add_argument("--strict", action="store_true", help="refuse what would be changed or dropped")
    parser.add_argument("--column", metavar="C", help="sequence column of a table")
    parser.add_argument("--drop", metavar="LIST", help="ids to leave out: one a line, or the first column of a TSV")
    parser.add_argument("--licence", metavar="TEXT", help="a line for the manifest, such as 'UniProt, CC BY 4.0'")
    common.json_option(parser)
    common.example(
        parser,
        "protloom data prepare proteins.fasta.gz --out corpus --licence 'UniProt, CC BY 4.0'",
        "protloom data prepare uniref.fasta.gz proteomes.fasta.zst designs.csv --out corpus",
        "zcat part*.gz | protloom data prepare - --out corpus",
        "protloom data prepare table.csv --column primary --out corpus --strict",
        "protloom data prepare corpus --drop drop.tsv --out cleaned",
    )


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = "Tells what is in a corpus. A store is read through and compared with its hashes."
    parser.add_argument("source", metavar="STORE|FILE", help="a store folder, a file of sequences, or demo:")
    parser.add_argument("--strict", action="store_true", help="refuse a file that is not clean")
    parser.add_argument("--column", metavar="C", help="sequence column of a table")
    parser.add_argument("--cache-dir", metavar="DIR", help="where a file's store is built and kept")
    common.json_option(parser)
    common.example(parser, "protloom data inspect corpus", "protloom data inspect proteins.fasta --json")


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Writes the simulated proteome: {SIMULATED}."
    parser.add_argument("--n", type=int, default=20000, metavar="N", help="number of sequences (20000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the simulation (0)")
    parser.add_argument("--out", required=True, metavar="F.fasta|DIR", help="a FASTA file, or a store folder")
    common.json_option(parser)
    common.example(parser, "protloom data demo --n 2000 --out demo.fasta", "protloom data demo --out demo-store")


def run(args: argparse.Namespace) -> int:
    """Does what was asked."""
    own = {"prepare": _prepare, "inspect": _inspect, "demo": _demo, "fetch": data_fetch.run}
    return own[args.action](args) if args.action in own else data_overlap.run(args)


# -------------------------------------------------------------------------------------------------------------- prepare


def _prepare(args: argparse.Namespace) -> int:
    from protloom.data import store as stores
    from protloom.data.drop import DropList

    corpora.refuse_twice(args.sources)
    drop = None if args.drop is None else DropList.read(args.drop)
    registry = common.registry(args)
    columns = corpora.columns_of(args.sources, args.column)
    inputs = [stores.open_input(source, registry, columns[source]) for source in args.sources]
    store = stores.build_joined(
        inputs, args.out, strict=args.strict, licence=args.licence, drop=drop, progress=_progress()
    )
    return _report(store, args)


def _report(store: Store, args: argparse.Namespace) -> int:
    manifest = store.manifest
    if args.json:
        common.print_json({"store": store.path, **manifest})
        return 0
    if manifest["simulated"]:
        print(SIMULATED)
    read, several = manifest["policies"]["read"], len(manifest["sources"])
    name = store.name if several == 1 else f"{several} sources"
    print(f"{name}: {read:,} records read, {len(store):,} sequences kept, {manifest['residues']:,} residues")
    _print_policies(manifest)
    _warn_of_ids(manifest)
    for note in notes(manifest):
        common.warn(note)
    print(f"store    {store.path}")
    print(f"next     protloom data inspect {store.path}")
    print(f"         protloom train --data {store.path} --arch esm2:8M")
    return 0


def _print_policies(manifest: Mapping[str, Any]) -> None:
    header = ("records", "policy", "first")
    if len(manifest["sources"]) > 1:
        return _print_sources(manifest, header)
    rows = _policy_rows(manifest["policies"]["rules"])
    if rows:
        common.print_table(header, rows)
    else:
        print("nothing was changed or dropped")
    return None


def _print_sources(manifest: Mapping[str, Any], header: tuple[str, ...]) -> None:
    """Tells of each source of several how much was read and kept, and what was changed or dropped."""
    sources = manifest["sources"]
    stated = [str(source.get("name", "?")) for source in sources]
    # two files of one name in different folders
    names = [name if stated.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(stated, start=1)]
    common.print_table(
        ("source", "records read", "sequences kept", "residues"),
        [
            (name, f"{source['read']:,}", f"{source['sequences']:,}", f"{source['residues']:,}")
            for name, source in zip(names, sources, strict=True)
        ],
    )
    rows = [(name, *row) for name, source in zip(names, sources, strict=True) for row in _policy_rows(source["rules"])]
    print()
    if rows:
        common.print_table(("source", *header), rows)
    else:
        print("nothing was changed or dropped")


def _policy_rows(rules: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (f"{facts['records']:,}", facts["rule"], facts.get("first", "")) for facts in rules.values() if facts["records"]
    ]


def _warn_of_ids(manifest: Mapping[str, Any]) -> None:
    """Tells which ids of a list of what to drop are not in the corpus."""
    drop = manifest["policies"].get("drop")
    if drop is not None and drop["not_found"]:
        first = drop["first_not_found"]
        shown = ", ".join(map(repr, first)) + (", ..." if drop["not_found"] > len(first) else "")
        common.warn(f"{drop['not_found']:,} of {drop['ids']:,} ids of {drop['name']} are not in the corpus: {shown}")


def _progress() -> Callable[[int], None] | None:
    """Returns a counter on stderr, on a terminal only."""
    if not sys.stderr.isatty():
        return None
    shown = 0

    def show(read: int) -> None:
        nonlocal shown
        if read - shown >= 100_000:
            shown = read
            print(f"\r{read:,} records", end="\r", file=sys.stderr, flush=True)

    return show


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """Returns what a user should know about a corpus that is valid but unusual."""
    composition, total = manifest["composition"], manifest["residues"]
    found = []
    nucleotides = sum(composition.get(letter, 0) for letter in "ACGTUN") / total
    if nucleotides > 0.95:
        found.append(
            f"{nucleotides:.1%} of the letters are A, C, G, T, U or N: these look like nucleotides, not proteins"
        )
    repeated = manifest["policies"]["rules"]["repeated_sequence"]["records"]
    if repeated > 0.05 * manifest["sequences"]:
        found.append(f"{repeated:,} of {manifest['sequences']:,} sequences repeat another one: consider clustering")
    return found


# -------------------------------------------------------------------------------------------------------------- inspect


def _inspect(args: argparse.Namespace) -> int:
    from protloom.data.store import open_corpus

    store = open_corpus(
        args.source,
        cache_dir=args.cache_dir,
        strict=args.strict,
        column=args.column,
        registry=common.registry(args),
        progress=_progress(),
    )
    store.verify()
    manifest = store.manifest
    if args.json:
        common.print_json({"store": store.path, "verified": True, "entropy_nats": _entropy(manifest), **manifest})
        return 0
    if manifest["simulated"]:
        print(SIMULATED)
    common.print_table(("corpus", store.name), list(_facts(store)))
    print()
    _print_policies(manifest)
    for note in notes(manifest):
        common.warn(note)
    return 0


def _facts(store: Store) -> list[tuple[str, str]]:
    manifest = store.manifest
    quantiles, composition = manifest["lengths"]["quantiles"], manifest["composition"]
    rare = {letter: n for letter, n in composition.items() if letter not in STANDARD}
    common_first = sorted((x for x in composition if x in STANDARD), key=lambda x: -composition[x])
    sources = [
        f"{s['name']}{' sha256 ' + s['sha256'][:16] + '…' if 'sha256' in s else ''}" for s in manifest["sources"]
    ]
    return [
        ("store", f"{store.path} (read through: sound)"),
        ("source", "; ".join(sources)),
        ("licence", manifest["licence"] or "not stated"),
        ("sequences", f"{len(store):,}" + (f" in {store.n_groups:,} groups" if store.groups is not None else "")),
        ("residues", f"{manifest['residues']:,}"),
        ("lengths", f"mean {manifest['lengths']['mean']}; " + ", ".join(f"{q} % {v}" for q, v in quantiles.items())),
        ("composition", " ".join(f"{x} {composition[x] / manifest['residues']:.1%}" for x in common_first)),
        ("other letters", " ".join(f"{x} {n:,}" for x, n in rare.items()) or "none"),
        ("entropy", f"{_entropy(manifest):.4f} nats a residue: what a model that knows only the composition reaches"),
        ("content", store.content_hash),
        ("made by", manifest["created_by"]),
    ]


def _entropy(manifest: Mapping[str, Any]) -> float:
    """Returns the unigram entropy in nats."""
    shares = [n / manifest["residues"] for n in manifest["composition"].values() if n]
    return -math.fsum(p * math.log(p) for p in shares)


# ----------------------------------------------------------------------------------------------------------------- demo


def _demo(args: argparse.Namespace) -> int:
    uri = f"demo:?n={args.n}&seed={args.seed}"
    from protloom.data.store import build_joined, open_input, uri_records

    registry = common.registry(args)
    if not args.out.lower().endswith(FASTA_ENDINGS):
        return _report(build_joined([open_input(uri, registry)], args.out, progress=_progress()), args)
    from protloom.data.fasta import write_fasta

    records, origin = uri_records(uri, registry)
    count = write_fasta(records, Path(args.out))
    if args.json:
        common.print_json({"file": args.out, "sequences": count, **origin})
        return 0
    print(SIMULATED)
    print(f"wrote    {args.out}: {count:,} sequences ({uri})")
    print(f"next     protloom train --data {args.out} --arch esm2:mini")
    return 0
