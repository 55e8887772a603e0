"""Draws panels as SVG: legible on white and on dark pages, and with any common form of colour blindness.

Colours begin with those of Okabe and Ito (2008) that have a contrast of at least 3 to both backgrounds (WCAG 2.2,
graphical objects); the others were searched for among those that do, as far as possible from all before under the
simulations of Machado et al. (2009). Shape tells the rest: what is second of two kinds is dashed and marked. Text
stays text, so that a page can be searched and a figure edited. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from protloom.errors import UserError
from protloom.report.wording import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9900ff", "#dd0044", "#9977ff")
"""Colour of the first, second … run or recipe; from the seventh on they come again."""
GREY = "#808080"
BETTER, WORSE = COLOURS[0], COLOURS[1]
LOG_RANGE = 20.0
"""Positive values whose largest is this many times the smallest are drawn on a logarithmic axis."""
LATE = 0.8
"""The part of an axis that has to be seen well."""
PRESSED = 3.0
"""The beginning is cut where it would make the axis so many times as long."""
MARKED = 40
"""Dashed lines of more points than this carry no marks."""
NEEDED = ("matplotlib", "jinja2")
INSTALL = "pip install 'protloom[report]'"

_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": "#404040",
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.labelcolor": "#404040",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#404040",
    "ytick.labelcolor": "#404040",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.facecolor": "none",
    "savefig.edgecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "protloom",
}


@dataclass(frozen=True)
class Series:
    """One line of a panel.

    Attributes:
        label: whose it is.
        colour: number of its colour.
        x: where its points stand.
        y: their values; NaN leaves a gap.
        kind: which of its owner's lines, such as ``training``.
        second: of two kinds the one that is dashed and marked.
    """

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    kind: str = ""
    second: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines in it.

    Attributes:
        title: what it shows.
        x_label: with the unit.
        y_label: with the unit.
        series: the lines.
        levels: dotted horizontal lines, each with its name.
        falls: what is drawn falls from a high beginning, and may be cut there or have a logarithmic axis.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = ()
    falls: bool = False

    def range(self) -> tuple[float, float] | None:
        """Returns the lowest and the highest value to be shown; None leaves it to what there is.

        That of the last :data:`LATE` of the axis, where the beginning would press it together.
        """
        points = [(x, y) for line in self.series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if not self.falls or not points:
            return None
        begin, end = min(x for x, _ in points), max(x for x, _ in points)
        late = [y for x, y in points if x >= end - LATE * (end - begin)] + [level for _, level in self.levels]
        whole = max(y for _, y in points) - min(y for _, y in points)
        low, high = min(late), max(late)
        if len(late) < 8 or whole < PRESSED * (high - low) or high == low:
            return None
        return low - 0.08 * (high - low), high + 0.25 * (high - low)


@dataclass(frozen=True)
class Difference:
    """One row of a chart of differences.

    Attributes:
        label: what was measured.
        value: the difference; positive is better.
        low: lower end of the 95 % interval; NaN where there is none.
        high: upper end.
        verdict: of :data:`protloom.scoring.VERDICTS`.
        seeds: differences of the single seeds.
    """

    label: str
    value: float
    low: float
    high: float
    verdict: str
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bar:
    """One row of a chart of quantities.

    Attributes:
        label: whose it is.
        value: at least 0.
        low: lower end of its spread.
        high: upper end.
        text: behind the bar.
        colour: number of its colour.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    colour: int = 0


def missing() -> list[str]:
    """Returns which of the packages that a page needs are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def refuse_if_missing() -> None:
    """Raises UserError if a page cannot be made, saying what to install."""
    if absent := missing():
        raise UserError(f"a page needs {' and '.join(absent)}: {INSTALL}")


# ------------------------------------------------------------------------------------------------------------- lines


def lines(panel: Panel) -> str:
    """Draws lines against a common axis; returns SVG."""
    legend = _legend(panel)
    columns, rows = _arranged([label for label, _ in legend])
    return _svg((4.8, 2.75 + 0.19 * rows), lambda figure: _draw_lines(figure, panel, legend, columns))


def _draw_lines(figure: Figure, panel: Panel, legend: Sequence[tuple[str, dict[str, Any]]], columns: int) -> None:
    from matplotlib.lines import Line2D

    axes = figure.add_subplot()
    for series in panel.series:
        axes.plot(series.x, series.y, **_look(series))
    for _, value in panel.levels:
        axes.axhline(value, **_LEVEL)
    values = [v for series in panel.series for v in series.y if math.isfinite(v)]
    shown = panel.range()
    if shown is not None:
        axes.set_ylim(*shown)
    elif len(set(values)) == 1:  # a constant is seen best from zero on
        axes.set_ylim(min(-0.05, 2 * values[0]) if values[0] <= 0 else 0.0, max(0.0, 2 * values[0]) or 1.0)
    elif panel.falls and min(values) > 0 and max(values) > LOG_RANGE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label + (" (log scale)" if axes.get_yscale() == "log" else ""))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short(value, digits=6))
    axes.margins(x=0.02)
    if legend:
        handles = [Line2D([], [], label=label, **look) for label, look in legend]
        where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
        axes.legend(handles=handles, ncols=columns, columnspacing=1.2, **where)


_LEVEL: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 1.4}


def _look(series: Series) -> dict[str, Any]:
    few = sum(math.isfinite(value) for value in series.y) <= MARKED
    # a single point is no line: it is marked
    marked = few if series.second else sum(math.isfinite(value) for value in series.y) == 1
    colour = COLOURS[series.colour % len(COLOURS)]
    return {"color": colour, "linestyle": "--" if series.second else "-", "marker": "o" if marked else ""}


def _legend(panel: Panel) -> list[tuple[str, dict[str, Any]]]:
    """Returns what has to be explained: whose lines, which kinds, which levels; nothing where there is one of each."""
    owners = {series.label: series.colour for series in panel.series}
    kinds = {series.kind: _look(series) for series in sorted(panel.series, key=lambda series: series.second)}
    found: list[tuple[str, dict[str, Any]]] = []
    if len(owners) > 1:
        found += [(_cut(label), {"color": COLOURS[at % len(COLOURS)]}) for label, at in owners.items()]
    if len(kinds) > 1:
        shared = {"color": GREY} if len(owners) > 1 else {}
        found += [(kind, {**look, **shared}) for kind, look in kinds.items()]
    return found + [(name, _LEVEL) for name in dict.fromkeys(name for name, _ in panel.levels)]


def _cut(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:24]}…{label[-15:]}"


def _arranged(labels: Sequence[str]) -> tuple[int, int]:
    """Returns columns and rows of a legend above a panel, which has room for about 68 letters in a line."""
    if not labels:
        return 1, 0
    room, handle = 68, 7
    if sum(len(label) + handle for label in labels) <= room:
        return len(labels), 1
    columns = max(1, min(len(labels), room // (max(map(len, labels)) + handle)))
    return columns, -(-len(labels) // columns)


# ------------------------------------------------------------------------------------------------------- differences


def differences(rows: Sequence[Difference], x_label: str, alike: Sequence[Difference] = ()) -> str:
    """Draws a bar for each difference with its 95 % interval; returns SVG.

    Decided bars are filled and have a full point; the others are hollow and dashed, and say so in words.

    Args:
        rows: from top to bottom.
        x_label: with the unit.
        alike: rows of other charts that shall have the same axis.
    """
    ends = [v for row in (*rows, *alike) for v in (0.0, row.value, row.low, row.high, *row.seeds) if math.isfinite(v)]
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    span = min(ends) - margin, max(ends) + margin
    return _svg((9.6, 0.95 + 0.42 * len(rows)), lambda figure: _draw_differences(figure, rows, x_label, span))


def _draw_differences(figure: Figure, rows: Sequence[Difference], x_label: str, span: tuple[float, float]) -> None:
    axes = figure.add_subplot()
    for at, row in enumerate(rows):
        _draw_difference(axes, -at, row)
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    axes.set_yticks([-at for at in range(len(rows))], [_cut(row.label) for row in rows])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlim(*span)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-9 * (span[1] - span[0]) else f"{value:+.4g}")


def _draw_difference(axes: Axes, at: float, row: Difference) -> None:
    decided = row.verdict != "undecided"
    colour = (BETTER if row.verdict == "better" else WORSE) if decided else GREY
    if decided:
        axes.barh(at, row.value, height=0.6, color=colour, alpha=0.3, linewidth=0)
    else:
        axes.barh(at, row.value, height=0.6, facecolor="none", edgecolor=colour, linestyle="--", linewidth=0.9)
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [at, at], color=colour, linewidth=2.2 if decided else 1.4)
        for end in (row.low, row.high):
            axes.plot([end, end], [at - 0.13, at + 0.13], color=colour, linewidth=1.2)
    axes.plot(row.seeds, [at - 0.2] * len(row.seeds), linestyle="", marker="|", markersize=7, color=GREY)
    axes.plot(row.value, at, marker="o", markersize=6, color=colour, fillstyle="full" if decided else "none")
    interval = f"[{row.low:+.4f}, {row.high:+.4f}]" if math.isfinite(row.low) else "no interval"
    axes.annotate(
        f"{row.value:+.4f} {interval} {row.verdict}", (1.02, at), xycoords=("axes fraction", "data"), va="center"
    )


# -------------------------------------------------------------------------------------------------------------- bars


def bars(rows: Sequence[Bar], x_label: str) -> str:
    """Draws a bar for each quantity, from zero, with its spread and a text behind it; returns SVG.

    Args:
        rows: from top to bottom.
        x_label: with the unit.
    """
    return _svg((9.6, 0.95 + 0.42 * len(rows)), lambda figure: _draw_bars(figure, rows, x_label))


def _draw_bars(figure: Figure, rows: Sequence[Bar], x_label: str) -> None:
    axes = figure.add_subplot()
    for at, row in enumerate(rows):
        colour = COLOURS[row.colour % len(COLOURS)]
        axes.barh(-at, row.value, height=0.6, color=colour, alpha=0.35, linewidth=0)
        axes.plot([row.low, row.high], [-at, -at], color=colour, linewidth=2.2)
        for end in (row.low, row.high):
            axes.plot([end, end], [-at - 0.13, -at + 0.13], color=colour, linewidth=1.2)
        axes.annotate(row.text, (1.02, -at), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks([-at for at in range(len(rows))], [_cut(row.label) for row in rows])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlim(0.0, 1.05 * max((max(row.value, row.high) for row in rows), default=1.0))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


# --------------------------------------------------------------------------------------------------------------- SVG


def _svg(inches: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Makes a figure of a size, lets ``draw`` fill it, and returns it as an SVG document."""
    import matplotlib.style
    from matplotlib.figure import Figure

    # "default" first: what a user's matplotlibrc says must not change the bytes
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        out = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


_PROLOGUE = re.compile(r"\A.*?(?=<svg )", flags=re.DOTALL)
_OWN_STYLE = re.compile(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", flags=re.DOTALL)
_SIZE = re.compile(r"(<svg )([^>]*?)width=\"[^\"]*\" height=\"[^\"]*\" ")


def inline(svg: str, prefix: str, label: str) -> str:
    """Returns an SVG document as an element of a page.

    Args:
        svg: the document.
        prefix: goes before its ids, which are those of every figure otherwise.
        label: what a screen reader says.
    """
    from markupsafe import escape

    body = _OWN_STYLE.sub("", _PROLOGUE.sub("", svg), count=1)
    body = _SIZE.sub(lambda found: f'{found[1]}role="img" aria-label="{escape(label)}" {found[2]}', body, count=1)
    body = body.replace(' id="', f' id="{prefix}-').replace("url(#", f"url(#{prefix}-")
    return body.replace('href="#', f'href="#{prefix}-').rstrip() + "\n"
