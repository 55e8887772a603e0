"""Which variants of a run are measured side by side: objectives, precisions, kernels, compiled or not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from protloom import config
from protloom.bench.corpus import parse_lengths
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.config import Override, ResolvedRun
    from protloom.plugins import Registry

TOKENS = 4096
"""Of a step where nothing says how many: a second or so of a laptop."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        run_file: or ``recipe:NAME``, or None.
        overrides: options of the run.
        architecture: ``NAME[:SIZE]``, or None: that of the run file.
        data: a corpus, or None: the run file's, or drawn sequences.
        tokens: of a step, or None: the run file's.
        lengths: ``real`` or ``fixed:N``.
        objectives: each a name, a mapping with options, or a list of several that are trained together; none: the
            run's.
        precisions: of each variant; none: the run's.
        kernels: each a backend, or a mapping from function to backend; none: the run's.
        compiled: measure every variant compiled too.
        against: another program to compare with, or None.
        rounds: how many, or None: as many as fit.
        seconds: that they may take.
        sweep: measure over lengths too.
    """

    run_file: str | None = None
    overrides: Sequence[str] = ()
    architecture: str | None = None
    data: str | None = None
    tokens: int | None = None
    lengths: str = "real"
    objectives: Sequence[Any] = ()
    precisions: Sequence[str] = ()
    kernels: Sequence[Any] = ()
    compiled: bool = False
    against: str | None = None
    rounds: int | None = None
    seconds: float = 60.0
    sweep: bool = False


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: what makes it different from the others.
        resolved: the whole run.
        told: what was asked for, by dimension.
    """

    name: str
    resolved: ResolvedRun
    told: Mapping[str, str] = field(default_factory=dict)


def parse_list(option: str, text: str) -> list[Any]:
    """Reads ``a,b`` whose items may also be mappings ``{name: a, …}`` or lists ``[a, b]``, as YAML writes them."""
    try:
        items = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        items = None
    if not items or any(item is None or item == "" for item in items):
        raise UserError(f"{option} {text}: write names with commas between them, such as a,b or 'a,{{name: b, x: 1}}'")
    return [item if isinstance(item, Mapping | list) else str(item) for item in items]


def drawn_needed(asked: Asked, registry: Registry) -> bool:
    """Checks what can be checked without data or PyTorch; tells whether no corpus is named."""
    parse_lengths(asked.lengths)
    resolved = [one.resolved for one in plan(asked, registry)]
    return resolved[0].settings.data.corpus is None


def plan(asked: Asked, registry: Registry, *, corpus: Path | None = None, tokens: int = TOKENS) -> list[Variant]:
    """Returns every variant, the first one being what the others are compared with.

    Args:
        asked: what the command line asks for.
        registry: finds components.
        corpus: a store to read where no corpus is named.
        tokens: of a step, where nothing says how many.

    Raises:
        UserError: if one of them is no valid run.
    """
    dimensions: dict[str, Sequence[Any]] = {
        "objective": asked.objectives or (None,),
        "precision": asked.precisions or (None,),
        "kernels": asked.kernels or (None,),
        "compiled": (False, True) if asked.compiled else (None,),
    }
    found: dict[str, Variant] = {}
    varied = [name for name, values in dimensions.items() if len(values) > 1]
    for values in itertools.product(*dimensions.values()):
        choice = dict(zip(dimensions, values, strict=True))
        resolved = _resolved(asked, choice, registry, corpus, tokens)
        told = _told(choice, resolved)
        name = " · ".join(told[what] for what in varied if told[what]) or told["objective"]
        if name in found:
            raise UserError(f"{name!r} is asked for twice: name every objective, precision and backend once")
        found[name] = Variant(name, resolved, told)
    return list(found.values())


def _resolved(
    asked: Asked, choice: Mapping[str, Any], registry: Registry, corpus: Path | None, tokens: int
) -> ResolvedRun:
    """Returns the run that a choice makes of what is asked."""
    base: dict[str, Any] = {"trainer": {"tokens_per_step": tokens}}
    if corpus is not None:
        base["data"] = {"corpus": str(corpus)}
    stated: list[Override] = [(key, value) for key, value in _stated(asked).items() if value is not None]
    stated += asked.overrides
    # what the variants differ in holds whatever else is stated
    if choice["objective"] is not None:
        one = choice["objective"]
        several = isinstance(one, list)
        # what a run file says of one or of several makes room
        stated += [("objective", None if several else one), ("objectives", one if several else None)]
    if choice["precision"] is not None:
        stated.append(("trainer.precision", choice["precision"]))
    if choice["kernels"] is not None:
        stated.append(("kernels", choice["kernels"]))
    if choice["compiled"] is not None:
        stated.append(("trainer.compile", choice["compiled"]))
    # nothing is validated, and one process measures
    stated += [("data.validation", None), ("data.validation_fraction", 0.0), ("trainer.parallel", "none")]
    return config.load(asked.run_file, stated, registry, base=base)


def _stated(asked: Asked) -> dict[str, Any]:
    length = parse_lengths(asked.lengths)
    return {
        "architecture": asked.architecture,
        "data.corpus": asked.data,
        "data.min_length": length,
        "data.max_length": length,
        "trainer.tokens_per_step": asked.tokens,
    }


def _told(choice: Mapping[str, Any], resolved: ResolvedRun) -> dict[str, str]:
    """Returns the words for a choice, by dimension."""
    one = choice["objective"]
    default = " + ".join(objective.alias for objective in resolved.objectives)
    return {
        "objective": default if one is None else _word(one),
        "precision": choice["precision"] or resolved.settings.trainer.precision,
        "kernels": _word(choice["kernels"] if choice["kernels"] is not None else resolved.settings.kernels),
        "compiled": {None: "", False: "eager", True: "compiled"}[choice["compiled"]],
    }


def _word(value: Any) -> str:
    """Writes a name, a mapping or a list as a short text."""
    if isinstance(value, list):
        return " + ".join(map(_word, value))
    if isinstance(value, Mapping):
        options = ", ".join(f"{key}={option}" for key, option in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name} ({options})" if name and options else name or options
    return str(value)
