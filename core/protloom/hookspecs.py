"""The hooks a plugin may implement, one a kind of component; each returns a list of specs."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from protloom import specs

PROJECT = "protloom"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def protloom_tokenizers() -> Sequence[specs.TokenizerSpec]:  # type: ignore[empty-body]
    """Returns the tokenizers that this plugin offers."""


@hookspec
def protloom_architectures() -> Sequence[specs.ArchitectureSpec]:  # type: ignore[empty-body]
    """Returns the architectures that this plugin offers."""


@hookspec
def protloom_objectives() -> Sequence[specs.ObjectiveSpec]:  # type: ignore[empty-body]
    """Returns the objectives that this plugin offers."""


@hookspec
def protloom_optimizers() -> Sequence[specs.OptimizerSpec]:  # type: ignore[empty-body]
    """Returns the optimizers that this plugin offers."""


@hookspec
def protloom_kernels() -> Sequence[specs.KernelSpec]:  # type: ignore[empty-body]
    """Returns the kernel backends that this plugin offers."""


@hookspec
def protloom_tasks() -> Sequence[specs.TaskSpec]:  # type: ignore[empty-body]
    """Returns the downstream tasks that this plugin offers."""


@hookspec
def protloom_floors() -> Sequence[specs.FloorSpec]:  # type: ignore[empty-body]
    """Returns the trivial subjects of tasks that this plugin offers."""


@hookspec
def protloom_callbacks() -> Sequence[specs.CallbackSpec]:  # type: ignore[empty-body]
    """Returns the callbacks that this plugin offers."""


@hookspec
def protloom_corpora() -> Sequence[specs.CorpusSpec]:  # type: ignore[empty-body]
    """Returns the corpus readers, by URI scheme, that this plugin offers."""


@hookspec
def protloom_generators() -> Sequence[specs.GeneratorSpec]:  # type: ignore[empty-body]
    """Returns the ways to write sequences with a network that this plugin offers."""


HOOK_OF_KIND = {
    "tokenizer": "protloom_tokenizers",
    "architecture": "protloom_architectures",
    "objective": "protloom_objectives",
    "optimizer": "protloom_optimizers",
    "kernel": "protloom_kernels",
    "task": "protloom_tasks",
    "floor": "protloom_floors",
    "callback": "protloom_callbacks",
    "corpus": "protloom_corpora",
    "generator": "protloom_generators",
}
"""The hook that brings components of a kind."""
