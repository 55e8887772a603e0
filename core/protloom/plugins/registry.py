"""The index of what plugins offer: finds, explains and resolves components by name.

The rules: a bare name that protloom itself provides always means protloom's; any component can be reached by its full
name ``distribution/name``; a bare name that two other distributions offer is refused until the user says which. So
installing a plugin adds names and never changes a run that does not name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata

from protloom.errors import UserError, did_you_mean
from protloom.plugins.loader import OWN, Component, PluginInfo, find_plugins, is_named, normalise
from protloom.specs import KINDS

DISABLE_VARIABLE = "PROTLOOM_DISABLE_PLUGINS"
"""Environment variable: names of plugins to block, separated by commas."""


class Registry:
    """Every plugin that was found and the components of those that work.

    Args:
        plugins: as the loader returns them, in load order.

    Attributes:
        plugins: all plugins, sorted by (distribution, entry point), whatever their state.
    """

    plugins: tuple[PluginInfo, ...]

    def __init__(self, plugins: Iterable[PluginInfo]) -> None:
        self.plugins = _mark_clashes(tuple(plugins))

    @classmethod
    def discover(
        cls, *, disabled: Iterable[str] = (), entry_points: Iterable[metadata.EntryPoint] | None = None
    ) -> Registry:
        """Finds and loads plugins; a plugin that fails is kept with its cause and harms nothing else.

        Args:
            disabled: distributions, entry points or ``distribution:entrypoint`` not to load, besides those that the
                environment variable PROTLOOM_DISABLE_PLUGINS names.
            entry_points: what to load instead of the installed entry points of group ``protloom``.
        """
        environment = os.environ.get(DISABLE_VARIABLE, "").split(",")
        blocked = [name.strip() for name in (*disabled, *environment) if name.strip()]
        return cls(find_plugins(entry_points, blocked))

    def components(self, kind: str | None = None) -> tuple[Component, ...]:
        """Returns the usable components of a kind, or all of them, in load order."""
        return tuple(c for plugin in self.plugins for c in plugin.components if kind in (None, c.kind))

    def shortest(self, component: Component) -> str:
        """Returns the bare name of a component if that means it here, else its full name."""
        means_it = self._bare(component.kind, component.name) == (component,)
        return component.name if means_it else component.full_name

    def names(self, kind: str) -> tuple[str, ...]:
        """Returns one name for every component of a kind that :meth:`resolve` finds it by."""
        return tuple(sorted(self.shortest(component) for component in self.components(kind)))

    def named(self, name: str) -> tuple[PluginInfo, ...]:
        """Returns the plugins that ``--no-plugin NAME`` would mean."""
        return tuple(plugin for plugin in self.plugins if is_named(plugin, [name]))

    def resolve(self, kind: str, name: str) -> Component:
        """Returns the component that a user means.

        Args:
            kind: one of :data:`protloom.specs.KINDS`.
            name: a bare name, or ``distribution/name``.

        Raises:
            UserError: if there is none, or more than one; names what is near, or what settles it.
        """
        if kind not in KINDS:
            raise UserError(f"there is no kind of component {kind!r}.{did_you_mean(kind, KINDS)}")
        if "/" in name:
            return self._resolve_full(kind, name)
        found = self._bare(kind, name)
        if len(found) > 1:
            offers = ", ".join(f"{c.full_name!r} ({c.distribution} {c.version})" for c in found)
            raise UserError(f"{kind} {name!r} is offered by {len(found)} distributions: write one of {offers}")
        if not found:
            raise self._unknown(kind, name)
        self._check_not_ours(kind, name, found[0])
        return found[0]

    def _bare(self, kind: str, name: str) -> tuple[Component, ...]:
        found = [c for c in self.components(kind) if c.name == name]
        return tuple([c for c in found if c.builtin] or found)

    def _resolve_full(self, kind: str, name: str) -> Component:
        distribution, _, bare = name.partition("/")
        distribution = normalise(distribution)
        for component in self.components(kind):
            if (component.distribution, component.name) == (distribution, bare):
                return component
        troubled = [p for p in self.plugins if p.distribution == distribution and not p.loaded]
        if troubled:
            causes = "; ".join(f"plugin {p.full_name!r} is {p.state}: {p.error}" for p in troubled)
            advice = "" if troubled[0].state == "blocked" else f"; see 'protloom plugins', or reinstall {distribution}"
            raise UserError(f"no {kind} {name!r}: {causes}{advice}")
        if not any(p.distribution == distribution for p in self.plugins):
            raise UserError(
                f"no {kind} {name!r}: no distribution {distribution!r} with protloom plugins is installed;"
                f" install it with pip install {distribution}"
            )
        raise self._unknown(kind, name)

    def _unknown(self, kind: str, name: str) -> UserError:
        choices = {c.name for c in self.components(kind)}
        if "/" in name:
            choices = {c.full_name for c in self.components(kind)}
        return UserError(f"no {kind} {name!r}.{did_you_mean(name, choices)} {self.absent()}".rstrip())

    def absent(self) -> str:
        """Says which plugins are broken or blocked and may have offered a name; empty where all of them work."""
        told = []
        for state in ("broken", "blocked"):
            plugins = [p for p in self.plugins if p.state == state]
            if plugins:
                causes = "; ".join(f"{p.full_name} ({p.error})" if state == "broken" else p.full_name for p in plugins)
                told.append(f"{state.capitalize()} plugins that may have offered it: {causes}.")
        return " ".join(told)

    def _check_not_ours(self, kind: str, name: str, found: Component) -> None:
        """Refuses a third party's component under a bare name that may be ours, if one of our plugins is broken."""
        if found.builtin:
            return
        for plugin in self.plugins:
            if plugin.distribution == OWN and plugin.state == "broken":
                raise UserError(
                    f"{kind} {name!r}: protloom's own plugin {plugin.name!r} is broken ({plugin.error}), so the name"
                    f" may mean protloom's; write {found.full_name!r}, or reinstall protloom"
                )


def split_size(name: str) -> tuple[str, str | None]:
    """Splits ``name:size`` as ``--arch`` takes it; the size is None where none is given.

    Raises:
        UserError: if either part is empty.
    """
    bare, colon, size = name.partition(":")
    if not bare or (colon and not size):
        raise UserError(f"architecture {name!r} is not of the form NAME or NAME:SIZE, such as esm2:8M")
    return bare, size or None


def _mark_clashes(plugins: Sequence[PluginInfo]) -> tuple[PluginInfo, ...]:
    """Returns the plugins with state ``clashing`` and an explanation where a bare name does not mean theirs."""
    providers: dict[tuple[str, str], list[Component]] = {}
    for plugin in plugins:
        for component in plugin.components:
            providers.setdefault((component.kind, component.name), []).append(component)
    marked = []
    for plugin in plugins:
        told = [
            text
            for component in plugin.components
            if (text := _explain_clash(component, providers[component.kind, component.name]))
        ]
        marked.append(replace(plugin, state="clashing", error="; ".join(told)) if told else plugin)
    return tuple(marked)


def _explain_clash(component: Component, providers: Sequence[Component]) -> str:
    others = [c for c in providers if c.distribution != component.distribution]
    if component.builtin or not others:
        return ""
    if any(c.builtin for c in others):
        return f"{component.kind} {component.name!r} means {OWN}'s own: use {component.full_name!r} for this one"
    rivals = ", ".join(c.distribution for c in others)
    return f"{component.kind} {component.name!r} is also offered by {rivals}: use {component.full_name!r}"
