"""What a plugin must state properly before its components are offered: hooks by their names, specs by their kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from inspect import isroutine
from typing import Any

import pluggy

from protloom import hookspecs, specs
from protloom.errors import did_you_mean
from protloom.specs import KINDS, Spec

KIND_OF_HOOK = {hook: kind for kind, hook in hookspecs.HOOK_OF_KIND.items()}
"""Name of a hook -> the kind of component that it offers."""
PREFIX = "protloom_"
"""With which the name of every hook begins."""

_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class PluginProblem(Exception):
    """Something in a plugin that its author has to change."""


def check_hooks(plugin: Any, manager: pluggy.PluginManager) -> None:
    """Raises where a function named like a hook is none, or was not marked as one."""
    home = getattr(plugin, "__name__", None)
    for name in dir(plugin):
        member = getattr(plugin, name, None)
        if not isroutine(member):
            continue
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is not None:
            hook = options.get("specname") or name
            if hook not in KIND_OF_HOOK:
                raise PluginProblem(f"there is no hook {hook!r}.{did_you_mean(hook, KIND_OF_HOOK)}")
        elif name.startswith(PREFIX) and getattr(member, "__module__", home) == home:
            if name in KIND_OF_HOOK:
                raise PluginProblem(f"{name} lacks @hookimpl (from protloom import hookimpl)")
            raise PluginProblem(f"there is no hook {name!r}.{did_you_mean(name, KIND_OF_HOOK)}")


def check_specs(hook: str, kind: str, result: Any) -> Sequence[Spec]:
    """Returns what a hook returned if it is a list of proper specs of its kind."""
    wanted = KINDS[kind]
    if not isinstance(result, list | tuple):
        raise PluginProblem(f"{hook} returned {type(result).__name__}, not a list of {wanted.__name__}")
    for spec in result:
        if not isinstance(spec, wanted):
            raise PluginProblem(f"{hook} returned a {type(spec).__name__} in its list, not a {wanted.__name__}")
        _check_spec(hook, kind, spec)
    return result


def _check_spec(hook: str, kind: str, spec: Spec) -> None:
    # only a task may name a variant, such as ss3:casp12
    parts = spec.name.split(":", 1 if kind == "task" else 0) if isinstance(spec.name, str) else [""]
    if not all(_NAME.fullmatch(part) for part in parts):
        raise PluginProblem(
            f"{hook}: illegal {kind} name {spec.name!r}; use lower-case letters and digits, words joined by - or _"
        )
    if not isinstance(spec.api_version, int) or spec.api_version < 1:
        raise PluginProblem(f"{kind} {spec.name!r}: api_version is {spec.api_version!r}, not a whole number from 1")
    written, newest, oldest = spec.api_version, specs.API_VERSION, specs.OLDEST_API_VERSION
    if written > newest:
        raise PluginProblem(
            f"{kind} {spec.name!r} was written for api_version {written}, this protloom offers {newest}: upgrade"
            " protloom, or install an older version of the plugin"
        )
    if written < oldest:
        raise PluginProblem(
            f"{kind} {spec.name!r} was written for api_version {written}, this protloom supports {oldest} to {newest}:"
            " upgrade the plugin, or install an older protloom"
        )
    for field, ref in _references(spec).items():
        if isinstance(ref, str):
            if not _REFERENCE.fullmatch(ref):
                raise PluginProblem(f"{kind} {spec.name!r}: {field} {ref!r} is not of the form 'package.module:attr'")
        elif not callable(ref):
            raise PluginProblem(f"{kind} {spec.name!r}: {field} is a {type(ref).__name__}, neither code nor its name")


def _references(spec: Spec) -> Mapping[str, Any]:
    optional = {name: getattr(spec, name, None) for name in ("weights", "identity")}
    references = {"factory": spec.factory, "config": spec.config, **optional}
    return {field: ref for field, ref in references.items() if ref is not None or field == "factory"}
