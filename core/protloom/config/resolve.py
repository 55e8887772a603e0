"""From a run file and overrides to a typed, resolved run.

A component is resolved first; its section is then validated by that component's own model, so that plugins bring typed
options. What a run leaves out is filled from the defaults that its architecture states: the core knows no name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from protloom.config import source
from protloom.config.errors import Path as KeyPath
from protloom.config.errors import explain, keys_of
from protloom.config.source import Override
from protloom.errors import UserError, did_you_mean
from protloom.plugins import Component, Registry
from protloom.plugins.loader import ageing, normalise
from protloom.settings import ObjectiveMix, RunConfig
from protloom.specs import ArchitectureSpec

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Chosen:
    """A component with its validated options.

    Attributes:
        component: where it comes from; ``component.load_factory()`` imports it.
        config: an instance of the component's own model, None if it has no options.
    """

    component: Component
    config: BaseModel | None

    @property
    def name(self) -> str:
        """The shortest name that means this component whatever else is installed."""
        return self.component.name if self.component.builtin else self.component.full_name

    def section(self) -> dict[str, Any]:
        """Returns the section of a run file that would choose exactly this."""
        options = {} if self.config is None else self.config.model_dump(mode="json", by_alias=True)
        return {"name": self.name, **options}


@dataclass(frozen=True)
class ChosenObjective:
    """An objective with what the trainer needs to know of it.

    Attributes:
        alias: its name in logs, unique in the run.
        chosen: the component and its options.
        mix: weight, share, start and the like.
    """

    alias: str
    chosen: Chosen
    mix: ObjectiveMix

    def section(self) -> dict[str, Any]:
        """Returns the section of a run file that would choose exactly this."""
        return {**self.chosen.section(), **self.mix.model_dump(mode="json", exclude_defaults=True)}


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that a run file means.

    Attributes:
        settings: the core's own sections; those of components stand there as they were written.
        tokenizer: chosen by the run or by its architecture.
        architecture: the network.
        optimizer: chosen by the run or by its architecture.
        objectives: at least one, with unique aliases.
        callbacks: told of every logged line.
        source: the run file, or None.
        warnings: things worth telling, such as a component whose version has changed.
    """

    settings: RunConfig
    tokenizer: Chosen
    architecture: Chosen
    optimizer: Chosen
    objectives: tuple[ChosenObjective, ...]
    callbacks: tuple[Chosen, ...] = ()
    source: str | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Every component of the run."""
        objectives = (objective.chosen for objective in self.objectives)
        return (self.tokenizer, self.architecture, self.optimizer, *objectives, *self.callbacks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the whole run as plain values, with each component's distribution and version; ``load`` reads it."""
        plain = self.settings.model_dump(mode="json", exclude={"objective", "objectives", "callbacks"})
        plain |= {name: getattr(self, name).section() for name in ("tokenizer", "architecture", "optimizer")}
        objectives = [objective.section() for objective in self.objectives]
        plain |= {"objective": objectives[0]} if len(objectives) == 1 else {"objectives": objectives}
        plain["callbacks"] = [callback.section() for callback in self.callbacks]
        plain = {key: plain[key] for key in RunConfig.model_fields if key in plain}  # in the order of the documentation
        used = {(c.component.kind, c.component.full_name): c.component for c in self.chosen}
        plain["components"] = [
            {"kind": c.kind, "name": c.name, "distribution": c.distribution, "version": c.version}
            for c in used.values()
        ]
        return plain


def load(
    path: Path | str | None,
    overrides: Sequence[Override],
    registry: Registry,
    *,
    base: Mapping[str, Any] | None = None,
) -> ResolvedRun:
    """Reads, completes and validates a run.

    Args:
        path: a YAML file, ``recipe:NAME``, or None.
        overrides: ``"trainer.steps=500"``, or pairs ``("data.corpus", "x.fasta")`` whose value is taken as it is;
            later ones win.
        registry: finds components.
        base: values under the file: what holds where file and overrides are silent.

    Raises:
        UserError: naming the file, the key path, what was found, the nearest valid name and what to do; a line for
            each problem.
    """
    raw, name = source.read(path, registry) if path is not None else ({}, "")
    raw = source.merge(base or {}, raw)
    recorded = _Recorded.of(raw.pop("components", None), name)
    written = [source.split_override(override) for override in overrides]
    for keys, value in written:
        source.apply(raw, keys, value)
    return _Resolver(raw, name, written, registry, recorded).run()


def choose(kind: str, name: str, options: Mapping[str, Any], registry: Registry, *, where: str = "") -> Chosen:
    """Resolves one component by name and validates its options, outside a whole run (as ``preview`` does)."""
    resolver = _Resolver({}, where or f"{kind} {name}", [], registry, _Recorded({}, ""))
    if kind == "architecture":
        return resolver.architecture({**source.as_mapping("architecture", name), **options})
    return resolver.choose(kind, {**options, "name": name}, None, ())


class _Recorded:
    """The ``components`` section that a finished run wrote: what was used, of which version."""

    def __init__(self, versions: Mapping[tuple[str, str], str], where: str) -> None:
        self.versions = versions
        self.where = where

    @classmethod
    def of(cls, section: Any, where: str) -> _Recorded:
        keys = ("kind", "name", "distribution", "version")
        items = [] if section is None else section
        if not isinstance(items, list) or not all(
            isinstance(item, Mapping) and set(item) == set(keys) for item in items
        ):
            raise UserError(
                f"{where}: components: should be a list of {', '.join(keys)}, as a run writes it; remove it"
            )
        found = {(str(i["kind"]), f"{normalise(str(i['distribution']))}/{i['name']}"): str(i["version"]) for i in items}
        return cls(found, where)

    def check_installed(self, kind: str, name: str, registry: Registry) -> None:
        """Raises if a recorded component's distribution is not there any more."""
        distribution, slash, bare = name.partition("/")
        version = self.versions.get((kind, f"{normalise(distribution)}/{bare}"))
        known = {plugin.distribution for plugin in registry.plugins}
        if slash and version is not None and normalise(distribution) not in known:
            raise UserError(
                f"the run used {kind} {name!r} of {distribution} {version}, which is not installed: install"
                f" that version (pip install {distribution}=={version}, if it is published; else from its folder)"
            )

    def changed(self, chosen: Sequence[Chosen]) -> list[str]:
        """Returns a warning for every component whose version is not the recorded one."""
        told = []
        for component in dict.fromkeys((c.component.kind, c.component.full_name, c.component.version) for c in chosen):
            kind, name, version = component
            before = self.versions.get((kind, name))
            if before is not None and before != version:
                told.append(f"{kind} {name!r}: the run was made with version {before}, installed is {version}")
        return told


class _Resolver:
    """Turns one raw mapping into a ResolvedRun; holds what every error message needs to name."""

    def __init__(
        self,
        raw: dict[str, Any],
        name: str,
        overrides: Sequence[tuple[tuple[str, ...], Any]],
        registry: Registry,
        recorded: _Recorded,
    ) -> None:
        self.raw = raw
        self.name = name
        self.overridden = [keys for keys, _ in overrides]
        # "architecture.size=35M" or "architecture=esm2:35M", not a mapping written out
        self.resized = any(
            keys == ("architecture", "size") or (keys == ("architecture",) and isinstance(value, str))
            for keys, value in overrides
        )
        self.registry = registry
        self.recorded = recorded

    def run(self) -> ResolvedRun:
        """Resolves the whole run."""
        if self.raw.get("schedule") is not None:
            self.raw["schedule"] = source.as_mapping("schedule", self.raw["schedule"])
        settings = self.settings()
        architecture = self.architecture(settings.architecture)
        size = source.as_mapping("architecture", settings.architecture).get("size")
        defaults = _defaults(architecture.component, size)
        if "schedule" in defaults:
            self.raw["schedule"] = self.filled("schedule", self.raw.get("schedule") or {}, defaults["schedule"])
            settings = self.settings()
        tokenizer = self.choose("tokenizer", settings.tokenizer, defaults.get("tokenizer"), ("tokenizer",))
        optimizer = self.choose("optimizer", settings.optimizer, defaults.get("optimizer"), ("optimizer",))
        objectives = self.objectives(settings, defaults.get("objective"))
        callbacks = tuple(
            self.choose("callback", section, None, ("callbacks", at)) for at, section in enumerate(settings.callbacks)
        )
        everything = (tokenizer, architecture, optimizer, *(o.chosen for o in objectives), *callbacks)
        return ResolvedRun(
            settings=settings,
            tokenizer=tokenizer,
            architecture=architecture,
            optimizer=optimizer,
            objectives=objectives,
            callbacks=callbacks,
            source=self.name or None,
            warnings=(*self.recorded.changed(everything), *_aged(everything)),
        )

    def settings(self) -> RunConfig:
        """Validates the core's own sections."""
        return self.validate(RunConfig, self.raw, ())

    def architecture(self, section: Any) -> Chosen:
        """Chooses the architecture: the preset of its size first, then the options beside it."""
        if section is None:
            known = ", ".join(self.registry.names("architecture")) or "none installed"
            raise UserError(
                f"{self.where(('architecture',))}: architecture: a run needs one: architecture=NAME or NAME:SIZE"
                f" (known: {known})"
            )
        options = source.as_mapping("architecture", section)
        component = self.component("architecture", options, None, ("architecture",))
        spec = component.spec
        assert isinstance(spec, ArchitectureSpec)
        size = options.get("size")
        if size is None or not spec.sizes:
            # without presets 'size' is an option like any other
            return self.choose("architecture", options, None, ("architecture",))
        if str(size) not in spec.sizes:
            hint = did_you_mean(str(size), spec.sizes)
            raise UserError(
                f"{self.where(('architecture', 'size'))}: architecture.size: {component.name} has no size"
                f" {size!r}.{hint}"
            )
        preset = dict(spec.sizes[str(size)])
        given = {key: value for key, value in options.items() if key != "size" and not self._outdated(key, preset)}
        return self.choose("architecture", {**preset, **given}, None, ("architecture",))

    def _outdated(self, key: str, preset: Mapping[str, Any]) -> bool:
        """True for an option of the file that a size given on the command line is meant to replace."""
        return self.resized and key in preset and ("architecture", key) not in self.overridden

    def objectives(self, settings: RunConfig, default: Any) -> tuple[ChosenObjective, ...]:
        """Chooses every objective; aliases are unique, and a shared corruption names an earlier one."""
        if settings.objectives is not None:
            places: list[tuple[KeyPath, Any]] = [(("objectives", at), s) for at, s in enumerate(settings.objectives)]
        else:
            places = [(("objective",), settings.objective)]
        if not places:
            raise UserError(f"{self.where(('objectives',))}: objectives: is empty; a run needs at least one objective")
        found: dict[str, ChosenObjective] = {}
        for at, section in places:
            one = self.objective(section, default, at)
            key = ".".join(map(str, at))
            if one.alias in found:
                raise UserError(
                    f"{self.where(at)}: {key}: the alias {one.alias!r} is taken by an earlier objective;"
                    " give it another with 'alias'"
                )
            if one.mix.corruption is not None and one.mix.corruption not in found:
                raise UserError(
                    f"{self.where(at)}: {key}.corruption: no earlier objective is called {one.mix.corruption!r}."
                    f"{did_you_mean(one.mix.corruption, found)}"
                )
            found[one.alias] = one
        return tuple(found.values())

    def objective(self, section: Any, default: Any, at: KeyPath) -> ChosenObjective:
        """Chooses one objective and separates what concerns the trainer from its own options."""
        options = self.filled("objective", source.as_mapping("objective", section), default)
        component = self.component("objective", options, default, at)
        model = component.load_config()
        mix_keys = set(keys_of(ObjectiveMix))
        taken = mix_keys & set(keys_of(model)) if model is not None else set()
        if taken:
            raise UserError(
                f"{component.label} has an option {sorted(taken)[0]!r}, a name that the trainer keeps for itself;"
                " tell its author"
            )
        mix = self.validate(ObjectiveMix, {k: v for k, v in options.items() if k in mix_keys}, at)
        own = {key: value for key, value in options.items() if key not in mix_keys}
        chosen = self.choose("objective", own, None, at, also=mix_keys)
        return ChosenObjective(mix.alias or component.name, chosen, mix)

    def choose(self, kind: str, section: Any, default: Any, at: KeyPath, *, also: Collection[str] = ()) -> Chosen:
        """Resolves a component and validates its options with its own model."""
        options = self.filled(kind, source.as_mapping(kind, section), default)
        component = self.component(kind, options, default, at)
        model = component.load_config()
        own = {key: value for key, value in options.items() if key != "name"}
        if model is None:
            if own:
                key = ".".join(map(str, (*at, next(iter(own)))))
                raise UserError(f"{self.where(at)}: {key}: {kind} {component.name!r} takes no options; remove it")
            return Chosen(component, None)
        if "name" in keys_of(model):
            raise UserError(f"{component.label} has an option 'name', which is reserved; tell its author")
        return Chosen(component, self.validate(model, own, at, also=also))

    def filled(self, kind: str, options: dict[str, Any], default: Any) -> dict[str, Any]:
        """Returns the options on top of those that the architecture's default states for the same component."""
        under = source.as_mapping(kind, default)
        if default is None or options.get("name", under.get("name")) != under.get("name"):
            return options
        return {**under, **options}

    def component(self, kind: str, options: Mapping[str, Any], default: Any, at: KeyPath) -> Component:
        """Resolves the component that a section names."""
        name = options.get("name")
        key = ".".join(map(str, at)) or kind
        prefix = f"{self.where(at)}: {key}"
        if name is None:
            known = ", ".join(self.registry.names(kind)) or "none installed"
            raise UserError(f"{prefix}: needs a name, and the architecture states no default: {key}=NAME ({known})")
        if not isinstance(name, str):
            raise UserError(f"{prefix}: found {name!r}, should be the name of a component")
        try:
            self.recorded.check_installed(kind, name, self.registry)
            return self.registry.resolve(kind, name)
        except UserError as error:
            raise UserError(f"{prefix}: {error}") from None

    def validate(self, model: type[M], raw: Any, at: KeyPath, *, also: Collection[str] = ()) -> M:
        """Validates with a model; unknown keys are refused even where a plugin's model would ignore them."""
        known = set(keys_of(model))
        if model.model_config.get("extra") not in ("allow", "forbid"):
            for key in raw:
                if key not in known:
                    text = f"{'.'.join(map(str, (*at, key)))}: unknown key.{did_you_mean(str(key), known | set(also))}"
                    raise UserError(f"{self.where((*at, str(key)))}: {text}")
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            raise explain(error, raw, model, self.where, under=at, also=also) from None

    def where(self, at: KeyPath) -> str:
        """Names where a key was written: the command line, or the file."""
        keys = tuple(map(str, at))
        if any(keys[: len(path)] == path for path in self.overridden):
            return "command line"
        return self.name or "run"


def _aged(chosen: Sequence[Chosen]) -> list[str]:
    """Returns a warning for every distribution of which the run uses something that is of an older api_version."""
    used = {(c.component.kind, c.component.full_name): c.component for c in chosen}.values()
    names = sorted({component.distribution for component in used})
    told = {name: ageing([component for component in used if component.distribution == name]) for name in names}
    return [f"{name}: {text}" for name, text in told.items() if text]


def _defaults(component: Component, size: Any) -> Mapping[str, Any]:
    spec = component.spec
    assert isinstance(spec, ArchitectureSpec)
    return {**spec.defaults, **spec.size_defaults.get(str(size), {})}
