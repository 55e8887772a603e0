"""What a plugin hands to protloom: one small frozen record a component.

A spec names a component and says where its code is; it holds no code itself. ``factory`` and ``config`` are usually
strings ``"package.module:attribute"``, imported only when the component is used, so that listing plugins stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

API_VERSION = 1
"""Version of the contracts in this release; a spec states the one that it was written for."""
OLDEST_API_VERSION = 1
"""The oldest version that still works: what was written for one between the two is loaded, with a warning."""

Ref = str | Callable[..., Any]
"""An object, or where to import it from: ``"package.module:attribute"``."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every component states.

    Attributes:
        name: how users call it: lower case, words joined by ``-`` or ``_``, no ``/`` and no ``:`` (a task may name a
            variant after one ``:``).
        factory: builds the component; its arguments are stated by the subclass.
        config: a pydantic model of the component's options (``extra="forbid"``, frozen), or None where it has none.
        summary: one line for ``protloom plugins``.
        api_version: the :data:`API_VERSION` that the component was written for; 1, the first, where none is stated.
    """

    kind: ClassVar[str] = ""
    name: str
    factory: Ref
    config: Ref | None = None
    summary: str = ""
    api_version: int = 1


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(Spec):
    """A tokenizer; ``factory(config) -> protloom.contracts.Tokenizer``."""

    kind: ClassVar[str] = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec(Spec):
    """A network; ``factory(config, build: protloom.contracts.BuildContext) -> torch.nn.Module``.

    Attributes:
        sizes: named presets: size -> options of ``config``. A user writes ``name:size``.
        defaults: what a run that leaves them out gets: any of ``tokenizer``, ``objective``, ``optimizer``, ``schedule``
            (a name, or a mapping with ``name`` and options).
        size_defaults: for single sizes, what differs from ``defaults``.
        weights: a :class:`protloom.contracts.WeightAdapter` that reads and writes other programs' formats, or None.
        peers: other programs that train the same network, for ``protloom bench --against NAME``: name -> a function
            without arguments that returns a :class:`protloom.contracts.Peer`. They read what ``weights`` writes.
    """

    kind: ClassVar[str] = "architecture"
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    size_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Ref | None = None
    peers: Mapping[str, Ref] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Spec):
    """A training objective; ``factory(config, build: BuildContext) -> protloom.objective.Objective``."""

    kind: ClassVar[str] = "objective"


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer; ``factory(config, groups: list[dict]) -> torch.optim.Optimizer``.

    ``groups`` are parameter groups with ``params``, ``names``, ``lr_scale`` and ``weight_decay_scale`` (0 for biases
    and norms). ``config`` must have a field ``lr``: schedules multiply it. A factory with an argument ``ops`` receives
    the run's :class:`protloom.ops.Ops` by that name: an optimizer may come in the form of the run's kernels.
    """

    kind: ClassVar[str] = "optimizer"


@dataclass(frozen=True, kw_only=True)
class KernelSpec(Spec):
    """A backend of :mod:`protloom.ops`; ``factory(config) -> protloom.ops.Backend``."""

    kind: ClassVar[str] = "kernel"


@dataclass(frozen=True, kw_only=True)
class TaskSpec(Spec):
    """A downstream task; ``factory(config) -> protloom.contracts.Task``.

    A name may be ``group:variant``; the group's name alone stands for all its variants. Fields of ``config`` that the
    command line knows: ``data_dir`` receives the folder of real data, ``split`` what is scored (``valid``, or ``test``
    with ``--test``), ``pool`` what ``--pool`` says. A whole number that may be null instead is a cap on how much is
    used: ``--full`` makes it null.

    Attributes:
        tags: words to choose it by, such as ``per-residue`` or ``simulated``.
        options: options of ``config`` that make this variant, as ``sizes`` do for an architecture.
        files: endings of file names and the option of ``config`` that receives the path. A task with any is no task of
            its own: it makes one of each such file that a user names, ``task run my.yaml``; what is named behind a
            colon, ``my.yaml:far``, goes along.
    """

    kind: ClassVar[str] = "task"
    tags: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FloorSpec(Spec):
    """A trivial subject of tasks, called ``floor:NAME``; ``factory(config) -> protloom.contracts.Subject``.

    It can be judged in place of a model on every task, whether or not the task shows it by default.
    """

    kind: ClassVar[str] = "floor"


@dataclass(frozen=True, kw_only=True)
class CallbackSpec(Spec):
    """Something told of every logged line; ``factory(config, run_dir: Path) -> protloom.contracts.Callback``."""

    kind: ClassVar[str] = "callback"


@dataclass(frozen=True, kw_only=True)
class CorpusSpec(Spec):
    """A source of sequences reached by a URI; its ``name`` is the scheme.

    ``factory(config, uri: str) -> Iterable[protloom.contracts.Record]``; for ``demo:?n=100`` the name is ``demo``.
    ``config`` validates the query part of the URI.

    Attributes:
        simulated: a program made the sequences; stores, logs and reports say so.
        data_version: raise it whenever the same URI gives other records, so that no store built before is used.
        identity: ``identity(config, uri) -> str``: what else the records depend on, such as the hash of a file that the
            URI names; a store that was built of another identity is not used.
    """

    kind: ClassVar[str] = "corpus"
    simulated: bool = False
    data_version: int = 1
    identity: Ref | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec(Spec):
    """Writes sequences with a trained network; ``factory(config) -> protloom.contracts.Generator``.

    Attributes:
        objectives: names of the objectives whose networks it is for; ``distribution/name`` where another distribution
            offers one. ``protloom generate`` takes it for a run that was trained with one of them.
    """

    kind: ClassVar[str] = "generator"
    objectives: tuple[str, ...] = ()


KINDS: Mapping[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        TokenizerSpec,
        ArchitectureSpec,
        ObjectiveSpec,
        OptimizerSpec,
        KernelSpec,
        TaskSpec,
        FloorSpec,
        CallbackSpec,
        CorpusSpec,
        GeneratorSpec,
    )
}
"""Every kind of component by name."""
