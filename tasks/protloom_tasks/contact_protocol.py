"""The protocol of contact prediction: which pairs count, how a head's scores become precision with an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom_tasks import intervals, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MAIN = "P@L:long"
ALSO = tuple(
    name
    for band in metrics.BANDS
    for name in (*(f"{share}:{band}" for share in metrics.SHARES), f"chance:{band}")
    if name != MAIN
)
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
        numbers: ``[L]`` increasing residue numbers, which separations are taken from; None: 0 to L − 1.
    """

    id: str
    sequence: str
    contacts: NDArray[np.bool_]
    resolved: NDArray[np.bool_]
    group: str
    numbers: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ContactSplits:
    """Training and test proteins, and what there is to say about them."""

    train: Sequence[Mapped]
    test: Sequence[Mapped]
    details: dict[str, Any] = field(default_factory=dict)


class Head(Protocol):
    """Scores residue pairs; fitted, where there is something to fit.

    Attributes:
        details: what it is and what it was fitted on.
    """

    details: Mapping[str, Any]

    def scores(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yields for each sequence ``[l, l]`` symmetric scores of its first l residues, higher for likelier contacts.

        Diagonals mean nothing; l is below L where the subject gives no features of the rest.
        """


def candidates(protein: Mapped, covered: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the pairs (i < j) of resolved residues that have features and are far enough apart."""
    first, second = np.triu_indices(covered, 1)
    numbers = np.arange(len(protein.sequence)) if protein.numbers is None else protein.numbers
    chosen = protein.resolved[first] & protein.resolved[second] & (numbers[second] - numbers[first] >= CLOSEST)
    return first[chosen], second[chosen]


def evaluate(
    fit: Callable[[Sequence[Mapped]], Head], splits: ContactSplits, *, task: str, unit: str, seed: int
) -> TaskResult:
    """Fits a head on the training proteins and scores the test proteins.

    Args:
        fit: makes the head of training proteins.
        splits: training and test proteins; training proteins with a test protein's sequence are left out.
        task: the task's name.
        unit: what is resampled, the groups of test proteins.
        seed: of the bootstrap.

    Raises:
        UserError: if nothing is left to fit on or to score.
    """
    tested = {protein.sequence for protein in splits.test}
    train = [protein for protein in splits.train if protein.sequence not in tested]
    if not train or not splits.test:
        raise UserError(f"{task}: {len(train)} training and {len(splits.test)} test proteins; both need one at least")
    head = fit(train)
    tables: list[dict[str, float]] = []
    missing = 0
    found = head.scores([protein.sequence for protein in splits.test])
    for protein, known in zip(splits.test, found, strict=True):
        length = len(protein.sequence)
        scores = np.full((length, length), -np.inf)
        scores[: len(known), : len(known)] = known
        missing += length - len(known)
        tables.append(metrics.precision_at(scores, protein.contacts, protein.resolved, protein.numbers))
    details = {
        **splits.details,
        **head.details,
        "train_proteins": len(train),
        "duplicates_of_test_removed_from_train": len(splits.train) - len(train),
        "test_proteins": len(splits.test),
        "test_residues_without_features": missing,
        "seed": seed,
    }
    return _result(tables, splits.test, details, task=task, unit=unit, seed=seed)


def _result(
    tables: Sequence[Mapping[str, float]],
    test: Sequence[Mapped],
    details: Mapping[str, Any],
    *,
    task: str,
    unit: str,
    seed: int,
) -> TaskResult:
    """Averages the precisions of proteins and resamples their groups."""
    columns = {name: np.array([table[name] for table in tables]) for name in tables[0]}
    groups, group_of = np.unique([protein.group for protein in test], return_inverse=True)

    def grouped(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        usable = np.isfinite(columns[name])
        total = metrics.sums(columns[name][usable], group_of[usable], len(groups))
        return total, metrics.sums(usable, group_of, len(groups))

    replicates = {}
    for name in columns:
        total, count = grouped(name)
        replicates[name] = intervals.bootstrap_ratio(total[count > 0], count[count > 0], seed=seed)
    values = metrics.mean_of(tables)
    total, count = grouped(MAIN)
    return TaskResult(
        metric=MAIN,
        value=values[MAIN],
        interval=percentile_interval(replicates[MAIN]),
        n=int((count > 0).sum()),
        unit=unit,
        metrics=values,
        per_item=total[count > 0] / count[count > 0],
        replicates=replicates[MAIN],
        items=intervals.fingerprint(task, (protein.id for protein in test), seed),
        details={**details, "per_item_is": f"mean {MAIN} of the proteins of each of the {unit}, in alphabetical order"},
        intervals={name: percentile_interval(of) for name, of in replicates.items()},
        predictions={
            "protein": [protein.id for protein in test],
            "residues": [len(protein.sequence) for protein in test],
            **{name: [None if np.isnan(x) else float(x) for x in of] for name, of in columns.items()},
        },
    )
