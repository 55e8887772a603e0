"""Finds plugins by their entry points and loads each of them behind a guard.

Every plugin gets a pluggy manager of its own, so nothing that one plugin does (a hook wrapper, a second registration of
the same module, an entry point with a name that is taken) can change what another one offers.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from protloom import hookspecs, specs
from protloom.errors import UserError
from protloom.plugins.checks import KIND_OF_HOOK, PluginProblem, check_hooks, check_specs
from protloom.specs import Ref, Spec

if TYPE_CHECKING:
    from pydantic import BaseModel

GROUP = "protloom"
"""The entry point group of plugins."""
LONGEST = 400
"""Characters that are told of the message of an exception."""
OWN = "protloom"
"""The distribution whose components bare names always mean."""

State = Literal["ok", "blocked", "broken", "clashing"]


@dataclass(frozen=True)
class Component:
    """One component of a plugin, with where it comes from; its code is imported only by the ``load_`` methods.

    Attributes:
        kind: one of :data:`protloom.specs.KINDS`.
        name: its bare name.
        distribution: the distribution that offers it, normalised (``Acme_Tools`` is ``acme-tools``).
        version: that distribution's version.
        plugin: the entry point that offers it.
        spec: what the plugin stated.
    """

    kind: str
    name: str
    distribution: str
    version: str
    plugin: str
    spec: Spec

    @property
    def full_name(self) -> str:
        """The name that is never ambiguous: ``distribution/name``."""
        return f"{self.distribution}/{self.name}"

    @property
    def builtin(self) -> bool:
        """True for a component that protloom itself ships."""
        return self.distribution == OWN

    def load_factory(self) -> Callable[..., Any]:
        """Imports the factory; raises UserError naming the distribution and the cause if that fails."""
        factory: Callable[..., Any] = self.load(self.spec.factory)
        if not callable(factory):
            raise UserError(f"{self.label}: its factory {self.spec.factory!r} cannot be called; tell its author")
        return factory

    def build(self, *arguments: Any, of: type | None = None) -> Any:
        """Calls the factory and returns what it made.

        Args:
            arguments: of the factory.
            of: the class, or protocol, that this must be an instance of.

        Raises:
            UserError: the factory cannot be imported; or a third party's failed, or made something else. What fails in
                protloom's own components is a mistake of protloom, and comes through as it is.
        """
        factory = self.load_factory()
        try:
            made = factory(*arguments)
        except UserError:
            raise
        except Exception as error:
            if self.builtin:
                raise
            raise UserError(f"{self.label}: its factory failed: {one_line(error)}; --debug shows where") from error
        if of is not None and not isinstance(made, of):
            found, wanted = (name if name == "None" else a_or_an(name) for name in (_type_of(made), of.__name__))
            raise UserError(f"{self.label}: its factory returned {found}, not {wanted}; tell its author")
        return made

    def load_config(self) -> type[BaseModel] | None:
        """Imports the pydantic model of the options, None if there are none; raises UserError as load_factory."""
        if self.spec.config is None:
            return None
        from pydantic import BaseModel

        model = self.load(self.spec.config)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise UserError(f"{self.label}: its config {self.spec.config!r} is not a pydantic model; tell its author")
        return model

    def load(self, ref: Ref) -> Any:
        """Imports what a field of the spec refers to, such as ``ArchitectureSpec.weights``."""
        if not isinstance(ref, str):
            return ref
        module, _, attribute = ref.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.label}: cannot load {ref!r}: {one_line(error)}; reinstall or upgrade {self.distribution}"
            ) from error
        return found

    @property
    def label(self) -> str:
        """Kind, full name, distribution and version, for messages."""
        return f"{self.kind} {self.full_name!r} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class PluginInfo:
    """What is known of one plugin, loaded or not.

    Attributes:
        name: its entry point.
        distribution: the distribution that declares it, normalised.
        version: of the distribution.
        licence: as the distribution's metadata state it, or ``unknown``.
        module: what the entry point refers to.
        state: ``ok``; ``blocked`` by the user; ``broken``; ``clashing`` if a bare name that it offers is taken.
        error: the cause in one line, empty if all is well.
        traceback: the whole traceback of a broken plugin.
        warning: what its user should know although it works, such as an old api_version; empty if nothing.
        load_ms: milliseconds that finding its components took.
        components: what it offers; nothing unless ``ok`` or ``clashing``.
    """

    name: str
    distribution: str
    version: str
    licence: str
    module: str
    state: State = "ok"
    error: str = ""
    traceback: str = ""
    warning: str = ""
    load_ms: float = 0.0
    components: tuple[Component, ...] = ()

    @property
    def full_name(self) -> str:
        """``distribution:entrypoint``, as ``--no-plugin`` takes it."""
        return f"{self.distribution}:{self.name}"

    @property
    def loaded(self) -> bool:
        """True if its components can be used."""
        return self.state in ("ok", "clashing")


def normalise(distribution: str) -> str:
    """Returns a distribution's name in its normal form: lower case, words joined by ``-`` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def one_line(error: BaseException) -> str:
    """Returns ``Type: message`` of an exception, its lines joined and cut where they are many."""
    told = " ".join(str(error).split())
    told = told if len(told) <= LONGEST else f"{told[: LONGEST - 3]}..."
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def a_or_an(name: str) -> str:
    """Returns a name with its article."""
    return f"{'an' if name[:1].upper() in 'AEIOU' else 'a'} {name}"


def _type_of(value: object) -> str:
    return "None" if value is None else type(value).__name__


def find_plugins(entry_points: Iterable[metadata.EntryPoint] | None, disabled: Collection[str]) -> list[PluginInfo]:
    """Loads every plugin that is not disabled, in the order of (distribution, entry point).

    Args:
        entry_points: those to load, or None for all of group ``protloom`` that are installed.
        disabled: names of distributions, entry points, or ``distribution:entrypoint``.
    """
    problems: list[PluginInfo] = []
    found = list(entry_points) if entry_points is not None else installed(problems)
    stubs = sorted(((_stub(point), point) for point in found), key=lambda pair: (pair[0].distribution, pair[0].name))
    plugins: list[PluginInfo] = []
    for stub, point in stubs:
        if is_named(stub, disabled):
            plugins.append(replace(stub, state="blocked", error="blocked by --no-plugin or PROTLOOM_DISABLE_PLUGINS"))
        else:
            plugins.append(_guarded(stub, point, plugins))
    return sorted([*plugins, *problems], key=lambda plugin: (plugin.distribution, plugin.name))


def is_named(plugin: PluginInfo, names: Iterable[str]) -> bool:
    """Tells whether one of ``names`` is this plugin's distribution, entry point or ``distribution:entrypoint``."""
    for name in names:
        distribution, colon, point = name.partition(":")
        if normalise(distribution) == plugin.distribution and (not colon or point == plugin.name):
            return True
        if name == plugin.name:
            return True
    return False


def installed(problems: list[PluginInfo]) -> list[metadata.EntryPoint]:
    """Returns the installed entry points of our group; unreadable declarations are appended to ``problems``.

    ``importlib.metadata.entry_points`` would stop at one malformed file of any distribution, so each is read alone.
    """
    points: list[metadata.EntryPoint] = []
    seen: set[str] = set()
    for candidate in metadata.distributions():
        try:
            text = candidate.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError):
            continue  # pip reports such a distribution; whether it is a plugin cannot be known
        if GROUP not in text:
            continue
        name = "unknown"
        try:
            name = normalise(candidate.metadata["Name"])
            if name in seen:
                continue
            seen.add(name)
            # of two installed versions, the first on sys.path is the one that gets imported
            first = metadata.distribution(name)
            points.extend(point for point in first.entry_points if point.group == GROUP)
        except Exception as error:
            if f"[{GROUP}]" in text:
                cause = f"unreadable entry_points.txt: {one_line(error)}"
                problems.append(PluginInfo("?", name, "", "unknown", "", "broken", cause, traceback.format_exc()))
    return points


def _stub(point: metadata.EntryPoint) -> PluginInfo:
    """Returns what is known of a plugin before it is loaded."""
    distribution = point.dist
    if distribution is None:
        return PluginInfo(point.name, "unknown", "", "unknown", point.value)
    about = distribution.metadata
    return PluginInfo(
        name=point.name,
        distribution=normalise(about["Name"]),
        version=distribution.version or "",
        licence=_licence(about),
        module=point.value,
    )


def _licence(about: metadata.PackageMetadata) -> str:
    for key in ("License-Expression", "License"):
        if key in about and about[key].strip():
            return str(about[key]).strip().splitlines()[0][:40]
    classifiers = about.get_all("Classifier") or []
    named = [line.rsplit("::", 1)[1].strip() for line in classifiers if line.startswith("License ::")]
    return named[0] if named else "unknown"


def _guarded(stub: PluginInfo, point: metadata.EntryPoint, earlier: Sequence[PluginInfo]) -> PluginInfo:
    """Loads one plugin; whatever goes wrong ends in ``state="broken"``."""
    start = time.perf_counter()
    try:
        # a plugin that prints while it is imported would spoil the JSON that a program reads from stdout
        with contextlib.redirect_stdout(sys.stderr):
            stated = _ask(point.load())
        components = tuple(
            Component(kind, spec.name, stub.distribution, stub.version, stub.name, spec) for kind, spec in stated
        )
        _check_unique(components, stub, earlier)
        loaded = replace(stub, components=components, warning=ageing(components))
    except PluginProblem as error:
        loaded = replace(stub, state="broken", error=str(error), traceback=traceback.format_exc())
    except (Exception, SystemExit) as error:
        loaded = replace(stub, state="broken", error=one_line(error), traceback=traceback.format_exc())
    return replace(loaded, load_ms=(time.perf_counter() - start) * 1000)


def ageing(components: Sequence[Component]) -> str:
    """Says which components were written for an older version of the contracts; empty if none."""
    newest = specs.API_VERSION
    old = [c for c in components if c.spec.api_version < newest]
    if not old:
        return ""
    told = ", ".join(f"{c.kind} {c.name!r} for {c.spec.api_version}" for c in old)
    return (
        f"written for an older api_version ({told}; this is {newest}): it works now, and will not for ever; "
        "look for a newer version of it"
    )


def _ask(plugin: Any) -> list[tuple[str, Spec]]:
    """Returns (kind, spec) of everything that a plugin's hooks offer."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    check_hooks(plugin, manager)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:  # a wrong argument, told over several lines
        raise PluginProblem(" ".join(str(error).split())) from error
    found: list[tuple[str, Spec]] = []
    offered = 0
    for hook, kind in KIND_OF_HOOK.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            offered += 1
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginProblem(f"{hook} is a hook wrapper, which protloom does not use; return a list of specs")
            found.extend((kind, spec) for spec in check_specs(hook, kind, implementation.function()))
    if not offered:
        raise PluginProblem(f"no hook found: mark a function such as {next(iter(KIND_OF_HOOK))} with @hookimpl")
    return found


def _check_unique(components: Sequence[Component], stub: PluginInfo, earlier: Sequence[PluginInfo]) -> None:
    """Raises where a full name would mean two things."""
    taken = {(c.kind, c.full_name): plugin.name for plugin in earlier for c in plugin.components}
    for component in components:
        key = (component.kind, component.full_name)
        if key in taken:
            raise PluginProblem(
                f"{component.kind} {component.name!r} is already offered by entry point {taken[key]!r} of the same"
                f" distribution ({stub.distribution})"
            )
        taken[key] = stub.name
