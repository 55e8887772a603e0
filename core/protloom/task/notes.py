"""What the details of a result say that its reader must know: rows that were left out, metrics without a value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from protloom.scoring import FEWEST

if TYPE_CHECKING:
    from protloom.contracts import TaskResult

DATA = {
    "left_out": "rows left out or changed",
    "test_proteins_left_out": "scored proteins left out",
    "duplicates_of_test_removed_from_train": "training proteins left out, as their sequence is also scored",
    "rows_of_classes_unseen_in_training": "scored rows of classes that no training row has, which can only be missed",
    "labels_unseen_in_training": "labels of scored rows that no training row has, which cannot be predicted",
}
"""Counts of rows, the same for every subject, and their words: a number, or numbers by reason."""
SUBJECT = {
    "without_features": "rows without features of this subject",
    "test_residues_without_features": "scored residues without features of this subject",
}
"""The same of what depends on the subject."""


def of_data(details: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each count of :data:`DATA` that is not 0."""
    return _counts(details, DATA)


def of_subject(details: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each count of :data:`SUBJECT` that is not 0."""
    return _counts(details, SUBJECT)


def of_metric(name: str, result: TaskResult) -> Iterator[str]:
    """Yields why the main metric of a subject has no value or no interval, where that is so."""
    if math.isnan(result.value):
        why = result.details.get("undefined", "the task does not say why")
        yield f"{result.metric} of {name} is undefined: {why}"
    elif math.isnan(result.interval[0]):
        why = f"{result.n} {result.unit} to resample, and it takes two" if result.n < 2 else "no resample defines it"
        yield f"{result.metric} of {name} has no interval: {why}"


def of_size(n: int, unit: str) -> Iterator[str]:
    """Yields a caution where too few items were resampled for a verdict."""
    if n < FEWEST:
        yield f"{n} {unit}: intervals from fewer than {FEWEST} are too narrow, so no difference counts as decided"


def _counts(details: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[str]:
    for key, told in words.items():
        found = details.get(key)
        for reason, n in (found if isinstance(found, Mapping) else {"": found}).items():
            if isinstance(n, int) and n > 0:
                yield f"{told}: {n:,} ({str(reason).replace('_', ' ')})" if reason else f"{told}: {n:,}"
