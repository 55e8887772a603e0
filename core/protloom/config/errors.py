"""Turns pydantic's findings into lines that name the place, what was found, the nearest valid name and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from protloom.errors import UserError, did_you_mean, nearest

Path = tuple[str | int, ...]
MOST_LINES = 10


def explain(
    error: ValidationError,
    raw: Any,
    model: type[BaseModel],
    where: Callable[[Path], str],
    *,
    under: Path = (),
    also: Collection[str] = (),
) -> UserError:
    """Returns the UserError for what pydantic found in ``raw``: one line a problem.

    Args:
        error: as pydantic raised it.
        raw: the input.
        model: what it was validated with.
        where: names the origin (file, command line) of a key path.
        under: key path of ``raw`` in the whole run file.
        also: further keys that are valid at the top of ``raw``.
    """
    findings = [(_real_path(item["loc"], raw), item) for item in error.errors(include_url=False)]
    deepest: dict[Path, list[Any]] = {}
    for path, item in findings:
        # a union reports every branch; the branch that got furthest is the one that was meant
        if not any(len(other) > len(path) and other[: len(path)] == path for other, _ in findings):
            deepest.setdefault(path, []).append(item)
    lines = []
    for path, items in deepest.items():
        full = (*under, *path)
        message = _message(path, items, raw, model, also, under)
        key = ".".join(map(str, full))
        lines.append(f"{where(full)}: {key}: {message}" if key else f"{where(full)}: {message}")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} problems more"]
    return UserError("\n".join(lines))


def _message(
    path: Path, items: Sequence[Any], raw: Any, model: type[BaseModel], also: Collection[str], under: Path
) -> str:
    first = items[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key.{_nearest_key(path, model, also, under)}"
    if first["type"] == "missing":
        return "is needed and missing"
    found = _shown(first["input"])
    if first["type"] == "value_error":
        reason = str(first["msg"]).removeprefix("Value error, ")
        return reason if isinstance(first["input"], Mapping | BaseModel) else f"{reason} (found {found})"
    wanted = " or ".join(dict.fromkeys(str(item["msg"]).removeprefix("Input should be ") for item in items))
    wanted = wanted[:1].lower() + wanted[1:]
    hint = ""
    if first["type"] in ("literal_error", "enum") and isinstance(first["input"], str):
        choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        guess = did_you_mean(first["input"], choices)
        hint = guess if "mean" in guess else ""
    return f"found {found}, should be {wanted}.{hint}" if hint else f"found {found}, should be {wanted}"


def _nearest_key(path: Path, model: type[BaseModel], also: Collection[str], under: Path) -> str:
    """Returns a hint for an unknown key: the most similar one beside it or, for a key at the top, in a section."""
    parent, key = path[:-1], str(path[-1])
    known = {name: name for owner in _models_at(model, parent) for name in keys_of(owner)}
    if not parent:
        deeper = {
            name: f"{section}.{name}"
            for section in keys_of(model)
            for inner in _models_at(model, (section,))
            for name in keys_of(inner)
        }
        known = {**deeper, **{name: name for name in also}, **known}
    guess = nearest(key, known)
    if guess is None:
        beside = [name for name, full in known.items() if name == full]
        return did_you_mean(key, beside, most=len(beside))  # the one that is meant may be any of them
    return f" Did you mean {'.'.join(map(str, (*under, *parent, known[guess])))!r}?"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _real_path(loc: Sequence[str | int], raw: Any) -> Path:
    """Drops from a pydantic location the parts that name a branch of a union instead of a key."""
    path: list[str | int] = []
    here = raw
    for at, part in enumerate(loc):
        inside_map = isinstance(here, Mapping) and part in here
        inside_list = isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        if inside_map or inside_list:
            here = here[part]
            path.append(part)
        elif isinstance(here, Mapping) and at == len(loc) - 1 and _is_key(part):
            path.append(part)  # a key that is missing
    return tuple(path)


def _is_key(part: str | int) -> bool:
    """True for the key of a missing value, as opposed to a branch such as ``str`` or ``list[int]``."""
    return isinstance(part, str) and part.isidentifier() and part not in ("str", "int", "float", "bool", "none")


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """Yields the keys that a model's section may have."""
    for name, field in model.model_fields.items():
        yield field.alias or name


def _models_at(model: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    """Returns the models that may stand at a key path of ``model``."""
    models = [model]
    is_name = False
    for part in path:
        if isinstance(part, int) or is_name:
            is_name = False
            continue  # the items of a list, or of a mapping by its names, were unfolded with its field
        fields = [owner.model_fields[part] for owner in models if part in owner.model_fields]
        models = [inner for field in fields for inner in _inner_models(field.annotation)]
        is_name = any(get_origin(field.annotation) in (dict, Mapping) for field in fields)
    return models


def _inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner_models(argument)
