"""Runs that take a second: their options, and what they logged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from protloom.distributed import World

ALONE = World(0, 1, torch.device("cpu"), "none")

Options = Callable[..., list[str]]


def options_in(folder: Path, fasta: Path) -> Options:
    """Returns a maker of overrides; keyword arguments with ``__`` for dots change or add some."""

    def make(out: str = "run", **changes: Any) -> list[str]:
        values: dict[str, Any] = {
            "architecture": "esm2:tiny",
            "data.corpus": fasta,
            "data.cache_dir": folder / "cache",
            "data.validation_fraction": 0.1,
            "out": folder / out,
            "optimizer.lr": 0.003,
            "trainer.steps": 6,
            "trainer.tokens_per_step": 600,
            "trainer.precision": "fp32",
            "trainer.log_every": 1,
            "trainer.validate_every": 3,
            "trainer.validation_tokens": 1000,
            "trainer.checkpoint_every": 2,
            "trainer.tensorboard": False,
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [
            f"{key}={json.dumps(str(v)) if isinstance(v, Path | str) else json.dumps(v)}" for key, v in values.items()
        ]

    return make


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """Returns every line of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    """Returns the training loss of each logged step."""
    return {r["step"]: r["loss"] for r in lines(run_dir) if "learning_rate" in r}


def environment() -> dict[str, str]:
    """Returns an environment with one thread a process: sums in one order, and two processes on two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
