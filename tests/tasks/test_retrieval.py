"""Retrieval: recalls, chances and the measured floors of the SCOPe task."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.contracts import Task
from protloom.errors import UserError
from protloom_tasks import floors
from protloom_tasks.datasets import scope
from protloom_tasks.datasets.files import locate
from protloom_tasks.retrieval import (
    RANKS,
    ScopeConfig,
    ScopeRetrieval,
    SimRetrieval,
    SimRetrievalConfig,
    chances,
    recalls,
)


class Placed(floors.Floor):
    """A subject that puts each sequence where a table says, in the given kind of pooling."""

    name = "placed"

    def __init__(self, table: dict[str, Sequence[float]]) -> None:
        super().__init__()
        self.table = table
        self.asked: list[tuple[str, bool]] = []

    def pooled(self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False) -> Any:
        self.asked.append((pool, include_specials))
        return np.array([self.table[s] for s in sequences], dtype=np.float32)


def recall_loop(queries, labels, database, database_labels, k):
    succeeded, possible = [], []
    for i in range(len(queries)):
        others = [j for j in range(len(database)) if database is not queries or j != i]
        others.sort(key=lambda j: -float(queries[i] @ database[j]) / float(np.linalg.norm(database[j])))
        succeeded.append(any(database_labels[j] == labels[i] for j in others[:k]))
        possible.append(any(database_labels[j] == labels[i] for j in others))
    return succeeded, possible


@pytest.mark.parametrize("apart", [False, True])
def test_recalls_by_brute_force(apart: bool) -> None:
    rng = np.random.default_rng(0)
    queries, labels = rng.normal(size=(60, 5)), rng.integers(0, 25, 60)
    database, against = (rng.normal(size=(80, 5)), rng.integers(0, 40, 80)) if apart else (queries, labels)
    pair = (database, {"fold": against}) if apart else (None, None)
    table = recalls(queries, {"fold": labels}, *pair)
    assert set(table) == {f"Recall@{k}:fold" for k in RANKS}
    for k in RANKS:
        succeeded, possible = recall_loop(queries, labels, database, against, k)
        assert table[f"Recall@{k}:fold"][0].tolist() == succeeded
        assert table[f"Recall@{k}:fold"][1].tolist() == possible
        assert not all(possible)


@pytest.mark.parametrize("apart", [False, True])
def test_chance_is_what_random_features_get(apart: bool) -> None:
    rng = np.random.default_rng(1)
    labels, against = rng.integers(0, 12, 200), rng.integers(0, 20, 150)
    wanted = chances({"fold": labels}, {"fold": against} if apart else None)
    found = {k: [] for k in RANKS}
    for _ in range(30):
        queries, database = rng.normal(size=(200, 8)), rng.normal(size=(150, 8))
        table = recalls(queries, {"fold": labels}, *((database, {"fold": against}) if apart else (None, None)))
        for k in RANKS:
            found[k].append(table[f"Recall@{k}:fold"][0].mean())
    for k in RANKS:
        assert wanted[f"chance@{k}:fold"] == pytest.approx(np.mean(found[k]), abs=0.02)


@pytest.fixture
def small_scope(tmp_path: Path) -> Path:
    rows = [
        "d1,MKTA,a,a.1,a.1.1,a.1.1.1",
        "d2,MKTC,a,a.1,a.1.1,a.1.1.1",
        "d3,WWWW,a,a.1,a.1.2,a.1.2.1",
        "d4,GGGG,b,b.1,b.1.1,b.1.1.1",
    ]
    file = tmp_path / scope.SCOPE.path
    file.parent.mkdir()
    file.write_bytes(gzip.compress("\n".join(["id,sequence,class,fold,superfamily,family", *rows]).encode()))
    return tmp_path


def test_levels_eligibility_and_counts(small_scope: Path) -> None:
    task = ScopeRetrieval(ScopeConfig(data_dir=str(small_scope)))
    assert isinstance(task, Task)
    # d1 and d3 are neighbours, d2 and d4 are
    subject = Placed({"MKTA": (1, 0), "WWWW": (1, 0.1), "MKTC": (0, 1), "GGGG": (0.1, 1)})
    result = task.run(subject)
    assert subject.asked == [("mean", True)]  # as published: special symbols are in the mean
    assert result.metrics["Recall@1:fold"] == 0.5
    assert result.metrics["Recall@1:fold eligible"] == pytest.approx(2 / 3)
    assert result.metrics["Recall@1:superfamily"] == 0
    assert result.metrics["Recall@10:family"] == result.value == 0.5
    assert result.metrics["Recall@10:family eligible"] == 1
    assert result.details["eligible_queries"] == 2
    assert result.per_item.tolist() == [1, 1, 0, 0]
    assert ScopeRetrieval(ScopeConfig(data_dir=str(small_scope), level="fold")).run(subject).value == 0.75


def test_domains_without_features_are_counted(small_scope: Path) -> None:
    nan = float("nan")
    subject = Placed({"MKTA": (1, 0), "WWWW": (nan, nan), "MKTC": (1, 0.2), "GGGG": (0.1, 1)})
    result = ScopeRetrieval(ScopeConfig(data_dir=str(small_scope))).run(subject)
    assert result.details["without_features"] == 1
    assert result.metrics["Recall@1:family"] == 0.5
    with pytest.raises(UserError, match="needs two at least"):
        ScopeRetrieval(ScopeConfig(data_dir=str(small_scope))).run(subject, limit=1)


def test_simulated_hits_are_always_another_superfamily() -> None:
    config = SimRetrievalConfig(proteome_size=1000, queries=40, database=120)
    task = SimRetrieval(config)
    result = task.run(floors.Composition())
    again = SimRetrieval(config).run(floors.Composition())
    assert result.value == again.value
    assert result.metric == "Recall@1:fold"
    assert result.details["queries"] == 40
    proteome = task._proteome
    assert proteome is not None
    asked = set(proteome.superfamily[proteome.indices("test")].tolist())
    assert not asked & set(proteome.superfamily[proteome.indices("train")].tolist())
    # a subject that knows the fold finds it, unless no other superfamily has it
    fold = {proteome.sequence(i): np.eye(50)[proteome.fold[i]] for i in range(len(proteome))}
    told = task.run(Placed({s: tuple(v) for s, v in fold.items()}))
    assert told.metrics["Recall@1:fold eligible"] == 1.0
    assert told.value == told.details["eligible_queries"] / 40


def test_real_domains(shared_data: Path) -> None:
    domains = scope.read_scope(locate(str(shared_data), scope.SCOPE))
    assert len(domains.ids) == len(set(domains.ids)) == 9806
    assert {level: len(np.unique(of)) for level, of in domains.labels.items()} == {
        "fold": 1204,
        "superfamily": 1976,
        "family": 4254,
    }


def test_real_floor_is_the_measured_one(shared_data: Path) -> None:
    result = ScopeRetrieval(ScopeConfig(data_dir=str(shared_data))).run(floors.Kmer2())
    measured = {"fold": (0.034, 0.143, 0.251), "superfamily": (0.023, 0.101, 0.191), "family": (0.012, 0.050, 0.092)}
    for level, values in measured.items():
        for k, value in zip(RANKS, values, strict=True):
            assert result.metrics[f"Recall@{k}:{level}"] == pytest.approx(value, abs=0.002)
    assert result.details["eligible_queries"] == 7199
    assert result.details["queries"] == result.n == 9806
    low, high = result.interval
    # 9806 queries: a binomial interval is about as wide
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.05 * 0.95 / 9806), rel=0.15)
