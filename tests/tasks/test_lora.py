"""Low-rank tuning: the update by its formula, a copy that learns, a subject that stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from torch import nn
from torch.nn.utils import parametrize

from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom_tasks.heads import lora
from protloom_tasks.heads.lora import LowRank, Options

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


@pytest.fixture(scope="module", params=["esm2:tiny", "ankh:tiny"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Any:
    tokenizer = "ankh" if request.param.startswith("ankh") else "esm"
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder, registry, architecture=request.param, tokenizer=tokenizer)
    return open_subjects(str(folder), registry, twin=None, tokens_per_batch=200, max_length=40)[0]


def test_the_update_is_its_formula_on_queries_and_values_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 12).double()
    before = layer.weight.detach().clone()
    update = LowRank(layer.weight, 3, (0, 2), rank=2, alpha=8)
    parametrize.register_parametrization(layer, "weight", update)
    assert torch.equal(layer.weight, before)  # B begins at zero
    nn.init.normal_(update.b)
    expected = before.clone()
    expected[0:4] += 8 / 2 * update.b[0] @ update.a[0]
    expected[8:12] += 8 / 2 * update.b[1] @ update.a[1]
    torch.testing.assert_close(layer.weight, expected)
    assert torch.equal(layer.weight[4:8], before[4:8])
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ expected.T + layer.bias)
    whole = LowRank(before, 1, (0,), rank=2, alpha=8).double()
    nn.init.normal_(whole.b)
    torch.testing.assert_close(whole(before), before + 4 * whole.b[0] @ whole.a[0])


def proteins(n: int, seed: int) -> list[str]:
    """Sequences of 20 to 30 residues; every second is rich in tryptophan."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        letters = rng.choice(LETTERS, int(rng.integers(20, 30)))
        if number % 2:
            letters[::3] = "W"
        found.append("".join(letters))
    return found


def test_a_copy_learns_and_the_subject_stays_as_it_was(subject: Any) -> None:
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    modules = [type(module) for module in subject.model.modules()]
    gradients = [parameter.requires_grad for parameter in subject.model.parameters()]
    state = torch.get_rng_state()
    sequences, labels = proteins(120, 0), np.arange(120) % 2
    options = Options("binary", "mean", epochs=6, patience=6, learning_rate=1e-2)
    trained = lora.fit(subject, sequences, labels, options)
    losses = trained.details["held_out_loss"]
    assert min(losses) == losses[trained.details["epoch_kept"]] < 0.8 * losses[0]
    assert trained.details["held_out_rows"] == 12
    assert any(value.any() for name, value in trained.tuned.trained().items() if name.endswith(".b"))
    # bit by bit, and no parametrization is left on it
    after = subject.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(module) for module in subject.model.modules()] == modules
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == gradients
    assert torch.equal(torch.get_rng_state(), state)
    # nothing but updates and the linear layer has moved in the copy
    own = trained.tuned.network.state_dict()
    originals = {name.replace("parametrizations.weight.original", "weight"): value for name, value in own.items()}
    assert all(torch.equal(originals[name], value) for name, value in before.items())


def test_a_seed_decides_everything(subject: Any) -> None:
    sequences, labels = proteins(24, 0), np.arange(24) % 2
    runs = [
        np.stack(lora.fit(subject, sequences, labels, Options("binary", "max", epochs=1, seed=seed)).outputs(sequences))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
@pytest.mark.parametrize("specials", [True, False])
def test_before_training_the_states_are_those_of_the_subject(subject: Any, pool: str, specials: bool) -> None:
    if pool == "cls" and not subject.prefix:
        pytest.skip("this tokenizer puts no symbol in front")
    tuned = lora.Tuned(subject, 3, Options("multiclass", pool, specials=specials)).eval()
    sequences = [*proteins(3, 1), "MKT" * 20]  # the last is longer than max_length
    with torch.no_grad():
        found = tuned(sequences)
        expected = tuned.linear(torch.from_numpy(subject.pooled(sequences, pool, specials)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_residues_of_the_window_that_is_seen(subject: Any) -> None:
    sequences = [*proteins(11, 1), "MKT" * 20]
    labels = [np.arange(len(sequence)) % 3 for sequence in sequences]
    labels[0] = np.full(len(sequences[0]), -1)
    trained = lora.fit(subject, sequences, labels, Options("residue-classes", None, epochs=1))
    assert [of.shape for of in trained.outputs(sequences)] == [(min(len(s), 40), 3) for s in sequences]
    numbers = [of.astype(float) for of in labels]
    numbers[1][:] = np.nan
    trained = lora.fit(subject, sequences, numbers, Options("residue-numbers", None, epochs=1))
    assert np.isfinite(np.concatenate(trained.outputs(sequences))).all()


def test_parts_of_a_batch_change_nothing(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, labels = proteins(20, 0), np.arange(20.0)
    found = []
    for size in (200, 10_000):
        monkeypatch.setattr(subject, "tokens_per_batch", size)
        trained = lora.fit(subject, sequences, labels, Options("regression", "mean", epochs=2))
        found.append(np.concatenate(trained.outputs(sequences)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_what_cannot_be_tuned_is_one_line(subject: Any) -> None:
    with pytest.raises(UserError, match="1 training rows"):
        lora.fit(subject, ["MKT"], [0], Options("binary", "mean"))
    with pytest.raises(UserError, match="no query and value projections in Sequential"):
        lora.adapt(nn.Sequential(nn.Linear(2, 2)), rank=2, alpha=2)


def test_an_update_of_a_whole_matrix_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="the referee is not installed: pip install peft")
    torch.manual_seed(0)
    plain = nn.ModuleDict({"q": nn.Linear(6, 4)}).double()
    wrapped = nn.ModuleDict({"q": nn.Linear(6, 4)}).double()
    wrapped.load_state_dict(plain.state_dict())
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q"]), wrapped)
    (name,) = lora.adapt(plain, rank=2, alpha=8)
    assert name == "q"
    ours = dict(plain.named_parameters())
    theirs = dict(wrapped.named_parameters())
    pairs = {"a": "q.lora_A.default.weight", "b": "q.lora_B.default.weight"}
    for own, other in pairs.items():
        update = ours[f"q.parametrizations.weight.0.{own}"]
        nn.init.normal_(update)
        theirs[other].data = update.detach()[0].clone()
    assert {name for name, value in theirs.items() if value.requires_grad} == set(pairs.values())
    assert {name for name, value in ours.items() if value.requires_grad} == {
        f"q.parametrizations.weight.0.{own}" for own in pairs
    }
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(plain["q"](x), wrapped["q"](x))
