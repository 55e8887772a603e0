"""The result of a measurement as tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from protloom.memory import readable

WIDE = 120
"""Columns where the output is no terminal."""


def show(result: Mapping[str, Any], out: IO[str] | None = None) -> None:
    """Prints the tables and notes of a document."""
    from rich.console import Console

    stream = sys.stdout if out is None else out
    console = Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False, markup=False)
    console.print(headline(result), soft_wrap=True)
    console.print(_table(*variants(result["variants"])))
    console.print(_table(*parts(result["variants"])))
    for name, rows in result.get("sweep", {}).items():
        console.print(f"over lengths: {name}", soft_wrap=True)
        console.print(_table(*lengths(rows)))
    for note in result["notes"]:
        console.print(f"- {note}", soft_wrap=True)


def headline(result: Mapping[str, Any]) -> str:
    """Returns what was measured, how and where, in a few lines."""
    from protloom import machine

    settings = result["settings"]
    lengths = "" if settings["lengths"] == "real" else f", {settings['lengths']} residues"
    peaks = ", ".join(f"{name} {flops / 1e9:,.0f}" for name, flops in result["matmul_flops_per_second"].items())
    return "\n".join(
        [
            f"{settings['architecture']}, {settings['parameters'] / 1e6:,.2f} M parameters, "
            f"{settings['tokens_per_step']:,} tokens a step; {settings['corpus']}{lengths}",
            f"{machine.words(result['machine'])}; a large matrix product: {peaks} GFLOP/s",
            f"medians of {settings['rounds']} rounds in turns, {settings['steps_per_round']} "
            f"step{'s' * (settings['steps_per_round'] > 1)} each, after {settings['warm_up_steps']} to warm up; in "
            "brackets quartiles of the rounds, and the interval of a ratio",
        ]
    )


def variants(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table of variants."""
    rows = []
    for one in found:
        speed, times = one["tokens_per_second"], one["times_the_first"]
        rows.append(
            [
                _name(one),
                f"{speed['median']:,.0f} [{speed['lower']:,.0f}–{speed['upper']:,.0f}]",
                f"{times['median']:.2f} [{times['low']:.2f}–{times['high']:.2f}]",
                f"{100 * one['mfu']:.0f} %",
                f"{100 * one['padding_share']:.0f} %",
                readable(one["memory"]["peak_bytes"]),
            ]
        )
    return ["variant", "tokens/s", "× first", "MFU", "padding", "memory"], rows


def parts(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table of where a step's time goes."""
    names = list(found[0]["breakdown"])
    rows = []
    for one in found:
        whole = sum(one["breakdown"].values())
        shares = [f"{100 * one['breakdown'][part] / whole:.1f}" for part in names]
        rows.append([_name(one), f"{1e3 * whole:,.1f}", *shares])
    return ["variant", "ms a step", *(f"% {name}" for name in names)], rows


def _name(one: Mapping[str, Any]) -> str:
    if "form" in one:
        return f"{one['name']} ({one['form']})"
    return one["name"] if one["precision"] in one["name"] else f"{one['name']} ({one['precision']})"


def lengths(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table of a variant over lengths."""
    header = ["residues", "tokens/s", "µs a token", "× shortest", "× by FLOPs", "MFU"]
    return header, [
        [
            f"{row['length']:.0f}",
            f"{1 / row['seconds_per_token']:,.0f}",
            f"{1e6 * row['seconds_per_token']:,.1f}",
            f"{row['times_the_shortest']:.2f}",
            f"{row['times_by_flops']:.2f}",
            f"{100 * row['mfu']:.0f} %",
        ]
        for row in rows
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Returns a table whose first column holds words, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, title in enumerate(header):
        table.add_column(title, justify="right" if at else "left", overflow="fold", no_wrap=at > 0)
    for row in rows:
        table.add_row(*row)
    return table
