"""From what a user calls tasks to tasks with their options: names, groups, patterns, suites, files.

A suite is a YAML file in the folder ``suites`` beside an installed plugin, so that a plugin adds suites as it adds
recipes::

    title: what a small encoder must know
    tasks: [solubility, "ss3:*", "suite:quick"]     # what 'task run' takes
    options: {train_rows: 5000, rows: 2000}         # each goes to the tasks that have it
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from protloom import config
from protloom.config.errors import explain
from protloom.config.source import named, parse, shipped
from protloom.errors import UserError, did_you_mean
from protloom.plugins import OWN
from protloom.settings import Section
from protloom.specs import TaskSpec
from protloom.task import faults as task_faults

if TYPE_CHECKING:
    from protloom.contracts import Task
    from protloom.plugins import Registry

SUITE = "suite:"
"""What the name of a suite begins with."""
FOLDER = "suites"
"""Where suites lie, beside a plugin."""


@dataclass(frozen=True)
class Choice:
    """A task that was asked for.

    Attributes:
        name: what results call it: as the registry knows it, or the path of its file.
        component: what builds it, as the registry knows it.
        options: on top of those that make the variant.
        file: what it is made of, None for a registered task.
        suite: the suite that brought it, None for one that was named alone.
    """

    name: str
    component: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    suite: str | None = None


@dataclass(frozen=True)
class Selection:
    """What a user's names mean.

    Attributes:
        choices: the tasks, each once.
        unable: names that mean no task here, with the reason: those within suites, and others where a plugin is broken
            that may have offered them.
    """

    choices: Sequence[Choice]
    unable: Mapping[str, str]


# ----------------------------------------------------------------------------------------------------------- names


def names(registry: Registry) -> tuple[str, ...]:
    """Returns every task that runs by its name alone."""
    return tuple(name for name in registry.names("task") if not _spec(name, registry).files)


def _spec(name: str, registry: Registry) -> TaskSpec:
    spec = registry.resolve("task", name).spec
    assert isinstance(spec, TaskSpec)  # the loader checked it
    return spec


def expand(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the tasks that names mean, each once: a name, a group (``ss3`` for every ``ss3:...``) or a pattern.

    Raises:
        UserError: if a name means no task; names the nearest.
    """
    found: dict[str, None] = {}
    groups = {name.split(":")[0] for name in known if ":" in name}
    for name in wanted:
        if name in known:
            means = [name]
        elif name in groups:
            means = [other for other in known if other.startswith(f"{name}:")]
        else:
            means = [other for other in known if fnmatchcase(other, name)]
        if not means:
            raise UserError(f"no task {name!r}.{did_you_mean(name, {*known, *groups})} See 'protloom task list'.")
        found.update(dict.fromkeys(means))
    return list(found)


def select(
    wanted: Sequence[str],
    registry: Registry,
    *,
    settings: Sequence[str] = (),
    split: str | None = None,
    full: bool = False,
) -> Selection:
    """Returns the tasks that names mean, with their options.

    Args:
        wanted: names, groups, patterns, ``suite:NAME``, files that an installed task is made of.
        registry: where tasks and suites are found.
        settings: options on top, each ``key=value``; each goes to the tasks that have it.
        split: what tasks that have several splits score; None: each task's default.
        full: lift the caps (see :class:`protloom.specs.TaskSpec`), those of suites too.

    Raises:
        UserError: a name means nothing and no plugin is broken, an option belongs to no task, or two suites disagree
            about a task.
    """
    known = names(registry)
    found: dict[str, Choice] = {}
    unable: dict[str, str] = {}
    for name in wanted:
        if name.startswith(SUITE):
            choices, missing = _of_suite(name, registry, known)
            unable.update(missing)
        elif (choice := _of_file(name, registry)) is not None:
            choices = [choice]
        else:
            choices, reason = _of_name(name, registry, known)
            unable.update({} if reason is None else {name: reason})
        for choice in choices:
            _add(found, choice)
    _remove_broken(found, unable, registry)
    components = {choice.name: choice.component for choice in found.values()}
    options = options_of(settings, components, registry) if found else {}
    chosen = []
    for choice in found.values():
        model = registry.resolve("task", choice.component).load_config()
        fields = set() if model is None else set(model.model_fields)
        lifted = dict.fromkeys(caps(model)) if full and model is not None else {}
        if split is not None and "split" in options[choice.name]:
            raise UserError("--set split: validation is scored by default, the test split with --test")
        scored = {"split": split} if split is not None and "split" in fields else {}
        chosen.append(replace(choice, options={**choice.options, **lifted, **scored, **options[choice.name]}))
    return Selection(chosen, unable)


def _remove_broken(found: dict[str, Choice], unable: dict[str, str], registry: Registry) -> None:
    """Moves tasks whose code cannot be imported to those that are unable."""
    for name, choice in list(found.items()):
        try:
            option_names(choice.component, registry)
        except UserError as error:
            del found[name]
            unable[name] = str(error)


def _of_name(name: str, registry: Registry, known: Sequence[str]) -> tuple[list[Choice], str | None]:
    """Returns the tasks of a name, or why it means none: it may be of a plugin that is broken, and no mistake."""
    try:
        return [Choice(task, task) for task in expand([name], known)], None
    except UserError as error:
        if not any(plugin.state == "broken" for plugin in registry.plugins):
            raise
        return [], f"{error} {registry.absent()}"


def _add(found: dict[str, Choice], choice: Choice) -> None:
    """Adds a task once; a task named alone takes the options of a suite that has it too."""
    before = found.get(choice.name)
    if before is None or before.suite is None:
        found[choice.name] = choice if before is None or choice.suite is not None else before
        return
    if choice.suite is None or choice.options == before.options:
        return
    key = next(
        k for k in [*before.options, *choice.options] if before.options.get(k, ...) != choice.options.get(k, ...)
    )
    raise UserError(
        f"{choice.name}: {before.suite} and {choice.suite} give it different options ({key}): run one suite at a time,"
        f" or say --full"
    )


def _of_file(name: str, registry: Registry) -> Choice | None:
    """Returns the task that is made of a file, None where the name is no file's."""
    file, colon, part = name.rpartition(":")  # what a file holds may be named behind it: tasks.yaml:far
    if not Path(file).suffix or "/" in part:
        file, colon, part = name, "", ""
    offers = [
        (component, option)
        for component in registry.components("task")
        if isinstance(component.spec, TaskSpec)
        for ending, option in component.spec.files.items()
        if file.endswith(ending)
    ]
    offers = [offer for offer in offers if offer[0].builtin] or offers
    if len(offers) > 1:
        raise UserError(f"{name}: {' and '.join(c.full_name for c, _ in offers)} both make tasks of such files")
    if not offers:
        if file.endswith((".yaml", ".yml")):
            raise UserError(f"{name}: no installed plugin makes tasks of such files; see 'protloom plugins'")
        return None
    (component, option), path = offers[0], Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{name}: there is no such file")
    return Choice(name, component.full_name, {option: f"{path}{colon}{part}"}, file=path)


# ---------------------------------------------------------------------------------------------------------- suites


def suites(registry: Registry) -> dict[str, str]:
    """Returns the title of every suite by name, without ``suite:``; a broken one says what is wrong with it."""
    found: dict[str, str] = {}
    for full in shipped(registry, FOLDER):
        name = full.removeprefix(f"{OWN}/")
        try:
            found[name] = str(_read(name, registry).title)
        except UserError as error:
            found[name] = f"broken: {error}"
    return found


class Suite(Section):
    """The file of a suite."""

    title: str = Field(description="What it is, in a few words")
    tasks: list[str] = Field(min_length=1, description="Tasks, groups, patterns, suites")
    options: dict[str, Any] = Field(default={}, description="Options; each goes to the tasks that have it")


def _read(name: str, registry: Registry) -> Suite:
    where = f"{SUITE}{name}"
    raw = parse(named("suite", name, shipped(registry, FOLDER)).read_text(encoding="utf-8"), where)
    try:
        return Suite.model_validate(raw)
    except ValidationError as error:
        raise explain(error, raw, Suite, lambda _: where) from None


def _of_suite(
    title: str, registry: Registry, known: Sequence[str], within: tuple[str, ...] = ()
) -> tuple[list[Choice], dict[str, str]]:
    """Returns the tasks of a suite and what it names in vain; an outer suite's options go on top of an inner one's."""
    if title in within:
        raise UserError(f"{title}: contains itself ({' > '.join((*within, title))}); tell the author of that plugin")
    suite = _read(title.removeprefix(SUITE), registry)
    found: dict[str, Choice] = {}
    unable: dict[str, str] = {}
    for name in suite.tasks:
        if name.startswith(SUITE):
            choices, missing = _of_suite(name, registry, known, (*within, title))
            unable.update(missing)
        else:
            try:
                choices = [Choice(task, task, suite=title) for task in expand([name], known)]
            except UserError as error:
                unable[name] = f"{title}: {error} {registry.absent()}".rstrip()
                continue
        for choice in choices:
            found.setdefault(choice.name, replace(choice, suite=title))
    _remove_broken(found, unable, registry)
    fields = {choice.name: option_names(choice.component, registry) for choice in found.values()}
    if found:
        for key in suite.options:
            _check_taken(key, fields, f"{title}: option {key}")
    return [
        replace(c, options={**c.options, **{k: v for k, v in suite.options.items() if k in fields[c.name]}})
        for c in found.values()
    ], unable


# --------------------------------------------------------------------------------------------------------- options


def option_names(name: str, registry: Registry) -> set[str]:
    """Returns the names of a task's options."""
    model = registry.resolve("task", name).load_config()
    return set() if model is None else set(model.model_fields)


def caps(model: type[BaseModel]) -> Iterator[str]:
    """Yields the options that bound how much data a task uses: whole numbers that may be null, and are not."""
    for name, option in model.model_fields.items():
        if isinstance(option.default, int) and set(get_args(option.annotation)) == {int, type(None)}:
            yield name


def options_of(settings: Sequence[str], components: Mapping[str, str], registry: Registry) -> dict[str, dict[str, Any]]:
    """Returns the options for each task; each goes to the tasks that have it.

    Args:
        settings: options, each ``key=value``.
        components: the tasks, and what builds each.
        registry: where they are found.

    Raises:
        UserError: if no task has an option of that name.
    """
    fields = {name: option_names(component, registry) for name, component in components.items()}
    options: dict[str, dict[str, Any]] = {name: {} for name in components}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write key=value")
        _check_taken(key, fields, f"--set {setting}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for name in components:
            if key in fields[name]:
                options[name][key] = value
    return options


def _check_taken(key: str, fields: Mapping[str, Collection[str]], where: str) -> None:
    known = set().union(*fields.values())
    if key not in known:
        raise UserError(f"{where}: no such option.{did_you_mean(key, known)}")


def build(
    name: str, registry: Registry, *, data_dir: str | None = None, options: Mapping[str, Any] | None = None
) -> Task:
    """Builds a task.

    Args:
        name: as the registry knows it.
        registry: where tasks are found.
        data_dir: folder of real data, for tasks that read any.
        options: on top of those that make the variant.

    Raises:
        UserError: if the task is unknown, broken, or does not take the options.
    """
    task, _ = build_with_options(name, registry, data_dir=data_dir, options=options)
    return task


def build_with_options(
    name: str, registry: Registry, *, data_dir: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Task, dict[str, Any]]:
    """Builds a task as :func:`build` does, and returns with it all its options but the data folder, as plain data."""
    component = registry.resolve("task", name)
    fields = option_names(name, registry)
    given = dict(component.spec.options) if isinstance(component.spec, TaskSpec) else {}
    if data_dir is not None and "data_dir" in fields:
        given["data_dir"] = data_dir
    every = {**given, **(options or {})}
    chosen = task_faults.asked(component, lambda: config.choose("task", name, every, registry))
    task = task_faults.made(component, chosen.config)
    stated = {} if chosen.config is None else chosen.config.model_dump(mode="json", exclude={"data_dir"})
    return task, stated
