"""Trains and evaluates a comparison, part by part; what is done stays done, so a killed one goes on.

The folder of a comparison::

    comparison.yaml              what is compared
    runs/NAME-sSEED/             an ordinary run folder each
    models/NAME-sSEED@POINT/     weights when the run had used so much of the budget, at the points that are evaluated
    parts/NAME-sSEED@POINT.json  steps, tokens, seconds, FLOPs, and the foreign load of that stretch
    results/WHO/TASK.json        what a task found, WHO one of those models, 'start' or 'floor:...'
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import checkpoint
from protloom.compare.foreign_load import LoadMeter
from protloom.compare.plan import Plan
from protloom.config import source as config_source
from protloom.errors import UserError
from protloom.files import write_text
from protloom.run import folder as run_folder

if TYPE_CHECKING:
    from protloom.contracts import Subject, Task, TaskResult
    from protloom.plugins import Registry

START = "start"
"""What tables call the weights that all recipes begin from."""


@dataclass(frozen=True)
class Part:
    """One stretch of training: a recipe with a seed, up to a point of the budget."""

    arm: str
    seed: int
    point: float

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return f"{self.arm}-s{self.seed}"

    @property
    def name(self) -> str:
        """Name of the weights, and of what is known of them."""
        return f"{self.run}@{self.point:g}"


def parts(plan: Plan) -> Iterator[Part]:
    """Yields all stretches in the order of training: turn by turn, so that recipes share the machine's moods.

    Within a turn the order of the recipes changes from seed to seed and from turn to turn.
    """
    turn = 0
    for point in plan.turns:
        for seed in plan.config.seeds:
            arms = plan.arms[turn % len(plan.arms) :] + plan.arms[: turn % len(plan.arms)]
            turn += 1
            for arm in arms:
                yield Part(arm, seed, point)


class Runner:
    """Does what a plan says, in a folder.

    Args:
        plan: what to compare.
        folder: see the module.
        registry: finds components and tasks.
        tell: receives a line when something begins.
    """

    def __init__(self, plan: Plan, folder: Path, registry: Registry, tell: Callable[[str], None]) -> None:
        self._plan, self._folder, self._registry, self._tell = plan, folder, registry, tell
        self._tasks: dict[str, Task] = {}

    def run(self) -> list[str]:
        """Trains and evaluates what is not done yet; returns a line for every task that failed."""
        failures = self._evaluate_references()
        for part in parts(self._plan):
            self._train(part)
            if part.point in self._plan.points:
                failures += self._evaluate(part.name, str(self._folder / "models" / part.name))
        return failures

    # --------------------------------------------------------------------------------------------------- training

    def _train(self, part: Part) -> None:
        """Trains up to a point, in a process of its own: all begin with the same state of the machine's memory."""
        record = self._folder / "parts" / f"{part.name}.json"
        model = self._folder / "models" / part.name
        evaluated = part.point in self._plan.points
        if record.is_file() and (model.is_dir() or not evaluated):
            return
        self._tell(f"training {part.run} to {part.point:g} {self._plan.budget.unit}")
        run_dir = self._folder / "runs" / part.run
        load = LoadMeter()
        command = [sys.executable, "-m", "protloom", *self._command(part, run_dir)]
        code = _run(command)
        if code:
            raise UserError(
                f"training {part.run} failed (exit code {code}; see above): the rest is kept, and the same command "
                "goes on from here",
                exit_code=1,
            )
        newest = checkpoint.latest(run_dir)
        if newest is None:
            raise UserError(
                f"{part.run}: a budget of {part.point:g} {self._plan.budget.unit} is too short for one step: give more"
            )
        state = checkpoint.read_state(newest)
        if evaluated:
            _copy_tree(newest / "model", model)
        facts = {
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": state.seconds,
            "flops": state.flops,
            "corpora": list(state.corpora),
            "warmup_steps": _warmup(run_dir),
            "foreign_cores": load.foreign_cores(),
        }
        _write_json(record, facts)

    def _command(self, part: Part, run_dir: Path) -> list[str]:
        budget = self._plan.budget
        pause = [] if part.point >= budget.number else [f"--pause-at={budget.unit}={part.point!r}"]
        if (run_dir / run_folder.CONFIG).is_file():
            return ["resume", str(run_dir), *pause]
        shutil.rmtree(run_dir, ignore_errors=True)  # a kill came between making it and its first file
        recipe, options = self._plan.options[part.arm]
        return ["train", *([recipe] if recipe else []), *options, f"seed={part.seed}", f"--out={run_dir}", *pause]

    # ------------------------------------------------------------------------------------------------- evaluation

    def tasks(self) -> Mapping[str, Task]:
        """Builds the tasks of the plan; raises UserError if one is unknown or lacks its data."""
        from protloom.task import suite as task_suite

        if not self._tasks:
            config = self._plan.config
            chosen = task_suite.select(config.tasks, self._registry, settings=config.task_options, split=config.split)
            for reason in chosen.unable.values():
                raise UserError(reason)
            for choice in chosen.choices:
                task = task_suite.build(
                    choice.component, self._registry, data_dir=config.data_dir, options=choice.options
                )
                task.check()
                self._tasks[choice.name] = task
        return self._tasks

    def _evaluate_references(self) -> list[str]:
        """Evaluates what is the same for all recipes: the common start, and the floors of each task."""
        failures = [] if self._plan.init is None else self._evaluate(START, self._plan.init)
        for name, task in self.tasks().items():
            for floor, subject in task.floors().items():
                failures += self._ask(floor, name, task, partial(_given, subject))
        return failures

    def _evaluate(self, who: str, source: str) -> list[str]:
        """Runs all tasks for a model; it is opened only if one of them has not run yet."""
        opened: list[Subject] = []

        def model() -> Subject:
            from protloom.subjects import open_subjects

            if not opened:
                opened.append(open_subjects(source, self._registry, twin=None)[0])
            return opened[0]

        failures = []
        for name, task in self.tasks().items():
            failures += self._ask(who, name, task, model)
        return failures

    def _ask(self, who: str, name: str, task: Task, subject: Callable[[], Subject]) -> list[str]:
        """Runs one task for one subject, unless that is done; a failure is told and kept, and tried again next time."""
        path = self._folder / "results" / file_name(who) / f"{file_name(name)}.json"
        if path.is_file() and "error" not in json.loads(path.read_text(encoding="utf-8")):
            return []
        self._tell(f"evaluating {who} on {name}")
        try:
            result = task.run(subject(), seed=0, limit=self._plan.config.limit)
        except Exception as error:
            line = " ".join(f"{name}: {who}: {type(error).__name__}: {error}".split())
            _write_json(path, {"who": who, "task": name, "error": line})
            return [line]
        _write_json(path, {"who": who, "task": name, **_plain(result), "card": dict(task.card())})
        return []


def _run(command: list[str]) -> int:
    """Runs a command and returns its exit code; if this process is stopped, the command is asked to stop and save."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _warmup(run_dir: Path) -> int:
    """Returns the length of a run's warm-up."""
    path = run_dir / run_folder.CONFIG
    return int(config_source.parse(path.read_text(encoding="utf-8"), str(path))["schedule"]["warmup_steps"])


def _given(subject: Subject) -> Subject:
    return subject


def file_name(name: str) -> str:
    """Returns a name with nothing in it that a file's may not have."""
    return name.replace("/", "_").replace(":", "_")


def _plain(result: TaskResult) -> dict[str, Any]:
    return {
        "metric": result.metric,
        "value": result.value,
        "interval95": list(result.interval),
        "n": result.n,
        "unit": result.unit,
        "items": result.items,
        "metrics": dict(result.metrics),
        "replicates": result.replicates.tolist(),
        "details": dict(result.details),
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, default=_as_plain))


def _as_plain(value: Any) -> Any:
    """Returns arrays, numbers of numpy, sets and paths as what JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _copy_tree(source: Path, target: Path) -> None:
    """Copies a folder beside and renames it; files are linked where the file system can, since they never change."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, partial, copy_function=_link)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
