"""Reads run files: YAML with line numbers in errors, recipes by name, and dotted overrides from the command line."""

from __future__ import annotations

import copy
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from protloom.errors import UserError, did_you_mean
from protloom.plugins import OWN, Registry, split_size
from protloom.plugins.loader import normalise

RECIPE = "recipe:"
SEQUENCES = (".fasta", ".fa", ".faa", ".fasta.gz", ".fa.gz", ".csv", ".tsv", ".parquet")

Override = str | tuple[str, Any]
"""``"a.b=value"``, where the value is parsed as YAML, or ``("a.b", value)``, where it is taken as it is."""

COMPONENT_SECTIONS = {
    "tokenizer": "tokenizer",
    "architecture": "architecture",
    "objective": "objective",
    "objectives": "objective",
    "optimizer": "optimizer",
    "callbacks": "callback",
}
"""Section of a run file -> kind of component."""
NAMED_SECTIONS = frozenset({*COMPONENT_SECTIONS, "schedule"})
"""Sections that may be a bare name instead of a mapping."""

# YAML 1.1 takes 1e-4 for text, no for false, 2024-01-01 for a date and 1:30 for 90; a run file means YAML 1.2
_SCALARS: Sequence[tuple[str, str, str]] = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2, in which a key may stand only once."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own name; an empty one does not inherit YAML 1.1's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands twice, first in line {seen[key]}", problem_mark=key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back as the same values."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own name; an empty one does not inherit YAML 1.1's


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


def dump(value: Any) -> str:
    """Writes plain values as YAML that :func:`parse` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, where: str) -> Any:
    """Parses YAML; raises UserError with file, line and cause."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where}: {place}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def read(source: Path | str, registry: Registry) -> tuple[dict[str, Any], str]:
    """Returns the mapping in a run file and the file's name for messages.

    Args:
        source: a path, or ``recipe:NAME``.
        registry: knows the packages that may hold recipes.

    Raises:
        UserError: if it cannot be read or does not hold a mapping.
    """
    where = str(source)
    if where.startswith(RECIPE):
        text = _recipe(where.removeprefix(RECIPE), registry).read_text(encoding="utf-8")
    else:
        text = _text(Path(source))
    if text.startswith(">") or where.endswith(SEQUENCES):
        raise UserError(f"{where}: holds sequences, it is no run file: to train on it write --data {where}")
    value = parse(text, where)
    if value is None:
        return {}, where
    if not isinstance(value, dict):
        raise UserError(f"{where}: a run file is a mapping of keys to values, this one is a {type(value).__name__}")
    return value, where


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = [other.name for other in folder.iterdir() if other.suffix == path.suffix] if folder.is_dir() else []
        option = f" To set an option write {path}=VALUE." if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", str(path)) else ""
        guess = did_you_mean(path.name, names) if names else ""
        raise UserError(f"{path}: no such run file.{guess}{option}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; to go on with a run: protloom resume {path}") from None
    except UnicodeDecodeError as error:
        hint = f"; to train on it write --data {path}" if str(path).endswith(SEQUENCES) else ""
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start}); a run file is YAML{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def recipes(registry: Registry) -> dict[str, Traversable]:
    """Returns every recipe by full name ``distribution/name``: the ``recipes/*.yaml`` beside installed plugins."""
    return shipped(registry, "recipes")


def shipped(registry: Registry, folder: str) -> dict[str, Traversable]:
    """Returns the YAML files of one folder beside installed plugins, by full name ``distribution/name``."""
    found: dict[str, Traversable] = {}
    for plugin in registry.plugins:
        if not plugin.loaded:
            continue
        package = plugin.module.partition(":")[0].partition(".")[0].strip()
        try:
            home = importlib.resources.files(package) / folder
            files = [file for file in home.iterdir() if file.name.endswith(".yaml")] if home.is_dir() else []
        except (ImportError, OSError, TypeError):
            continue  # a single module has no folder beside it
        for file in files:
            found[f"{plugin.distribution}/{file.name.removesuffix('.yaml')}"] = file
    return dict(sorted(found.items()))


def _recipe(name: str, registry: Registry) -> Traversable:
    """Returns a recipe by the same rules of names as a component."""
    return named("recipe", name, recipes(registry))


def named(what: str, name: str, known: Mapping[str, Traversable]) -> Traversable:
    """Returns the shipped file that a bare or full name means, by the same rules as a component.

    Args:
        what: the word that users write before the colon.
        name: ``name`` or ``distribution/name``.
        known: of :func:`shipped`.

    Raises:
        UserError: if there is none, or more than one.
    """
    if "/" in name:
        distribution, _, bare = name.partition("/")
        wanted = [full for full in known if full == f"{normalise(distribution)}/{bare}"]
    else:
        wanted = [full for full in known if full.partition("/")[2] == name]
        wanted = [full for full in wanted if full.startswith(f"{OWN}/")] or wanted
    if len(wanted) > 1:
        raise UserError(
            f"{what} {name!r} is offered more than once: write one of {', '.join(f'{what}:{w}' for w in wanted)}"
        )
    if not wanted:
        bare_names = {full.removeprefix(f"{OWN}/") for full in known}
        raise UserError(f"no {what} {name!r}.{did_you_mean(name, bare_names)}")
    return known[wanted[0]]


# ------------------------------------------------------------------------------------------------------- overrides


def split_override(override: Override) -> tuple[tuple[str, ...], Any]:
    """Returns (key path, value) of one override; raises UserError if it is not of the form ``a.b=value``."""
    if isinstance(override, tuple):
        return tuple(override[0].split(".")), override[1]
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise UserError(f"{override!r} is not of the form key=value, such as trainer.steps=500")
    return path, _value(text.strip(), override)


def _value(text: str, override: str) -> Any:
    """Parses a value: only brackets make a list or mapping, so ``data.corpus=demo:`` stays a text."""
    if text[:1] in ("[", "{", '"', "'"):
        return parse(text, override)
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, str | list | dict) else value


def apply(raw: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets ``value`` at a dotted ``path`` of ``raw``, in place; raises UserError where the path leads nowhere."""
    here: Any = raw
    for depth, key in enumerate(path[:-1]):
        here = _step(here, key, path[:depth], is_component=_is_named(path[: depth + 1]))
    last = path[-1]
    if isinstance(here, list):
        at = _index(here, last, path[:-1])
        if at == len(here):
            here.append(None)
        here[at] = _replaced(path[0], here[at], value) if _is_named(path) else value
    else:
        here[last] = _replaced(last, here.get(last), value) if _is_named(path) else value


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``over`` on top of ``under``: mappings are merged, anything else is replaced."""
    merged = copy.deepcopy(dict(under))
    for key, value in over.items():
        if key in NAMED_SECTIONS:
            merged[key] = _merged_section(key, merged.get(key), value)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merged_section(key: str, under: Any, over: Any) -> Any:
    replaced = _replaced(key, under, over)
    if not isinstance(over, Mapping) or not isinstance(under, str | Mapping):
        return replaced
    old, new = as_mapping(key, under), as_mapping(key, over)
    return {**old, **new} if new.get("name", old.get("name")) == old.get("name") else new


def _is_named(path: Sequence[str]) -> bool:
    """Tells whether a key path leads to a section that may be a bare name."""
    if path[0] in ("objectives", "callbacks"):
        return len(path) == 2
    return len(path) == 1 and path[0] in NAMED_SECTIONS


def as_mapping(key: str, section: Any) -> dict[str, Any]:
    """Returns a named section as a mapping with ``name``; of ``architecture``, ``esm2:8M`` is a name and a size."""
    options: dict[str, Any] = {}
    if isinstance(section, Mapping):
        options = dict(section)
    elif section is not None:
        options = {"name": section}
    name = options.get("name")
    if key == "architecture" and isinstance(name, str) and ":" in name and "size" not in options:
        options["name"], options["size"] = split_size(name)
    return options


def _replaced(key: str, old: Any, new: Any) -> Any:
    """Returns a section after a new value: a bare name keeps the options of the component if it is the same one."""
    if not isinstance(new, str) or not isinstance(old, Mapping):
        return copy.deepcopy(new)
    fresh, kept = as_mapping(key, new), as_mapping(key, old)
    return {**kept, **fresh} if kept.get("name", fresh["name"]) == fresh["name"] else new


def _step(here: Any, key: str, above: Sequence[str], *, is_component: bool) -> Any:
    """Returns the container below ``key``, made if missing, so that an override can go on into it."""
    at: Any = key
    if isinstance(here, list):
        at = _index(here, key, above)
        if at == len(here):
            here.append(None)
        below = here[at]
    else:
        below = here.get(key)
    if below is None:
        below = [] if (*above, key) in (("objectives",), ("callbacks",)) else {}
    elif is_component and isinstance(below, str):
        below = as_mapping(key, below)
    if not isinstance(below, dict | list):
        raise UserError(f"{'.'.join((*above, key))} holds {below!r}, so nothing can be set inside it")
    here[at] = below
    return below


def _index(items: Sequence[Any], key: str, above: Sequence[str]) -> int:
    if not key.isdecimal() or int(key) > len(items):
        raise UserError(f"{'.'.join(above)} is a list of {len(items)}: {key!r} is not a number from 0 to {len(items)}")
    return int(key)
