"""Probes of whole sequences that read residue states, or tune the network, rather than read one pooled vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protloom.errors import UserError
from protloom_tasks.floors import Floor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.definition_kinds import SequenceKind
    from protloom_tasks.probe_options import ProbeOptions
    from protloom_tasks.sequence_probes import Probe

LONGEST = 1024
"""Residues of a sequence that a head reads: its attention grows with the square."""


class Found(NamedTuple):
    """What a head gave.

    Attributes:
        output: ``[m]`` numbers or scores of class 1, or ``[m, C]`` scores of classes, of the scored sequences.
        usable: ``[n]`` which training sequences have features.
        present: ``[m]`` which scored sequences have.
        details: what the head is and how it was trained.
    """

    output: NDArray[np.float64]
    usable: NDArray[np.bool_]
    present: NDArray[np.bool_]
    details: dict[str, Any]


def effective(probe: Probe, subject: Subject) -> Probe:
    """Returns the probe that a subject gets: the linear one for floors that have no residues, or are to be tuned."""
    lacking = isinstance(subject, Floor) and type(subject).of_residues is Floor.of_residues
    if (probe == "convbert" and lacking) or (probe == "lora" and isinstance(subject, Floor)):
        return "lbfgs"
    return probe


def described(probe: Probe, kind: SequenceKind) -> str:
    """Returns what a probe is, for the card of a task."""
    if probe == "knn":
        return "weighted mean label of the nearest training rows, features as they are"
    if probe == "convbert":
        return (
            "one ConvBERT layer on residue states (4 heads, kernel 7), pooled over residues, linear layer; AdamW, as in"
            " Ankh's benchmark; floors without residue features: the linear probe"
        )
    if probe == "lora":
        return (
            "LoRA: low-rank updates of queries and values of a copy of the network, tuned with a linear layer on pooled"
            " states; a tenth of the training rows says when to stop; floors: the linear probe"
        )
    linear = "ridge(alpha=1)" if kind == "regression" else f"logistic regression(C=1, {probe})"
    return f"StandardScaler + {linear}"


def by_convbert(
    subject: Subject,
    train: Sequence[str],
    labels: NDArray[Any],
    scored: Sequence[str],
    *,
    kind: SequenceKind,
    pool: str,
    options: ProbeOptions,
    seed: int,
) -> Found:
    """Trains a ConvBERT layer on residue states and applies it.

    Args:
        subject: gives the states; those of the training sequences wait in a temporary file.
        train: training sequences.
        labels: ``[n]``, or ``[n, C]`` for multilabel.
        scored: sequences to give outputs for.
        kind: of the labels.
        pool: ``mean`` or ``max`` over real residues.
        options: epochs and inner width.
        seed: of weights, order and dropout.

    Raises:
        UserError: the pooling is another, or nothing has features.
    """
    from protloom_tasks.heads import convbert_fit
    from protloom_tasks.heads.feature_file import FeatureFile

    if pool not in ("mean", "max"):
        raise UserError(f"pool: {pool} with probe: convbert: its layer pools residues; use mean or max")
    given, asked = _Cut(subject), _Cut(subject)
    trained = convbert_fit.fit(
        FeatureFile(given.states(train)),
        list(labels),
        convbert_fit.Options(
            kind,
            "mean" if pool == "mean" else "max",
            options.inner,
            options.epochs,
            seed,
            getattr(subject, "device", "cpu"),
        ),
    )
    found = np.array(list(trained.outputs(asked.states(scored))), dtype=np.float64)
    if kind in ("regression", "binary"):
        found = found.reshape(len(scored))
    details = {**trained.details, "sequences_cut_at_1024_residues": given.longer + asked.longer}
    return Found(found, np.array(given.present), np.array(asked.present), details)


class _Cut:
    """The residue states of sequences, cut where they are longer than the layer reads.

    Args:
        subject: gives the states.

    Attributes:
        present: whether each sequence had any.
        longer: how many were cut.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.present: list[bool] = []
        self.longer = 0

    def states(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yields ``[l, D]`` of each sequence."""
        for states in self._subject.residues(sequences):
            self.present.append(len(states) > 0)
            self.longer += len(states) > LONGEST
            yield states[:LONGEST]


def by_lora(
    subject: Subject,
    train: Sequence[str],
    labels: NDArray[Any],
    scored: Sequence[str],
    *,
    kind: SequenceKind,
    pool: str,
    specials: bool,
    options: ProbeOptions,
    seed: int,
) -> Found:
    """Tunes a copy of the subject's network by low-rank updates and applies it; takes what :func:`by_convbert` does.

    Args:
        subject: a network; its own weights stay as they are.
        train: training sequences.
        labels: ``[n]``, or ``[n, C]`` for multilabel.
        scored: sequences to give outputs for.
        kind: of the labels.
        pool: ``mean``, ``max`` or ``cls``.
        specials: ``mean`` and ``max`` see special symbols too.
        options: rank, epochs and so on.
        seed: of weights, order and the rows that say when to stop.

    Raises:
        UserError: if the subject is no network, or one without projections that are known by name.
    """
    from protloom.contracts import NetworkSubject
    from protloom_tasks.heads import lora

    if not isinstance(subject, NetworkSubject):
        raise UserError(f"{subject.name} is no network that can be tuned, which probe: lora does: use lbfgs")
    tuned = lora.fit(
        subject,
        train,
        list(labels),
        lora.Options(
            kind,
            pool,
            specials,
            options.rank,
            options.alpha,
            options.epochs,
            options.patience,
            options.learning_rate,
            seed,
        ),
    )
    found = np.stack(tuned.outputs(scored))
    if kind in ("regression", "binary"):
        found = found[:, 0]
    long = sum(len(sequence) > subject.max_length for sequence in (*train, *scored))
    details = {**tuned.details, "sequences_cut": long}
    return Found(found, np.ones(len(train), dtype=np.bool_), np.ones(len(scored), dtype=np.bool_), details)
