"""The ConvBERT head against transformers' layer; its training; features on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ConvBertConfig
from transformers.models.convbert.modeling_convbert import ConvBertLayer as Referee

from protloom.errors import UserError
from protloom_tasks.heads import convbert_fit, losses, training
from protloom_tasks.heads.convbert import ConvBertHead, ConvBertLayer, padded
from protloom_tasks.heads.convbert_fit import Options
from protloom_tasks.heads.feature_file import FeatureFile

WIDTH, INNER = 24, 20


def pair(kernel: int = 7) -> tuple[ConvBertLayer, Any]:
    """Our layer and transformers', with the same weights, in fp64."""
    torch.manual_seed(0)
    config = ConvBertConfig(
        hidden_size=WIDTH, num_attention_heads=4, intermediate_size=INNER, conv_kernel_size=kernel, num_hidden_layers=1
    )
    config._attn_implementation = "eager"
    referee = Referee(config).double().eval()
    ours = ConvBertLayer(WIDTH, INNER, kernel=kernel).double().eval()
    for parameter in referee.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    part = referee.attention.self
    same = {
        "query": part.query,
        "key": part.key,
        "value": part.value,
        "make_kernel": part.conv_kernel_layer,
        "convolved": part.conv_out_layer,
        "mixed": referee.attention.output.dense,
        "mixed_norm": referee.attention.output.LayerNorm,
        "into": referee.intermediate.dense,
        "out": referee.output.dense,
        "out_norm": referee.output.LayerNorm,
    }
    state = {f"{name}.{key}": value for name, module in same.items() for key, value in module.state_dict().items()}
    separable = part.key_conv_attn_layer
    state |= {
        "depthwise.weight": separable.depthwise.weight,
        "pointwise.weight": separable.pointwise.weight.squeeze(-1),
        "pointwise.bias": separable.bias.squeeze(-1),
    }
    ours.load_state_dict(state)
    return ours, referee


@pytest.mark.parametrize("kernel", [7, 3])
def test_the_layer_is_that_of_transformers_for_each_sequence_of_a_batch(kernel: int) -> None:
    ours, referee = pair(kernel)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(n, WIDTH, dtype=torch.float64, generator=generator) for n in (9, 1, 5, 30)]
    x, mask = padded(sequences)
    found = ours(x, mask)
    # what stands in the padding is not read
    garbage = torch.where(mask[..., None], x, torch.full_like(x, 1e3))
    torch.testing.assert_close(ours(garbage, mask)[mask], found[mask], rtol=0, atol=0)
    for row, sequence in zip(found, sequences, strict=True):
        torch.testing.assert_close(row[: len(sequence)], referee(sequence[None])[0], rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_transformers() -> None:
    ours, referee = pair()
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours(x, torch.ones(1, 12, dtype=torch.bool)).sin().sum().backward()
    referee(x).sin().sum().backward()
    assert ours.depthwise.weight.grad is not None
    expected = referee.attention.self.key_conv_attn_layer.depthwise.weight.grad
    torch.testing.assert_close(ours.depthwise.weight.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "max", None])
def test_pools_see_real_positions_alone(pool: Any) -> None:
    torch.manual_seed(0)
    head = ConvBertHead(10, 3, pool=pool).double().eval()
    assert head.added == 2
    assert head.linear.weight.abs().max() <= 0.1
    sequences = [torch.randn(n, 10, dtype=torch.float64) for n in (4, 11)]
    x, mask = padded(sequences)
    together = head(x, mask)
    for row, sequence in zip(together, sequences, strict=True):
        inner = head.layer(torch.nn.functional.pad(sequence[None], (0, 2)), torch.ones(1, len(sequence)).bool())[0]
        if pool is None:
            torch.testing.assert_close(row[: len(sequence)], head.linear(inner))
            continue
        pooled = inner.mean(0) if pool == "mean" else inner.max(0).values
        torch.testing.assert_close(row, head.linear(pooled))


# ---------------------------------------------------------------------------------------------------------- training


def make(n: int, seed: int) -> list[Any]:
    """Features round a centre of each sequence."""
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(5, 15)), 8) for _ in range(n)]
    return [(rng.normal(size=shape) + 1.5 * rng.normal(size=8)).astype(np.float32) for shape in shapes]


def labels_of(kind: str, states: list[Any]) -> list[Any]:
    """Labels that depend on features plainly."""
    if kind == "regression":
        return [100 + 10 * float(of[:, 0].mean()) for of in states]
    if kind == "binary":
        return [int(of[:, 0].mean() > 0) for of in states]
    if kind == "multiclass":
        return [int(of[:, :3].mean(0).argmax()) for of in states]
    if kind == "multilabel":
        return [(of[:, :3].mean(0) > 0).astype(int) for of in states]
    # the first residue has none
    if kind == "residue-numbers":
        return [np.r_[np.nan, 100 + 10 * of[1:, 0]] for of in states]
    return [np.r_[losses.IGNORED, (of[1:, 0] > 0).astype(int)] for of in states]


@pytest.mark.parametrize(
    "kind", ["regression", "binary", "multiclass", "multilabel", "residue-classes", "residue-numbers"]
)
def test_each_kind_of_label_is_learned(kind: Any) -> None:
    train, test = make(160, 0), make(100, 1)
    pool: Any = None if kind.startswith("residue") else "mean"
    options = Options(kind, pool, epochs=12)
    trained = convbert_fit.fit(FeatureFile(train), labels_of(kind, train), options)
    found = list(trained.outputs(test))
    truth = labels_of(kind, test)
    if kind in ("regression", "residue-numbers"):
        numbers, wanted = np.concatenate(found).ravel(), np.concatenate(list(map(np.atleast_1d, truth)))
        known = np.isfinite(wanted)
        assert np.corrcoef(numbers[known], wanted[known])[0, 1] > 0.7
        assert np.mean(numbers[known]) == pytest.approx(np.mean(wanted[known]), abs=4)
        return
    if kind == "binary":
        right = (np.concatenate(found) > 0) == truth
    elif kind == "multiclass":
        right = np.stack(found).argmax(1) == truth
    elif kind == "multilabel":
        right = (np.stack(found) > 0) == np.stack(truth)
    else:
        right = np.concatenate([of[1:].argmax(1) == labels[1:] for of, labels in zip(found, truth, strict=True)])
    assert np.mean(right) > (0.6 if kind == "multiclass" else 0.7)  # chance: a third and a half, ± 0.05
    assert trained.details["steps"] == 12 * 10


def test_a_seed_decides_everything_and_no_generator_moves() -> None:
    features = FeatureFile(make(30, 0))
    labels = labels_of("binary", make(30, 0))
    state = torch.get_rng_state()
    runs = [
        np.stack(list(convbert_fit.fit(features, labels, Options("binary", "max", seed=seed)).outputs(make(5, 1))))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_parts_of_a_step_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, states = FeatureFile(make(20, 0)), make(20, 0)
    labels = labels_of("residue-classes", states)
    monkeypatch.setattr("protloom_tasks.heads.convbert.DROPOUT", 0.0)
    monkeypatch.setattr(ConvBertLayer, "_drop", lambda self, x: x)
    found = []
    for positions in (10_000, 20):
        monkeypatch.setattr(convbert_fit, "POSITIONS", positions)
        trained = convbert_fit.fit(features, labels, Options("residue-classes", None, epochs=2))
        found.append(np.concatenate(list(trained.outputs(make(3, 1)))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_sequences_without_features_are_passed_over() -> None:
    states = make(20, 0)
    states[3] = np.zeros((0, 8), np.float32)
    labels = labels_of("regression", make(20, 0))
    trained = convbert_fit.fit(FeatureFile(states), labels, Options("regression", "mean", epochs=1))
    assert next(trained.outputs([states[3]])) == [0.0]
    with pytest.raises(UserError, match="no training sequence has features"):
        convbert_fit.fit(FeatureFile([states[3]]), [1.0], Options("regression", "mean"))


def test_schedule_and_batches() -> None:
    assert [training.factor(step, 20) for step in range(20)] == pytest.approx(
        [1 / 3, 2 / 3, *((20 - step) / 18 for step in range(2, 20))]
    )
    assert max(training.factor(step, 100_000) for step in range(1001)) == 1.0
    assert training.factor(999, 100_000) == pytest.approx(1000 / 1001)
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    parts = list(training.batches(lengths, np.random.default_rng(1)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert {len(part) for part in parts} == {16, 1000 % 16}
    spread = np.mean([np.ptp([lengths[i] for i in part]) for part in parts])
    assert spread < 30 < np.ptp(lengths)


# ------------------------------------------------------------------------------------------------------ features


def test_features_come_back_from_disk() -> None:
    states = make(7, 0)
    states[2] = np.zeros((0, 8), np.float32)
    file = FeatureFile(iter(states))
    assert (len(file), file.width, file.lengths) == (7, 8, [len(of) for of in states])
    for number in (6, 0, 2, 3):
        np.testing.assert_array_equal(file[number], states[number])
    assert len(FeatureFile([])) == 0


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    with device.open("wb") as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(UserError, match=r"cannot write residue features .*TMPDIR"):
            FeatureFile(make(2000, 0))
        monkeypatch.undo()
        full.raw.close()  # its buffer can never be written
