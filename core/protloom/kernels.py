"""Builds the installed kernel backends, chooses among them, and tells what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protloom import ops
from protloom.errors import UserError

if TYPE_CHECKING:
    import torch

    from protloom.plugins import Registry
    from protloom.plugins.loader import Component


def choose(choice: str | Mapping[str, str], registry: Registry, device: torch.device, dtype: torch.dtype) -> ops.Ops:
    """Returns the functions that a run uses.

    A third party's backend is built only when it is named, so that installing one changes no other run.

    Args:
        choice: ``kernels`` of the run file; see :func:`protloom.ops.select`.
        registry: the installed components.
        device: where the run computes.
        dtype: in which precision.
    """
    own = {c.name: _build(c) for c in registry.components("kernel") if c.builtin}
    named = {choice} if isinstance(choice, str) else set(choice.values())
    others = {}
    for name in sorted(named - own.keys() - {"auto"}):
        try:
            others[name] = _build(registry.resolve("kernel", name))
        except UserError as error:
            raise UserError(f"kernels: {error}") from None
    return ops.select(choice, own, others, device, dtype)


def told(chosen: ops.Ops) -> list[str]:
    """Returns which backend serves which functions, and why not the others, a line each."""
    served: dict[tuple[str, str], list[str]] = {}
    left: dict[tuple[str, str], list[str]] = {}
    for function, choice in chosen.choices.items():
        served.setdefault((choice.backend, choice.why), []).append(function)
        for name, reason in choice.others.items():
            left.setdefault((name, reason), []).append(function)
    everything = len(chosen.choices)
    lines = [f"{name} for {_functions(f, everything)}: {why}" for (name, why), f in served.items()]
    for name in dict.fromkeys(name for name, _ in left):
        reasons = [(reason, functions) for (other, reason), functions in left.items() if other == name]
        if len(reasons) == 1 and len(reasons[0][1]) == everything:
            lines.append(f"not {name}: {reasons[0][0]}")
        else:
            lines += [f"not {name} for {_functions(functions, everything)}: {reason}" for reason, functions in reasons]
    return lines


def _functions(names: list[str], everything: int) -> str:
    return "everything" if len(names) == everything else ", ".join(names)


def record(chosen: ops.Ops) -> dict[str, Any]:
    """Returns the same for programs: function -> ``backend``, ``why`` and ``not``, the reasons against the others."""
    return {
        function: {"backend": choice.backend, "why": choice.why, "not": dict(choice.others)}
        for function, choice in chosen.choices.items()
    }


def _build(component: Component) -> ops.Backend:
    model = component.load_config()
    backend: ops.Backend = component.build(None if model is None else model())
    return backend
