"""From logged lines to figures: losses, collapse, rates, speed; each with its numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protloom.report import charts
from protloom.report.charts import Panel, Series
from protloom.report.page import Drawing, Figure
from protloom.report.run_facts import VALIDATION, Line, Run, number

POINTS = 400
"""A line of more points is drawn with the means of so many groups of neighbours."""
STATES = {"rank": "effective rank", "std": "mean standard deviation", "cosine": "mean cosine of two"}
"""What of latent states is drawn (see :mod:`protloom.collapse`); the CSV has all of it."""
_OF_STATES = ("rank", "stable_rank", "std", "std_min", "cosine", "dead")
_COLUMNS = ("run", "lines of", "step", "tokens", "seconds")


@dataclass(frozen=True)
class Drawn:
    """A run as figures show it.

    Attributes:
        run: the run.
        label: whose line it is: of the run, or of its recipe.
        colour: number of its colour.
    """

    run: Run
    label: str
    colour: int


@dataclass(frozen=True)
class _Axis:
    """What a panel has below it: ``steps``, ``tokens`` or ``seconds``, shown in units of ``divisor``."""

    unit: str
    label: str
    divisor: float = 1.0


def _axes(drawn: Sequence[Drawn]) -> tuple[_Axis, _Axis]:
    """Returns the axes that losses are drawn against: tokens, and time in a unit that suits the longest run."""
    longest = max(one.run.spent("seconds") for one in drawn)
    units = ((3600.0, "hours"), (60.0, "minutes"), (0.0, "seconds"))
    size, word = next((size, word) for size, word in units if longest >= 3 * size)
    return _Axis("tokens", "tokens trained on"), _Axis("seconds", f"training time ({word})", size or 1.0)


_STEPS = _Axis("steps", "optimizer steps")


# ------------------------------------------------------------------------------------------------------- the figures


def losses(drawn: Sequence[Drawn]) -> Figure | None:
    """Returns each objective's loss against tokens and against time, training and validation; None if none is logged.

    The sum that is trained on is drawn too if a run has several objectives' losses.
    """
    names = _names(drawn, "loss/")
    keys = [f"loss/{name}" for name in names] + (["loss"] if len(names) != 1 else [])
    panels = [_metric_panel(drawn, key, axis) for key in keys for axis in _axes(drawn)]
    caption = "Losses are means over what an objective scores. Solid: training steps as they were logged; dashed: "
    caption += "held-out sequences. "
    if any(panel.levels for panel in panels):
        caption += "Dotted: what residue frequencies alone reach on the held-out sequences. "
    if "loss" in keys and len(names) > 1 and len(drawn) > 1:
        caption += "The weighted sum has each run's own weights. "
    return _figure("losses", caption, panels, drawn, keys + [f"unigram_entropy/{name}" for name in names])


def further(drawn: Sequence[Drawn]) -> Figure | None:
    """Returns what objectives log besides: accuracies, for example."""
    told = {"loss", "scored", "perplexity", "scored_residues", "unigram_entropy"}
    states = tuple(f"_{what}" for what in _OF_STATES)
    keys = [
        key
        for key in _keys(drawn)
        if "/" in key and (name := key.partition("/")[0]) not in told and not name.endswith(states)
    ]
    axis = _axes(drawn)[0]
    panels = [panel for panel in (_metric_panel(drawn, key, axis) for key in keys) if _moves(panel)]
    return _figure("further-metrics", "Solid: training; dashed: held-out sequences. ", panels, drawn, keys)


def collapse(drawn: Sequence[Drawn]) -> Figure | None:
    """Returns how far latent states still tell tokens apart, over steps; None where no objective has any."""
    aliases = dict.fromkeys(key.partition("/")[2] for key in _keys(drawn) if _is_rank(key))
    panels, keys = [], []
    for alias in aliases:
        names = [key.partition("/")[0].removesuffix("_rank") for key in _keys(drawn) if _is_rank(key, alias)]
        for what, words in STATES.items():
            # targets first: what is predicted is second to them
            series = [
                line
                for at, name in enumerate(sorted(names, key=lambda name: name != "target"))
                for one in drawn
                for line in _training_series(one, f"{name}_{what}/{alias}", _STEPS, f"{name} states", second=at > 0)
            ]
            panels.append(Panel(f"{alias}: {words}", _STEPS.label, words, tuple(series)))
        keys += [f"{name}_{what}/{alias}" for name in names for what in _OF_STATES]
    caption = "Collapsed states hardly depend on the sequence: their rank falls towards 1, their standard deviation "
    caption += "towards 0, and the cosine of any two rises towards 1. "
    return _figure("collapse", caption, panels, drawn, keys)


def rates(drawn: Sequence[Drawn]) -> Figure | None:
    """Returns the learning rate and the gradient norm before clipping, over steps."""
    limits = {one.run.config.get("trainer", {}).get("clip_norm") for one in drawn}
    levels = tuple((f"clipped above {limit:g}", float(limit)) for limit in sorted(x for x in limits if x))
    panels = [
        _step_panel(drawn, "learning_rate", "learning rate", "learning rate"),
        _step_panel(drawn, "grad_norm", "gradient norm", "norm before clipping", levels),
    ]
    return _figure("rates", "", panels, drawn, ["learning_rate", "grad_norm"])


def speed(drawn: Sequence[Drawn]) -> Figure | None:
    """Returns throughput, share of the machine's peak, padding and memory, over steps."""
    asked = {
        "tokens_per_second": ("throughput", "tokens per second, no padding"),
        "mfu": ("use of the arithmetic", "share of the device's peak FLOP/s"),
        "padding_share": ("padding", "share of computed tokens"),
        "memory_mib": ("memory", "peak memory (MiB)"),
    }
    panels = [_step_panel(drawn, key, title, words) for key, (title, words) in asked.items()]
    return _figure("speed", "", panels, drawn, list(asked))


# ------------------------------------------------------------------------------------------------------------ panels


def _moves(panel: Panel) -> bool:
    """False where all values are one: the table of validations tells it."""
    return len({value for series in panel.series for value in series.y}) > 1


def _metric_panel(drawn: Sequence[Drawn], key: str, axis: _Axis) -> Panel:
    """Returns a panel with a metric of training and of validation."""
    series = [
        *(line for one in drawn for line in _training_series(one, key, axis, "training")),
        *(line for one in drawn for line in _validation_series(one, key, axis)),
    ]
    kind, _, name = key.partition("/")
    by = "tokens" if axis.unit == "tokens" else "time"
    title = f"{name or 'weighted sum'} by {by}" if kind == "loss" else f"{name}: {kind.replace('_', ' ')}"
    levels = [("residue frequencies", level) for one in drawn for level in _frequencies(one.run, kind, name)]
    return Panel(title, axis.label, _unit(drawn, kind, name), tuple(series), tuple(levels), kind.endswith("loss"))


def _unit(drawn: Sequence[Drawn], kind: str, name: str) -> str:
    if kind != "loss":
        return "nats per scored residue" if kind == "residue_loss" else kind.replace("_", " ")
    if not name:
        return "sum that is trained on"
    return "nats per scored token" if f"perplexity/{name}" in _keys(drawn) else "loss"


def _frequencies(run: Run, kind: str, name: str) -> list[float]:
    """Returns what residue frequencies alone reach, for the loss that is one over residues alone."""
    apart = any(f"{VALIDATION}residue_loss/{name}" in line for line in run.validation)
    if kind != ("residue_loss" if apart else "loss"):
        return []
    levels = [number(line, f"{VALIDATION}unigram_entropy/{name}") for line in run.validation]
    return [level for level in levels if math.isfinite(level)][-1:]


def _step_panel(
    drawn: Sequence[Drawn], key: str, title: str, y_label: str, levels: tuple[tuple[str, float], ...] = ()
) -> Panel:
    series = [line for one in drawn for line in _training_series(one, key, _STEPS, "training")]
    return Panel(title, _STEPS.label, y_label, tuple(series), levels, falls=key == "grad_norm")


def _training_series(one: Drawn, key: str, axis: _Axis, kind: str, *, second: bool = False) -> Iterable[Series]:
    return _series(one, one.run.training, key, axis, kind, second)


def _validation_series(one: Drawn, key: str, axis: _Axis) -> Iterable[Series]:
    return _series(one, one.run.validation, VALIDATION + key, axis, "validation", True)


def _series(one: Drawn, lines: Sequence[Line], key: str, axis: _Axis, kind: str, second: bool) -> Iterable[Series]:
    """Yields the line of a run, if it has that key at all."""
    lines = [line for line in lines if key in line]
    y = [number(line, key) for line in lines]
    if any(math.isfinite(value) for value in y):
        x = [place / axis.divisor for place in one.run.positions(lines, axis.unit)]
        yield Series(one.label, one.colour, *thinned(x, y), kind=kind, second=second)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns means over groups of neighbours where there are more than :data:`POINTS` points, else all of them."""
    size = _group(len(x))
    groups = [range(at, min(at + size, len(x))) for at in range(0, len(x), size)]
    return [_mean([x[i] for i in group]) for group in groups], [_mean([y[i] for i in group]) for group in groups]


def _group(points: int) -> int:
    return max(1, -(-points // POINTS))


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


# --------------------------------------------------------------------------------------------------- figure and file


def _figure(
    name: str, caption: str, panels: Iterable[Panel], drawn: Sequence[Drawn], keys: Sequence[str]
) -> Figure | None:
    """Draws the panels that have a line; None if none has."""
    panels = [panel for panel in panels if panel.series]
    if not panels:
        return None
    if any(panel.range() for panel in panels):
        caption += "Where the beginning would press the rest together it lies above the panel. "
    sizes = [_group(len(lines)) for one in drawn for lines in (one.run.training, one.run.validation)]
    if max(sizes) > 1:
        caption += f"Of long runs each point is the mean of up to {max(sizes)} logged lines; the CSV has them all. "
    drawings = [Drawing(panel.title, charts.lines(panel)) for panel in panels]
    logged = set(_keys(drawn))
    return Figure(name, caption.strip(), drawings, lines_csv(drawn, [key for key in keys if key in logged]))


def lines_csv(drawn: Sequence[Drawn], keys: Sequence[str]) -> str:
    """Returns keys of all logged lines as CSV, a row a line; what validation logs of a key stands in its column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS, *keys])
    for one in drawn:
        for kind, prefix, lines in (("training", "", one.run.training), ("validation", VALIDATION, one.run.validation)):
            tokens, seconds = (one.run.positions(lines, unit) for unit in ("tokens", "seconds"))
            for line, *counters in zip(lines, tokens, seconds, strict=True):
                if any(prefix + key in line for key in keys):
                    values = [line.get(prefix + key) for key in keys]
                    writer.writerow([one.run.name, kind, line["step"], *counters, *_blank(values)])
    return out.getvalue()


def _blank(values: Iterable[object]) -> list[object]:
    return ["" if value is None else value for value in values]


def _keys(drawn: Sequence[Drawn]) -> list[str]:
    """Returns all keys of training and validation, without their prefix, in the order in which they come up."""
    found = (key.removeprefix(VALIDATION) for one in drawn for line in one.run.lines for key in line)
    return list(dict.fromkeys(found))


def _names(drawn: Sequence[Drawn], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in _keys(drawn) if key.startswith(prefix)]


def _is_rank(key: str, alias: str | None = None) -> bool:
    name, _, whose = key.partition("/")
    return name.endswith("_rank") and not name.endswith("_stable_rank") and alias in (None, whose) and bool(whose)
