"""Builds the installed kernel backends and chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from protloom import ops
from protloom.errors import UserError

if TYPE_CHECKING:
    import torch

    from protloom.plugin_loader import Component
    from protloom.plugins import Registry


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


def _build(component: Component) -> ops.Backend:
    model = component.load_config()
    backend: ops.Backend = component.build(None if model is None else model())
    return backend
