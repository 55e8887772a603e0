"""``protloom plugins``: every plugin, what it offers, and why it does not work if it does not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from protloom.cli import common
from protloom.plugins.loader import Component, PluginInfo


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    common.json_option(parser)
    common.example(parser, "protloom plugins", "protloom plugins --json", "protloom --no-plugin acme-tools plugins")


def run(args: argparse.Namespace) -> int:
    """Prints the table and returns 0, also where plugins are broken: they are what it is for."""
    plugins = common.registry(args).plugins
    if args.json:
        common.print_json({"plugins": [_record(plugin) for plugin in plugins]})
        return 0
    rows = [
        (
            *(p.name, p.distribution, p.version, p.licence, _versions(p.components), p.state),
            *(f"{p.load_ms:.1f}", _offers(p.components)),
        )
        for p in plugins
    ]
    common.print_table(("plugin", "distribution", "version", "licence", "API", "state", "ms", "components"), rows)
    for plugin in plugins:
        if plugin.warning:
            print(f"\n{plugin.full_name}: {plugin.warning}")
        if plugin.state != "ok":
            print(f"\n{plugin.full_name} is {plugin.state}: {plugin.error}")
            if plugin.state == "broken" and args.debug:
                print(plugin.traceback.rstrip())
    if any(plugin.state == "broken" for plugin in plugins) and not args.debug:
        print("\nA broken plugin harms nothing but itself. --debug shows the traceback, --no-plugin NAME silences it.")
    return 0


def _offers(components: Sequence[Component]) -> str:
    kinds = dict.fromkeys(component.kind for component in components)
    return "; ".join(f"{kind} {', '.join(c.name for c in components if c.kind == kind)}" for kind in kinds) or "-"


def _versions(components: Sequence[Component]) -> str:
    return ", ".join(map(str, sorted({c.spec.api_version for c in components}))) or "-"


def _record(plugin: PluginInfo) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "licence": plugin.licence,
        "module": plugin.module,
        "state": plugin.state,
        "error": plugin.error,
        "warning": plugin.warning,
        "traceback": plugin.traceback,
        "load_ms": round(plugin.load_ms, 3),
        "components": [
            {
                "kind": c.kind,
                "name": c.name,
                "full_name": c.full_name,
                "summary": c.spec.summary,
                "api_version": c.spec.api_version,
            }
            for c in plugin.components
        ],
    }
