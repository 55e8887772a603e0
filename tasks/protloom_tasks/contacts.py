"""Contacts of residue pairs: ``contact`` on real structures, ``sim-contact`` on the simulated proteome.

What counts is in :mod:`protloom_tasks.contact_protocol`, what scores pairs in :mod:`protloom_tasks.contact_heads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from protloom_tasks import contact_heads, contact_protocol
from protloom_tasks.contact_heads import HeadOptions
from protloom_tasks.contact_protocol import ALSO, DEFINITION, MAIN, ContactSplits, Mapped
from protloom_tasks.datasets import simulated, structures
from protloom_tasks.datasets.files import locate, sha256
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.definition import Scored
from protloom_tasks.floors import OneHot, Separation
from protloom_tasks.task_base import TaskBase

if TYPE_CHECKING:
    from pathlib import Path

    from protloom.contracts import Subject, TaskResult
    from protloom_tasks.datasets.files import Source
    from protloom_tasks.floors import Floor
    from protloom_tasks.simulated.proteome import Proteome

HEADS: Mapping[str, str] = {
    "attention": "StandardScaler + L1 logistic regression over attention maps of all blocks and heads (symmetrised,"
    " average product corrected; Rao et al. 2021)",
    "pairs": "StandardScaler + L2 logistic regression over products and absolute differences of principal components"
    " of residue states, and log(1 + separation)",
    "ankh": "linear layer over products and differences of residue states, symmetrised, trained by AdamW on all pairs",
    "jacobian": "categorical Jacobian of a masked-token model's logits, average product corrected; nothing is trained",
}
"""What each head is."""


class _Contacts(TaskBase):
    """What the tasks of contact prediction share.

    Args:
        options: which head, and of it.

    Attributes:
        unit: what is resampled.
    """

    unit: str

    def __init__(self, options: HeadOptions) -> None:
        self._options = options
        self._splits: dict[tuple[int, int | None], ContactSplits] = {}

    def _floors(self) -> Sequence[Floor]:
        """Returns separation and letters of a pair; beside it, for heads on residue states, a window of letters."""
        return (Separation(), OneHot()) if self._options.head in ("pairs", "ankh") else (Separation(),)

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._affordable(self._load(seed, limit), seed)}

        def fit(train: Sequence[Mapped]) -> contact_protocol.Head:
            return contact_heads.fit(subject, train, self._options, seed=seed)

        splits = self._splits[seed, limit]
        return contact_protocol.evaluate(fit, splits, task=self.name, unit=self.unit, seed=seed)

    def _affordable(self, splits: ContactSplits, seed: int) -> ContactSplits:
        """Leaves out test proteins that a Jacobian is too dear for, whatever the subject, and counts them."""
        options = self._options
        if options.head != "jacobian":
            return splits
        short = [protein for protein in splits.test if len(protein.sequence) <= options.jacobian_length]
        chosen = [short[i] for i in draw(len(short), options.jacobian_proteins, seed, 5)]
        counts = {"too_long": len(splits.test) - len(short), "not_drawn": len(short) - len(chosen)}
        return ContactSplits(splits.train, chosen, {**splits.details, "test_proteins_left_out": counts})

    def _card(self) -> dict[str, Any]:
        """Returns the first entries of a card."""
        head = self._options.head
        return {
            "kind": "residue pairs, frozen network",
            "metric": MAIN,
            "better": "higher",
            "also": ALSO,
            "definition": DEFINITION,
            "probe": HEADS.get(head, f"{HEADS['attention']}; for networks without attention maps {HEADS['pairs']}"),
            "options": self._options.model_dump(exclude={"data_dir"}),
        }

    def _tail(self) -> dict[str, Any]:
        floors = {
            floor.name: f"{floor.summary}, by the head {contact_heads.choose(self._options.head, floor)}"
            for floor in self._floors()
        }
        return {**super()._tail(), "floors": floors}

    def _load(self, seed: int, limit: int | None) -> ContactSplits:
        raise NotImplementedError


class ContactConfig(HeadOptions):
    """Options of ``contact``."""

    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    split: Scored = Field(default="valid", description="What is scored; test is for reporting, never to choose by")
    train_proteins: int | None = Field(default=None, ge=1, description="Training proteins, drawn by seed; null: all")


class Contact(_Contacts):
    """Contacts in real structures; separations are by the residue numbers of the PDB files.

    Args:
        config: head, split, where the data are.
    """

    name = "contact"
    unit = "proteins"

    def __init__(self, config: ContactConfig) -> None:
        super().__init__(config)
        self.config = config
        self._read: tuple[dict[str, list[structures.Structure]], str] | None = None

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        return {
            "title": "contacts in real structures: Cβ nearer than 8 Å, 6 or more residues apart",
            **self._card(),
            "differs": "no published split: trained on 226 unbound chains of Docking Benchmark 5 (bm5_unbound), valid"
            " is TS50, test the PSICOV150 set and a few more (metl-pub); published figures are on ProteinNet or CASP14."
            " L counts the residues seen in the file",
            "splits": f"train: {structures.SPLITS['train']} (226); valid: {structures.SPLITS['valid']} (50);"
            f" test: {structures.SPLITS['test']} (155); scored: {self.config.split}",
            "interval": "bootstrap over proteins; two test proteins are there in two lengths, resampled together",
            "citation": "Jones et al. 2012 (PSICOV150); Li et al. 2014 (TS50); Vreven et al. 2015 (Docking"
            " Benchmark 5); structures from the PDB",
            **self._tail(),
        }

    def _sources(self) -> Sequence[Source]:
        return (structures.STRUCTURES,)

    def _find(self, source: Source) -> Path:
        return locate(self.config.data_dir, source)

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all chains of a split; see :class:`protloom.contracts.HasSequences`."""
        return [structure.sequence for structure in self._data()[0].get(split, [])]

    def _data(self) -> tuple[dict[str, list[structures.Structure]], str]:
        """Returns the structures of each split, and the file's hash."""
        if self._read is None:
            path = locate(self.config.data_dir, structures.STRUCTURES)
            everything = structures.read_structures(path)
            by_split = {
                split: [structure for structure in everything if structure.source == source]
                for split, source in structures.SPLITS.items()
            }
            self._read = by_split, sha256(path)
        return self._read

    def _load(self, seed: int, limit: int | None) -> ContactSplits:
        found, digest = self._data()
        split = self.config.split
        most = min((n for n in (self.config.train_proteins, limit) if n is not None), default=None)
        train, scored = found["train"], found[split]
        details = {
            "files": {structures.STRUCTURES.path: digest},
            "split": split,
            "available": {name: len(of) for name, of in found.items()},
            "limit": limit,
        }
        return ContactSplits(
            [_real(train[i]) for i in draw(len(train), most, seed, 0)],
            [_real(scored[i]) for i in draw(len(scored), limit, seed, 1)],
            details,
        )


def _real(structure: structures.Structure) -> Mapped:
    near, resolved = structures.contacts_of(structure)
    return Mapped(structure.id, structure.sequence, near, resolved, structure.id, structure.numbers)


class SimContactConfig(HeadOptions, simulated.SimulatedConfig):
    """Options of ``sim-contact``."""

    train_proteins: int = Field(default=20, ge=1, le=200, description="Training proteins, drawn by seed")
    split: Scored = Field(default="valid", description="Superfamilies that are scored")
    test_proteins: int = Field(default=100, ge=1, description="Scored proteins, drawn by seed")
    attention_proteins: int = Field(
        default=200, ge=1, description="attention: at most so many of the training proteins"
    )


class SimContact(_Contacts):
    """Contacts of simulated proteins of superfamilies that the regression never saw.

    Args:
        config: which proteome, sizes, head.
    """

    name = "sim-contact"
    unit = "families"
    simulated = True

    def __init__(self, config: SimContactConfig) -> None:
        super().__init__(config)
        self.config = config

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        return {
            "title": "contacts of SIMULATED proteins",
            **self._card(),
            "splits": f"whole superfamilies; {self.config.train_proteins} training and {self.config.test_proteins}"
            f" {self.config.split} proteins, drawn evenly from families; a model that never saw the test"
            " superfamilies was trained on demo:?split=train",
            "interval": "bootstrap over families of test proteins",
            "citation": "Rao et al. 2021 for the protocol; the proteome is this project's",
            "licence": "part of this project",
            **self._tail(),
        }

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all proteins of a split; see :class:`protloom.contracts.HasSequences`."""
        return simulated.sequences(self.config, split)

    def _load(self, seed: int, limit: int | None) -> ContactSplits:
        proteome = simulated.make(self.config)
        scored = self.config.split
        sizes = {"train": self.config.train_proteins, scored: self.config.test_proteins}
        found = {
            split: [
                _mapped(proteome, i)
                for i in simulated.choose(proteome, split, n if limit is None else min(n, limit), seed).tolist()
            ]
            for split, n in sizes.items()
        }
        details = {**simulated.provenance(self.config), "split": scored, "limit": limit}
        return ContactSplits(found["train"], found[scored], details)


def _mapped(proteome: Proteome, i: int) -> Mapped:
    length = proteome.length(i)
    contacts = np.zeros((length, length), dtype=np.bool_)
    pairs = proteome.contacts(i)
    contacts[pairs[:, 0], pairs[:, 1]] = contacts[pairs[:, 1], pairs[:, 0]] = True
    known = np.ones(length, dtype=np.bool_)
    return Mapped(proteome.id(i), proteome.sequence(i), contacts, known, f"family {proteome.family[i]}")
