"""Asks the tasks of a comparison, as ``protloom task run`` does, into the same kind of folder.

A result is taken from there only if data, task, options, weights, precision and code are the same. What failed is in
``failures.json``, until it succeeds.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protloom.allocator import keep_freed_memory
from protloom.compare.plan import Plan
from protloom.errors import UserError
from protloom.files import write_text
from protloom.plugins.blame import explain
from protloom.task import run as task_run
from protloom.task import suite as task_suite
from protloom.task.results import HOME, ResultFolder
from protloom.task.run import Request

if TYPE_CHECKING:
    from protloom.contracts import Subject
    from protloom.plugins import Registry
    from protloom.task.run import Built

START = "start"
"""What tables call the weights that all recipes begin from."""
FAILURES = "failures.json"


class Asked(NamedTuple):
    """A subject and a task."""

    who: str
    task: str


class Evaluation:
    """Judges models and floors by the tasks of a plan.

    Args:
        plan: what to compare.
        folder: of the comparison.
        registry: finds components and tasks.
        tell: receives a line when something begins, and what a user has to know of a model.
        debug: print the traceback of a failure.
    """

    def __init__(
        self, plan: Plan, folder: Path, registry: Registry, tell: Callable[[str], None], *, debug: bool = False
    ) -> None:
        self._plan, self._folder, self._registry, self._tell, self._debug = plan, folder, registry, tell, debug
        self._built: dict[str, Built] = {}
        self._kept: ResultFolder | None = None

    def tasks(self) -> Mapping[str, Built]:
        """Builds the tasks; raises UserError if one is unknown or lacks its data."""
        if not self._built:
            config = self._plan.config
            chosen = task_suite.select(config.tasks, self._registry, settings=config.task_options, split=config.split)
            for reason in chosen.unable.values():
                raise UserError(reason)
            for choice in chosen.choices:
                self._built[choice.name] = task_run.build(choice, self._registry, config.data_dir)
        return self._built

    def references(self) -> list[str]:
        """Asks what is the same for all recipes, the common start and floors; returns a line for every failure."""
        lines = [] if self._plan.init is None else self.model(START, self._plan.init)
        for built in self.tasks().values():
            for floor in _floors(built):
                lines += self._ask(Asked(floor, built.name), Request(None, floor=floor))
        return lines

    def model(self, who: str, source: str) -> list[str]:
        """Asks a model all tasks; returns a line for every one that failed.

        Args:
            who: what tables call it.
            source: the model.
        """
        try:
            subject = self._open(who, source)
        except Exception as error:  # a model that cannot be opened costs no other one
            if self._debug:
                traceback.print_exc()
            told = str(error) if isinstance(error, UserError) else explain(error)
            return [self._failed(Asked(who, name), told) for name in self.tasks()]
        lines = []
        for name in self.tasks():
            lines += self._ask(Asked(who, name), Request(subject, floors=False))
        return lines

    def _open(self, who: str, source: str) -> Subject:
        """Opens a model; what its maker has to say of it is told."""
        from protloom.subjects import open_subjects

        subject, _, notes = open_subjects(source, self._registry, precision=self._plan.config.precision, twin=None)
        subject.name = who  # results are kept under it, whatever folder the comparison lies in
        for note in notes:
            self._tell(f"warning: {who}: {note}")
        if subject.device.type == "cpu":
            keep_freed_memory()  # an allocator that cannot is as good as before
        return subject

    def _ask(self, asked: Asked, request: Request) -> list[str]:
        """Runs one task for one subject, unless that is done; a failure is told and kept, and tried again next time."""
        if self._kept is None:
            (self._folder / HOME).mkdir(parents=True, exist_ok=True)
            self._kept = ResultFolder(self._folder, lambda line: self._tell(f"warning: {line}"))
        config = self._plan.config
        whole = replace(request, limit=config.limit, folder=self._kept, debug=self._debug, tell=self._tell)
        report = task_run.run(self.tasks()[asked.task], whole)
        if report.error is not None:
            return [self._failed(asked, report.error)]
        failures = read_failures(self._folder)
        if failures.pop(asked, None) is not None:
            _write_failures(self._folder, failures)
        return []

    def _failed(self, asked: Asked, told: str) -> str:
        """Keeps that something failed; returns the line that says so."""
        self._folder.mkdir(parents=True, exist_ok=True)
        line = " ".join(f"{asked.task}: {asked.who}: {told}".split())
        _write_failures(self._folder, {**read_failures(self._folder), asked: line})
        return line


def _floors(built: Built) -> tuple[str, ...]:
    """Returns the floors that a task offers; none where it fails to, of which every model that is asked tells."""
    try:
        return tuple(built.task.floors())
    except Exception:  # a bug in one task must not cost the others
        return ()


def read_failures(folder: Path) -> dict[Asked, str]:
    """Returns what failed in the comparison of a folder, each with the line that says why."""
    path = folder / FAILURES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {Asked(entry["who"], entry["task"]): str(entry["error"]) for entry in found}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}): remove it and go on") from None


def _write_failures(folder: Path, failures: Mapping[Asked, str]) -> None:
    entries = [{"who": asked.who, "task": asked.task, "error": line} for asked, line in failures.items()]
    write_text(folder / FAILURES, json.dumps(entries, indent=1) + "\n")
