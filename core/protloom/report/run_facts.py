"""Reads a run folder as far as a report needs it: the run file, the logged lines, the newest checkpoint's counters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom import checkpoint
from protloom.config import source as config_source
from protloom.data.layout import Store, is_store
from protloom.errors import UserError
from protloom.run import folder as run_folder

if TYPE_CHECKING:
    from protloom.plugins import Registry

LOG = "metrics.jsonl"
VALIDATION = "validation/"
COUNTERS = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
"""Unit of an axis -> key of a logged line and of a checkpoint's state."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder tells.

    Attributes:
        name: what the page calls it.
        config: the resolved run file.
        config_text: the same as it was written.
        lines: of ``metrics.jsonl``, in order.
        state: counters of the newest checkpoint; empty before the first.
        parameters: numbers in the newest checkpoint's weights; None before the first.
        simulated: the corpora of the run whose sequences a program made.
        notes: what was amiss in the files.
    """

    name: str
    config: Mapping[str, Any]
    config_text: str
    lines: tuple[Line, ...]
    state: Mapping[str, Any]
    parameters: int | None = None
    simulated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> list[Line]:
        """The lines of training steps."""
        return [line for line in self.lines if not is_validation(line)]

    @property
    def validation(self) -> list[Line]:
        """The lines of validations."""
        return [line for line in self.lines if is_validation(line)]

    def spent(self, unit: str) -> float:
        """Returns how many ``steps``, ``tokens`` or ``seconds`` the run has behind it, as far as it is known."""
        key = COUNTERS[unit]
        known = [number(line, key) for line in (*self.lines, self.state)]
        return max((value for value in known if math.isfinite(value)), default=0.0)

    def positions(self, lines: Sequence[Line], unit: str) -> list[float]:
        """Returns where lines stand on an axis of ``steps``, ``tokens`` or ``seconds``.

        Lines of validations carry no counters: theirs are read between the neighbouring training lines (and the
        newest checkpoint), which is exact where one was logged at the same step.
        """
        asked = [number(line, "step") for line in lines]
        if unit == "steps":
            return asked
        key = COUNTERS[unit]
        pairs = [(number(line, "step"), number(line, key)) for line in (*self.training, self.state)]
        known = {0.0: 0.0, **{step: value for step, value in pairs if math.isfinite(step) and math.isfinite(value)}}
        last = max(known)
        if asked and max(asked) > last > 0.0:  # beyond what is known, at the mean pace until there
            known[max(asked)] = known[last] * max(asked) / last
        steps = sorted(known)
        return [float(x) for x in np.interp(asked, steps, [known[step] for step in steps])]


def is_validation(line: Line) -> bool:
    """True for a line that a validation wrote."""
    return any(key.startswith(VALIDATION) for key in line)


def number(line: Line, key: str) -> float:
    """Returns a number of a line; NaN where it is missing, or was not finite and so written as null."""
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def read(folder: Path, registry: Registry, *, name: str | None = None, lines: Sequence[Line] | None = None) -> Run:
    """Reads a run folder.

    Args:
        folder: of the run.
        registry: knows which corpora are simulated.
        name: what to call it; default: the folder's name.
        lines: of the log, where they have been read already.

    Raises:
        UserError: there is no run, nothing was logged, or a file is damaged.
    """
    _refuse_other(folder)
    config_text = (folder / run_folder.CONFIG).read_text(encoding="utf-8")
    config = config_source.parse(config_text, str(folder / run_folder.CONFIG))
    if not isinstance(config, Mapping):
        raise UserError(f"{folder / run_folder.CONFIG} is damaged: a run file is a mapping of keys to values")
    found, notes = (tuple(lines), ()) if lines is not None else read_log(folder / LOG)
    newest = checkpoint.latest(folder)
    return Run(
        name=name or folder.resolve().name,
        config=config,
        config_text=config_text,
        lines=found,
        state={} if newest is None else _read_state(newest / "state.json"),
        parameters=None if newest is None else _count_parameters(newest / "model"),
        simulated=tuple(path for path in corpora(config) if _is_simulated(path, registry)),
        notes=notes,
    )


def _refuse_other(folder: Path) -> None:
    """Raises UserError for what is no run folder, saying what it is instead."""
    if folder.is_file():
        where = "; results of tasks go behind --tasks" if folder.suffix == ".json" else ""
        raise UserError(f"{folder} is a file: name the folder of a run{where}")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name one that  protloom train  printed")
    if (folder / "comparison.yaml").is_file():
        raise UserError(
            f"{folder} holds a comparison, not a run: its page is {folder / 'report.html'}, and "
            f"protloom compare COMPARE.yaml --out {folder} --report-only  writes it again"
        )
    run_folder.refuse_if_none(folder)


def read_log(path: Path) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """Returns the lines of ``metrics.jsonl`` and what was amiss: a last line that a kill cut short is left out.

    Raises:
        UserError: the file is missing, empty or damaged elsewhere.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has logged nothing, or this is one of its checkpoints")
    found: list[Line] = []
    notes: tuple[str, ...] = ()
    # errors are replaced, so that a damaged byte is told with its line and not as a failure to decode
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = text.split("\n")
    for at, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        fault = _fault(row)
        if fault is None:
            found.append(json.loads(row))
        elif at == len(rows):
            notes = (f"the last line of {LOG} was cut short by a kill, or is being written: it is left out",)
        else:
            raise UserError(f"{path}: line {at} is damaged ({fault}): remove that line, or restore the file")
    if not found:
        raise UserError(f"{path} is empty: the run has logged nothing yet; trainer.log_every says when it does")
    return tuple(found), notes


def _fault(row: str) -> str | None:
    """Returns what is wrong with a line of the log, or None."""
    try:
        line = json.loads(row)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(line, dict):
        return "not an object"
    step = line.get("step")
    return None if isinstance(step, int) and not isinstance(step, bool) else "it has no step"


def _read_state(path: Path) -> Mapping[str, Any]:
    """Returns the counters of a checkpoint; its other files, which may be large, are not checked."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): move that checkpoint away") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is damaged (not an object): move that checkpoint away")
    return state


def _count_parameters(model: Path) -> int | None:
    """Counts the numbers in a folder's weights by their headers alone; None where there are none."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(model.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): move that checkpoint away") from None
    return total or None


def corpora(config: Mapping[str, Any]) -> list[str]:
    """Returns what a resolved run file names as corpora."""
    stated = config.get("data", {}).get("corpus")
    parts = stated if isinstance(stated, list) else [stated]
    return [str(part["path"] if isinstance(part, Mapping) else part) for part in parts if part is not None]


def _is_simulated(path: str, registry: Registry) -> bool:
    """True for a URI of a reader that simulates, and for a store whose manifest says so."""
    if is_store(Path(path)):
        return bool(Store.open(path).manifest["simulated"])
    scheme = path.partition(":")[0]
    readers = [c for c in registry.components("corpus") if scheme in (c.name, c.full_name)]
    return ":" in path and any(bool(getattr(reader.spec, "simulated", False)) for reader in readers)
