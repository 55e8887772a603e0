"""Checkpoints: a folder a step, written beside and renamed, checked when read, and free of pickle.

::

    RUN/checkpoints/step-00000300/
        model/                 weights and config as other programs read them (protloom.weights)
        objectives.safetensors what objectives own, such as a predictor or a teacher
        optimizer.safetensors  moments, by "PARAMETER|KEY", and numbers of groups (protloom.training_state)
        training/              the two files above as shards, where FSDP2 spread them (PyTorch DCP, safetensors)
        config.yaml            the run file, with the version of each component
        kernels.json           which kernel backend served each function, and why not the others
        state.json             step, counters, corpora, and size and SHA-256 of every file

There is no sampler or generator state: what a step sees is a function of the seed and the step number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from protloom import training_state
from protloom.distributed import World, full_state
from protloom.errors import UserError
from protloom.files import share, write_text

FORMAT = 1


@dataclass(frozen=True)
class TrainState:
    """The numbers that a resumed run goes on counting from.

    Attributes:
        step: optimizer steps done.
        seed: the run's seed.
        tokens: tokens trained on.
        seconds: time in training steps, without validation and saving.
        flops: model FLOPs spent.
        corpora: content hash of each corpus.
        validation: metrics of the last validation.
        validated: the step of the last validation; -1 before the first.
        skipped: non-finite steps so far.
    """

    step: int
    seed: int
    tokens: int
    seconds: float
    flops: float
    corpora: tuple[str, ...]
    validation: Mapping[str, float] = field(default_factory=dict)
    validated: int = -1
    skipped: int = 0


def folder_of(run_dir: Path, step: int) -> Path:
    """Returns where the checkpoint of a step lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def steps(run_dir: Path) -> list[int]:
    """Returns the steps that have a checkpoint, in order."""
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(int(p.name[5:]) for p in found if p.is_dir() and p.name[5:].isdigit())


def latest(run_dir: Path) -> Path | None:
    """Returns the newest checkpoint of a run, or None before the first."""
    known = steps(run_dir)
    return folder_of(run_dir, known[-1]) if known else None


def best(run_dir: Path) -> Path | None:
    """Returns the checkpoint with the lowest validation metric among those kept, or None if none was validated."""
    record = _read_best(run_dir)
    if record is None:
        return None
    folder = folder_of(run_dir, record["step"])
    return folder if folder.is_dir() else None


# --------------------------------------------------------------------------------------------------------- saving


def save(
    run_dir: Path,
    state: TrainState,
    *,
    write_model: Callable[[Path, Mapping[str, Tensor]], None],
    model: nn.Module,
    objectives: nn.Module,
    optimizer: Optimizer,
    world: World,
) -> Path:
    """Writes a checkpoint; a kill at any moment leaves either the old set or the whole new one.

    Args:
        run_dir: the run folder.
        state: counters.
        write_model: writes the weights (whole, on the host) into a folder; called on the main process.
        model: the network.
        objectives: the objectives.
        optimizer: its groups carry ``names`` beside ``params``.
        world: every process must call this.

    Raises:
        UserError: on every process, if the checkpoint cannot be written.
    """
    target = folder_of(run_dir, state.step)
    partial = _hidden(target)
    weights = full_state(model.state_dict(), keep=world.main)
    training = training_state.collect(objectives, optimizer)

    def begin() -> None:
        if world.main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        if world.parallel == "fsdp2":
            training_state.write_sharded(partial / "training", training)
        if world.main:
            if world.parallel != "fsdp2":
                training_state.write_whole(partial, training)
            write_model(partial / "model", weights)
            _finish(run_dir, partial, target, state)

    for action in (begin, write):
        reason = world.from_main(_failure(action, partial))  # so that no process waits for one that has given up
        if reason:
            raise UserError(
                f"the checkpoint of step {state.step} cannot be written to {target.parent} ({reason}); earlier ones "
                f"are untouched: free space or make it writable, then  protloom resume {run_dir}",
                exit_code=74,
            )
    return target


def _failure(action: Callable[[], None], partial: Path) -> str:
    """Runs a part of the writing; returns why it failed, empty if it did not."""
    try:
        action()
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # half a checkpoint only takes the space that is missing
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        return " ".join(text.split())
    return ""


def _finish(run_dir: Path, partial: Path, target: Path, state: TrainState) -> None:
    """Adds configuration, kernels and the list of all files, and makes the folder the checkpoint of its step."""
    for name in ("config.yaml", "kernels.json"):
        if (run_dir / name).is_file():
            shutil.copyfile(run_dir / name, partial / name)
    for path in _files(partial):
        share(path)
    files = {str(p.relative_to(partial)): _fingerprint(p) for p in _files(partial)}
    document = {"format": FORMAT, **asdict(state), "files": files}
    (partial / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    _sync(partial)
    if target.exists():
        _remove(target)
    partial.replace(target)


def _hidden(folder: Path) -> Path:
    """Returns the name of a checkpoint that is not whole: not yet, or not any more."""
    return folder.with_name(f".{folder.name}.partial")


def _remove(folder: Path) -> None:
    """Removes a checkpoint; a kill half-way leaves nothing that looks like one."""
    doomed = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(folder: Path) -> None:
    """Forces the files to disk before the rename makes them the checkpoint."""
    for path in _files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ------------------------------------------------------------------------------------------------------- retention


def note_best(run_dir: Path, step: int, metric: str, value: float) -> bool:
    """Records a validated checkpoint if it is the best so far, and tells whether it is."""
    record = _read_best(run_dir)
    if record is not None and folder_of(run_dir, record["step"]).is_dir():
        better = record["metric"] == metric and record["value"] <= value
        if better and record["step"] < step:
            return False
    path = run_dir / "checkpoints" / "best.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"step": step, "metric": metric, "value": value}))
    return True


def _read_best(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "checkpoints" / "best.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"step": int(record["step"]), "metric": str(record["metric"]), "value": float(record["value"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: remove it; the best checkpoint is then chosen among later ones") from None


def prune(run_dir: Path, keep_last: int) -> None:
    """Removes all but the newest ``keep_last`` checkpoints and the best one, and what a kill left unfinished."""
    kept = set(steps(run_dir)[-keep_last:])
    record = _read_best(run_dir)
    if record is not None:
        kept.add(record["step"])
    for step in steps(run_dir):
        if step not in kept:
            _remove(folder_of(run_dir, step))
    for partial in (run_dir / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(partial)


# --------------------------------------------------------------------------------------------------------- loading


def read_state(folder: Path) -> TrainState:
    """Reads the counters of a checkpoint after checking every file of it.

    Raises:
        UserError: if a file is missing or differs from what was written; names it and the next older checkpoint.
    """
    path = folder / "state.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = document.pop("files")
        if document.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of protloom; resume with the version that wrote it")
        document["corpora"] = tuple(document["corpora"])
        state = TrainState(**document)
    except FileNotFoundError:
        raise UserError(f"checkpoint {folder}: state.json is missing.{_advice(folder)}") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint {folder}: state.json is damaged ({error}).{_advice(folder)}") from None
    if folder.name != folder_of(folder, state.step).name:
        raise UserError(f"checkpoint {folder}: state.json is that of step {state.step}.{_advice(folder)}")
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"checkpoint {folder}: {name} is missing.{_advice(folder)}")
        if _fingerprint(file) != expected:
            raise UserError(f"checkpoint {folder}: {name} is damaged (size or SHA-256 differs).{_advice(folder)}")
    return state


def _advice(folder: Path) -> str:
    others = [s for s in steps(folder.parent.parent) if folder_of(folder.parent.parent, s) != folder]
    if others:
        return f" Move this folder away and resume again: step {others[-1]} is the next one."
    return " There is no other checkpoint: start the run again with --init from other weights, or from scratch."


def load_training(folder: Path, *, objectives: nn.Module, optimizer: Optimizer) -> None:
    """Restores objectives and optimizer in place, whatever number of processes wrote them.

    Args:
        folder: the checkpoint.
        objectives: built and wrapped as for training.
        optimizer: fresh; its groups carry ``names``.

    Raises:
        UserError: if the checkpoint is damaged or that of another run.
    """
    try:
        stored = training_state.read(folder)
    except SafetensorError as error:
        raise UserError(f"checkpoint {folder} is damaged ({error}).{_advice(folder)}") from None
    try:
        training_state.restore(stored, objectives=objectives, optimizer=optimizer)
    except UserError as error:
        raise UserError(f"{folder}: not the same run: {error}; undo what was changed, or start a new run") from None
