"""The bound, and what is written with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from protloom_masked_diffusion.masked_diffusion import MaskedDiffusion
from protloom_masked_diffusion.masked_diffusion_config import MaskedDiffusionConfig
from protloom_masked_diffusion.sampler import generate
from torch import nn

from protloom import assembly, config, kernels
from protloom.contracts import BuildContext, Encoded
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.testing.materials import batch_of, proteins

REGISTRY = Registry.discover()
TOKENIZER = assembly.make(config.choose("tokenizer", "esm", {}, REGISTRY))


class Composition(nn.Module):
    """A network that knows residue frequencies alone."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        logits = torch.full((len(TOKENIZER.vocab),), -1e9)
        logits[list(TOKENIZER.residue_ids)] = torch.tensor(probabilities).log()
        self.logits_ = nn.Parameter(logits)

    def encode(self, tokens, cu, **_):
        return Encoded(torch.zeros(len(tokens), 1), {})

    def logits(self, hidden):
        return self.logits_.expand(len(hidden), -1)


def objective() -> MaskedDiffusion:
    ops = kernels.choose("auto", REGISTRY, torch.device("cpu"), torch.float32)
    return MaskedDiffusion(MaskedDiffusionConfig(), BuildContext(TOKENIZER, ops))


def test_rates_are_uniform_and_weights_are_their_inverse() -> None:
    batch = batch_of(TOKENIZER, proteins([400] * 500))
    prepared = objective().prepare(batch, CounterRNG(0))
    shares = np.add.reduceat(prepared.inputs.tokens == TOKENIZER.mask_id, prepared.inputs.cu[:-1]) / 400
    # of U(0, 1], with the noise of 400 coins
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(shares, q) == pytest.approx(q, abs=0.07)
    owner = np.searchsorted(prepared.inputs.cu, prepared.arrays["index"], side="right") - 1
    assert np.allclose(1 / prepared.arrays["weights"], shares[owner], atol=0.12)
    assert prepared.counts == {"bound": 500 * 400}


def test_the_bound_of_a_composition_is_its_entropy() -> None:
    """For residues drawn independently nothing is gained from the others: the bound is exact, the entropy a residue."""
    probabilities = np.random.default_rng(1).dirichlet([2.0] * 20)
    network = Composition(probabilities.tolist())
    letters = np.array([TOKENIZER.vocab[i] for i in TOKENIZER.residue_ids])
    draw = np.random.default_rng(2)
    batch = batch_of(TOKENIZER, ["".join(draw.choice(letters, 200, p=probabilities)) for _ in range(800)])
    tested = objective()
    prepared = tested.prepare(batch, CounterRNG(3))
    arrays = {name: torch.from_numpy(values) for name, values in prepared.arrays.items()}

    class Passes:
        encoded = network.encode(torch.from_numpy(prepared.inputs.tokens), None)

    total = tested.loss(network, Passes(), arrays, None).totals["bound"]
    entropy = -math.fsum(p * math.log(p) for p in probabilities)
    assert float(total.detach()) / prepared.counts["bound"] == pytest.approx(entropy, rel=0.05)


def test_what_is_written_has_the_networks_composition() -> None:
    probabilities = np.random.default_rng(4).dirichlet([1.0] * 20)
    network = Composition(probabilities.tolist())
    written = generate(network, TOKENIZER, [300, 7, 150] * 5, steps=8, seed=1)
    assert [len(sequence) for sequence in written] == [300, 7, 150] * 5
    assert written == generate(network, TOKENIZER, [300, 7, 150] * 5, steps=8, seed=1)
    assert written != generate(network, TOKENIZER, [300, 7, 150] * 5, steps=8, seed=2)
    counts = np.array([sum(s.count(TOKENIZER.vocab[i]) for s in written) for i in TOKENIZER.residue_ids])
    assert counts.sum() == 5 * 457
    assert np.abs(counts / counts.sum() - probabilities).max() < 0.04
    # colder: the most frequent residue alone
    (cold,) = generate(network, TOKENIZER, [50], steps=4, temperature=1e-3)
    assert set(cold) == {TOKENIZER.vocab[TOKENIZER.residue_ids[int(probabilities.argmax())]]}


def test_bad_input() -> None:
    with pytest.raises(UserError, match="at least 1"):
        generate(Composition([0.05] * 20), TOKENIZER, [0])
