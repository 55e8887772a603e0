"""Markdown made from code: options, recipes, commands, promises of the kit, data to get by hand, what is public."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import yaml

from protloom.cli import COMMANDS, Parser
from protloom.cli.show import option_rows
from protloom.compare.plan import ComparisonConfig
from protloom.config.source import as_mapping, recipes
from protloom.contracts import Download, HasDownloads
from protloom.plugins import OWN, Component, Registry
from protloom.public import PUBLIC
from protloom.settings import ObjectiveMix, RunConfig
from protloom.specs import KINDS, ArchitectureSpec, TaskSpec
from protloom.task import suite
from protloom.testing import checks

WIDTH = 100


def part(what: str) -> str:
    """Returns the Markdown that a mark of a page stands for; raises ValueError if there is none of that name."""
    name, *words = what.split()
    if name not in PARTS:
        raise ValueError(f"no generated part {name!r}; there are {', '.join(PARTS)}")
    return "\n".join(PARTS[name](*words))


@cache
def registry() -> Registry:
    """Returns the components of protloom itself; other plugins of this machine do not belong on the site."""
    found = Registry.discover()
    return Registry(plugin for plugin in found.plugins if plugin.distribution == OWN)


# ---------------------------------------------------------------------------------------------------------- Markdown


def text(value: object) -> str:
    """Returns plain text so that Markdown shows it as it is; options, ``--data``, as code."""
    shown = " ".join(str(value).split())
    for sign in "\\|*_<>[]`":
        shown = shown.replace(sign, f"\\{sign}")
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", shown)


def code(value: object) -> str:
    """Returns text as code that may stand in a table."""
    shown = " ".join(str(value).split()).replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose cells are Markdown; none without rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return ["", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *body, ""] if body else []


def fence(language: str, content: str) -> list[str]:
    """Returns a block of code."""
    return ["", f"```{language}", content.rstrip("\n"), "```", ""]


# ------------------------------------------------------------------------------------------------------------ options


def options(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the table of options."""
    cells = [
        (
            code(r["key"]),
            code(r["type"]),
            "needed" if r["needed"] else code(_value(r["default"])),
            text(r["description"]),
        )
        for r in rows
    ]
    return table(("key", "type", "default", "meaning"), cells)


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def run_file() -> Iterator[str]:
    """Yields the sections of a run file: the keys of the top, then a heading for each section."""
    rows = list(option_rows(RunConfig))
    yield "## Keys at the top"
    yield from options(row for row in rows if "." not in row["key"])
    for section in dict.fromkeys(row["key"].split(".")[0] for row in rows if "." in row["key"]):
        yield f"## {section}"
        yield (RunConfig.model_fields[section].annotation.__doc__ or "").split("\n")[0]
        yield from options(row for row in rows if row["key"].startswith(f"{section}."))
    yield "## Beside an objective's own options"
    yield "These keys belong to the trainer. They stand in an entry of `objectives` (or in `objective`)."
    yield from options(option_rows(ObjectiveMix))


def comparison_file() -> Iterator[str]:
    """Yields the keys of the file of a comparison."""
    yield from options(option_rows(ComparisonConfig))


# --------------------------------------------------------------------------------------------------------- components


def components(kind: str) -> Iterator[str]:
    """Yields every built-in component of a kind with its options; those with the same options stand together."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind of component {kind!r}")
    groups: dict[Any, list[Component]] = {}
    for component in registry().components(kind):
        shared = component.spec.config if kind in ("task", "floor") else None
        groups.setdefault(shared or component.name, []).append(component)
    if not groups:
        yield f"Protloom itself ships no {kind}."
    for members in groups.values():
        yield f"## {', '.join(text(c.name) for c in members) if len(members) < 4 else _common(members)}"
        if len(members) == 1:
            yield f"{_sentence(members[0].spec.summary)}"
        else:
            yield from table(("name", "what it is"), [(code(c.name), text(c.spec.summary)) for c in members])
        yield from _specifics(members[0])
        model = members[0].load_config()
        rows = [] if model is None else list(option_rows(model))
        yield from options(rows) if rows else ["", "No options.", ""]


def _common(members: Sequence[Component]) -> str:
    """Returns a heading for many components with the same options."""
    groups = list(dict.fromkeys(c.name.partition(":")[0] for c in members))
    return text(", ".join(groups)) if len(groups) < 6 else f"{len(members)} with the same options"


def _sentence(summary: str) -> str:
    return f"{text(summary[:1].upper() + summary[1:])}." if summary else ""


def _specifics(component: Component) -> Iterator[str]:
    spec = component.spec
    if isinstance(spec, ArchitectureSpec):
        keys = list(dict.fromkeys(key for preset in spec.sizes.values() for key in preset))
        rows = [(code(f"{spec.name}:{s}"), *(code(p.get(key, "")) for key in keys)) for s, p in spec.sizes.items()]
        yield from table(("size", *map(code, keys)), rows)
        given = [f"{key} {code(_value(value))}" for key, value in spec.defaults.items()]
        if given:
            yield f"A run that leaves them out gets {', '.join(given)}."
    if isinstance(spec, TaskSpec) and spec.files:
        yield f"Made of files that end in {', '.join(map(code, spec.files))}."


# ------------------------------------------------------------------------------------------------------------ recipes


def recipe_list() -> Iterator[str]:
    """Yields every recipe: what it trains, its first comment, the file."""
    files = {
        name.removeprefix(f"{OWN}/"): file.read_text(encoding="utf-8") for name, file in recipes(registry()).items()
    }
    rows = [(f"[{name}](#{_anchor(name)})", *_trains(yaml.safe_load(file))) for name, file in files.items()]
    yield from table(("recipe", "architecture", "objectives", "corpus", "steps", "tokens a step"), rows)
    for name, file in files.items():
        lines = file.splitlines()
        end = next(at for at, line in enumerate(lines) if not line.startswith("#"))
        yield f"## {name}"
        yield from (f"{text(line.removeprefix('#').strip())}  " for line in lines[:end])
        yield from fence("yaml", "\n".join(lines[end:]))


def _anchor(heading: str) -> str:
    return heading.lower()


def _trains(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the cells that say what a recipe trains."""
    architecture = as_mapping("architecture", recipe.get("architecture"))
    size = architecture.get("size")
    network = f"{architecture.get('name', '')}{f':{size}' if size else ''}"
    sections = recipe.get("objectives") or [recipe.get("objective")]
    objectives = [as_mapping("objective", section).get("name", "") for section in sections]
    corpus = recipe.get("data", {}).get("corpus")
    trainer = recipe.get("trainer", {})
    steps, tokens = (f"{trainer[key]:,}" if key in trainer else "" for key in ("steps", "tokens_per_step"))
    return code(network), ", ".join(map(code, objectives)), code(corpus) if corpus else "to be given", steps, tokens


# ----------------------------------------------------------------------------------------------------------- commands


def commands() -> Iterator[str]:
    """Yields every command, from its argument parser."""
    for name in COMMANDS:
        yield from _command(parser_of(name), 2)


def parser_of(name: str) -> Parser:
    """Returns the parser of a command, as the command line makes it."""
    about = COMMANDS[name]
    parser = Parser(
        prog=f"protloom {name}", description=f"{about.help[0].upper()}{about.help[1:]}.", allow_abbrev=False
    )
    importlib.import_module(about.module).configure(parser)
    return parser


def nested(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from nested(below)


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the command lines that a command's help ends with."""
    return [line.strip() for line in (parser.epilog or "").splitlines()[1:] if line.strip()]


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    os.environ["COLUMNS"] = str(WIDTH)  # where argparse breaks lines
    formatter = parser._get_formatter()
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    yield f"{'#' * level} {parser.prog}"
    yield ""
    yield text(parser.description or "")
    yield from fence("text", parser.format_usage().removeprefix("usage: "))
    rows = []
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction) and action not in below:
            rows.append((code(_call(action)), text(formatter._expand_help(action) if action.help else "")))
    yield from table(("argument", "meaning"), rows)
    if examples(parser):
        yield from fence("bash", "\n".join(examples(parser)))
    for action in below:
        for sub in action.choices.values():
            yield from _command(sub, level + 1)


def _call(action: argparse.Action) -> str:
    """Returns how an argument is written."""
    metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest)
    shown = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if action.nargs in ("*", "+"):
        shown += " …"
    if not action.option_strings:
        return shown
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {shown}")


# ----------------------------------------------------------------------------------------------------------- promises


def promises() -> Iterator[str]:
    """Yields what the conformance kit checks, a table a kind."""
    for kind, module in checks.KINDS.items():
        importlib.import_module(module)
        yield f"### {kind}"
        yield from table(
            ("check", "promise"),
            [
                (code(function.__name__.replace("_", "-")), _prose((function.__doc__ or "").split("\n\n")[0]))
                for function in checks.PROMISES[kind]
            ],
        )


def _prose(docstring: str) -> str:
    """Returns a docstring's sentence as Markdown: its double backticks are code there too."""
    return " ".join(docstring.split()).replace("|", "\\|")


# ---------------------------------------------------------------------------------------------- lists of other things


def by_hand() -> Iterator[str]:
    """Yields the data files of tasks that nobody can download, those of one folder and origin in one row."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for name in suite.names(registry()):
        task = suite.build(name, registry())
        for file in task.downloads() if isinstance(task, HasDownloads) else ():
            if not file.urls:
                found.setdefault(_place(file), {})[name] = None
    rows = [
        (", ".join(map(code, _grouped(list(tasks)))), code(folder), text(origin), text(licence))
        for (folder, origin, licence), tasks in found.items()
    ]
    yield from table(("tasks", "folder", "origin", "licence"), rows)


def _place(file: Download) -> tuple[str, str, str]:
    return str(PurePosixPath(file.path).parent), file.origin, file.licence


def _grouped(tasks: Sequence[str]) -> list[str]:
    """Returns the names of tasks; of more than three in a group, the group's."""
    groups = [name.partition(":")[0] for name in tasks]
    shown = [g if groups.count(g) > 3 else name for name, g in zip(tasks, groups, strict=True)]
    return list(dict.fromkeys(shown))


def public() -> Iterator[str]:
    """Yields what may be imported: a table for each of those who import it."""
    for whom, modules in PUBLIC.items():
        yield f"**For {whom}**"
        rows = []
        for module, names in modules.items():
            about = (importlib.import_module(module).__doc__ or "").split("\n\n")[0].split("\n")
            shown = ", ".join(map(code, names)) or ("specs and `hookimpl`" if module == OWN else "all of it")
            linked = code(module) if module == OWN else f"{{py:mod}}`{module}`"
            rows.append((linked, shown, _prose(" ".join(about))))
        yield from table(("module", "names", "what it is"), rows)


PARTS: Mapping[str, Callable[..., Iterator[str]]] = {
    "run-file": run_file,
    "comparison-file": comparison_file,
    "components": components,
    "recipes": recipe_list,
    "commands": commands,
    "promises": promises,
    "by-hand": by_hand,
    "public": public,
}
"""What a mark may name."""
