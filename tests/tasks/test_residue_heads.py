"""Residue tasks by nearest neighbours, a ConvBERT layer and low-rank tuning, under their own names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch

from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom_tasks import floors, residue_heads
from protloom_tasks.datasets.proteins import Labelled, Splits
from protloom_tasks.residue_probe import Measure, ProbeConfig, score
from protloom_tasks.residue_task import ResidueConfig

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
CLASSES = Measure("Q3", "Q3", "HEC")
NUMBERS = Measure("Spearman")


class Letters(floors.Floor):
    """Each residue's letter, one-hot; of long sequences only the first residues."""

    name = "letters"

    def residues(self, sequences: Sequence[str]) -> Iterator[Any]:
        for sequence in sequences:
            yield np.eye(21, dtype=np.float32)[floors.encode(sequence)][:30]


def make(n: int, seed: int, *, classes: bool) -> list[Labelled]:
    """Proteins whose residues are labelled by their letter; some have no label."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        letters = rng.choice(LETTERS, int(rng.integers(15, 35)))
        codes = floors.encode("".join(letters))
        unknown = rng.random(len(codes)) < 0.1
        labels = np.where(unknown, -1, codes % 3) if classes else np.where(unknown, np.nan, codes * 1.5 + 50)
        found.append(Labelled(f"p{number}", "".join(letters), labels, f"g{number}"))
    return found


def run(subject: Any, measure: Measure, **options: Any) -> Any:
    classes = measure is CLASSES
    splits = Splits(make(60, 0, classes=classes), make(15, 1, classes=classes))
    return score(subject, splits, ProbeConfig(**options), measure, task="t", unit="proteins", seed=0)


@pytest.mark.parametrize("probe", ["knn", "convbert"])
@pytest.mark.parametrize("measure", [CLASSES, NUMBERS])
def test_labels_that_letters_tell_are_found(probe: Any, measure: Measure) -> None:
    result = run(Letters(), measure, probe=probe, epochs=20, distance="euclid")
    assert result.value > (0.99 if probe == "knn" else 0.6)  # chance: a third, and no correlation
    assert ("nearest" if probe == "knn" else "ConvBERT") in result.details["probe"]
    linear = run(Letters(), measure)
    assert linear.items == result.items
    # residues beyond those with features are counted, not scored
    assert result.details["test_residues_without_features"] == linear.details["test_residues_without_features"] > 0
    assert result.details["test_residues"] == linear.details["test_residues"]


def test_a_layer_that_one_task_trained_serves_another() -> None:
    subject = Letters()
    first = run(subject, CLASSES, probe="convbert", epochs=1)
    kept = dict(subject.memo)
    assert run(subject, CLASSES, probe="convbert", epochs=1).value == first.value
    assert subject.memo == kept
    run(subject, CLASSES, probe="convbert", epochs=2)
    assert len(subject.memo) == len(kept) + 1


def test_a_network_is_tuned_and_stays_as_it_was(tmp_path: Any, registry: Registry) -> None:
    folder = tiny_model.save(tmp_path / "model", registry)
    subject = open_subjects(str(folder), registry, twin=None, max_length=30)[0]
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    for measure in (CLASSES, NUMBERS):
        result = run(subject, measure, probe="lora", epochs=6, patience=6, learning_rate=1e-2)
        assert "LoRA" in result.details["probe"]
        low, _ = result.interval
        assert low > (0.4 if measure is CLASSES else 0.0)
        assert result.details["test_residues_without_features"] > 0
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_floors_are_not_tuned(tmp_path: Any) -> None:
    result = run(floors.OneHot(), CLASSES, probe="lora")
    assert "multinomial" in result.details["probe"]
    with pytest.raises(UserError, match="no network that can be tuned"):
        residue_heads.LoraProbe(Letters(), make(3, 0, classes=True), ProbeConfig(), classes=True, seed=0)
    assert "LoRA" in residue_heads.described("lora", "linear")
    assert residue_heads.described("ovr", "linear") == "linear"
    assert ResidueConfig(definition="x", probe="knn", neighbours=3).neighbours == 3
