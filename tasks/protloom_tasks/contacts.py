"""Contacts of residue pairs from attention maps: ``sim-contact``.

The protocol is that of Rao et al. 2021 ("Transformer protein language models are unsupervised structure learners"):
an L1-penalised logistic regression over all heads' symmetric, corrected maps, fitted on at most 20 proteins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom_tasks import intervals, metrics, probes
from protloom_tasks.datasets import simulated
from protloom_tasks.floors import Separation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.simulated.proteome import Proteome

MAIN = "P@L:long"
ALSO = tuple(f"{name}:{band}" for band in metrics.BANDS for name in (*metrics.SHARES, "chance"))
"""Shown beside the main metric."""
CLOSEST = 6
"""Smallest separation |i − j| of a candidate pair."""

DEFINITION = (
    "precision of the L / k best scored pairs of each protein in a band of separations (short 6-11, medium 12-23, long"
    " 24 and more), mean over proteins that have a candidate; 'chance' is the share of contacts among candidates"
)


@dataclass(frozen=True)
class Mapped:
    """A protein with its contacts.

    Attributes:
        id: its name.
        sequence: residues as letters.
        contacts: ``[L, L]`` symmetric truth.
        resolved: ``[L]`` residues with known coordinates.
        group: proteins of one group are resampled together.
    """

    id: str
    sequence: str
    contacts: NDArray[np.bool_]
    resolved: NDArray[np.bool_]
    group: str


@dataclass(frozen=True)
class ContactSplits:
    """Training and test proteins, and what there is to say about them."""

    train: Sequence[Mapped]
    test: Sequence[Mapped]
    details: dict[str, Any] = field(default_factory=dict)


def fit(subject: Subject, train: Sequence[Mapped], *, c: float, most: int | None, seed: int) -> probes.Fitted:
    """Fits the regression on all candidate pairs of the training proteins.

    Args:
        subject: gives features of pairs.
        train: training proteins.
        c: inverse strength of the L1 penalty.
        most: pairs used; beyond that all contacts stay and the others are drawn by seed (this moves the intercept,
            which no ranking depends on).
        seed: of the draw.
    """
    features: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.bool_]] = []
    rng = np.random.default_rng([seed, 2])
    share = None if most is None else most / max(1, len(train))
    for protein in train:
        maps = subject.contact_features(protein.sequence)
        first, second = _candidates(protein, len(maps))
        truth = protein.contacts[first, second]
        if share is not None and len(truth) > share:
            others = np.flatnonzero(~truth)
            room = max(0, int(share) - int(truth.sum()))
            kept = np.concatenate([np.flatnonzero(truth), rng.choice(others, min(room, len(others)), replace=False)])
            first, second, truth = first[kept], second[kept], truth[kept]
        features.append(maps[first, second])
        labels.append(truth)
    rows = np.concatenate(features)
    return probes.fit_classifier(rows, np.concatenate(labels).astype(np.int64), kind="l1", c=c, seed=seed)


def predict(subject: Subject, protein: Mapped, probe: probes.Fitted) -> tuple[NDArray[np.float64], int]:
    """Returns the score of every pair ``[L, L]`` (−∞ where there are no features) and how many residues lack them."""
    length = len(protein.sequence)
    maps = subject.contact_features(protein.sequence)
    scores = np.full((length, length), -np.inf)
    first, second = np.triu_indices(len(maps), CLOSEST)
    if len(first):
        scores[first, second] = scores[second, first] = probe.scores(maps[first, second])
    return scores, length - len(maps)


def score(
    subject: Subject, splits: ContactSplits, *, task: str, unit: str, c: float, most: int | None, seed: int
) -> TaskResult:
    """Fits on the training proteins and scores the test proteins; see :func:`fit` for the arguments.

    Raises:
        UserError: if nothing is left to fit on or to score.
    """
    tested = {protein.sequence for protein in splits.test}
    train = [protein for protein in splits.train if protein.sequence not in tested]
    if not train or not splits.test:
        raise UserError(f"{task}: {len(train)} training and {len(splits.test)} test proteins; both need one at least")
    probe = fit(subject, train, c=c, most=most, seed=seed)
    tables: list[dict[str, float]] = []
    missing = 0
    for protein in splits.test:
        scores, without = predict(subject, protein, probe)
        missing += without
        tables.append(metrics.precision_at(scores, protein.contacts, protein.resolved))
    values = metrics.mean_of(tables)
    each = np.array([table[MAIN] for table in tables])
    groups, group_of = np.unique([protein.group for protein in splits.test], return_inverse=True)
    usable = np.isfinite(each)
    total = metrics.sums(each[usable], group_of[usable], len(groups))
    count = metrics.sums(usable, group_of, len(groups))
    replicates = intervals.bootstrap_ratio(total[count > 0], count[count > 0], seed=seed)
    weights = probe.model[-1].coef_
    return TaskResult(
        metric=MAIN,
        value=values[MAIN],
        interval=percentile_interval(replicates),
        n=int((count > 0).sum()),
        unit=unit,
        metrics=values,
        per_item=total[count > 0] / count[count > 0],
        replicates=replicates,
        items=intervals.fingerprint(task, (protein.id for protein in splits.test), seed),
        details={
            **splits.details,
            **probe.details,
            "features_used": int(np.count_nonzero(weights)),
            "train_proteins": len(train),
            "duplicates_of_test_removed_from_train": len(splits.train) - len(train),
            "test_proteins": len(splits.test),
            "test_residues_without_features": missing,
            "seed": seed,
        },
    )


def _candidates(protein: Mapped, covered: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the pairs (i < j) of resolved residues that have features and are far enough apart."""
    first, second = np.triu_indices(covered, CLOSEST)
    known = protein.resolved[first] & protein.resolved[second]
    return first[known], second[known]


class SimContactConfig(simulated.SimulatedConfig):
    """Options of ``sim-contact``."""

    train_proteins: int = Field(default=20, ge=1, le=200, description="Training proteins, drawn by seed")
    test_proteins: int = Field(default=100, ge=1, description="Test proteins, drawn by seed")
    train_pairs: int | None = Field(default=40_000, ge=100, description="Training pairs, all contacts kept; null: all")
    c: float = Field(default=1 / 0.15, gt=0, description="Inverse strength of the L1 penalty, as published")


class SimContact:
    """Contacts of simulated proteins of superfamilies that the regression never saw.

    Args:
        config: which proteome, sizes.
    """

    name = "sim-contact"

    def __init__(self, config: SimContactConfig) -> None:
        self.config = config
        self._splits: dict[tuple[int, int | None], ContactSplits] = {}

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        return {
            "title": "contacts of SIMULATED proteins from attention maps",
            "kind": "residue pairs, frozen attention maps",
            "metric": MAIN,
            "better": "higher",
            "also": ALSO,
            "definition": DEFINITION,
            "splits": f"whole superfamilies; {self.config.train_proteins} training and {self.config.test_proteins} test"
            " proteins, drawn evenly from families; a model that never saw the test superfamilies was trained on"
            " demo:?split=train",
            "probe": "StandardScaler + L1 logistic regression over all heads (symmetrised, average product corrected)",
            "options": self.config.model_dump(),
            "floors": {name: floor.summary for name, floor in self._floors().items()},
            "interval": "bootstrap over families of test proteins",
            "citation": "Rao et al. 2021 for the protocol; the proteome is this project's",
            "licence": "part of this project",
            "data": {},
            "status": {},
            "simulated": True,
        }

    def check(self) -> None:
        """Needs no data."""

    def floors(self) -> Mapping[str, Subject]:
        """Returns separation and letters of a pair."""
        return dict(self._floors())

    def _floors(self) -> dict[str, Separation]:
        floor = Separation()
        return {floor.name: floor}

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if (seed, limit) not in self._splits:
            self._splits = {(seed, limit): self._load(seed, limit)}
        return score(
            subject,
            self._splits[seed, limit],
            task=self.name,
            unit="families",
            c=self.config.c,
            most=self.config.train_pairs,
            seed=seed,
        )

    def _load(self, seed: int, limit: int | None) -> ContactSplits:
        proteome = simulated.make(self.config)
        sizes = {"train": self.config.train_proteins, "test": self.config.test_proteins}
        found = {
            split: [
                _mapped(proteome, i)
                for i in simulated.choose(proteome, split, n if limit is None else min(n, limit), seed).tolist()
            ]
            for split, n in sizes.items()
        }
        return ContactSplits(found["train"], found["test"], {**simulated.provenance(self.config), "limit": limit})


def _mapped(proteome: Proteome, i: int) -> Mapped:
    length = proteome.length(i)
    contacts = np.zeros((length, length), dtype=np.bool_)
    pairs = proteome.contacts(i)
    contacts[pairs[:, 0], pairs[:, 1]] = contacts[pairs[:, 1], pairs[:, 0]] = True
    known = np.ones(length, dtype=np.bool_)
    return Mapped(proteome.id(i), proteome.sequence(i), contacts, known, f"family {proteome.family[i]}")
