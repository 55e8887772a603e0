"""Tasks on whole sequences by nearest neighbours and by a ConvBERT layer, under their own names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom_tasks import floors, sequence_heads, sequence_probes
from protloom_tasks.neighbours import NeighbourLabels, Neighbours, one_hot
from protloom_tasks.sequence_task import SequenceConfig, SequenceTask

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


@pytest.fixture
def rows() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 6)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)


@pytest.mark.parametrize(("distance", "metric"), [("cosine", "cosine"), ("euclid", "euclidean")])
def test_outputs_are_those_of_scikit_learn(rows: Any, distance: Any, metric: str) -> None:
    train, asked = rows
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {"n_neighbors": 7, "weights": "distance", "metric": metric, "algorithm": "brute"}

    def found(labels: Any, kind: Any) -> Any:
        output = sequence_probes.nearest(train, labels, {"x": asked}, kind=kind, k=7, distance=distance)
        assert "7 nearest" in output.details["probe"]
        return output.values["x"]

    numbers = rng.normal(size=60)
    referee = KNeighborsRegressor(**options).fit(train, numbers).predict(asked)
    np.testing.assert_allclose(found(numbers, "regression"), referee, atol=1e-6)
    classes = rng.integers(0, 4, 60)
    shares = KNeighborsClassifier(**options).fit(train, classes).predict_proba(asked)
    np.testing.assert_allclose(found(classes, "multiclass"), shares, atol=1e-5)
    binary = (classes > 1).astype(int)
    shares = KNeighborsClassifier(**options).fit(train, binary).predict_proba(asked)
    np.testing.assert_allclose(found(binary, "binary"), shares[:, 1] - 0.5, atol=1e-5)
    both = np.stack([binary, 1 - binary], axis=1)
    np.testing.assert_allclose(found(both, "multilabel"), shares[:, ::-1] - 0.5, atol=1e-5)


def test_a_neighbour_at_no_distance_decides_alone(rows: Any) -> None:
    train, _ = rows
    labels = np.arange(60) % 3
    probe = NeighbourLabels(train, labels, k=5, distance="euclid")
    np.testing.assert_array_equal(probe.predict(train), labels)
    with pytest.raises(UserError, match="no training row has features"):
        Neighbours(train[:0], one_hot(labels)[:0])
    assert Neighbours(train[:2], one_hot(labels[:2]), k=5).means(train).shape == (60, 2)


class Codes(floors.Floor):
    """Residues as fixed random vectors: composition is all that a mean of them holds."""

    name = "codes"

    def of_residues(self, sequences: Sequence[str]) -> Iterator[Any]:
        table = np.random.default_rng(5).normal(size=(21, 8)).astype(np.float32)
        for sequence in sequences:
            yield table[floors.encode(sequence)]

    def of_sequences(self, sequences: Sequence[str]) -> Any:
        return np.stack([states.mean(axis=0) for states in self.residues(sequences)])


@pytest.fixture
def definition(tmp_path: Path) -> str:
    """Whether a sequence holds more than a fifth of W, in tables."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 150), ("valid", 40), ("test", 40)):
        lines = ["sequence,y,partner"]
        for number in range(n):
            rich = number % 2
            shares = np.where(LETTERS == "W", 0.4, 0.6 / 19) if rich else None
            drawn = rng.choice(LETTERS, int(rng.integers(20, 40)), p=shares)
            lines.append(f"{''.join(drawn)},{rich},MKT")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    text = (
        "title: t\nkind: binary\nsequence: sequence\nlabel: y\norigin: here\nlicence: none\n"
        "splits: {train: train.csv, valid: valid.csv, test: test.csv}\n"
    )
    (tmp_path / "t.yaml").write_text(text)
    (tmp_path / "pairs.yaml").write_text(text + "partner: partner\n")
    return str(tmp_path / "t.yaml")


@pytest.mark.parametrize(("probe", "pool"), [("knn", "mean"), ("convbert", "mean"), ("convbert", "max")])
def test_a_task_under_its_own_name(definition: str, probe: Any, pool: Any) -> None:
    task = SequenceTask(SequenceConfig(definition=definition, probe=probe, pool=pool, epochs=10))
    result = task.run(Codes())
    assert result.metric == "AUC"
    assert result.value > 0.8
    assert ("nearest" if probe == "knn" else "ConvBERT") in result.details["probe"]
    assert result.value == task.run(Codes()).value
    linear = task.run(floors.Kmer2())
    assert linear.items == result.items
    assert ("nearest" if probe == "knn" else "logistic") in linear.details["probe"]
    assert ("floor:onehot" in task.floors()) == (probe == "convbert")


def test_long_sequences_are_cut_and_counted_and_skipped_ones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_heads, "LONGEST", 10)

    class Some(Codes):
        def residues(self, sequences: Sequence[str]) -> Iterator[Any]:
            for sequence, states in zip(sequences, super().residues(sequences), strict=True):
                yield states[:0] if sequence.startswith("W") else states

    sequences = ["MKT" * 5, "WWW", "MKA", "MKV"]
    options = SequenceConfig(definition="unread", epochs=1)
    found = sequence_heads.by_convbert(
        Some(), sequences, np.array([0, 1, 1, 0]), sequences, kind="binary", pool="mean", options=options, seed=0
    )
    assert found.details["sequences_cut_at_1024_residues"] == 2
    np.testing.assert_array_equal(found.usable, [True, False, True, True])
    np.testing.assert_array_equal(found.present, [True, False, True, True])
    assert found.output.shape == (4,)
    assert found.output[1] == 0


def test_what_a_convbert_layer_cannot_do_is_one_line(definition: str) -> None:
    pairs = definition.replace("t.yaml", "pairs.yaml")
    with pytest.raises(UserError, match="these rows hold two"):
        SequenceTask(SequenceConfig(definition=pairs, probe="convbert")).run(Codes())
    with pytest.raises(UserError, match="pool: cls with probe: convbert"):
        SequenceTask(SequenceConfig(definition=definition, probe="convbert", pool="cls")).run(Codes())


def test_a_network_is_tuned_under_the_same_name(definition: str, tmp_path: Path, registry: Registry) -> None:
    subject = open_subjects(str(tiny_model.save(tmp_path / "model", registry)), registry, twin=None)[0]
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    options: dict[str, Any] = {"definition": definition, "probe": "lora", "epochs": 3, "learning_rate": 1e-2}
    task = SequenceTask(SequenceConfig(**options))
    result = task.run(subject)
    assert result.interval[0] > 0.5
    assert "LoRA" in result.details["probe"]
    assert result.details["held_out_rows"] == 15
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert result.value == SequenceTask(SequenceConfig(**options)).run(subject).value
    # floors keep the linear probe, on the same rows
    floor = task.run(floors.Kmer2())
    assert floor.items == result.items
    assert "logistic" in floor.details["probe"]
    with pytest.raises(UserError, match="codes is no network"):
        sequence_heads.by_lora(
            Codes(),
            ["MKT"],
            np.array([0]),
            ["MKT"],
            kind="binary",
            pool="mean",
            specials=True,
            options=task.config,
            seed=0,
        )
