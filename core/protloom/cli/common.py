"""What several commands share: the registry of a command line, plain tables, JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from protloom.data.policies import Tally
    from protloom.plugins import Registry


def registry(args: argparse.Namespace) -> Registry:
    """Loads the plugins for a command line; raises UserError if ``--no-plugin`` names none."""
    from protloom.plugins import Registry

    blocked: Sequence[str] = args.no_plugin
    found = Registry.discover(disabled=blocked)
    for name in blocked:
        if not found.named(name):
            known = {text for p in found.plugins for text in (p.distribution, p.name, p.full_name)}
            raise UserError(f"--no-plugin: there is no plugin {name!r}.{did_you_mean(name, known)}")
    return found


def fail(message: str, *, exit_code: int = 2) -> NoReturn:
    """Ends the command with one line on stderr."""
    raise UserError(message, exit_code=exit_code)


def warn(message: str) -> None:
    """Prints one line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def json_option(parser: argparse.ArgumentParser) -> None:
    """Declares ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def pause_option(parser: argparse.ArgumentParser) -> None:
    """Declares ``--pause-at``."""
    parser.add_argument(
        "--pause-at",
        metavar="UNIT=NUMBER",
        help="save and stop once so much is done, for 'resume' to go on: seconds, steps, tokens or flops",
    )


def example(parser: argparse.ArgumentParser, *lines: str) -> None:
    """Sets the examples that ``--help`` ends with, a line each."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON in ASCII; a number that is not finite becomes null, as JSON has none."""
    from protloom.plain_data import plain

    print(json.dumps(plain(value), indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, out: IO[str] | None = None) -> None:
    """Prints columns aligned to the left; on a terminal the last one is wrapped to the window.

    Args:
        header: a title for every column.
        rows: as many cells in each.
        out: where to; stdout by default.
    """
    stream = sys.stdout if out is None else out
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    indent = sum(widths[:-1]) + 2 * (len(header) - 1)
    room = shutil.get_terminal_size().columns - indent if stream.isatty() else 0
    for line in lines:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(line[:-1], widths, strict=False))
        last = textwrap.wrap(line[-1], room) if room >= 20 else [line[-1]]
        print((start + (last[0] if last else "")).rstrip(), file=stream)
        for more in last[1:]:
            print(" " * indent + more, file=stream)


def warn_of_cleaning(tally: Tally) -> None:
    """Tells on stderr what the cleaning policies changed or dropped."""
    for rule, n, first in tally.table():
        warn(f"{n:,} record{'s' * (n != 1)} of {tally.read:,}: {rule} (first: {first})")
