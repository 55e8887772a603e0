"""Secondary structure of three states (Q3) of simulated proteins: ``sim-ss3`` (``ss3:*`` is a definition)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from protloom_tasks import residue_heads
from protloom_tasks.datasets import simulated
from protloom_tasks.datasets.proteins import Splits
from protloom_tasks.definition import Scored
from protloom_tasks.floors import Floor, OneHot
from protloom_tasks.residue_probe import Measure, ProbeConfig, score
from protloom_tasks.residue_task import ACCURACY, PROBES
from protloom_tasks.task_base import TaskBase

if TYPE_CHECKING:
    from protloom.contracts import Subject, TaskResult

MEASURE = Measure("Q3", "Q3", simulated.STATES)


class SimSs3Config(ProbeConfig, simulated.SimulatedConfig):
    """Options of ``sim-ss3``."""

    train_proteins: int | None = Field(default=400, ge=1, description="Training proteins, drawn by seed")
    split: Scored = Field(default="valid", description="Superfamilies that are scored")
    test_proteins: int = Field(default=300, ge=1, description="Scored proteins, drawn by seed")
    train_residues: int | None = Field(default=20_000, ge=2, description="Training residues, drawn by seed; null: all")
    window: int = Field(default=7, ge=0, description="Floor: residues on each side")


class SimSs3(TaskBase):
    """Three-state secondary structure of simulated proteins, scored on superfamilies that the probe never saw.

    Args:
        config: which proteome, sizes.
    """

    name = "sim-ss3"
    simulated = True

    def __init__(self, config: SimSs3Config) -> None:
        self.config = config
        self._splits: dict[tuple[int, int | None], Splits] = {}

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        return {
            "title": "secondary structure, 3 states, of SIMULATED proteins",
            "kind": "residue classification, frozen features",
            "metric": "Q3",
            "better": "higher",
            "also": ("Q3 per protein", "macro F1"),
            "definition": ACCURACY.format(classes=", ".join(simulated.STATES), name="Q3"),
            "splits": f"whole superfamilies; {self.config.train_proteins} training and {self.config.test_proteins}"
            f" {self.config.split} proteins, drawn evenly from families; a model that never saw the test"
            " superfamilies was trained on demo:?split=train",
            "probe": residue_heads.described(self.config.probe, PROBES[True]),
            "options": self.config.model_dump(),
            "interval": "bootstrap over families of test proteins",
            "citation": "this project; see the page on the simulated proteome",
            "licence": "part of this project",
            **self._tail(),
        }

    def _floors(self) -> Sequence[Floor]:
        return (OneHot(self.config.window),)

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all proteins of a split; see :class:`protloom.contracts.HasSequences`."""
        return simulated.sequences(self.config, split)

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._load(seed, limit)}
        splits = self._splits[seed, limit]
        return score(subject, splits, self.config, MEASURE, task=self.name, unit="families", seed=seed)

    def _load(self, seed: int, limit: int | None) -> Splits:
        proteome = simulated.make(self.config)
        scored = self.config.split
        available = {split: len(proteome.indices(split)) for split in ("train", "valid", "test")}
        train_most = self.config.train_proteins or available["train"]
        sizes = {"train": train_most, scored: self.config.test_proteins}
        chosen = {
            split: simulated.choose(proteome, split, size if limit is None else min(size, limit), seed)
            for split, size in sizes.items()
        }
        return Splits(
            simulated.structures(proteome, chosen["train"]),
            simulated.structures(proteome, chosen[scored]),
            {**simulated.provenance(self.config), "split": scored, "available": available, "limit": limit},
        )
