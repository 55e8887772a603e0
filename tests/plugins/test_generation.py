"""Writing sequences: transformers' ``generate`` is the referee, and brute force where it has no counterpart."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from ankh_referee import END, PAD, Pair, build, make_pair, packed
from torch import Tensor

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.generation import Decoding, Written, draw, write
from protloom_plugins.architectures.ankh_config import AnkhConfig

SOURCE = [4, 1, 40, 17, 90]


@pytest.fixture(scope="module", params=[3, 4])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = make_pair(tmp_path_factory.mktemp("t5"), seed=request.param, vocab_size=144)
    with torch.no_grad():
        for model in (pair.ours.head, pair.theirs.lm_head):
            model.weight[END] *= 2.5  # so that sequences end now and then, at different lengths
    return pair


def run(pair: Pair, tokens: Tensor, cu: Offsets, decoding: Decoding, **options: Any) -> list[Written]:
    return write(pair.ours, tokens, cu, decoding, start=PAD, end=END, **options)


def generated(pair: Pair, tokens: Tensor, cu: Offsets, **options: Any) -> list[tuple[int, ...]]:
    """What transformers writes for each sequence alone, without the start symbol."""
    found = []
    for part in tokens.split(cu.lengths):
        out = pair.theirs.generate(part[None], do_sample=False, **options)[0].tolist()
        found.append(tuple(out[1:]))
    return found


def whole(written: Written) -> tuple[int, ...]:
    return (*written.tokens, END) if written.ended else written.tokens


def log_probability(pair: Pair, source: Tensor, target: tuple[int, ...]) -> float:
    labels = torch.tensor([target])
    with torch.no_grad():
        logits = pair.theirs(input_ids=source[None], labels=labels).logits[0]
    return float(logits.log_softmax(-1)[torch.arange(len(target)), labels[0]].sum())


@pytest.mark.parametrize("beams", [1, 2])
def test_probabilities_that_are_no_numbers_end_it(pair: Pair, beams: int) -> None:
    tokens, cu = packed(SOURCE, 144)
    sick = copy.deepcopy(pair.ours)
    with torch.no_grad():
        sick.head.weight[5] = float("nan")
    with pytest.raises(UserError, match="not numbers"):
        write(sick, tokens, cu, Decoding(max_length=4, beams=beams), start=PAD, end=END)


class TestGreedy:
    @pytest.mark.parametrize(("most", "least"), [(1, 0), (60, 0), (60, 12)])
    def test_the_tokens_of_generate(self, pair: Pair, most: int, least: int) -> None:
        tokens, cu = packed(SOURCE, 144)
        found = run(pair, tokens, cu, Decoding(max_length=most, min_length=least))
        expected = generated(pair, tokens, cu, max_new_tokens=most, min_new_tokens=least)
        assert [whole(w) for w in found] == expected
        if most == 60:
            assert len({len(w.tokens) for w in found}) > 1  # some end early: the cache is cut down on the way
        for part, one in zip(tokens.split(cu.lengths), found, strict=True):
            assert one.log_probability == pytest.approx(log_probability(pair, part, whole(one)), abs=1e-3)

    def test_lengths_of_each_sequence(self, pair: Pair) -> None:
        tokens, cu = packed(SOURCE, 144)
        most, least = [3, 9, 20, 1, 7], [3, 2, 20, 0, 7]
        found = run(pair, tokens, cu, Decoding(max_length=most, min_length=least))
        for one, m, n in zip(found, most, least, strict=True):
            assert n <= len(one.tokens) <= m
        for i, part in enumerate(tokens.split(cu.lengths)):
            alone = run(pair, part, Offsets.of([len(part)]), Decoding(max_length=most[i], min_length=least[i]))
            assert alone[0].tokens == found[i].tokens

    def test_only_allowed_tokens(self, pair: Pair) -> None:
        tokens, cu = packed(SOURCE, 144)
        allowed = list(range(30, 60))
        suppressed = [i for i in range(144) if i not in allowed and i != END]
        found = run(pair, tokens, cu, Decoding(max_length=30, allowed=allowed))
        assert [whole(w) for w in found] == generated(pair, tokens, cu, max_new_tokens=30, suppress_tokens=suppressed)

    def test_nothing_to_write(self, pair: Pair) -> None:
        assert run(pair, torch.zeros(0, dtype=torch.int64), Offsets.of([]), Decoding()) == []


class TestBeams:
    @pytest.mark.parametrize("beams", [2, 5])
    @pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("least", [0, 8])
    def test_the_tokens_of_generate(self, pair: Pair, beams: int, penalty: float, least: int) -> None:
        tokens, cu = packed(SOURCE, 144)
        found = run(pair, tokens, cu, Decoding(max_length=24, min_length=least, beams=beams, length_penalty=penalty))
        expected = generated(
            pair, tokens, cu, max_new_tokens=24, min_new_tokens=least, num_beams=beams, length_penalty=penalty
        )
        assert [whole(w) for w in found] == expected
        for part, one in zip(tokens.split(cu.lengths), found, strict=True):
            assert one.log_probability == pytest.approx(log_probability(pair, part, whole(one)), abs=1e-3)

    def test_enough_beams_find_the_likeliest_sequence(self, pair: Pair) -> None:
        """With as many beams as there are sequences the search is exhaustive, so brute force decides."""
        tokens, cu = packed([6], 144)
        allowed = [5, 9]
        found = run(pair, tokens, cu, Decoding(max_length=3, beams=30, length_penalty=0.0, allowed=allowed))[0]
        candidates = [(*head, END) for n in range(3) for head in product(allowed, repeat=n)]
        candidates += list(product(allowed, repeat=3))
        best = max(candidates, key=lambda target: log_probability(pair, tokens, target))
        assert whole(found) == best


WARM: dict[str, Any] = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "seed": 5}


class TestSampling:
    def test_batching_changes_nothing(self, pair: Pair) -> None:
        tokens, cu = packed(SOURCE, 144)
        decoding = Decoding(max_length=25, **WARM)
        together = run(pair, tokens, cu, decoding)
        for i, part in enumerate(tokens.split(cu.lengths)):
            alone = run(pair, part, Offsets.of([len(part)]), decoding, keys=[i])
            assert alone[0].tokens == together[i].tokens

    def test_seed_and_key_decide(self, pair: Pair) -> None:
        tokens, cu = packed([9], 144)
        draws = {
            (seed, key): run(pair, tokens, cu, Decoding(max_length=12, temperature=1.0, seed=seed), keys=[key])[
                0
            ].tokens
            for seed in (0, 1)
            for key in (0, 1)
        }
        assert len(set(draws.values())) == 4
        again = run(pair, tokens, cu, Decoding(max_length=12, temperature=1.0, seed=1), keys=[0])[0]
        assert again.tokens == draws[1, 0]

    def test_first_tokens_have_the_distribution_of_the_network(self, pair: Pair) -> None:
        part, _ = packed([7], 144)
        n = 4000
        cu = Offsets.of([7] * n)
        found = run(pair, part.repeat(n), cu, Decoding(max_length=1, temperature=1.5))
        with torch.no_grad():
            start = torch.tensor([[PAD]])
            logits = pair.theirs(input_ids=part[None], decoder_input_ids=start).logits[0, 0]
        expected = torch.softmax(logits / 1.5, -1).numpy()
        counts = Counter(whole(w)[0] for w in found)
        share = np.array([counts[i] / n for i in range(144)])
        error = np.sqrt(expected * (1 - expected) / n)
        assert (np.abs(share - expected) < 5 * error + 1e-3).all()

    def test_top_k_and_top_p_by_brute_force(self) -> None:
        rng = np.random.default_rng(0)
        scores = np.log(rng.dirichlet(np.full(30, 0.3), size=40))
        numbers = rng.random(40)
        for k, p, temperature in [(1, None, 1.0), (5, None, 0.7), (None, 0.6, 1.0), (4, 0.8, 2.0), (None, 1e-9, 1.0)]:
            decoding = Decoding(temperature=temperature, top_k=k, top_p=p)
            for row, number, token in zip(scores, numbers, draw(scores, decoding, numbers), strict=True):
                weights = np.exp(row / temperature)
                order = sorted(range(30), key=lambda i: -weights[i])[:k]
                total, kept = weights[order].sum(), []
                for i in order:
                    kept.append(i)
                    if p is not None and weights[kept].sum() >= p * total:
                        break
                edges = np.cumsum(weights[kept]) / weights[kept].sum()
                assert token == kept[int(np.searchsorted(edges, number, side="right"))]

    def test_top_1_is_greedy(self, pair: Pair) -> None:
        tokens, cu = packed(SOURCE, 144)
        drawn = run(pair, tokens, cu, Decoding(max_length=20, temperature=3.0, top_k=1))
        assert [w.tokens for w in drawn] == [w.tokens for w in run(pair, tokens, cu, Decoding(max_length=20))]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": -1.0}, "temperature is -1.0"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
            ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
            ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
            ({"beams": 0}, "beams is 0"),
            ({"beams": 2, "temperature": 1.0}, "set temperature to 0, or beams to 1"),
            ({"top_k": 5}, "give a temperature above 0"),
            ({"allowed": []}, "allowed is empty"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            Decoding(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_length": 0}, r"sequence 0: .*max_length \(0\)"),
            ({"max_length": [5, 2], "min_length": 3}, r"sequence 1: 0 ≤ min_length \(3\) ≤ max_length \(2\)"),
            ({"max_length": [5]}, "max_length has 1 numbers for 2 sequences"),
            ({"allowed": [END], "min_length": 1}, "only the end symbol"),
        ],
    )
    def test_lengths(self, options: dict[str, Any], message: str) -> None:
        model = build(AnkhConfig(layers=1, decoder_layers=1, width=8, heads=1, head_size=8, inner=8)).eval()
        tokens, cu = packed([2, 3])
        with pytest.raises(UserError, match=message):
            write(model, tokens, cu, Decoding(**options), start=PAD, end=END)

    def test_keys(self) -> None:
        model = build(AnkhConfig(layers=1, decoder_layers=1, width=8, heads=1, head_size=8, inner=8)).eval()
        tokens, cu = packed([2, 3])
        with pytest.raises(UserError, match="3 keys for 2 sequences"):
            write(model, tokens, cu, Decoding(), start=PAD, end=END, keys=[1, 2, 3])
