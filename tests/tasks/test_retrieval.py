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
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.retrieval import (
    RANKS,
    DefinedConfig,
    RetrievalTask,
    SimRetrieval,
    SimRetrievalConfig,
    chances,
    recalls,
)


def scope(data_dir: Path, **options: Any) -> RetrievalTask:
    return RetrievalTask(DefinedConfig(definition="scope-retrieval", data_dir=str(data_dir), **options))


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
@pytest.mark.parametrize("ties", [False, True])
def test_recalls_by_brute_force(apart: bool, ties: bool) -> None:
    rng = np.random.default_rng(0)

    def features(n: int) -> np.ndarray:
        """Directions, or few of them: of equal similarities the earlier row is nearer."""
        return np.eye(5)[rng.integers(0, 5, n)] if ties else rng.normal(size=(n, 5))

    queries, labels = features(60), rng.integers(0, 25, 60)
    database, against = (features(80), rng.integers(0, 40, 80)) if apart else (queries, labels)
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
    file = tmp_path / "scope_retrieval" / "scope204_30id.csv.gz"
    file.parent.mkdir()
    file.write_bytes(gzip.compress("\n".join(["id,sequence,class,fold,superfamily,family", *rows]).encode()))
    return tmp_path


def test_levels_eligibility_and_counts(small_scope: Path) -> None:
    task = scope(small_scope)
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
    assert scope(small_scope, level="fold").run(subject).value == 0.75


def test_domains_without_features_are_counted(small_scope: Path) -> None:
    nan = float("nan")
    subject = Placed({"MKTA": (1, 0), "WWWW": (nan, nan), "MKTC": (1, 0.2), "GGGG": (0.1, 1)})
    result = scope(small_scope).run(subject)
    assert result.details["without_features"] == 1
    assert result.metrics["Recall@1:family"] == 0.5
    with pytest.raises(UserError, match="1 domains; retrieval needs two at least"):
        scope(small_scope).run(subject, limit=1)


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
    assert result.details["split"] == "valid"
    asked = set(proteome.superfamily[proteome.indices("valid")].tolist())
    assert not asked & set(proteome.superfamily[proteome.indices("train")].tolist())
    # a subject that knows the fold finds it, unless no other superfamily has it
    fold = {proteome.sequence(i): np.eye(50)[proteome.fold[i]] for i in range(len(proteome))}
    told = task.run(Placed({s: tuple(v) for s, v in fold.items()}))
    assert told.metrics["Recall@1:fold eligible"] == 1.0
    assert told.value == told.details["eligible_queries"] / 40


def test_a_limit_that_leaves_no_query_a_chance_says_so(small_scope: Path) -> None:
    # of four domains two are drawn; only d1 and d2 are of one family
    subject = floors.Composition()
    drawn = {seed: sorted(draw(4, 2, seed, 0).tolist()) for seed in range(200)}
    hopeless = next(seed for seed, kept in drawn.items() if kept != [0, 1])
    lucky = next(seed for seed, kept in drawn.items() if kept == [0, 1])
    with pytest.raises(UserError, match="none of 2 domains has another of its family; of all 4, 2 have one: raise"):
        scope(small_scope).run(subject, seed=hopeless, limit=2)
    assert scope(small_scope).run(subject, seed=lucky, limit=2).value == 1


def test_retrieval_without_code(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(
        '{"s": "MKTA", "kind": "x", "use": 1}\n{"s": "MKTC", "kind": "x", "use": 1}\n'
        '{"s": "WWWW", "kind": "y", "use": 0}\n'
        '{"s": "GGGG", "kind": null, "use": 1}\n{"s": "", "kind": "x", "use": 1}\n'
        '{"s": "AWWW", "kind": "y", "use": 1}\n'
    )
    text = (
        "title: t\nkind: retrieval\nsequence: s\nlevels: kind\nlevel: kind\norigin: here\nlicence: none\n"
        "rows: {file: r.jsonl, where: {use: 1}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    task = RetrievalTask(DefinedConfig(definition=str(path)))
    result = task.run(Placed({"MKTA": (1, 0), "MKTC": (0.9, 0.1), "AWWW": (0, 1)}))
    assert task.name == "mine"
    assert result.details["left_out"] == {"no class": 1, "no sequence": 1}
    assert result.metrics["Recall@1:kind"] == pytest.approx(2 / 3)
    assert result.metrics["Recall@1:kind eligible"] == 1
    assert result.unit == "sequences"
    assert list(task.sequences("test")) == ["MKTA", "MKTC", "AWWW"]
    with pytest.raises(UserError, match=r"no level 'kid'\. Did you mean 'kind'"):
        RetrievalTask(DefinedConfig(definition=str(path), level="kid"))
    path.write_text(text.replace("level: kind\n", "level: fold\n"))
    with pytest.raises(UserError, match=r"mine\.yaml: level: 'fold' is none of the levels kind"):
        RetrievalTask(DefinedConfig(definition=str(path)))
    path.write_text(text.replace("levels: kind", "levels: clan").replace("level: kind", "level: clan"))
    with pytest.raises(UserError, match=r"r\.jsonl, line 1: no column 'clan'; it has s, kind, use"):
        RetrievalTask(DefinedConfig(definition=str(path))).run(floors.Kmer2())


def test_real_domains(shared_data: Path) -> None:
    items = scope(shared_data)._read()
    assert len(items.ids) == len(set(items.ids)) == 9806
    assert items.details["left_out"] == {}
    assert {level: len(np.unique(of)) for level, of in items.labels.items()} == {
        "fold": 1204,
        "superfamily": 1976,
        "family": 4254,
    }


def test_real_floor_is_the_measured_one(shared_data: Path) -> None:
    result = scope(shared_data).run(floors.Kmer2())
    measured = {"fold": (0.034, 0.143, 0.251), "superfamily": (0.023, 0.101, 0.191), "family": (0.012, 0.050, 0.092)}
    for level, values in measured.items():
        for k, value in zip(RANKS, values, strict=True):
            assert result.metrics[f"Recall@{k}:{level}"] == pytest.approx(value, abs=0.002)
    assert result.details["eligible_queries"] == 7199
    assert result.details["queries"] == result.n == 9806
    low, high = result.interval
    # 9806 queries: a binomial interval is about as wide
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.05 * 0.95 / 9806), rel=0.15)
