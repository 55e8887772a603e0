"""Trains and evaluates a comparison, part by part; what is done stays done, so a killed one goes on.

The folder of a comparison::

    comparison.yaml              what is compared
    recipes.yaml                 each recipe as a whole run file
    runs/NAME-sSEED/             an ordinary run folder each
    models/NAME-sSEED@POINT/     weights when the run had used so much of the budget, at the points that are evaluated
    parts/NAME-sSEED@POINT.json  steps, tokens, seconds, FLOPs, and the foreign load of that stretch
    results/, results.csv, .md   what tasks found for those models, 'start' and floors, as 'task run --out' keeps it
    failures.json                what failed there, and is tried again
    report.html, .md, .csv, .json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protloom import checkpoint
from protloom.compare.evaluation import Evaluation
from protloom.compare.foreign_load import LoadMeter
from protloom.compare.plan import Plan
from protloom.config import source as config_source
from protloom.errors import UserError
from protloom.files import write_text
from protloom.plain_data import plain
from protloom.run import folder as run_folder

if TYPE_CHECKING:
    from protloom.plugins import Registry
    from protloom.task.run import Built


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
        debug: print the traceback of a task's failure.
    """

    def __init__(
        self, plan: Plan, folder: Path, registry: Registry, tell: Callable[[str], None], *, debug: bool = False
    ) -> None:
        self._plan, self._folder, self._tell = plan, folder, tell
        self._evaluation = Evaluation(plan, folder, registry, tell, debug=debug)

    def tasks(self) -> Mapping[str, Built]:
        """Builds the tasks of the plan; raises UserError if one is unknown or lacks its data."""
        return self._evaluation.tasks()

    def run(self) -> list[str]:
        """Trains and evaluates what is not done yet; returns a line for every task that failed."""
        failures = self._evaluation.references()
        for part in parts(self._plan):
            self._train(part)
            if part.point in self._plan.points:
                failures += self._evaluation.model(part.name, str(self._folder / "models" / part.name))
        return failures

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
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(plain(facts), allow_nan=False))

    def _command(self, part: Part, run_dir: Path) -> list[str]:
        budget = self._plan.budget
        pause = [] if part.point >= budget.number else [f"--pause-at={budget.unit}={part.point!r}"]
        if (run_dir / run_folder.CONFIG).is_file():
            return ["resume", str(run_dir), *pause]
        shutil.rmtree(run_dir, ignore_errors=True)  # a kill came between making it and its first file
        recipe, options = self._plan.options[part.arm]
        return ["train", *([recipe] if recipe else []), *options, f"seed={part.seed}", f"--out={run_dir}", *pause]


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
