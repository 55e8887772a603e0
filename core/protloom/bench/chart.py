"""The result of a measurement as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from protloom.errors import UserError
from protloom.report import charts


def refuse_if_missing() -> None:
    """Raises UserError if a chart cannot be drawn, saying what to install."""
    if find_spec("matplotlib") is None:
        raise UserError(f"--chart needs matplotlib: {charts.INSTALL}")


def draw(result: Mapping[str, Any]) -> str:
    """Returns SVG: a bar of tokens a second for each variant, with its quartiles; each program in a colour."""
    colours: dict[str, int] = {}
    bars = []
    for one in result["variants"]:
        speed = one["tokens_per_second"]
        text = f"{speed['median']:,.0f}  (× {one['times_the_first']['median']:.2f})"
        colour = colours.setdefault(one["program"], len(colours))
        name = one["name"] if one["precision"] in one["name"] else f"{one['name']} · {one['precision']}"
        bars.append(charts.Bar(name, speed["median"], speed["lower"], speed["upper"], text, colour))
    settings = result["settings"]
    return charts.bars(bars, f"{settings['architecture']}: tokens a second in training, without padding")
