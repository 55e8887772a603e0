"""What judges a network and what is told of a run: tasks, the subjects they score, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from protloom.variants import Variant


@dataclass(frozen=True)
class TaskResult:
    """What a task run found.

    Attributes:
        metric: name of the main metric.
        value: its value.
        interval: 95 % bootstrap interval of it.
        n: number of items scored; ``unit`` names them.
        metrics: all metrics.
        per_item: ``[items]`` the metric of each resampled item (protein, query); where the metric is no mean over items
            (a correlation, an AUC), how wrong each item is. What it is stands in ``details`` under ``per_item_is``.
        replicates: ``[B]`` bootstrap replicates of ``value``. Every subject of a task is resampled by the same draws of
            items, so that the difference of two arrays is a paired bootstrap, whatever the metric.
        items: a hash of which items were scored and how they were drawn: results pair only where it is equal.
        details: provenance: data hash, split sizes, probe. Printed are, where they are not 0, ``left_out`` (rows by
            reason) and the other counts of :mod:`protloom.task.notes`; ``undefined``, why ``value`` is NaN.
        intervals: 95 % bootstrap intervals of further metrics, by their names in ``metrics``.
        predictions: a table by columns, an entry an item: what was predicted for which item, so that metrics can be
            computed again without the model; empty where a task keeps none.
    """

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    unit: str
    metrics: Mapping[str, float]
    per_item: NDArray[np.float64]
    replicates: NDArray[np.float64]
    items: str
    details: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predictions: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@runtime_checkable
class Subject(Protocol):
    """What a task scores: features of sequences, from a network (:class:`protloom.embedding.Embedder`) or a floor.

    Attributes:
        name: what the tables call it.
        summary: what it is, in a few words.
        memo: a place where tasks keep what is dear to compute for this subject (a fitted probe), under a key that holds
            everything it depends on.
    """

    name: str
    summary: str
    memo: dict[tuple[Any, ...], Any]

    def residues(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yields ``[L, D]`` features of each sequence's residues, in the order given."""

    def pooled(
        self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False
    ) -> NDArray[np.float32]:
        """Returns one feature vector a sequence, ``[n, D]``, in the order given."""

    def contact_features(self, sequence: str) -> NDArray[np.float32]:
        """Returns ``[L, L, C]`` symmetric features of residue pairs."""


@dataclass(frozen=True)
class Extent:
    """How much of long sequences gets features, so that a floor can be asked for no more than a model has.

    Attributes:
        policy: of :class:`protloom.embedding.Embedder`: ``crop``, ``window``, ``skip``, or ``auto``.
        max_length: residues that the network sees at once.
    """

    policy: str = "auto"
    max_length: int = 1024

    def residues(self, length: int) -> int:
        """Returns how many residues of a sequence have features."""
        if length <= self.max_length or self.policy not in ("crop", "skip"):
            return length
        return self.max_length if self.policy == "crop" else 0

    def whole(self, length: int) -> bool:
        """Tells whether a sequence has pooled features."""
        return length <= self.max_length or self.policy != "skip"

    def pairs(self, length: int) -> int:
        """Returns between how many residues pairs have features; what lacks them ranks last and stays in the count."""
        return min(length, self.max_length) if self.policy in ("crop", "skip") else length

    def __str__(self) -> str:
        """Says what is none of the defaults, in a few words."""
        words = [self.policy] * (self.policy != "auto")
        return ", ".join(words + [f"{self.max_length} residues"] * (self.max_length != Extent.max_length))


@runtime_checkable
class HasExtent(Protocol):
    """What a floor has where it can leave out what a model leaves out: both are then scored on the same.

    Attributes:
        extent: is set before features are asked for.
    """

    extent: Extent


@runtime_checkable
class VariantScorer(Protocol):
    """What a :class:`Subject` may offer beside features: a judgement of a protein's variants, without training."""

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> NDArray[np.float64]:
        """Returns ``[n]`` scores, higher where a variant should be borne better; the wild type's is 0.

        Args:
            wild_type: residues as letters.
            variants: of this wild type.
            method: how a network is asked, see :mod:`protloom.variants.scores`; means nothing to a floor.

        Raises:
            protloom.errors.UserError: if the subject cannot serve the method, or not for such variants.
        """


@runtime_checkable
class Task(Protocol):
    """A downstream task; ``card`` describes it, ``run`` scores a feature extractor."""

    def card(self) -> Mapping[str, Any]:
        """Returns what ``task show`` prints: ``title``, ``metric``, ``definition``, ``splits``, ``probe``, ``licence``.

        The values are text or plain data; ``simulated: True`` where the data are not real. Reads no data.

        What runs tasks looks at these: ``data``, a mapping by the path of each file below the data folder (a result is
        used again only while these files are the same); ``better: "lower"`` where that is so; ``options``, those that
        this task really has (without ``split``, it has one set of rows, its test set); ``also``, further metrics to
        print; of an assay of mutations ``protein`` (UniProt entry) and ``selection`` (type of what was measured), over
        which ``task aggregate`` averages.
        """

    def check(self) -> None:
        """Makes sure that the task can run, at little cost; called before a model is opened.

        Raises:
            protloom.errors.UserError: if data are missing; says where they come from.
        """

    def floors(self) -> Mapping[str, Subject]:
        """Returns the trivial subjects that a model must beat, by name (``floor:...``), the most telling one first."""

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores ``subject``.

        Args:
            subject: gives features of sequences.
            seed: of everything random.
            limit: use at most this many items of each split, for a quick look; noted in the result.

        Raises:
            protloom.errors.UserError: if the data are missing; says where they come from.
        """


@runtime_checkable
class HasSequences(Protocol):
    """What a task offers beside, where its sequences can be told: a corpus is then compared with them."""

    def sequences(self, split: str) -> Sequence[str]:
        """Returns every sequence of a split (``train``, ``valid``, ``test``), none where there is no such split.

        In the order of the data and not drawn; of a pair, both sequences, one after the other.

        Raises:
            protloom.errors.UserError: if the data are missing; says where they come from.
        """


@dataclass(frozen=True)
class Download:
    """A data file of a task and the published files that it is made of.

    Attributes:
        path: of the data file, below the data folder.
        origin: repository, path and commit, in words.
        licence: as the origin states it.
        columns: that the file must have, for who makes it by hand.
        urls: the published files; none: it cannot be downloaded.
        sha256: of each published file, None where it is not known.
        sizes: bytes of each, None where they are not known.
        convert: writes the data file (first argument) from the published files, in the order of ``urls``; None: the
            only published file is the data file.
    """

    path: str
    origin: str
    licence: str
    columns: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    sha256: tuple[str | None, ...] = ()
    sizes: tuple[int | None, ...] = ()
    convert: Callable[[Path, Sequence[Path]], None] | None = None


@runtime_checkable
class HasDownloads(Protocol):
    """What a task offers beside, where its data are files: ``protloom data fetch`` gets them."""

    def downloads(self) -> Sequence[Download]:
        """Returns the files that the task reads, those included that nobody can download."""


class Callback(Protocol):
    """Told of every logged line of a run."""

    def on_log(self, record: Mapping[str, Any]) -> None:
        """Receives one line of ``metrics.jsonl``."""

    def close(self) -> None:
        """Called once, when the run ends, however it ends."""
