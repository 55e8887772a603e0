"""ESM-2 against its two referees, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import esm
import pytest
import torch
import transformers
from torch import Tensor, nn

from protloom import ops
from protloom.contracts import Architecture, BuildContext, Offsets
from protloom_plugins.architectures import protloom_architectures
from protloom_plugins.architectures.esm2 import Esm2
from protloom_plugins.architectures.esm2_config import Esm2Config
from protloom_plugins.architectures.esm2_weights import Esm2Weights
from protloom_plugins.kernels.native import TorchBackend
from protloom_plugins.kernels.reference import ReferenceBackend
from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
OWN = {"reference": ReferenceBackend(), "torch": TorchBackend()}
OPS = ops.select("auto", OWN, {}, torch.device("cpu"), torch.float32)
SIZES = {"3 layers, width 24, 3 heads": (3, 24, 3), "8M": (6, 320, 20), "2 layers, width 30, 5 heads": (2, 30, 5)}
EXACT = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = [1, 2, 7, 31, 70, 48, 230]


def build(config: Esm2Config, *, checkpointing: bool = False) -> Esm2:
    return Esm2(config, BuildContext(TOKENIZER, OPS, activation_checkpointing=checkpointing))


def packed(lengths: list[int], *, masks: float = 0.2) -> tuple[Tensor, Offsets]:
    """Random tokens of sequences with ``lengths`` residues each, between <cls> and <eos>, some of them masked."""
    generator = torch.Generator().manual_seed(sum(lengths))
    parts = []
    for length in lengths:
        residues = torch.randint(4, 31, (length,), generator=generator)
        residues[torch.rand(length, generator=generator) < masks] = 32
        parts.append(torch.cat([torch.tensor([0]), residues, torch.tensor([2])]))
    return torch.cat(parts), Offsets.of(len(part) for part in parts)


def sequences(tokens: Tensor, cu: Offsets) -> Iterator[tuple[slice, Tensor]]:
    for start, end in zip(cu.bounds, cu.bounds[1:], strict=False):
        yield slice(start, end), tokens[start:end].unsqueeze(0)


def randomise(model: nn.Module) -> None:
    """Draws every parameter, norms and biases too, so that no two of them can be confused."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # matrices keep the size of what they multiply, as trained ones do
            scale = 0.75 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter.copy_(noise * scale + (1.0 if "norm.weight" in name else 0.0))


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


class TestPacking:
    def test_a_packed_batch_equals_its_sequences_one_by_one(self, small: Esm2) -> None:
        lengths = list(range(1, 71))
        tokens, cu = packed(lengths)
        together = small.encode(tokens, cu).last
        for rows, ids in sequences(tokens, cu):
            alone = small.encode(ids[0], Offsets.of([ids.shape[1]])).last
            torch.testing.assert_close(alone, together[rows], rtol=1e-6, atol=1e-6)

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

    def test_zero_sequences(self, small: Esm2) -> None:
        small.train()
        small.zero_grad()
        try:
            none = torch.zeros(0, dtype=torch.int32)
            encoded = small.encode(none, Offsets.of([]), layers=(0, 2), attentions=True)
            assert encoded.last.shape == encoded.layers[2].shape == (0, 24)
            assert encoded.attentions == []
            logits = small.logits(encoded.last)
            assert logits.shape == (0, 33)
            logits.sum().backward()
            for name, parameter in small.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, name
                    assert float(parameter.grad.abs().sum()) == 0, name
            assert small.contacts(none, Offsets.of([])) == []
        finally:
            small.zero_grad()
            small.eval()


class TestPasses:
    def test_stop_at_gives_the_state_of_a_full_pass(self, small: Esm2) -> None:
        tokens, cu = packed([12, 5])
        full = small.encode(tokens, cu, layers=(0, 1, 2, 3))
        for stop in range(4):
            part = small.encode(tokens, cu, stop_at=stop, layers=(stop,), attentions=True)
            assert torch.equal(part.last, full.layers[stop])
            assert torch.equal(part.layers[stop], part.last)
            assert part.attentions is not None
            assert [maps.shape for maps in part.attentions] == [(stop, 3, 14, 14), (stop, 3, 7, 7)]
        assert torch.equal(full.last, full.layers[3])
        assert not torch.equal(full.layers[2], full.layers[3])

    @pytest.mark.parametrize("request_", [{"stop_at": 4}, {"layers": (4,)}, {"stop_at": 1, "layers": (2,)}])
    def test_states_that_do_not_exist_are_refused(self, small: Esm2, request_: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="0 … 3"):
            small.encode(*packed([4]), **request_)

    def test_activation_checkpointing_gives_equal_gradients(self) -> None:
        config = Esm2Config(layers=3, width=24, heads=3)
        plain, recomputed = build(config).train(), build(config, checkpointing=True).train()
        recomputed.load_state_dict(plain.state_dict())
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        recomputed.blocks[1].register_forward_pre_hook(count)
        tokens, cu = packed([30, 41])
        for model in (plain, recomputed):
            model.logits(model.encode(tokens, cu).last).square().mean().backward()
        assert calls == 2  # once forward, once again for the backward pass
        for (name, one), (_, two) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
            if one.requires_grad:
                assert one.grad is not None
                assert two.grad is not None
                assert torch.equal(one.grad, two.grad), name
        recomputed.eval()
        recomputed.encode(tokens, cu)
        assert calls == 3

    def test_bf16_autocast_stays_near_fp32(self) -> None:
        model = build(Esm2Config(layers=3, width=24, heads=3, init="normal")).eval()
        tokens, cu = packed([40, 80])
        exact = model.logits(model.encode(tokens, cu).last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.encode(tokens, cu)
            logits = model.logits(encoded.last)
        assert encoded.last.dtype == torch.float32  # the residual stream keeps full precision
        torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.02)

    def test_compiles_into_one_graph(self, small: Esm2) -> None:
        tokens, cu = packed([9, 14])

        def run(ids: Tensor) -> Tensor:
            return small.logits(small.encode(ids, cu).last)

        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)  # raises where the graph would break
        small.zero_grad()
        compiled(tokens).square().sum().backward()
        grads = [p.grad.clone() for p in small.parameters() if p.grad is not None]
        small.zero_grad()
        run(tokens).square().sum().backward()
        others = [p.grad for p in small.parameters() if p.grad is not None]
        small.zero_grad()
        assert len(grads) == len(others) > 0
        for one, two in zip(grads, others, strict=True):
            torch.testing.assert_close(one, two)

    def test_float64(self) -> None:
        model = build(Esm2Config(layers=2, width=16, heads=2)).double().eval()
        tokens, cu = packed([9])
        assert model.encode(tokens, cu).last.dtype == torch.float64


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

    def test_a_network_from_the_meta_device_works(self) -> None:
        config = Esm2Config(layers=2, width=16, heads=2)
        with torch.device("meta"):
            model = build(config)
        model = model.to_empty(device="cpu")
        torch.manual_seed(0)
        model.initialise()
        torch.manual_seed(0)
        normal = build(config)
        normal.initialise()
        for name, value in normal.state_dict().items():
            assert value.shape == model.state_dict()[name].shape
        model.load_state_dict(normal.state_dict())
        tokens, cu = packed([8])
        assert torch.equal(model.encode(tokens, cu).last, normal.encode(tokens, cu).last)

    def test_is_an_architecture(self, small: Esm2) -> None:
        assert isinstance(small, Architecture)
        assert (cast(Architecture, small).width, small.depth, small.heads) == (24, 3, 3)

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
