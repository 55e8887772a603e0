"""The bound, and what is written with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from protloom_masked_diffusion.masked_diffusion import MaskedDiffusion
from protloom_masked_diffusion.masked_diffusion_config import MaskedDiffusionConfig
from torch import nn

from protloom import config, generators, kernels
from protloom.contracts import BuildContext, Encoded
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.testing.materials import batch_of, proteins

REGISTRY = Registry.discover()
CHOSEN = config.choose("tokenizer", "esm", {}, REGISTRY)
TOKENIZER = CHOSEN.component.build(CHOSEN.config)


class Composition(nn.Module):
    """A network that knows residue frequencies alone."""

    capabilities = frozenset({"encode"})

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


def written(network: nn.Module, lengths: list[int], *, seed: int, **options: float) -> list[str]:
    chosen = config.choose("generator", "protloom-masked-diffusion/masked-diffusion", options, REGISTRY)
    return list(generators.generate(chosen, network, TOKENIZER, lengths, seed=seed))


def test_what_is_written_has_the_networks_composition() -> None:
    probabilities = np.random.default_rng(4).dirichlet([1.0] * 20)
    network = Composition(probabilities.tolist())
    lengths = [300, 7, 150] * 5
    found = written(network, lengths, steps=8, seed=1)
    assert [len(sequence) for sequence in found] == lengths
    assert found == written(network, lengths, steps=8, seed=1)
    assert found != written(network, lengths, steps=8, seed=2)
    counts = np.array([sum(s.count(TOKENIZER.vocab[i]) for s in found) for i in TOKENIZER.residue_ids])
    assert counts.sum() == 5 * 457
    assert np.abs(counts / counts.sum() - probabilities).max() < 0.04
    # colder: the most frequent residue alone
    (cold,) = written(network, [50], steps=4, temperature=1e-3, seed=0)
    assert set(cold) == {TOKENIZER.vocab[TOKENIZER.residue_ids[int(probabilities.argmax())]]}


class Alternating(nn.Module):
    """A network that has learnt ACACAC…: what stands at a place follows from any neighbour that is known."""

    capabilities = frozenset({"encode"})

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.a, self.c = (TOKENIZER.vocab.index(letter) for letter in "AC")

    def encode(self, tokens, cu, **_):
        place = torch.arange(len(tokens))
        states = torch.zeros(len(tokens), 1)
        for start, stop in zip(cu.bounds, cu.bounds[1:], strict=False):
            parity = (place[start:stop] % 2) * 2 - 1
            sign = (tokens[start:stop] == self.a).float() - (tokens[start:stop] == self.c).float()
            states[start:stop, 0] = (sign * parity).sum() * parity  # which of the two phases the known residues have
        return Encoded(states, {})

    def logits(self, hidden):
        logits = torch.full((len(hidden), len(TOKENIZER.vocab)), -1e4)
        logits[:, self.a], logits[:, self.c] = self.scale * hidden[:, 0], -self.scale * hidden[:, 0]
        return logits


def test_what_was_drawn_decides_what_is_drawn_later() -> None:
    """With as many steps as it takes to draw one residue at a time, the order of a whole sequence is kept."""
    found = written(Alternating(), [12] * 20, steps=4000, seed=5)
    assert set(found) == {"AC" * 6, "CA" * 6}  # both phases are as likely
    # all at once, nothing is known of the others
    assert not set(written(Alternating(), [12] * 5, steps=1, seed=5)) & {"AC" * 6, "CA" * 6}


def test_bad_input() -> None:
    with pytest.raises(UserError, match=r"steps: found 0"):
        written(Composition([0.05] * 20), [4], steps=0, seed=0)
