"""Contact heads: pair features, Ankh's layer, the categorical Jacobian; bands and shares on a map made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from sklearn.decomposition import PCA

from protloom.contracts import NetworkSubject, Subject
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom_tasks import contact_heads, contact_jacobian, contact_protocol, floors, metrics
from protloom_tasks.contact_heads import HeadOptions, PairHead
from protloom_tasks.contact_protocol import ContactSplits, Mapped
from protloom_tasks.heads.pair_products import AnkhHead, PairProducts

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


# ---------------------------------------------------------------------------------------------- bands, by hand


def test_bands_and_shares_on_a_map_made_by_hand() -> None:
    # 30 residues; the best of each band by score, best first
    scores = np.zeros((30, 30))
    contacts = np.zeros((30, 30), dtype=bool)
    ranked = {
        "short": [(0, 6), (1, 12), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12)],
        "medium": [(0, 12), (0, 23), (1, 13), (2, 14), (3, 15), (4, 16), (5, 17)],
        "long": [(0, 24), (0, 29), (1, 25), (2, 26), (3, 27), (4, 28), (5, 29)],
    }
    true = {"short": [0, 1, 2, 4], "medium": [1, 5], "long": [0, 1, 2, 3, 4, 5]}
    for band, pairs in ranked.items():
        for rank, (i, j) in enumerate(pairs):
            scores[i, j] = 100 - rank
            contacts[i, j] = contacts[j, i] = rank in true[band]
    scores[0, 5] = 1000  # too close to be in any band
    contacts[0, 5] = True
    found = metrics.precision_at(scores, contacts, np.ones(30, dtype=bool))
    # L / 5 = 6 pairs, L / 2 = 15, L = 30; long has 1 + 2 + ... + 6 = 21 candidates in all
    expected = {
        "P@L/5:short": 4 / 6,
        "P@L/2:short": 4 / 15,
        "P@L:short": 4 / 30,
        "P@L/5:medium": 2 / 6,
        "P@L/2:medium": 2 / 15,
        "P@L:medium": 2 / 30,
        "P@L/5:long": 1.0,
        "P@L/2:long": 6 / 15,
        "P@L:long": 6 / 21,
        "chance:short": 4 / sum(30 - d for d in range(6, 12)),
        "chance:medium": 2 / sum(30 - d for d in range(12, 24)),
        "chance:long": 6 / 21,
    }
    assert found == pytest.approx(expected)
    # numbers move pairs between bands: with 20 left out after residue 0, all of its pairs are long
    moved = metrics.precision_at(scores, contacts, np.ones(30, dtype=bool), np.r_[0, 21:50])
    # of (0, 4) to (0, 29) five touch, of the 15 other pairs 24 or more apart four
    assert moved["chance:long"] == pytest.approx((5 + 4) / (26 + 15))


# ------------------------------------------------------------------------------------------------ planted contacts


class Planted(floors.Floor):
    """Residue states of 24 features: noise, and a strong code that both residues of each contact share."""

    name = "planted"

    def __init__(self, proteins: Sequence[Mapped], strength: float) -> None:
        super().__init__()
        self.states = {}
        for number, protein in enumerate(proteins):
            rng = np.random.default_rng([number, 7])
            states = 0.3 * rng.normal(size=(len(protein.sequence), 24))
            for i, j in np.argwhere(np.triu(protein.contacts)):
                code = strength * rng.choice([-1.0, 1.0], 24)
                states[i] += code
                states[j] += code
            self.states[protein.sequence] = states.astype(np.float32)

    def residues(self, sequences: Sequence[str]) -> Iterator[Any]:
        for sequence in sequences:
            yield self.states[sequence]


def proteins(n: int, seed: int) -> list[Mapped]:
    """Proteins of 40 to 60 residues; each residue is in one contact at most, some are unknown."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        size = int(rng.integers(40, 60))
        contacts = np.zeros((size, size), dtype=bool)
        order = rng.permutation(size)
        for i, j in order[: size // 4 * 2].reshape(-1, 2):
            contacts[i, j] = contacts[j, i] = abs(i - j) >= 6
        sequence = "".join(rng.choice(LETTERS, size))
        found.append(Mapped(f"p{seed}-{number}", sequence, contacts, rng.random(size) < 0.95, f"{seed}-{number}"))
    return found


@pytest.fixture
def splits() -> ContactSplits:
    return ContactSplits(proteins(12, 0), proteins(8, 1))


def run(subject: Subject, splits: ContactSplits, **options: Any) -> Any:
    chosen = HeadOptions(**options)
    return contact_protocol.evaluate(
        lambda train: contact_heads.fit(subject, train, chosen, seed=0), splits, task="t", unit="proteins", seed=0
    )


@pytest.mark.parametrize("options", [{"head": "pairs", "components": 24}, {"head": "ankh", "epochs": 200}])
def test_planted_contacts_are_found_and_noise_is_at_chance(splits: ContactSplits, options: dict[str, Any]) -> None:
    everything = [*splits.train, *splits.test]
    found = run(Planted(everything, 1.0), splits, **options)
    noise = run(Planted(everything, 0.0), splits, **options)
    best = [
        min(1.0, np.triu(p.contacts & p.resolved & p.resolved[:, None], 24).sum() / max(1, len(p.sequence) // 5))
        for p in splits.test
    ]
    assert found.metrics["P@L/5:long"] > 0.9 * np.mean(best)
    low, high = noise.intervals["P@L:long"]
    assert low - 0.02 < noise.metrics["chance:long"] < high + 0.02
    assert found.details["head"] == options["head"]
    again = run(Planted(everything, 1.0), splits, **options)
    assert again.metrics == found.metrics


def test_pair_features_by_hand() -> None:
    states = np.array([[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]], dtype=np.float32)
    found = contact_heads.pair_features(states, np.array([0, 1]), np.array([2, 2]))
    np.testing.assert_allclose(found, [[0.5, 0, 0.5, 2, math.log(3)], [1.5, 0, 2.5, 4, math.log(2)]], rtol=1e-6)


def test_principal_axes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, 10)
    states = [(rng.normal(size=(n, 9)) * scale + 5).astype(np.float32) for n in (30, 1, 50)]
    mean, axes, kept = contact_heads.principal_axes(states, 4)
    referee = PCA(n_components=4).fit(np.concatenate(states).astype(np.float64))
    np.testing.assert_allclose(mean, referee.mean_, rtol=1e-6)
    signs = np.sign((axes * referee.components_.T).sum(axis=0))
    np.testing.assert_allclose(axes * signs, referee.components_.T, atol=1e-5)
    assert kept == pytest.approx(referee.explained_variance_ratio_.sum())
    assert contact_heads.principal_axes(states, 99)[1].shape == (9, 9)
    with pytest.raises(UserError, match="no residue"):
        contact_heads.principal_axes([np.zeros((0, 9), np.float32)], 4)


def test_training_pairs_are_balanced_and_capped(splits: ContactSplits) -> None:
    truth = np.arange(100) % 10 == 0
    for most, size in ((2000, 20), (8, 8), (9, 8)):
        chosen = contact_heads.balanced(truth, most, np.random.default_rng(0))
        assert len(set(chosen.tolist())) == size == 2 * truth[chosen].sum()
    subject = Planted(splits.train, 1.0)
    assert PairHead(subject, splits.train, HeadOptions(protein_pairs=4), seed=0).details["rows"] == 4 * 12


def test_ankhs_layer_is_its_formula_and_reads_no_differences() -> None:
    layer = PairProducts(5, torch.Generator().manual_seed(0)).double()
    states = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = layer(states)
    for i, j in itertools.product(range(7), repeat=2):
        both = [layer.linear(torch.cat([states[a] * states[b], states[a] - states[b]])) for a, b in ((i, j), (j, i))]
        torch.testing.assert_close(found[i, j], sum(both) / 2)
    found.square().sum().backward()
    assert layer.linear.weight.grad is not None
    assert not layer.linear.weight.grad[:, 5:].any()
    assert layer.linear.weight.grad[:, :5].all()


def test_ankhs_head_needs_a_candidate_pair() -> None:
    short = Mapped("s", "MKTAY", np.zeros((5, 5), bool), np.ones(5, bool), "s")
    with pytest.raises(UserError, match="far enough apart"):
        AnkhHead(Planted([short], 1.0), [short], epochs=1, seed=0)


# ---------------------------------------------------------------------------------------------------------- Jacobian


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Any:
    folder = tiny_model.save(tmp_path_factory.mktemp("model"), registry)
    subject, _, _ = open_subjects(str(folder), registry, twin=None, tokens_per_batch=64)
    return subject


def test_the_jacobian_is_that_of_a_naive_loop(network: Any) -> None:
    assert isinstance(network, NetworkSubject)
    sequence = "MKXAYWGL"
    table = network.tokenizer.table
    ids = [int(table[ord(letter)]) for letter in floors.AMINO_ACIDS]

    @torch.no_grad()
    def logits(letters: str) -> Any:
        tokens, cu = network.pack([letters])
        states = network.model.encode(tokens, cu).last[1:-1]  # <cls> and <eos>
        return network.model.logits(states)[:, ids].numpy()

    size = len(sequence)
    expected = np.zeros((size, 20, size, 20))
    for i, (a, letter) in itertools.product(range(size), enumerate(floors.AMINO_ACIDS)):
        expected[i, a] = logits(sequence[:i] + letter + sequence[i + 1 :]) - logits(sequence)
    found = contact_jacobian.categorical_jacobian(network, sequence)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)
    scores = next(contact_jacobian.JacobianHead(network).scores([sequence]))
    np.testing.assert_allclose(scores, contact_jacobian.pair_scores(expected), atol=1e-5)
    np.testing.assert_allclose(scores, scores.T)


def test_pair_scores_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    size, letters = 5, 3
    jacobian = rng.normal(size=(size, letters, size, letters)) + rng.normal(size=(size, 1, 1, letters))
    centred = jacobian.copy()
    for axis in range(4):
        for rest in itertools.product(*(range(n) for at, n in enumerate(centred.shape) if at != axis)):
            where = (*rest[:axis], slice(None), *rest[axis:])
            centred[where] = centred[where] - sum(centred[where]) / centred.shape[axis]
    norms = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        if i != j:
            block = [(centred[i, a, j, b] + centred[j, b, i, a]) / 2 for a in range(letters) for b in range(letters)]
            norms[i, j] = math.sqrt(sum(x * x for x in block))
    expected = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        expected[i, j] = norms[i, j] - sum(norms[i]) * sum(norms[:, j]) / norms.sum()
    np.testing.assert_allclose(contact_jacobian.pair_scores(jacobian), expected)
    assert not contact_jacobian.pair_scores(np.zeros((4, 2, 4, 2))).any()


def test_who_can_have_which_head(network: Any, monkeypatch: pytest.MonkeyPatch, splits: ContactSplits) -> None:
    separation, letters = floors.Separation(), floors.OneHot()
    assert contact_heads.choose("auto", network) == "attention"
    assert [contact_heads.choose(head, separation) for head in ("auto", "pairs", "jacobian")] == ["attention"] * 3
    assert [contact_heads.choose(head, letters) for head in ("auto", "attention", "ankh")] == ["pairs", "pairs", "ankh"]
    with monkeypatch.context() as patched:
        patched.setattr(type(network.model), "capabilities", frozenset({"encode"}))
        assert contact_heads.choose("auto", network) == "pairs"
    with monkeypatch.context() as patched:
        patched.setattr(type(network.model), "capabilities", frozenset({"encode", "decode"}))
        with pytest.raises(UserError, match="head: pairs"):
            contact_heads.fit(network, splits.train, HeadOptions(head="jacobian"), seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(network, "layer", 1)
        with pytest.raises(UserError, match="not layer 1: leave the layer out"):
            contact_heads.fit(network, splits.train, HeadOptions(head="jacobian"), seed=0)


@pytest.mark.parametrize("head", ["attention", "pairs", "ankh", "jacobian"])
def test_a_network_goes_through_every_head(head: str, network: Any, splits: ContactSplits) -> None:
    few = ContactSplits(splits.train[:3], splits.test[:1])
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    result = run(network, few, head=head, components=8, epochs=1)
    assert result.details["head"] == head
    assert 0 <= result.value <= 1
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, before[name])
