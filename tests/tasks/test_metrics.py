"""Metrics of tasks against loops that follow their definitions word by word."""

from __future__ import annotations

import numpy as np
import pytest

from protloom_tasks import metrics


def test_pooled_accuracy_counts_residues_not_proteins() -> None:
    protein = np.array([0, 0, 0, 0, 2])
    right, scored = metrics.hits(np.array([True, False, False, False, True]), protein, 3)
    assert right.tolist() == [1, 0, 1]
    assert scored.tolist() == [4, 0, 1]
    assert metrics.pooled_accuracy(right, scored) == 2 / 5
    nothing = np.zeros(2)
    assert np.isnan(metrics.pooled_accuracy(nothing, nothing))


def cosine_ranking(queries: np.ndarray, database: np.ndarray | None, k: int) -> list[list[int]]:
    ranking = []
    for i, query in enumerate(queries):
        scored = []
        for j, other in enumerate(queries if database is None else database):
            if database is None and i == j:
                continue
            scored.append((-float(query @ other) / float(np.linalg.norm(query) * np.linalg.norm(other)), j))
        ranking.append([j for _, j in sorted(scored)[:k]])
    return ranking


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_neighbours_by_brute_force(rows: int, apart: bool, ties: bool) -> None:
    rng = np.random.default_rng(0)
    queries, database = ((np.eye(6)[rng.integers(0, 4, n)] if ties else rng.normal(size=(n, 6))) for n in (23, 31))
    database = database if apart else None
    found = metrics.neighbours(queries, 9, database, rows=rows)
    assert found.tolist() == cosine_ranking(queries, database, 9)


def test_neighbours_at_the_edges() -> None:
    same = np.ones((4, 3))
    assert metrics.neighbours(same, 30).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert metrics.neighbours(np.ones((1, 3)), 5).shape == (1, 0)
    assert metrics.neighbours(np.zeros((0, 3)), 5, same).shape == (0, 0)
    with_zero = np.array([[0.0, 0], [1, 0], [1, 0.1]])
    assert metrics.neighbours(with_zero, 1).tolist() == [[1], [2], [1]]


def test_retrieved_and_eligible() -> None:
    labels = np.array([5, 5, 7, 9])
    found = np.array([[2, 1, 3], [2, 3, 0], [0, 1, 3], [0, 1, 2]])
    same = labels[found] == labels[:, None]
    assert metrics.retrieved(same, 1).tolist() == [False] * 4
    assert metrics.retrieved(same, 2).tolist() == [True, False, False, False]
    assert metrics.retrieved(same, 3).tolist() == [True, True, False, False]
    assert metrics.eligible(labels).tolist() == [True, True, False, False]


def precision_loop(
    scores: np.ndarray, contacts: np.ndarray, resolved: np.ndarray, low: int, high: int, most: int
) -> float:
    length = len(scores)
    pairs = [
        (scores[i, j], bool(contacts[i, j]))
        for i in range(length)
        for j in range(i + 1, length)
        if low <= j - i <= high and resolved[i] and resolved[j]
    ]
    pairs.sort(key=lambda pair: -pair[0])
    best = pairs[:most]
    return sum(hit for _, hit in best) / len(best) if best else float("nan")


@pytest.mark.parametrize("length", [5, 20, 33, 61])
@pytest.mark.parametrize("ties", [False, True])
def test_precision_at_by_brute_force(length: int, ties: bool) -> None:
    rng = np.random.default_rng(length)
    scores = rng.normal(size=(length, length))
    if ties:
        scores = np.round(scores)  # equal scores keep the order of pairs
    contacts = rng.random((length, length)) < 0.2
    resolved = rng.random(length) < 0.8
    found = metrics.precision_at(scores, contacts, resolved)
    for band, low, high in (("short", 6, 11), ("medium", 12, 23), ("long", 24, 10**6)):
        for name, share in (("P@L", 1), ("P@L/2", 2), ("P@L/5", 5)):
            wanted = precision_loop(scores, contacts, resolved, low, high, max(1, length // share))
            np.testing.assert_allclose(found[f"{name}:{band}"], wanted)
        wanted = precision_loop(np.zeros_like(scores), contacts, resolved, low, high, length**2)
        np.testing.assert_allclose(found[f"chance:{band}"], wanted)


def test_precision_uses_given_residue_numbers() -> None:
    scores = np.zeros((3, 3))
    contacts = np.ones((3, 3), dtype=bool)
    found = metrics.precision_at(scores, contacts, np.ones(3, dtype=bool), np.array([1, 2, 30]))
    assert found["P@L:long"] == 1.0
    assert np.isnan(found["P@L:short"])


def test_mean_leaves_out_proteins_without_a_value() -> None:
    tables = [{"a": 1.0, "b": float("nan")}, {"a": 0.0, "b": float("nan")}, {"a": float("nan"), "b": float("nan")}]
    found = metrics.mean_of(tables)
    assert found["a"] == 0.5
    assert np.isnan(found["b"])
    assert metrics.mean_of([]) == {}
