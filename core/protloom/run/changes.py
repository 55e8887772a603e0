"""What of a run file may change between two sittings of a run, and what must not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from protloom import schedules
from protloom.errors import UserError
from protloom.run.folder import document

if TYPE_CHECKING:
    from protloom.config import ResolvedRun

Leaves = Mapping[str, Any]

FIXED = (
    "seed",
    "tokenizer",
    "architecture",
    "combine",
    "reduction",
    "data.max_length",
    "data.min_length",
    "data.validation_fraction",
    "trainer.tokens_per_step",
)
"""Keys that decide which sequences are seen when, or which network learns: other values are another run."""

SILENT = (
    "components",
    "data.corpus",
    "data.cache_dir",
    "data.threads",
    "data.strict",
    "out",
    "init",
    "trainer.log_every",
)
"""Keys whose change is checked elsewhere or changes nothing that is trained."""


def since(checkpoint: Path, step: int, resolved: ResolvedRun) -> list[str]:
    """Returns a line for every option that is not what it was when a checkpoint was written.

    Args:
        checkpoint: the checkpoint's folder, with its copy of the run file.
        step: its step.
        resolved: the run file as it is now.

    Raises:
        UserError: if an option of :data:`FIXED` has changed.
    """
    path = checkpoint / "config.yaml"
    if not path.is_file():
        return []
    before = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    after = leaves(document(resolved))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        if under(key, FIXED) or (key == "data.validation" and None in (before.get(key), after.get(key))):
            run_dir = checkpoint.parent.parent
            raise UserError(
                f"{key} was {_shown(before, key)} until step {step} and cannot become {_shown(after, key)}: another "
                f"{key} is another run; take it back, or start one from these weights with  protloom train "
                f"--init {run_dir}"
            )
    lines = [f"{key}: {_shown(before, key)} -> {_shown(after, key)}" for key in changed if not under(key, SILENT)]
    if any(under(key, ("schedule", "trainer.steps", "optimizer.lr")) for key in changed):
        lines.append(_rates(before, resolved, step))
    return lines


def _rates(before: Leaves, resolved: ResolvedRun, step: int) -> str:
    """Tells where the learning rate goes on, which a schedule over more steps moves."""
    settings = resolved.settings
    section = {key.removeprefix("schedule."): value for key, value in before.items() if key.startswith("schedule.")}
    old = schedules.factor(type(settings.schedule)(**section), step - 1, before["trainer.steps"])
    new = schedules.factor(settings.schedule, step, settings.trainer.steps)
    peak = float(getattr(resolved.optimizer.config, "lr", 1.0))
    return f"learning rate: was {old * float(before.get('optimizer.lr', peak)):.3g}, goes on at {new * peak:.3g}"


def under(key: str, parents: tuple[str, ...]) -> bool:
    """Tells whether a dotted key is one of some others, or of a section among them."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _shown(leaves: Leaves, key: str) -> str:
    return str(leaves[key]) if key in leaves else "unset"


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    """Returns the values of a nested document by dotted key."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {at: value}
    return {key: leaf for name, inner in items for key, leaf in leaves(inner, f"{at}.{name}" if at else name).items()}
