"""``protloom preview``: shows what an objective makes of a sequence."""

from __future__ import annotations

import argparse

from protloom.cli.common import example, registry


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("objective", metavar="OBJECTIVE", help="an objective, e.g. mlm")
    parser.add_argument("options", nargs="*", metavar="key=value", help="its options, e.g. mask_rate=0.3")
    parser.add_argument("--sequence", action="append", required=True, metavar="MKT…", help="residues (repeatable)")
    parser.add_argument("--arch", metavar="NAME[:SIZE]", help="architecture whose tokenizer is used")
    parser.add_argument("--seed", type=int, default=0, help="the run's seed")
    parser.add_argument("--epoch", type=int, default=0, help="how often the sequence was seen before")
    example(parser, "protloom preview mlm mask_rate=0.3 --sequence MKTAYIAKQRQISFVKSHFSRQ")


def run(args: argparse.Namespace) -> int:
    """Prints the aligned rows."""
    import shutil

    from protloom.errors import UserError
    from protloom.preview import preview

    for text in args.options:
        if "=" not in text:
            raise UserError(f"preview: {text!r} is not key=value, e.g. mask_rate=0.3")
    for number, sequence in enumerate(args.sequence, 1):
        if not sequence:
            raise UserError(f"preview: sequence {number} is empty: give residues, e.g. --sequence MKTAYIAKQR")
        odd = next((at for at, sign in enumerate(sequence, 1) if not (sign.isascii() and sign.isalpha())), None)
        if odd is not None:
            found = f"{sequence[odd - 1]!r} at position {odd}"
            raise UserError(f"preview: sequence {number} has {found}: residues are letters A-Z; training drops it")
    shown = preview(
        [sequence.upper() for sequence in args.sequence],  # as when a corpus is read
        registry(args),
        objective=args.objective,
        options=args.options,
        architecture=args.arch,
        seed=args.seed,
        epoch=args.epoch,
    )
    width = shutil.get_terminal_size((100, 24)).columns
    print("\n\n".join(rows.text(width) for rows in shown))
    return 0
