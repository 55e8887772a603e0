"""Metrics of variants against scipy and scikit-learn on resamples written out; the mean over assays by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import matthews_corrcoef, ndcg_score, roc_auc_score

from protloom_tasks import variant_metrics
from protloom_tasks.variant_metrics import METRICS, all_metrics, multiplicities


def written_out(truth: Any, score: Any, positive: Any) -> dict[str, float]:
    """The five metrics of a plain table of rows."""
    gains = (truth - truth.min()) / (truth.max() - truth.min())
    best, given = (values > np.percentile(values, 90) for values in (truth, score))
    return {
        "Spearman": spearmanr(truth, score).statistic,
        "AUC": roc_auc_score(positive, score),
        "MCC": matthews_corrcoef(positive, score >= np.median(score)),
        "NDCG@10%": ndcg_score(gains[None], score[None], k=max(1, len(truth) // 10)),
        "recall@10%": (best & given).sum() / best.sum() if best.any() else float("nan"),
    }


@pytest.mark.parametrize("n", [7, 20, 31, 200])
@pytest.mark.parametrize("step", [None, 0.5], ids=["distinct", "ties"])
def test_every_metric_of_every_resample(n: int, step: float | None) -> None:
    rng = np.random.default_rng(n)
    truth = rng.normal(size=n)
    score = truth + rng.normal(size=n)
    if step is not None:
        truth, score = np.round(truth / step) * step, np.round(score / step) * step
    positive = truth > np.median(truth)
    counts = np.concatenate([np.ones((1, n), dtype=np.int64), rng.multinomial(n, np.full(n, 1 / n), size=30)])
    counts[1] *= 3
    found = all_metrics(truth, score, positive, counts)
    for i, of in enumerate(counts):
        rows = np.repeat(np.arange(n), of)
        if len(np.unique(truth[rows])) < 2 or len(np.unique(positive[rows])) < 2:
            continue
        expected = written_out(truth[rows], score[rows], positive[rows])
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_perfect_reversed_and_constant_scores() -> None:
    truth = np.arange(40.0)
    positive = truth >= 20
    counts = np.ones((1, 40), dtype=np.int64)
    each = [all_metrics(truth, score, positive, counts) for score in (truth, -truth, np.zeros(40))]
    values = {name: [found[name][0] for found in each] for name in METRICS}
    assert values["Spearman"][:2] == pytest.approx([1, -1])
    assert np.isnan(values["Spearman"][2])
    assert values["AUC"] == pytest.approx([1, 0, 0.5])
    assert values["MCC"] == pytest.approx([1, -1, 0])
    discounts = 1 / np.log2(np.arange(2, 6))
    best = (np.array([39, 38, 37, 36]) * discounts).sum()
    assert values["NDCG@10%"] == pytest.approx(
        [1, (np.arange(4) * discounts).sum() / best, 19.5 * discounts.sum() / best]
    )
    assert values["recall@10%"] == pytest.approx([1, 0, 0])


def test_nothing_is_defined_where_all_variants_are_alike() -> None:
    same, score = np.ones(12), np.arange(12.0)
    counts = np.ones((2, 12), dtype=np.int64)
    found = all_metrics(same, score, np.ones(12, dtype=bool), counts)
    for name in ("Spearman", "AUC", "NDCG@10%", "recall@10%"):
        assert np.isnan(found[name]).all()
    assert found["MCC"].tolist() == [0, 0]


def test_whole_groups_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    group = np.array([0, 1, 0, 2, 2, 2])
    drawn = np.array([[0, 0, 2], [1, 2, 1]])
    expected = [[2, 0, 2, 1, 1, 1], [0, 2, 0, 1, 1, 1]]
    assert [block.tolist() for block in multiplicities(drawn, group)] == [expected]
    monkeypatch.setattr(variant_metrics, "BLOCK", 7)
    assert [block.tolist() for block in multiplicities(drawn, group)] == [expected[:1], expected[1:]]
