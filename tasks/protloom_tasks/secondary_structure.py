"""Secondary structure of three states (Q3): ``ss3:casp12``, ``:cb513``, ``:new364``, ``:ts115`` and ``sim-ss3``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from protloom_tasks.datasets import secondary_structure as data
from protloom_tasks.datasets import simulated
from protloom_tasks.datasets.files import locate, sha256, status
from protloom_tasks.datasets.proteins import Splits, draw
from protloom_tasks.floors import OneHot
from protloom_tasks.residue_probe import ProbeConfig, score

if TYPE_CHECKING:
    from protloom.contracts import Subject, TaskResult

DEFINITION = (
    "share of right states (H, E, C) among resolved residues, all proteins pooled; 'Q3 per protein' is the mean of each"
    " protein's share, a different number"
)
PROBE = "StandardScaler + logistic regression on frozen features of single residues, C fixed, nothing chosen on test"


class Ss3Config(ProbeConfig):
    """Options of the real secondary structure tasks."""

    test: Literal["casp12", "cb513", "new364", "ts115"] = Field(description="Test set")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    window: int = Field(default=7, ge=0, description="Floor: residues on each side")


class Ss3:
    """Three-state secondary structure, trained on NetSurfP-2.0's training chains.

    Args:
        config: which test set, where the data are, size of the probe.
    """

    def __init__(self, config: Ss3Config) -> None:
        self.config = config
        self.name = f"ss3:{config.test}"
        self._splits: dict[tuple[int, int | None], Splits] = {}

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        test = data.TESTS.get(self.config.test, data.NETSURFP)
        sources = dict.fromkeys((data.NETSURFP, test))
        return {
            "title": f"secondary structure, 3 states, test set {self.config.test.upper()}",
            "kind": "residue classification, frozen features",
            "metric": "Q3",
            "better": "higher",
            "also": ("Q3 per protein", "macro F1"),
            "definition": DEFINITION,
            "splits": "train: NetSurfP-2.0 training chains (9712), drawn by seed; validation: not used; test: "
            + {"casp12": "20", "cb513": "511 rows of 432 chains", "new364": "364", "ts115": "115"}[self.config.test],
            "probe": PROBE,
            "options": self.config.model_dump(exclude={"data_dir"}),
            "floors": {name: floor.summary for name, floor in self._floors().items()},
            "interval": "bootstrap over distinct test sequences",
            "citation": "Klausen et al. 2019 (NetSurfP-2.0); Elnaggar et al. 2023 (Ankh) for the test files",
            "data": {s.path: {"from": s.origin, "licence": s.licence} for s in sources},
            "status": {s.path: status(self.config.data_dir, s) for s in sources},
            "simulated": False,
        }

    def check(self) -> None:
        """Raises UserError if a file is missing."""
        for source in (data.NETSURFP, data.TESTS.get(self.config.test)):
            if source is not None:
                locate(self.config.data_dir, source)

    def floors(self) -> Mapping[str, Subject]:
        """Returns the one-hot window."""
        return dict(self._floors())

    def _floors(self) -> dict[str, OneHot]:
        floor = OneHot(self.config.window)
        return {floor.name: floor}

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all chains of a split; see :class:`protloom.contracts.HasSequences`."""
        if split == "test" and (own := data.TESTS.get(self.config.test)) is not None:
            chains = data.read_test(locate(self.config.data_dir, own), self.config.test)
        else:
            chains = data.read_netsurfp(locate(self.config.data_dir, data.NETSURFP)).get(split, [])
        return [chain.sequence for chain in chains]

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._load(seed, limit)}
        splits = self._splits[seed, limit]
        return score(
            subject, splits, self.config, task=self.name, metric="Q3", states=data.STATES, unit="proteins", seed=seed
        )

    def _load(self, seed: int, limit: int | None) -> Splits:
        own = data.TESTS.get(self.config.test)
        paths = {source: locate(self.config.data_dir, source) for source in (data.NETSURFP, own) if source}
        chains = data.read_netsurfp(paths[data.NETSURFP])
        every = data.read_test(paths[own], self.config.test) if own else chains["test"]
        most = min((x for x in (self.config.train_proteins, limit) if x is not None), default=None)
        train, test = chains["train"], every
        details = {
            "files": {source.path: sha256(path) for source, path in paths.items()},
            "available": {"train": len(train), "valid": len(chains["valid"]), "test": len(test)},
            "limit": limit,
        }
        # the order matters: drawn before duplicates are removed, test sets share one probe
        return Splits(
            [train[i] for i in draw(len(train), most, seed, 0)],
            [test[i] for i in draw(len(test), limit, seed, 1)],
            details,
        )


class SimSs3Config(ProbeConfig, simulated.SimulatedConfig):
    """Options of ``sim-ss3``."""

    train_proteins: int | None = Field(default=400, ge=1, description="Training proteins, drawn by seed")
    test_proteins: int = Field(default=300, ge=1, description="Test proteins, drawn by seed")
    train_residues: int | None = Field(default=20_000, ge=2, description="Training residues, drawn by seed; null: all")
    window: int = Field(default=7, ge=0, description="Floor: residues on each side")


class SimSs3:
    """Three-state secondary structure of simulated proteins, tested on superfamilies that the probe never saw.

    Args:
        config: which proteome, sizes.
    """

    name = "sim-ss3"

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
            "definition": DEFINITION,
            "splits": f"whole superfamilies; {self.config.train_proteins} training and {self.config.test_proteins} test"
            " proteins, drawn evenly from families; a model that never saw the test superfamilies was trained on"
            " demo:?split=train",
            "probe": PROBE,
            "options": self.config.model_dump(),
            "floors": {name: floor.summary for name, floor in self._floors().items()},
            "interval": "bootstrap over families of test proteins",
            "citation": "this project; see the page on the simulated proteome",
            "licence": "part of this project",
            "data": {},
            "status": {},
            "simulated": True,
        }

    def check(self) -> None:
        """Needs no data."""

    def floors(self) -> Mapping[str, Subject]:
        """Returns the one-hot window."""
        return dict(self._floors())

    def _floors(self) -> dict[str, OneHot]:
        floor = OneHot(self.config.window)
        return {floor.name: floor}

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._load(seed, limit)}
        splits = self._splits[seed, limit]
        return score(
            subject, splits, self.config, task=self.name, metric="Q3", states=data.STATES, unit="families", seed=seed
        )

    def _load(self, seed: int, limit: int | None) -> Splits:
        proteome = simulated.make(self.config)
        available = {split: len(proteome.indices(split)) for split in ("train", "valid", "test")}
        train_most = self.config.train_proteins or available["train"]
        sizes = {"train": train_most, "test": self.config.test_proteins}
        chosen = {
            split: simulated.choose(proteome, split, size if limit is None else min(size, limit), seed)
            for split, size in sizes.items()
        }
        return Splits(
            simulated.structures(proteome, chosen["train"]),
            simulated.structures(proteome, chosen["test"]),
            {**simulated.provenance(self.config), "available": available, "limit": limit},
        )
