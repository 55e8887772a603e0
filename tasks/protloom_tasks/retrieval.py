"""Zero-shot retrieval of relatives by the cosine of pooled features: ``scope-retrieval`` and ``sim-retrieval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom.settings import Section
from protloom_tasks import intervals, metrics
from protloom_tasks.datasets import scope, simulated
from protloom_tasks.datasets.files import locate, sha256, status
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.floors import Composition, Floor, Kmer2, Length

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom_tasks.datasets.scope import Domains

RANKS = (1, 10, 30)
"""The k of every Recall@k."""

DEFINITION = (
    "Recall@k: share of queries with at least one domain of their {level} among the k most similar by cosine of pooled"
    " features; queries that cannot succeed count as misses, 'eligible' leaves them out"
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
        details={**details, "queries": len(succeeded), "eligible_queries": int(able.sum()), "seed": seed},
    )


class _Retrieval:
    """What both tasks share: the pooled features and the floors."""

    config: RetrievalConfig

    def check(self) -> None:
        """Needs no data."""

    def floors(self) -> Mapping[str, Subject]:
        """Returns 2-mers, composition and length."""
        return dict(self._floors())

    def _floors(self) -> dict[str, Floor]:
        return {floor.name: floor for floor in (Kmer2(), Composition(), Length())}

    def _pooled(self, subject: Subject, sequences: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Returns finite features, zero (similar to nothing) where the subject has none, and how many those are."""
        vectors = subject.pooled(sequences, pool=self.config.pool, include_specials=self.config.include_specials)
        bad = np.asarray(np.isnan(vectors).any(axis=1, keepdims=True))  # left out by the subject
        return np.where(bad, np.float32(0), vectors), int(bad.sum())


class ScopeConfig(RetrievalConfig):
    """Options of ``scope-retrieval``."""

    level: Literal["fold", "superfamily", "family"] = Field(default="family", description="Level of the main metric")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")


class ScopeRetrieval(_Retrieval):
    """Every SCOPe domain searches all others.

    Args:
        config: level of the main metric, pooling, where the data are.
    """

    name = "scope-retrieval"

    def __init__(self, config: ScopeConfig) -> None:
        self.config: ScopeConfig = config
        self._loaded: tuple[Domains, dict[str, str]] | None = None

    def check(self) -> None:
        """Raises UserError if the file is missing."""
        locate(self.config.data_dir, scope.SCOPE)

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        source = scope.SCOPE
        return {
            "title": "retrieval of SCOPe 2.04 domains (30 % identity), zero-shot",
            "kind": "retrieval, no training",
            "metric": f"Recall@10:{self.config.level}",
            "better": "higher",
            "also": _names(*scope.LEVELS),
            "definition": DEFINITION.format(level=self.config.level),
            "splits": "9806 domains, each searches all others (7199 have another member of their family)",
            "probe": "none",
            "options": self.config.model_dump(exclude={"data_dir"}),
            "floors": {name: floor.summary for name, floor in self._floors().items()},
            "interval": "bootstrap over queries",
            "citation": "Fox, Brenner and Chandonia 2014 (SCOPe)",
            "data": {source.path: {"from": source.origin, "licence": source.licence}},
            "status": {source.path: status(self.config.data_dir, source)},
            "simulated": False,
        }

    def sequences(self, split: str) -> Sequence[str]:
        """Returns all domains for ``test``; see :class:`protloom.contracts.HasSequences`."""
        return self._data()[0].sequences if split == "test" else ()

    def _data(self) -> tuple[Domains, dict[str, str]]:
        if self._loaded is None:
            path = locate(self.config.data_dir, scope.SCOPE)
            self._loaded = scope.read_scope(path), {scope.SCOPE.path: sha256(path)}
        return self._loaded

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        domains, files = self._data()
        kept = draw(len(domains.ids), limit, seed, 0)
        if len(kept) < 2:
            raise UserError(f"{self.name}: {len(kept)} domains; retrieval needs two at least")
        vectors, missing = self._pooled(subject, [domains.sequences[i] for i in kept])
        labels = {level: of[kept] for level, of in domains.labels.items()}
        return summarise(
            recalls(vectors, labels),
            f"Recall@10:{self.config.level}",
            chance=chances(labels),
            task=self.name,
            items=[domains.ids[i] for i in kept],
            groups=None,
            unit="domains",
            seed=seed,
            details={"files": files, "available": len(domains.ids), "limit": limit, "without_features": missing},
        )


class SimRetrievalConfig(RetrievalConfig, simulated.SimulatedConfig):
    """Options of ``sim-retrieval``."""

    queries: int = Field(default=300, ge=1, description="Queries, drawn by seed from test superfamilies")
    database: int = Field(default=2000, ge=1, description="Domains searched, drawn by seed from training superfamilies")


class SimRetrieval(_Retrieval):
    """Simulated domains of held-out superfamilies search for their fold among other superfamilies.

    Since no superfamily is in two splits, a hit is always a remote relative: same fold, other superfamily.

    Args:
        config: which proteome, sizes, pooling.
    """

    name = "sim-retrieval"
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
            "also": _names("fold"),
            "definition": DEFINITION.format(level="fold"),
            "splits": f"{self.config.queries} queries of test superfamilies search {self.config.database} domains of"
            " training superfamilies, so a hit has another superfamily; a model that never saw the queries'"
            " superfamilies was trained on demo:?split=train",
            "probe": "none",
            "options": self.config.model_dump(),
            "floors": {name: floor.summary for name, floor in self._floors().items()},
            "interval": "bootstrap over families of queries",
            "citation": "this project; see the page on the simulated proteome",
            "licence": "part of this project",
            "data": {},
            "status": {},
            "simulated": True,
        }

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if self._proteome is None:
            self._proteome = simulated.make(self.config)
        proteome = self._proteome
        sizes = [n if limit is None else min(n, limit) for n in (self.config.queries, self.config.database)]
        asked = simulated.choose(proteome, "test", sizes[0], seed)
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
                "limit": limit,
                "without_features": missing,
                "folds_searched": len(np.unique(fold[searched])),
            },
        )
