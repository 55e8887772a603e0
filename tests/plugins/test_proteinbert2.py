"""The ProteinBERT2-like encoder against its formulas in float64, and what its stem and windows let through."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from encoder_contract import EXACT, KERNELS, EncoderContract, agrees, packed, randomise, skewed_fasta, train
from numpy.typing import NDArray
from torch import nn

from protloom.contracts import BuildContext, Offsets
from protloom.flops import FlopCounter
from protloom_plugins.architectures import protloom_architectures
from protloom_plugins.architectures.proteinbert2 import Convolution, ProteinBert2
from protloom_plugins.architectures.proteinbert2_config import ProteinBert2Config
from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

F64 = NDArray[np.float64]
TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
SMALL = ProteinBert2Config(layers=3, width=24, heads=3, inner=40, kernel=5, window=16)
(SPEC,) = [s for s in protloom_architectures() if s.name == "proteinbert2"]


def build(kernels: str = "torch", **options: Any) -> ProteinBert2:
    model = ProteinBert2(SMALL.model_copy(update=options), BuildContext(TOKENIZER, KERNELS[kernels])).eval()
    randomise(model)
    return model


class Reference:
    """The network by its formulas, one sequence at a time, in float64 and without PyTorch."""

    def __init__(self, model: ProteinBert2) -> None:
        self.config: ProteinBert2Config = model.config
        self.w = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def norm(self, name: str, x: F64) -> F64:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.norm_eps) * self.w[f"{name}.weight"]

    def stem_layer(self, name: str, x: F64) -> F64:
        normed, weight = self.norm(f"{name}.norm", x), self.w[f"{name}.depthwise.weight"]
        kernel = weight.shape[1]
        mixed = np.zeros_like(x)
        for to in range(len(x)):
            for tap in range(kernel):
                source = to + tap - kernel // 2
                if 0 <= source < len(x):
                    mixed[to] += normed[source] * weight[:, tap]
        gelu = np.array([[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in mixed])
        return x + gelu @ self.w[f"{name}.pointwise.weight"].T

    def attention(self, name: str, x: F64, local: bool) -> tuple[F64, list[F64]]:
        length, width = x.shape
        size = width // self.config.heads
        half = size // 2
        q, k, v = np.split(self.norm(f"{name}.attention_norm", x) @ self.w[f"{name}.qkv.weight"].T, 3, axis=1)
        frequency = self.config.rope_base ** (-np.arange(half) / half)
        turn = np.exp(1j * np.arange(length)[:, None] * frequency)
        mixed, maps = [], []
        for head in range(self.config.heads):
            columns = slice(head * size, (head + 1) * size)
            # a pair of features is a complex number: the real part of a · conj(b) is their inner product
            a = (q[:, columns][:, :half] + 1j * q[:, columns][:, half:]) * turn
            b = (k[:, columns][:, :half] + 1j * k[:, columns][:, half:]) * turn
            scores = (a @ b.conj().T).real / math.sqrt(size)
            for i in range(length):
                for j in range(length):
                    if local and abs(i - j) > self.config.window:
                        scores[i, j] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            maps.append(weights / weights.sum(1, keepdims=True))
            mixed.append(maps[-1] @ v[:, columns])
        return np.concatenate(mixed, axis=1) @ self.w[f"{name}.attention_out.weight"].T, maps

    def mlp(self, name: str, x: F64) -> F64:
        normed = self.norm(f"{name}.mlp_norm", x)
        gate = normed @ self.w[f"{name}.mlp.gate.weight"].T
        up = normed @ self.w[f"{name}.mlp.up.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{name}.mlp.down.weight"].T

    def run(self, ids: list[int]) -> tuple[list[F64], F64, F64]:
        """Returns states 0 to depth, logits, and maps ``[blocks, heads, L, L]``."""
        x = self.w["embedding.weight"][ids]
        for i in range(self.config.stem_layers):
            x = self.stem_layer(f"stem.{i}", x)
        states, maps = [x], []
        for i in range(self.config.layers):
            mixed, found = self.attention(
                f"encoder_blocks.{i}", x, local=(i % 2 == 0) == (self.config.first == "local")
            )
            x = x + mixed
            x = x + self.mlp(f"encoder_blocks.{i}", x)
            states.append(x)
            maps.append(found)
        states[-1] = self.norm("final_norm", x)
        return states, states[-1] @ self.w["embedding.weight"].T, np.array(maps)


class TestAgainstFormulas:
    @pytest.mark.parametrize("kernels", KERNELS)
    @pytest.mark.parametrize(
        "options", [{}, {"first": "global"}, {"kernel": 1}, {"stem_layers": 0, "heads": 2}, {"kernel": 9, "window": 1}]
    )
    def test_states_logits_and_maps(self, kernels: str, options: dict[str, Any]) -> None:
        model = build(kernels, **options)
        agrees(model, Reference(model).run, [1, 2, 7, 31, 48], TOKENIZER, **EXACT)

    def test_in_float64_the_formulas_agree_to_the_last_digits(self) -> None:
        model = build("reference").double()
        agrees(model, Reference(model).run, [60, 4], TOKENIZER, rtol=1e-11, atol=1e-11)


class TestContract(EncoderContract):
    name: ClassVar[str] = "proteinbert2"
    factory: ClassVar[Any] = ProteinBert2
    config: ClassVar[Any] = SMALL
    tokenizer: ClassVar[Any] = TOKENIZER


class TestStem:
    def test_nothing_passes_between_neighbours(self) -> None:
        """Exactly nothing, forward and backward, even where sequences are shorter than half the filter."""
        lengths = [6, 1, 2, 1, 9]
        cu = Offsets.of(lengths)
        sequence = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
        filters = Convolution(4, 9)
        nn.init.normal_(filters.weight)
        x = torch.randn(cu.total, 4, requires_grad=True)
        out = filters(x, cu, sequence)
        for number in range(5):
            (grad,) = torch.autograd.grad(out[sequence == number].square().sum(), x, retain_graph=True)
            assert float(grad[sequence != number].abs().max()) == 0
            assert float(grad[sequence == number].abs().max()) > 0

    def test_states_do_not_see_what_the_neighbours_are(self) -> None:
        model = build()
        tokens, cu = packed([20, 30, 20], TOKENIZER)
        changed = tokens.clone()
        middle = slice(cu.bounds[1], cu.bounds[2])
        changed[middle] = changed[middle].flip(0)
        one, two = (model.encode(t, cu, layers=(0,)).layers[0] for t in (tokens, changed))
        outer = torch.ones(cu.total, dtype=torch.bool)
        outer[middle] = False
        assert torch.equal(one[outer], two[outer])
        assert not torch.equal(one[middle], two[middle])

    def test_reach(self) -> None:
        """Three layers of kernel 5 reach 6 residues to each side."""
        model = build()
        tokens, cu = packed([40], TOKENIZER)
        changed = tokens.clone()
        changed[20] = 5 if int(tokens[20]) != 5 else 6
        one, two = (model.encode(t, cu, layers=(0,)).layers[0] for t in (tokens, changed))
        moved = (one != two).any(1).nonzero().flatten().tolist()
        assert moved == list(range(14, 27))


class TestWindow:
    @pytest.mark.parametrize(("first", "reach"), [("local", 16), ("global", 61)])
    def test_reach_of_the_first_block(self, first: str, reach: int) -> None:
        model = build(first=first, stem_layers=0)
        tokens, cu = packed([60], TOKENIZER)
        changed = tokens.clone()
        changed[-1] = 5
        one, two = (model.encode(t, cu, stop_at=1).last for t in (tokens, changed))
        moved = (one != two).any(1).nonzero().flatten().tolist()
        assert moved == list(range(61 - reach, 62))

    @pytest.mark.parametrize("first", ["local", "global"])
    def test_kinds_alternate(self, first: str) -> None:
        model = build(first=first, layers=4, stem_layers=0)
        tokens, cu = packed([60], TOKENIZER)
        with torch.inference_mode():
            (maps,) = model.encode(tokens, cu, attentions=True).attentions or ()
        index = torch.arange(62)
        far = (index - index[:, None]).abs() > 16
        hidden = [float(block[:, far].max()) == 0 for block in maps]
        assert hidden == ([True, False] * 2 if first == "local" else [False, True] * 2)
        torch.testing.assert_close(maps.sum(-1), torch.ones(4, 3, 62))


class TestSize:
    @pytest.mark.parametrize(("inner", "millions"), [(1024, "32.3"), (1152, "34.6"), (1280, "37.0"), (1368, "38.6")])
    def test_parameters_of_35m_by_the_width_of_its_feed_forward_layer(self, inner: int, millions: str) -> None:
        with torch.device("meta"):
            config = ProteinBert2Config(**{**SPEC.sizes["35M"], "inner": inner})
            model = ProteinBert2(config, BuildContext(TOKENIZER, KERNELS["torch"]))
        assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == millions

    def test_35m_is_the_default(self) -> None:
        assert ProteinBert2Config() == ProteinBert2Config(**SPEC.sizes["35M"])

    def test_parameters_of_mini(self) -> None:
        with torch.device("meta"):
            model = ProteinBert2(ProteinBert2Config(**SPEC.sizes["mini"]), BuildContext(TOKENIZER, KERNELS["torch"]))
        assert sum(p.numel() for p in model.parameters()) == 1_041_920

    def test_flops_count_the_stem(self) -> None:
        """Every token passes every matrix but the embedding, which is the head of the scored ones."""
        model = build()
        every = sum(p.numel() for p in model.parameters() if p.ndim == 2) - model.embedding.weight.numel()
        assert FlopCounter(model).step([1], []) == 3 * (2 * every + 4 * 3 * 24)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"width": 24, "heads": 5}, "multiple of 2 × heads"),
            ({"kernel": 4}, "must be odd"),
            ({"kernel": 0}, "greater than or equal"),
            ({"window": 0}, "greater than or equal"),
            ({"first": "middle"}, "'local' or 'global'"),
            ({"ffn": 3}, "Extra inputs"),
        ],
    )
    def test_impossible_options_are_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            ProteinBert2Config(**options)


def test_initial_parameters() -> None:
    torch.manual_seed(0)
    model = ProteinBert2(
        ProteinBert2Config(layers=1, width=256, heads=8, inner=512), BuildContext(TOKENIZER, KERNELS["torch"])
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert bool((parameter == 1).all()), name
        else:
            wanted = 1 / 3 if "depthwise" in name else 0.02
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.05), name


def test_a_first_guess_is_nearly_even() -> None:
    torch.manual_seed(0)
    model = ProteinBert2(ProteinBert2Config(**SPEC.sizes["mini"]), BuildContext(TOKENIZER, KERNELS["torch"]))
    tokens, cu = packed([100, 200], TOKENIZER)
    logits = model.logits(model.encode(tokens, cu).last)
    loss = nn.functional.cross_entropy(logits, torch.randint(4, 24, tokens.shape))
    assert float(loss.detach()) == pytest.approx(math.log(33), abs=0.1)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    _, losses = train("proteinbert2:tiny", skewed_fasta(tmp_path), tmp_path)
    assert losses[-1] < losses[0] - 0.5
