"""Contacts: the regression on pair features and its precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protloom.contracts import Task
from protloom.errors import UserError
from protloom_tasks import contact_heads, contact_protocol, floors
from protloom_tasks.contact_heads import AttentionHead, HeadOptions
from protloom_tasks.contact_protocol import ContactSplits, Mapped
from protloom_tasks.contacts import SimContact, SimContactConfig

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def make(n: int, seed: int, low: int = 40, high: int = 60) -> list[Mapped]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        size = int(rng.integers(low, high))
        upper = np.triu(rng.random((size, size)) < 0.05, 6)
        sequence = "".join(rng.choice(LETTERS, size))
        resolved = rng.random(size) < 0.9
        found.append(Mapped(f"p{number}", sequence, upper | upper.T, resolved, f"g{number // 2}"))
    return found


class Maps(floors.Floor):
    """A subject whose channel 1 of 3 is the truth with noise; the others are noise."""

    name = "maps"

    def __init__(self, proteins: list[Mapped], noise: float = 0.0, length: int | None = None) -> None:
        super().__init__()
        self.truth = {p.sequence: p.contacts for p in proteins}
        self.noise, self.length = noise, length

    def of_pairs(self, sequence: str) -> Any:
        truth = self.truth[sequence]
        rng = np.random.default_rng(len(sequence))
        maps = rng.normal(size=(*truth.shape, 3))
        maps[..., 1] = truth + self.noise * maps[..., 1]
        maps = (maps + maps.transpose(1, 0, 2)) / 2
        return maps[: self.length, : self.length].astype(np.float32)


@pytest.fixture
def splits() -> ContactSplits:
    return ContactSplits(make(6, 0), make(8, 1))


def run(subject: Any, splits: ContactSplits, most: int | None = None) -> Any:
    options = HeadOptions(c=1.0, train_pairs=most)
    return contact_protocol.evaluate(
        lambda train: contact_heads.fit(subject, train, options, seed=0), splits, task="t", unit="families", seed=0
    )


def attention(subject: Any, train: Any, **options: Any) -> AttentionHead:
    return AttentionHead(subject, train, HeadOptions(c=1.0, **options), seed=0)


def test_a_channel_that_is_the_truth_finds_every_contact(splits: ContactSplits) -> None:
    result = run(Maps([*splits.train, *splits.test]), splits)
    for share in ("P@L/5", "P@L/2", "P@L"):
        # as precise as the number of contacts in the band allows
        best = []
        for p in splits.test:
            known = p.resolved[:, None] & p.resolved[None, :]
            count = int(np.triu(p.contacts & known, 24).sum())
            size = max(1, len(p.sequence) // {"P@L": 1, "P@L/2": 2, "P@L/5": 5}[share])
            size = min(size, int(np.triu(known, 24).sum()))
            best.append(min(1.0, count / size))
        assert result.metrics[f"{share}:long"] == pytest.approx(np.mean(best))
    assert result.value == result.metrics["P@L:long"]
    assert result.n == 4
    assert result.details["features_used"] >= 1


def test_noise_is_at_chance_and_a_signal_is_not(splits: ContactSplits) -> None:
    everything = [*splits.train, *splits.test]
    noise = run(Maps(everything, noise=1e6), splits)
    signal = run(Maps(everything, noise=0.3), splits)
    low, high = noise.interval
    assert low - 0.03 < noise.metrics["chance:long"] < high + 0.03
    assert signal.value > high
    assert noise.metrics["chance:long"] == signal.metrics["chance:long"]
    assert noise.items == signal.items


def test_pairs_of_unresolved_or_close_residues_are_never_candidates() -> None:
    protein = make(1, 3)[0]
    first, second = contact_protocol.candidates(protein, len(protein.sequence))
    assert (second - first).min() == 6
    assert protein.resolved[first].all()
    assert protein.resolved[second].all()
    first, second = contact_protocol.candidates(protein, 10)
    assert second.max() < 10


def test_fewer_pairs_keep_every_contact(splits: ContactSplits) -> None:
    subject = Maps([*splits.train, *splits.test], noise=0.3)
    whole = attention(subject, splits.train, train_pairs=None)
    less = attention(subject, splits.train, train_pairs=1500)
    total = sum(len(contact_protocol.candidates(p, len(p.sequence))[0]) for p in splits.train)
    assert whole.details["rows"] == total
    assert less.details["rows"] == 1500
    assert run(subject, splits, 1500).value == pytest.approx(run(subject, splits).value, abs=0.03)


def test_few_pairs_never_lack_others(splits: ContactSplits) -> None:
    subject = Maps(list(splits.train), noise=0.3)
    least = attention(subject, splits.train, train_pairs=100)
    contacts = sum(int(p.contacts[contact_protocol.candidates(p, len(p.sequence))].sum()) for p in splits.train)
    assert contacts > 100
    assert least.details["rows"] == 2 * contacts


def test_training_proteins_of_the_attention_head_are_drawn(splits: ContactSplits) -> None:
    subject = Maps(list(splits.train), noise=0.3)
    assert attention(subject, splits.train, attention_proteins=2).details["proteins_fitted_on"] == 2
    assert attention(subject, splits.train, attention_proteins=200).details["proteins_fitted_on"] == 6


def test_every_metric_has_an_interval_and_every_protein_its_precisions(splits: ContactSplits) -> None:
    result = run(Maps([*splits.train, *splits.test], noise=0.3), splits)
    assert set(result.intervals) == set(result.metrics)
    assert result.intervals[result.metric] == result.interval
    assert result.predictions["protein"] == [p.id for p in splits.test]
    for name, value in result.metrics.items():
        low, high = result.intervals[name]
        assert low <= value <= high
        assert np.nanmean(np.array(result.predictions[name], dtype=float)) == pytest.approx(value)


def test_residues_without_features_rank_last_and_are_counted(splits: ContactSplits) -> None:
    result = run(Maps([*splits.train, *splits.test], length=30), splits)
    assert result.details["test_residues_without_features"] == sum(len(p.sequence) - 30 for p in splits.test)
    head = attention(Maps(list(splits.train), length=30), splits.train)
    scores = next(head.scores([splits.train[0].sequence]))
    assert scores.shape == (30, 30)
    np.testing.assert_array_equal(scores, scores.T)


def test_duplicates_leave_the_training_set(splits: ContactSplits) -> None:
    both = ContactSplits([*splits.train, splits.test[0]], splits.test)
    result = run(Maps([*splits.train, *splits.test], noise=0.3), both)
    assert result.details["duplicates_of_test_removed_from_train"] == 1
    assert result.details["train_proteins"] == 6
    with pytest.raises(UserError, match="0 training"):
        run(Maps(list(splits.test)), ContactSplits(splits.test, splits.test))


def test_simulated_contacts() -> None:
    task = SimContact(SimContactConfig(proteome_size=600, train_proteins=6, test_proteins=12))
    assert isinstance(task, Task)
    result = task.run(floors.Separation())
    assert result.value == SimContact(task.config).run(floors.Separation()).value
    assert set(task.card()["also"]) <= set(result.metrics)
    assert 0 < result.metrics["chance:long"] < 0.2
    assert result.details["split"] == "valid"
    config = SimContactConfig(proteome_size=600, train_proteins=6, test_proteins=12, split="test")
    splits = SimContact(config)._load(0, None)
    assert splits.details["split"] == "test"
    assert not {p.id for p in splits.test} & {p.id for p in task._load(0, None).test}
    assert not {p.group for p in splits.train} & {p.group for p in splits.test}
    for protein in splits.test:
        np.testing.assert_array_equal(protein.contacts, protein.contacts.T)
        first, second = np.nonzero(np.triu(protein.contacts))
        assert (second - first).min() >= 6
