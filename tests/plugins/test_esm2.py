"""ESM-2 against its two referees, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import encoder_contract
import esm
import pytest
import torch
import transformers
from encoder_contract import EXACT, KERNELS, EncoderContract, randomise, sequences
from torch import Tensor, nn

from protloom.contracts import BuildContext, Offsets
from protloom_plugins.architectures import protloom_architectures
from protloom_plugins.architectures.esm2 import Esm2
from protloom_plugins.architectures.esm2_config import Esm2Config
from protloom_plugins.architectures.esm2_weights import Esm2Weights
from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
SIZES = {"3 layers, width 24, 3 heads": (3, 24, 3), "8M": (6, 320, 20), "2 layers, width 30, 5 heads": (2, 30, 5)}
LENGTHS = [1, 2, 7, 31, 70, 48, 230]
packed = partial(encoder_contract.packed, tokenizer=TOKENIZER)


def build(config: Esm2Config) -> Esm2:
    return Esm2(config, BuildContext(TOKENIZER, KERNELS["torch"]))


@dataclass(frozen=True)
class Trio:
    """One set of weights in three programs."""

    ours: Esm2
    fair: Any
    hugging: Any


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES.keys())
def trio(request: pytest.FixtureRequest) -> Trio:
    layers, width, heads = request.param
    ours = build(Esm2Config(layers=layers, width=width, heads=heads)).eval()
    randomise(ours)
    config, tensors, _ = Esm2Weights().export(ours.config, ours.state_dict(), TOKENIZER)
    hugging = transformers.EsmForMaskedLM(transformers.EsmConfig(**config, attn_implementation="eager")).eval()
    tensors["lm_head.decoder.weight"] = tensors["esm.embeddings.word_embeddings.weight"]
    frequencies = [key for key in tensors if key.endswith("inv_freq")]
    tensors["esm.rotary_embeddings.inv_freq"] = [tensors.pop(key) for key in frequencies].pop()
    hugging.load_state_dict(tensors, strict=True)
    fair = esm.model.esm2.ESM2(layers, width, heads).eval()
    fair.load_state_dict(fair_names(ours.state_dict(), layers))
    return Trio(ours, fair, hugging)


def fair_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Fair-esm's names, written here once more by hand: the adapter must not be its own judge."""
    pairs = {
        "embedding.weight": "embed_tokens.weight",
        "head.bias": "lm_head.bias",
        **{f"final_norm.{s}": f"emb_layer_norm_after.{s}" for s in ("weight", "bias")},
        **{f"head.dense.{s}": f"lm_head.dense.{s}" for s in ("weight", "bias")},
        **{f"head.norm.{s}": f"lm_head.layer_norm.{s}" for s in ("weight", "bias")},
        **{f"contact_head.{s}": f"contact_head.regression.{s}" for s in ("weight", "bias")},
    }
    names = {
        "attention_norm": "self_attn_layer_norm",
        "attention_out": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "mlp_in": "fc1",
        "mlp_out": "fc2",
    }
    out = {}
    for i in range(layers):
        for suffix in ("weight", "bias"):
            for own, other in names.items():
                pairs[f"blocks.{i}.{own}.{suffix}"] = f"layers.{i}.{other}.{suffix}"
            q, k, v = state[f"blocks.{i}.qkv.{suffix}"].chunk(3)
            out |= {f"layers.{i}.self_attn.{n}_proj.{suffix}": x for n, x in (("q", q), ("k", k), ("v", v))}
        size = state["embedding.weight"].shape[1]
        heads = state["contact_head.weight"].shape[1] // layers
        exponents = torch.arange(0, size // heads, 2).float() / (size // heads)
        out[f"layers.{i}.self_attn.rot_emb.inv_freq"] = 1.0 / (10000**exponents)
    out |= {pairs[name]: value for name, value in state.items() if name in pairs}
    out["lm_head.weight"] = out["embed_tokens.weight"]
    return out


class TestAgainstReferees:
    """Each sequence alone in the referee: transformers would count padding in its token-dropout ratio."""

    def test_hidden_states_and_logits_of_fair_esm(self, trio: Trio) -> None:
        tokens, cu = packed(LENGTHS)
        with torch.inference_mode():
            ours = trio.ours.encode(tokens, cu, layers=range(trio.ours.depth + 1))
            logits = trio.ours.logits(ours.last)
            for rows, ids in sequences(tokens, cu):
                want = trio.fair(ids, repr_layers=range(trio.ours.depth + 1))
                torch.testing.assert_close(logits[rows], want["logits"][0], **EXACT)
                for number, state in want["representations"].items():
                    torch.testing.assert_close(ours.layers[number][rows], state[0], **EXACT)

    def test_hidden_states_and_logits_of_transformers(self, trio: Trio) -> None:
        tokens, cu = packed(LENGTHS)
        with torch.inference_mode():
            ours = trio.ours.encode(tokens, cu, layers=range(trio.ours.depth + 1))
            logits = trio.ours.logits(ours.last)
            for rows, ids in sequences(tokens, cu):
                want = trio.hugging(ids, output_hidden_states=True)
                torch.testing.assert_close(logits[rows], want.logits[0], **EXACT)
                assert len(want.hidden_states) == trio.ours.depth + 1
                for number, state in enumerate(want.hidden_states):
                    torch.testing.assert_close(ours.layers[number][rows], state[0], **EXACT)

    def test_attention_maps(self, trio: Trio) -> None:
        tokens, cu = packed(LENGTHS)
        with torch.inference_mode():
            maps = trio.ours.encode(tokens, cu, attentions=True).attentions
            assert maps is not None
            for ours, (_, ids) in zip(maps, sequences(tokens, cu), strict=True):
                theirs = trio.fair(ids, need_head_weights=True)["attentions"][0]
                torch.testing.assert_close(ours, theirs, **EXACT)
                hugging = torch.cat(trio.hugging(ids, output_attentions=True).attentions)
                torch.testing.assert_close(ours, hugging, **EXACT)

    def test_contact_features_and_contacts(self, trio: Trio) -> None:
        tokens, cu = packed(LENGTHS, masks=0.05)
        seen: list[Tensor] = []
        hook = trio.fair.contact_head.regression.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.inference_mode():
                features = trio.ours.contact_features(tokens, cu)
                contacts = trio.ours.contacts(tokens, cu)
                for ours, predicted, (_, ids) in zip(features, contacts, sequences(tokens, cu), strict=True):
                    want = trio.fair.predict_contacts(ids)[0]
                    torch.testing.assert_close(ours, seen.pop()[0], **EXACT)
                    torch.testing.assert_close(predicted, want, **EXACT)
                    mask = torch.ones_like(ids)
                    torch.testing.assert_close(predicted, trio.hugging.predict_contacts(ids, mask)[0], **EXACT)
        finally:
            hook.remove()

    def test_gradients_of_transformers(self, trio: Trio) -> None:
        tokens, cu = packed([60], masks=0.2)
        targets = torch.randint(4, 24, tokens.shape, generator=torch.Generator().manual_seed(0))
        trio.ours.zero_grad()
        trio.hugging.zero_grad()
        ours = torch.nn.functional.cross_entropy(trio.ours.logits(trio.ours.encode(tokens, cu).last), targets)
        theirs = torch.nn.functional.cross_entropy(trio.hugging(tokens.unsqueeze(0)).logits[0], targets)
        ours.backward()
        theirs.backward()
        torch.testing.assert_close(ours, theirs, **EXACT)
        for mine, other in (
            (trio.ours.embedding, trio.hugging.esm.embeddings.word_embeddings),
            (trio.ours.final_norm, trio.hugging.esm.encoder.emb_layer_norm_after),
            (trio.ours.blocks[0].mlp_in, trio.hugging.esm.encoder.layer[0].intermediate.dense),
        ):
            grad = mine.weight.grad
            assert float(grad.abs().max()) > 0
            torch.testing.assert_close(grad, other.weight.grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))


@pytest.fixture(scope="module")
def small() -> Esm2:
    model = build(Esm2Config(layers=3, width=24, heads=3)).eval()
    randomise(model)
    return model


class TestTokenDropout:
    def test_masks_of_one_sequence_do_not_rescale_another(self, small: Esm2) -> None:
        first, second = packed([20], masks=0.0)[0], packed([30], masks=0.9)[0]
        cu = Offsets.of([len(first), len(second)])
        states = small.encode(torch.cat([first, second]), cu, layers=(0,)).layers[0]
        torch.testing.assert_close(states[: len(first)], 0.88 * small.embedding(first))
        assert float(states[len(first) :][second == 32].detach().abs().max()) == 0

    def test_a_sequence_of_masks_alone_stays_finite(self, small: Esm2) -> None:
        tokens = torch.full((3,), 32)
        state = small.encode(tokens, Offsets.of([3])).last
        assert bool(state.isfinite().all())

    def test_zero_sequences_have_no_contacts(self, small: Esm2) -> None:
        assert small.contacts(torch.zeros(0, dtype=torch.int32), Offsets.of([])) == []


class TestContract(EncoderContract):
    name: ClassVar[str] = "esm2"
    factory: ClassVar[Any] = Esm2
    config: ClassVar[Any] = Esm2Config(layers=3, width=24, heads=3)
    tokenizer: ClassVar[Any] = TOKENIZER


class TestSize:
    @pytest.mark.parametrize(
        ("size", "parameters"),
        [
            ("8M", 7_512_474),
            ("35M", 33_501_394),
            ("150M", 148_140_154),
            ("650M", 651_043_254),
            ("3B", 2_839_005_634),
            ("15B", 15_129_100_194),
        ],
    )
    def test_parameter_counts_are_the_published_ones(self, size: str, parameters: int) -> None:
        (spec,) = [s for s in protloom_architectures() if s.name == "esm2"]
        with torch.device("meta"):
            model = build(Esm2Config(**spec.sizes[size]))
        assert sum(p.numel() for p in model.parameters()) == parameters

    @pytest.mark.parametrize("options", [{"width": 24, "heads": 5}, {"width": 30, "heads": 10}, {"layers": 0}])
    def test_impossible_sizes_are_refused(self, options: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"multiple of 2 × heads|greater than or equal"):
            Esm2Config(**options)


class TestInit:
    def test_esm2_init_is_xavier(self) -> None:
        torch.manual_seed(0)
        model = build(Esm2Config(layers=1, width=320, heads=20, init="esm2"))
        block = cast(Any, model.blocks[0])
        for part in block.qkv.weight.chunk(3):
            bound = (6 / 640 / 2) ** 0.5  # gain 1/√2 of √(6 / (fan in + fan out))
            assert bound * 0.99 < float(part.detach().abs().max()) <= bound
        assert float(block.attention_out.weight.detach().abs().max()) <= (6 / 640) ** 0.5
        assert float(block.attention_out.bias.detach().abs().max()) == 0
        assert float(model.embedding.weight.detach().std()) == pytest.approx(1.0, abs=0.05)
        assert float(model.embedding.weight[1].detach().abs().max()) == 0

    def test_normal_init(self) -> None:
        model = build(Esm2Config(layers=1, width=320, heads=20, init="normal"))
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.numel() > 1000:
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
                assert float(module.bias.detach().abs().max()) == 0


def test_rounded_frequencies_change_the_output_as_in_fair_esm() -> None:
    config = Esm2Config(layers=2, width=32, heads=2, rope_precision="fp16")
    model = build(config).eval()
    randomise(model)
    fair = esm.model.esm2.ESM2(2, 32, 2).eval()
    names = fair_names(model.state_dict(), 2)
    names |= {key: value.half().float() for key, value in names.items() if key.endswith("inv_freq")}
    fair.load_state_dict(names)
    tokens, cu = packed([400])
    with torch.inference_mode():
        want = fair(tokens.unsqueeze(0), repr_layers=[2])["representations"][2][0]
        torch.testing.assert_close(model.encode(tokens, cu).last, want, **EXACT)
        other = build(config.model_copy(update={"rope_precision": "fp32"})).eval()
        other.load_state_dict(model.state_dict())
        assert float((other.encode(tokens, cu).last - want).abs().max()) > 1e-3
