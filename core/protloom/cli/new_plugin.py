"""``protloom new-plugin``: writes a plugin package that works, to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from protloom import scaffold
from protloom.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(scaffold.KINDS))
    parser.add_argument("name", metavar="NAME", help="of the component, such as my-objective")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder to make; default: protloom-NAME")
    common.json_option(parser)
    common.example(
        parser,
        "protloom new-plugin objective rare-residues",
        "protloom new-plugin task my-assay --out ~/work/my-assay",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the files, and tells what to do next."""
    folder = args.out or Path(f"protloom-{args.name}")
    files = scaffold.write(args.kind, args.name, folder)
    if args.json:
        common.print_json({"folder": str(folder), "files": [str(path) for path in files]})
        return 0
    words = scaffold.words_of(args.kind, args.name)
    if any(c.builtin and c.name == args.name for c in common.registry(args).components(args.kind)):
        common.warn(
            f"{args.kind} {args.name!r} means protloom's own wherever it is named so; yours is protloom-{args.name}/"
            f"{args.name}, or choose another name"
        )
    for path in files:
        print(path)
    print(f"next     pip install -e {folder}      (then 'protloom plugins' lists it)")
    print(f"         {words['USE']}")
    print(f"         pytest {folder}              (what every {args.kind} promises)")
    print(f"then     change {folder}/{words['PACKAGE']}/{words['MODULE']}{'.yaml' if args.kind == 'task' else '.py'}")
    return 0
