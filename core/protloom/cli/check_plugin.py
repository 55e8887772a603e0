"""``protloom check-plugin``: runs the conformance kit on what a plugin offers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protloom.cli import common
from protloom.errors import UserError, did_you_mean, nearest
from protloom.plugins import OWN

if TYPE_CHECKING:
    from protloom.plugins import Registry
    from protloom.plugins.loader import Component


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a plugin, its distribution, or a component of it")
    parser.add_argument("--kind", metavar="KIND", help="check components of this kind only")
    parser.add_argument("--architecture", metavar="A", help="network to test objectives on; default: one that fits")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of real data, for tasks; default: PROTLOOM_DATA")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="an option of the components")
    common.json_option(parser)
    common.example(
        parser,
        "protloom check-plugin my-plugin",
        "protloom check-plugin my-objective --architecture esm2:tiny",
        "protloom check-plugin mlm adamw",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a line for each promise; returns 1 if one is broken."""
    registry = common.registry(args)
    components = _components(args.names, args.kind, registry)
    _refuse_unknown(args.set, components)
    records = [record for component in components for record in _checked(component, args, registry)]
    broken = [record for record in records if record["found"] is not None]
    if args.json:
        common.print_json({"checks": records})
    else:
        print(f"\n{len(records) - len(broken)} of {len(records)} promises hold")
    return 1 if broken else 0


def _components(names: list[str], kind: str | None, registry: Registry) -> list[Component]:
    """Returns what the names mean: all of a plugin's components, or single ones."""
    from protloom.testing.checks import KINDS

    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind}: there are no checks for it.{did_you_mean(kind, KINDS)}")
    found: dict[tuple[str, str], Component] = {}
    for name in names:
        plugins = registry.named(name)
        for plugin in plugins:
            if not plugin.loaded:
                raise UserError(f"plugin {plugin.full_name!r} is {plugin.state}: {plugin.error}")
        means = [c for plugin in plugins for c in plugin.components]
        means = means or [c for c in registry.components() if name in (c.name, c.full_name)]
        if not means:
            raise UserError(f"there is no plugin or component {name!r}.{_known(name, registry)}")
        found |= {(c.kind, c.full_name): c for c in means if c.kind in KINDS and kind in (None, c.kind)}
    if not found:
        raise UserError(f"{', '.join(names)}: nothing that there are checks for; there are for {', '.join(KINDS)}")
    return list(found.values())


def _known(name: str, registry: Registry) -> str:
    """Returns the nearest name, else all distributions: a list of components would hold ours alone."""
    known = {text for p in registry.plugins for text in (p.distribution, p.name)}
    guess = nearest(name, sorted(known | {c.name for c in registry.components()}))
    if guess is not None:
        return f" Did you mean {guess!r}?"
    distributions = sorted({p.distribution for p in registry.plugins}, key=lambda d: (d == OWN, d))
    offers = f" Installed are {', '.join(distributions)}; 'protloom plugins' lists what they offer."
    return f"{offers} {registry.absent()}".rstrip()


def _checked(component: Component, args: argparse.Namespace, registry: Registry) -> list[dict[str, Any]]:
    """Runs the checks of one component, and prints them as they go."""
    from protloom.testing import Violation, conformance

    if not args.json:
        print(f"\n{component.label}")
    records: list[dict[str, Any]] = []
    for check in conformance(
        component.kind, component.full_name, options=_options(args.set, component), registry=registry, **_extra(args)
    ):
        began, found = time.perf_counter(), None
        try:
            check()
        except Violation as violation:
            found = str(violation)
        seconds = time.perf_counter() - began
        records.append(
            {
                "kind": component.kind,
                "component": component.full_name,
                "check": str(check),
                "promise": check.promise,
                "found": found,
                "seconds": round(seconds, 3),
            }
        )
        if not args.json:
            again = found in [record["found"] for record in records[:-1]]  # what cannot be built fails every check
            print(f"  ok     {check}" if found is None else f"  BROKEN {check}: {'as above' if again else found}")
    return records


def _extra(args: argparse.Namespace) -> Mapping[str, Any]:
    given = {"architecture": args.architecture, "data_dir": args.data_dir}
    return {name: value for name, value in given.items() if value is not None}


def _options(settings: list[str], component: Component) -> dict[str, Any]:
    """Returns the options of a component; each goes to those that have it."""
    from protloom.config.source import split_override

    if not settings:
        return {}
    model = component.load_config()
    fields = set() if model is None else set(model.model_fields)
    options: dict[str, Any] = {}
    for setting in settings:
        keys, value = split_override(setting)
        if keys[0] in fields and len(keys) == 1:
            options[keys[0]] = value
    return options


def _refuse_unknown(settings: list[str], components: Sequence[Component]) -> None:
    """Raises UserError for an option that none of the components has."""
    from protloom.config.source import split_override

    if not settings:
        return
    models = [component.load_config() for component in components]
    known = {name for model in models if model is not None for name in model.model_fields}
    for setting in settings:
        key = ".".join(split_override(setting)[0])
        if key not in known:
            names = ", ".join(component.name for component in components)
            raise UserError(f"--set {setting}: {names}: no such option.{did_you_mean(key, known)}")
