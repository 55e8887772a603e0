"""Probes of residues that read whole proteins: a ConvBERT layer, or a tuned copy of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from protloom.errors import UserError
from protloom_tasks.floors import Floor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.datasets.proteins import Labelled
    from protloom_tasks.probe_options import ProbeOptions

Probe = Literal["multinomial", "ovr", "knn", "convbert", "lora"]
"""Two forms of the logistic regression (ridge where labels are numbers), nearest neighbours, heads that are trained."""


class WholeProbe(Protocol):
    """A probe that needs a protein's residues together.

    Attributes:
        details: what it is and how it was trained.
    """

    details: dict[str, Any]

    def predicted(self, sequences: Sequence[str]) -> Iterator[NDArray[Any]]:
        """Yields the class or number ``[l]`` of each sequence's first l residues; l < L where the rest is not read."""


def effective(probe: Probe, subject: Subject) -> Probe:
    """Returns the probe that a subject gets: floors are not tuned, they keep the linear probe."""
    return "multinomial" if probe == "lora" and isinstance(subject, Floor) else probe


def described(probe: Probe, linear: str) -> str:
    """Returns what a probe is, for the card of a task; ``linear`` says it of the linear ones."""
    return {
        "knn": "weighted mean label of the nearest training residues, features as they are",
        "convbert": "one ConvBERT layer on residue states (4 heads, kernel 7), linear layer; AdamW, as in Ankh's"
        " benchmark",
        "lora": "LoRA: low-rank updates of queries and values of a copy of the network, tuned with a linear layer on"
        " residue states; a tenth of the training proteins says when to stop; floors: the linear probe",
    }.get(probe, linear)


class ConvBertProbe:
    """A ConvBERT layer on a subject's residue states, trained on every labelled residue of the training proteins.

    Args:
        subject: gives the states; those of the training proteins wait in a temporary file.
        train: training proteins.
        options: epochs and inner width.
        classes: labels are classes, not numbers.
        seed: of weights, order and dropout.
    """

    def __init__(
        self, subject: Subject, train: Sequence[Labelled], options: ProbeOptions, *, classes: bool, seed: int
    ) -> None:
        from protloom_tasks.heads import convbert_fit
        from protloom_tasks.heads.feature_file import FeatureFile

        self._subject, self._classes = subject, classes
        features = FeatureFile(subject.residues([protein.sequence for protein in train]))
        labels = [protein.labels[:length] for protein, length in zip(train, features.lengths, strict=True)]
        kind: Any = "residue-classes" if classes else "residue-numbers"
        device = getattr(subject, "device", "cpu")
        self._trained = convbert_fit.fit(
            features, labels, convbert_fit.Options(kind, None, options.inner, options.epochs, seed, device)
        )
        self.details = self._trained.details

    def predicted(self, sequences: Sequence[str]) -> Iterator[NDArray[Any]]:
        """Yields the class or number of each residue with features."""
        for values in self._trained.outputs(self._subject.residues(sequences)):
            yield _labels(values, classes=self._classes)


class LoraProbe:
    """A copy of a subject's network with low-rank updates and a linear layer on residue states.

    Args:
        subject: a network; its own weights stay as they are. Of long proteins the first ``max_length`` are read.
        train: training proteins; every labelled residue counts.
        options: rank, epochs and so on.
        classes: labels are classes, not numbers.
        seed: of weights, order and the proteins that say when to stop.

    Raises:
        UserError: if the subject is no network, or one without projections that are known by name.
    """

    def __init__(
        self, subject: Subject, train: Sequence[Labelled], options: ProbeOptions, *, classes: bool, seed: int
    ) -> None:
        from protloom.contracts import NetworkSubject
        from protloom_tasks.heads import lora

        if not isinstance(subject, NetworkSubject):
            raise UserError(f"{subject.name} is no network that can be tuned, which probe: lora does: use multinomial")
        self._classes = classes
        self._tuned = lora.fit(
            subject,
            [protein.sequence for protein in train],
            [protein.labels for protein in train],
            lora.Options(
                "residue-classes" if classes else "residue-numbers",
                None,
                rank=options.rank,
                alpha=options.alpha,
                epochs=options.epochs,
                patience=options.patience,
                learning_rate=options.learning_rate,
                seed=seed,
            ),
        )
        self.details = self._tuned.details

    def predicted(self, sequences: Sequence[str]) -> Iterator[NDArray[Any]]:
        """Yields the class or number of each residue that the network reads."""
        for values in self._tuned.outputs(sequences):
            yield _labels(values, classes=self._classes)


def _labels(values: NDArray[np.float64], *, classes: bool) -> NDArray[Any]:
    return values.argmax(axis=1) if classes else values[:, 0]
