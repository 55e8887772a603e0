"""The protocol of residue classification: a linear probe on frozen features, scored over labelled residues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom.settings import Section
from protloom_tasks import intervals, metrics, probes
from protloom_tasks.datasets.proteins import Labelled, Splits, without_duplicates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject

BLOCK = 20_000
"""Residues predicted at once."""


class ProbeConfig(Section):
    """Options of a residue probe."""

    train_proteins: int | None = Field(default=1000, ge=1, description="Training proteins, drawn by seed; null: all")
    train_residues: int | None = Field(default=100_000, ge=2, description="Residues of them, drawn by seed; null: all")
    probe: Literal["multinomial", "ovr"] = Field(default="multinomial", description="Form of the logistic regression")
    c: float = Field(default=1.0, gt=0, description="Inverse strength of its L2 penalty; fixed, never tuned on a test")


def score(
    subject: Subject,
    splits: Splits,
    config: ProbeConfig,
    *,
    task: str,
    metric: str,
    states: str,
    unit: str,
    seed: int,
) -> TaskResult:
    """Fits the probe on the training proteins and scores the test proteins.

    Args:
        subject: gives features.
        splits: training and test proteins.
        config: size and form of the probe.
        task: the task's name.
        metric: what the accuracy is called, such as Q3.
        states: a letter for each class.
        unit: what is resampled: the groups of the test proteins.
        seed: of the draws of residues and of the bootstrap.

    Raises:
        UserError: if nothing is left to fit on or to score.
    """
    train, removed = without_duplicates(splits.train, splits.test)
    if not train or not splits.test:
        raise UserError(f"{task}: {len(train)} training and {len(splits.test)} test proteins; both need one at least")
    probe = _fit(subject, train, config, seed)
    truth, guess, owner, missing = _predict(subject, splits.test, probe)
    groups, group_of = np.unique([protein.group for protein in splits.test], return_inverse=True)
    right, scored = metrics.hits(truth == guess, owner, len(splits.test))
    group_right = metrics.sums(right, group_of, len(groups))
    group_scored = metrics.sums(scored, group_of, len(groups))
    replicates = intervals.bootstrap_ratio(group_right, group_scored, seed=seed)
    with np.errstate(invalid="ignore"):
        per_item = group_right / group_scored
    details = {
        **splits.details,
        **probe.details,
        "train_proteins": len(train),
        "duplicates_of_test_removed_from_train": removed,
        "test_proteins": len(splits.test),
        "test_residues": len(truth),
        "test_residues_without_features": missing,
        "seed": seed,
    }
    value, each = metrics.pooled_accuracy(right, scored), metrics.protein_accuracy(right, scored)
    return TaskResult(
        metric=metric,
        value=value,
        interval=percentile_interval(replicates),
        n=len(groups),
        unit=unit,
        metrics={metric: value, f"{metric} per protein": each, **_by_class(truth, guess, states)},
        per_item=per_item,
        replicates=replicates,
        items=intervals.fingerprint(task, (protein.sequence for protein in splits.test), seed),
        details=details,
    )


def _fit(subject: Subject, train: Sequence[Labelled], config: ProbeConfig, seed: int) -> probes.Fitted:
    """Fits the probe, or takes the one that another task fitted for this subject on the same residues."""
    labels = [protein.labels for protein in train]
    chosen = probes.choose_residues(labels, config.train_residues, seed)
    digest = hashlib.sha256()
    for protein, index in zip(train, chosen, strict=True):
        digest.update(protein.sequence.encode() + protein.labels.tobytes() + index.tobytes())
    key = ("residue probe", digest.hexdigest(), config.probe, config.c, seed)
    if key not in subject.memo:
        rows = probes.gather(subject, [protein.sequence for protein in train], labels, chosen)
        fitted = probes.fit_classifier(rows.features, rows.labels, kind=config.probe, c=config.c, seed=seed)
        total = sum(int((of >= 0).sum()) for of in labels)
        fitted.details.update(train_residues=len(rows.labels), train_residues_available=total)
        subject.memo[key] = fitted
    found: probes.Fitted = subject.memo[key]
    return found


def _predict(
    subject: Subject, proteins: Sequence[Labelled], probe: probes.Fitted
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Returns truth, guess and protein of every scored residue ``[R]``, and how many got no features."""
    chosen = probes.choose_residues([protein.labels for protein in proteins], None, 0)
    truth: list[NDArray[np.int64]] = []
    guess: list[NDArray[np.int64]] = []
    owner: list[NDArray[np.int64]] = []
    missing = 0
    held: list[NDArray[np.float32]] = []

    def flush() -> None:
        if held:
            guess.append(probe.predict(np.concatenate(held)).astype(np.int64))
            held.clear()

    states: Iterator[NDArray[np.float32]] = subject.residues([protein.sequence for protein in proteins])
    for i, features in enumerate(states):
        index = chosen[i][chosen[i] < len(features)]
        missing += len(chosen[i]) - len(index)
        if len(index):
            held.append(features[index])
            truth.append(proteins[i].labels[index])
            owner.append(np.full(len(index), i, dtype=np.int64))
        if sum(map(len, held)) >= BLOCK:
            flush()
    flush()
    if not truth:
        raise UserError("no residue of the test proteins is labelled and has features")
    return np.concatenate(truth), np.concatenate(guess), np.concatenate(owner), missing


def _by_class(truth: NDArray[np.int64], guess: NDArray[np.int64], states: str) -> dict[str, float]:
    from sklearn.metrics import f1_score, recall_score

    classes = list(range(len(states)))
    found = {"macro F1": float(f1_score(truth, guess, labels=classes, average="macro", zero_division=0.0))}
    shares = recall_score(truth, guess, labels=classes, average=None, zero_division=0.0)
    return found | {f"recall {state}": float(share) for state, share in zip(states, shares, strict=True)}
