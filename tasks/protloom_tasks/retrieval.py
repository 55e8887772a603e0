"""Zero-shot retrieval of relatives by the cosine of pooled features: what definitions say, and ``sim-retrieval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError, did_you_mean
from protloom.scoring import percentile_interval
from protloom.settings import Section
from protloom_tasks import intervals, metrics
from protloom_tasks.datasets import simulated
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.datasets.selection import Reader, sources, text_of
from protloom_tasks.definition import Scored, load_as
from protloom_tasks.definition_kinds import RetrievalDefinition
from protloom_tasks.floors import Composition, Floor, Kmer2, Length
from protloom_tasks.task_base import DefinedTask, TaskBase

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.datasets.files import Source

RANKS = (1, 10, 30)
"""The k of every Recall@k."""

DEFINITION = (
    "Recall@k: share of queries with at least one of the {item} of their {level} among the k most similar by cosine of"
    " pooled features; queries that cannot succeed count as misses, 'eligible' leaves them out"
)


def _names(*levels: str) -> tuple[str, ...]:
    return tuple(f"{stem}@{k}:{level}" for level in levels for stem in ("Recall", "chance") for k in RANKS)


class RetrievalConfig(Section):
    """Options of a retrieval task."""

    pool: Literal["mean", "max", "cls"] = Field(default="mean", description="How residue states become one vector")
    include_specials: bool = Field(default=True, description="mean and max see <cls> and <eos>, as published")


def recalls(
    queries: NDArray[np.floating],
    labels: Mapping[str, NDArray[np.int64]],
    database: NDArray[np.floating] | None = None,
    database_labels: Mapping[str, NDArray[np.int64]] | None = None,
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Returns for each ``Recall@k:level`` which queries succeed and which could, both ``[n]``.

    Args:
        queries: ``[n, D]`` features.
        labels: level -> ``[n]`` class of each query.
        database: ``[m, D]``; None: each query searches all others.
        database_labels: level -> ``[m]``, with a database.
    """
    found = metrics.neighbours(queries, max(RANKS), database)
    table: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for level, own in labels.items():
        against = own if database_labels is None else database_labels[level]
        possible = metrics.eligible(own) if database_labels is None else np.isin(own, against)
        same = against[found] == own[:, None]
        for k in RANKS:
            table[f"Recall@{k}:{level}"] = metrics.retrieved(same, k), possible
    return table


def chances(
    labels: Mapping[str, NDArray[np.int64]], database_labels: Mapping[str, NDArray[np.int64]] | None = None
) -> dict[str, float]:
    """Returns what each Recall@k would be if every query ranked the database at random (see :func:`recalls`)."""
    found: dict[str, float] = {}
    for level, own in labels.items():
        against = own if database_labels is None else database_labels[level]
        size = len(against) - (database_labels is None)
        values, counts = np.unique(against, return_counts=True)
        place = np.minimum(np.searchsorted(values, own), len(values) - 1)
        found_there = np.equal(values[place], own)
        relatives = np.asarray(np.where(found_there, counts[place], 0) - (database_labels is None))  # [n]
        for k in RANKS:
            drawn = np.arange(min(k, size))  # none of k draws without replacement is a relative
            left = np.clip(size - relatives[:, None] - drawn, 0, None) / (size - drawn)
            found[f"chance@{k}:{level}"] = float(np.mean(1 - left.prod(axis=1)))
    return found


def summarise(
    table: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    main: str,
    *,
    chance: Mapping[str, float],
    task: str,
    items: Sequence[str],
    groups: NDArray[np.int64] | None,
    unit: str,
    seed: int,
    details: dict[str, Any],
) -> TaskResult:
    """Makes the result of a retrieval task.

    Args:
        table: of :func:`recalls`.
        main: the entry that is the main metric.
        chance: of :func:`chances`.
        task: the task's name.
        items: what identifies each query.
        groups: ``[n]`` number of the group that each query is resampled with; None: queries are resampled.
        unit: what is resampled.
        seed: of the bootstrap.
        details: provenance.
    """
    succeeded = table[main][0].astype(np.float64)
    group = np.arange(len(succeeded)) if groups is None else groups
    order = "the data" if groups is None else "their numbers"
    total = metrics.sums(succeeded, group, int(group.max()) + 1)
    count = metrics.sums(np.ones(len(succeeded)), group, len(total))
    replicates = intervals.bootstrap_ratio(total, count, seed=seed)
    values: dict[str, float] = {}
    for name, (hit, possible) in table.items():
        values[name] = float(hit.mean())
        values[f"{name} eligible"] = float(hit[possible].mean()) if possible.any() else float("nan")
    able = table[main][1]
    return TaskResult(
        metric=main,
        value=values[main],
        interval=percentile_interval(replicates),
        n=len(total),
        unit=unit,
        metrics={**values, **chance},
        per_item=total / count,
        replicates=replicates,
        items=intervals.fingerprint(task, items, seed),
        details={
            **details,
            "queries": len(succeeded),
            "eligible_queries": int(able.sum()),
            "seed": seed,
            "per_item_is": f"share of queries with a hit ({main}) of each of the {unit}, in the order of {order}",
        },
    )


class _Retrieval(TaskBase):
    """What both tasks share: the pooled features and the floors."""

    config: RetrievalConfig

    def _floors(self) -> Sequence[Floor]:
        return Kmer2(), Composition(), Length()

    def _pooled(self, subject: Subject, sequences: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Returns finite features, zero (similar to nothing) where the subject has none, and how many those are."""
        vectors = subject.pooled(sequences, pool=self.config.pool, include_specials=self.config.include_specials)
        bad = np.asarray(np.isnan(vectors).any(axis=1, keepdims=True))  # left out by the subject
        return np.where(bad, np.float32(0), vectors), int(bad.sum())


class DefinedConfig(RetrievalConfig):
    """Options of a retrieval task that a definition says."""

    definition: str = Field(description="A shipped definition, or the path of a YAML file")
    variant: str | None = Field(default=None, description="Which of its variants")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    level: str | None = Field(default=None, description="Level of the main metric; default: the definition's")


@dataclass(frozen=True)
class _Items:
    """What searches and is searched: names, residues, and of each level the number of every item's class."""

    ids: Sequence[str]
    sequences: Sequence[str]
    labels: Mapping[str, NDArray[np.int64]]
    details: Mapping[str, Any]


class RetrievalTask(DefinedTask[RetrievalDefinition], _Retrieval):
    """Every sequence of a definition searches all others.

    Args:
        config: which definition, level of the main metric, pooling.

    Raises:
        UserError: the definition is wrong, or has no such level.
    """

    def __init__(self, config: DefinedConfig) -> None:
        super().__init__(load_as(RetrievalDefinition, config.definition, config.variant), config.data_dir)
        self.config: DefinedConfig = config
        self._level = config.level or self.definition.level
        if self._level not in self.definition.levels:
            raise UserError(f"no level {self._level!r}.{did_you_mean(self._level, self.definition.levels)}")
        self._items: _Items | None = None

    def _sources(self) -> Sequence[Source]:
        return sources(self.definition, self.definition.all_tables())

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        said = self.definition
        return {
            "title": said.title,
            "kind": "retrieval, no training",
            "metric": f"Recall@10:{self._level}",
            "better": "higher",
            "also": tuple(name for name in _names(*said.levels) if name != f"Recall@10:{self._level}"),
            "definition": DEFINITION.format(level=self._level, item=said.item),
            "splits": f"none: each of the {said.item} searches all others",
            "probe": "none",
            "options": self.config.model_dump(exclude={"data_dir", "definition", "variant"}),
            "interval": "bootstrap over queries",
            **self._tail(),
        }

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all sequences for ``test``; see :class:`protloom.contracts.HasSequences`."""
        return self._read().sequences if split == "test" else ()

    def _read(self) -> _Items:
        if self._items is None:
            self._items = _read(self.definition, Reader(self.definition, self._data_dir, self._folder))
        return self._items

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        items, what = self._read(), self.definition.item
        kept = draw(len(items.ids), limit, seed, 0)
        if len(kept) < 2:
            raise UserError(f"{len(kept)} {what}; retrieval needs two at least")
        labels = {level: of[kept] for level, of in items.labels.items()}
        if not metrics.eligible(labels[self._level]).any():
            able = int(metrics.eligible(items.labels[self._level]).sum())
            why = "" if limit is None else f"; of all {len(items.ids)}, {able} have one: raise --limit"
            raise UserError(f"none of {len(kept)} {what} has another of its {self._level}{why}")
        vectors, missing = self._pooled(subject, [items.sequences[i] for i in kept])
        return summarise(
            recalls(vectors, labels),
            f"Recall@10:{self._level}",
            chance=chances(labels),
            task=self.name,
            items=[items.ids[i] for i in kept],
            groups=None,
            unit=what,
            seed=seed,
            details={
                **items.details,
                "available": len(items.ids),
                "limit": limit,
                "without_features": missing,
            },
        )


def _read(definition: RetrievalDefinition, reader: Reader) -> _Items:
    """Reads the rows of a definition; those without a sequence or without a class of some level are left out."""
    ids: list[str] = []
    sequences: list[str] = []
    names: dict[str, list[str]] = {level: [] for level in definition.levels}
    for where, cells in reader.rows(definition.rows):
        sequence = reader.sequence(cells, definition.sequence, where).replace("*", "")
        own = {level: text_of(cells, level, where).strip() for level in definition.levels}
        if not sequence or not all(own.values()):
            reader.counts["no sequence" if not sequence else "no class"] += 1
            continue
        ids.append(text_of(cells, definition.id, where) if definition.id else sequence)
        sequences.append(sequence)
        for level, name in own.items():
            names[level].append(name)
    labels = {level: np.unique(of, return_inverse=True)[1].astype(np.int64) for level, of in names.items()}
    left_out = {reason: n for reason, n in reader.counts.items() if n}
    return _Items(ids, sequences, labels, {"files": reader.files, "left_out": left_out})


class SimRetrievalConfig(RetrievalConfig, simulated.SimulatedConfig):
    """Options of ``sim-retrieval``."""

    split: Scored = Field(default="valid", description="Superfamilies that queries are of")
    queries: int = Field(default=300, ge=1, description="Queries, drawn by seed")
    database: int = Field(default=2000, ge=1, description="Domains searched, drawn by seed from training superfamilies")


class SimRetrieval(_Retrieval):
    """Simulated domains of held-out superfamilies search for their fold among other superfamilies.

    Since no superfamily is in two splits, a hit is always a remote relative: same fold, other superfamily.

    Args:
        config: which proteome, sizes, pooling.
    """

    name = "sim-retrieval"
    simulated = True
    main = "Recall@1:fold"

    def __init__(self, config: SimRetrievalConfig) -> None:
        self.config: SimRetrievalConfig = config
        self._proteome: simulated.Proteome | None = None

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        return {
            "title": "retrieval of the fold of SIMULATED domains, zero-shot",
            "kind": "retrieval, no training",
            "metric": self.main,
            "better": "higher",
            "also": tuple(name for name in _names("fold") if name != self.main),
            "definition": DEFINITION.format(level="fold", item="domains"),
            "splits": f"{self.config.queries} queries of {self.config.split} superfamilies search"
            f" {self.config.database} domains of training superfamilies, so a hit has another superfamily; a model"
            " that never saw the queries' superfamilies was trained on demo:?split=train",
            "probe": "none",
            "options": self.config.model_dump(),
            "interval": "bootstrap over families of queries",
            "citation": "this project; see the page on the simulated proteome",
            "licence": "part of this project",
            **self._tail(),
        }

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all proteins of a split; see :class:`protloom.contracts.HasSequences`."""
        return simulated.sequences(self.config, split)

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if self._proteome is None:
            self._proteome = simulated.make(self.config)
        proteome = self._proteome
        sizes = [n if limit is None else min(n, limit) for n in (self.config.queries, self.config.database)]
        asked = simulated.choose(proteome, self.config.split, sizes[0], seed)
        searched = simulated.choose(proteome, "train", sizes[1], seed)
        queries, missing = self._pooled(subject, [proteome.sequence(i) for i in asked.tolist()])
        database, _ = self._pooled(subject, [proteome.sequence(i) for i in searched.tolist()])
        fold = proteome.fold.astype(np.int64)
        own, against = {"fold": fold[asked]}, {"fold": fold[searched]}
        return summarise(
            recalls(queries, own, database, against),
            self.main,
            chance=chances(own, against),
            task=self.name,
            items=[proteome.id(i) for i in (*asked.tolist(), *searched.tolist())],
            groups=np.unique(proteome.family[asked], return_inverse=True)[1].astype(np.int64),
            unit="families",
            seed=seed,
            details={
                **simulated.provenance(self.config),
                "split": self.config.split,
                "limit": limit,
                "without_features": missing,
                "folds_searched": len(np.unique(fold[searched])),
            },
        )
