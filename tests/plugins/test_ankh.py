"""Ankh against transformers' T5, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from ankh_referee import EXACT, OWN, PAD, Pair, build, make_pair, packed, tokenizer
from torch import Tensor
from torch.testing import assert_close
from transformers.models.t5.modeling_t5 import T5Attention

from protloom import ops
from protloom.contracts import Architecture, BuildContext, Encoded, Offsets
from protloom.errors import UserError
from protloom.generation import Writer
from protloom_plugins.architectures import protloom_architectures
from protloom_plugins.architectures.ankh import Ankh, initial_std
from protloom_plugins.architectures.ankh_config import AnkhConfig
from protloom_plugins.architectures.ankh_layers import relative_buckets

SPEC = next(spec for spec in protloom_architectures() if spec.name == "ankh")
SHAPES: dict[str, dict[str, Any]] = {
    "silu, width 24": {},
    "tanh gelu, inner heads wider than the model": {
        "feed_forward_proj": "gated-gelu",
        "d_model": 40,
        "num_heads": 5,
        "d_kv": 12,
        "vocab_size": 144,
        "relative_attention_num_buckets": 32,
    },
    "base-like, two blocks": {
        "d_model": 768,
        "num_heads": 12,
        "d_kv": 64,
        "d_ff": 3072,
        "num_layers": 2,
        "num_decoder_layers": 1,
    },
}
SOURCE, TARGET = [1, 2, 7, 31, 70, 48, 203], [5, 1, 3, 40, 29, 64, 150]
TINY = AnkhConfig(**SPEC.sizes["tiny"])


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("t5"), **request.param)


def both(pair: Pair) -> tuple[tuple[Tensor, Offsets], tuple[Tensor, Offsets]]:
    vocabulary = pair.ours.head.weight.shape[0]
    return packed(SOURCE, vocabulary), packed(TARGET, vocabulary, seed=1)


class TestAgainstTransformers:
    @torch.no_grad()
    def test_every_state_and_the_logits(self, pair: Pair) -> None:
        (source, cu), (target, target_cu) = both(pair)
        depth, decoder_depth = pair.ours.depth, pair.ours.config.decoder_layers
        encoded = pair.ours.encode(source, cu, layers=range(depth + 1), attentions=True)
        decoded = pair.ours.decode(target, target_cu, encoded.last, cu, layers=range(decoder_depth + 1))
        logits = pair.ours.logits(decoded.last)
        parts = zip(source.split(cu.lengths), target.split(target_cu.lengths), strict=True)
        for i, (left, right) in enumerate(parts):
            referee = pair.theirs(
                input_ids=left[None], decoder_input_ids=right[None], output_hidden_states=True, output_attentions=True
            )
            rows, columns = slice(*cu.bounds[i : i + 2]), slice(*target_cu.bounds[i : i + 2])
            for number in range(depth + 1):
                assert_close(encoded.layers[number][rows], referee.encoder_hidden_states[number][0], **EXACT)
            for number in range(decoder_depth + 1):
                assert_close(decoded.layers[number][columns], referee.decoder_hidden_states[number][0], **EXACT)
            assert_close(logits[columns], referee.logits[0], **EXACT)
            assert encoded.attentions is not None
            assert_close(encoded.attentions[i], torch.cat(referee.encoder_attentions), **EXACT)

    def test_loss_and_gradients(self, pair: Pair) -> None:
        (source, cu), (target, target_cu) = both(pair)
        labels = [part.long() for part in target.split(target_cu.lengths)]
        shifted = torch.cat([F.pad(part[:-1], (1, 0), value=PAD) for part in labels])
        pair.ours.zero_grad()
        states = pair.ours.decode(shifted, target_cu, pair.ours.encode(source, cu).last, cu)
        ours = F.cross_entropy(pair.ours.logits(states.last), torch.cat(labels), reduction="sum") / len(target)
        ours.backward()
        pair.theirs.zero_grad()
        total = torch.zeros(())
        for left, label in zip(source.split(cu.lengths), labels, strict=True):
            total = total + pair.theirs(input_ids=left[None], labels=label[None]).loss * len(label) / len(target)
        total.backward()
        assert_close(ours, total, **EXACT)
        names = {
            "embedding.weight": "shared.weight",
            "encoder_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "decoder_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder_blocks.1.attention.q.weight": "encoder.block.1.layer.0.SelfAttention.q.weight",
            "decoder_blocks.0.cross.k.weight": "decoder.block.0.layer.1.EncDecAttention.k.weight",
            "decoder_blocks.0.mlp_norm.weight": "decoder.block.0.layer.2.layer_norm.weight",
            "head.weight": "lm_head.weight",
        }
        gradients = {name: p.grad for name, p in pair.ours.named_parameters()}
        referees = dict(pair.theirs.named_parameters())
        for own, name in names.items():
            found, expected = cast(Tensor, gradients[own]), referees[name].grad
            assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


class TestPacking:
    @torch.no_grad()
    def test_a_sequence_does_not_see_its_neighbours(self, pair: Pair) -> None:
        (source, cu), (target, target_cu) = both(pair)
        together = pair.ours.encode(source, cu)
        decoded = pair.ours.decode(target, target_cu, together.last, cu)
        parts = zip(source.split(cu.lengths), target.split(target_cu.lengths), strict=True)
        for i, (left, right) in enumerate(parts):
            own, own_target = Offsets.of([len(left)]), Offsets.of([len(right)])
            alone = pair.ours.encode(left, own)
            assert_close(together.last[slice(*cu.bounds[i : i + 2])], alone.last, **EXACT)
            answer = pair.ours.decode(right, own_target, alone.last, own).last
            assert_close(decoded.last[slice(*target_cu.bounds[i : i + 2])], answer, **EXACT)

    @torch.no_grad()
    def test_a_target_does_not_see_what_follows(self, pair: Pair) -> None:
        (source, cu), (target, target_cu) = both(pair)
        memory = pair.ours.encode(source, cu).last
        before = pair.ours.decode(target, target_cu, memory, cu).last
        changed = target.clone()
        end = target_cu.bounds[4]
        changed[end - 10 : end] = (changed[end - 10 : end] - 1) % 100 + 2
        after = pair.ours.decode(changed, target_cu, memory, cu).last
        assert torch.equal(before[: end - 10], after[: end - 10])
        assert not torch.allclose(before[end - 10 : end], after[end - 10 : end])
        assert torch.equal(before[end:], after[end:])

    def test_no_sequences_at_all_keep_the_graph(self) -> None:
        model = build(TINY)
        nothing, cu = torch.zeros(0, dtype=torch.int64), Offsets.of([])
        decoded = model.decode(nothing, cu, model.encode(nothing, cu).last, cu)
        assert decoded.last.shape == (0, TINY.width)
        model.logits(decoded.last).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any()

    def test_streams_of_different_counts_are_refused(self) -> None:
        model = build(TINY)
        source, cu = packed([3, 4])
        target, target_cu = packed([3])
        with pytest.raises(ValueError, match="1 sequences, the encoder 2"):
            model.decode(target, target_cu, model.encode(source, cu).last, cu)


class TestStates:
    @torch.no_grad()
    def test_stopping_early_gives_the_state_of_that_block(self) -> None:
        model = build(AnkhConfig(**SPEC.sizes["tiny"] | {"layers": 3})).eval()
        source, cu = packed([5, 9])
        full = model.encode(source, cu, layers=(0, 1, 2, 3))
        assert torch.equal(full.last, full.layers[3])
        for stop in range(4):
            stopped = model.encode(source, cu, stop_at=stop)
            assert torch.equal(stopped.last, full.layers[stop])

    @pytest.mark.parametrize(("layers", "stop_at"), [((3,), None), ((2,), 1), ((), 3), ((-1,), None)])
    def test_layers_that_are_not_there(self, layers: tuple[int, ...], stop_at: int | None) -> None:
        source, cu = packed([5])
        with pytest.raises(ValueError, match="must lie within 0 … 2"):
            build(TINY).encode(source, cu, layers=layers, stop_at=stop_at)

    def test_recomputing_blocks_gives_the_same_gradients(self) -> None:
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = build(TINY, checkpointing=checkpointing).train()
            source, cu = packed([5, 40])
            target, target_cu = packed([7, 30])
            decoded = model.decode(target, target_cu, model.encode(source, cu).last, cu)
            model.logits(decoded.last).square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        for plain, recomputed in zip(*gradients, strict=True):
            assert torch.equal(cast(Tensor, plain), cast(Tensor, recomputed))

    @torch.no_grad()
    def test_a_cache_gives_the_states_of_one_pass(self, pair: Pair) -> None:
        model = pair.ours
        source, cu = packed([3, 60, 20], 144)
        target, target_cu = packed([45, 45, 45], 144)
        memory = model.encode(source, cu).last
        numbers = range(model.config.decoder_layers + 1)
        whole = model.decode(target, target_cu, memory, cu, layers=numbers)
        cache, rows = model.start_cache(memory, cu), target.view(3, 45)
        at = 0
        # one at a time, several at a time, and beyond the room that a cache has at first
        for step in (1, 1, 3, 20, 1, 19):
            part = rows[:, at : at + step].flatten()
            found = model.decode(part, Offsets.of([step] * 3), memory, cu, cache=cache, layers=numbers)
            for number in numbers:
                expected = whole.layers[number].view(3, 45, -1)[:, at : at + step].flatten(0, 1)
                assert_close(found.layers[number], expected, **EXACT)
            at += step

    @torch.no_grad()
    def test_a_cache_follows_the_sequences_that_are_kept(self, pair: Pair) -> None:
        model = pair.ours
        source, cu = packed([3, 60, 20], 144)
        target, target_cu = packed([12, 12, 12], 144)
        memory = model.encode(source, cu).last
        whole = model.decode(target, target_cu, memory, cu).last.view(3, 12, -1)
        cache, rows = model.start_cache(memory, cu), target.view(3, 12)
        model.decode(rows[:, :7].flatten(), Offsets.of([7] * 3), memory, cu, cache=cache)
        kept = torch.tensor([2, 0, 2, 2])
        cache.select(kept)
        found = model.decode(rows[kept, 7:].flatten(), Offsets.of([5] * 4), memory, cu, cache=cache).last
        assert_close(found.view(4, 5, -1), whole[kept, 7:], **EXACT)

    def test_a_cache_refuses_sequences_that_it_does_not_hold(self) -> None:
        model = build(TINY)
        source, cu = packed([3, 4])
        memory = model.encode(source, cu).last
        cache = model.start_cache(memory, cu)
        for lengths in ([1], [1, 2], [0, 0]):
            tokens, offsets = packed(lengths)
            with pytest.raises(ValueError, match="a cache of 2 sequences"):
                model.decode(tokens, offsets, memory, cu, cache=cache)

    def test_it_meets_the_contracts(self) -> None:
        model = build(TINY)
        assert isinstance(model, Architecture)
        assert model.capabilities == {"encode", "decode", "complete", "attentions"}
        writer: Writer = model
        assert callable(writer.start_cache)
        # FSDP2 takes every repeated part, and nothing but them
        inside = {id(p) for p in model.blocks.parameters()}
        outside = {name for name, p in model.named_parameters() if id(p) not in inside}
        assert outside == {
            "embedding.weight", "encoder_bias", "decoder_bias", "encoder_norm.weight", "decoder_norm.weight",
            "head.weight",
        }  # fmt: skip


# distance -> bucket, of 64 buckets and 128 residues
ENCODER = {
    -200: 31, -128: 31, -64: 26, -32: 21, -17: 16, -16: 16, -15: 15, -1: 1, 0: 0,
    1: 33, 15: 47, 16: 48, 17: 48, 32: 53, 64: 58, 127: 63, 128: 63, 500: 63,
}  # fmt: skip
DECODER = {5: 0, 0: 0, -1: 1, -31: 31, -32: 32, -33: 32, -64: 48, -127: 63, -500: 63}
COUNTS = {
    ("base", 144): 736_453_632,
    ("large", 144): 1_878_705_152,
    ("ankh3-large", 256): 1_879_049_216,
    ("ankh3-xl", 256): 5_730_907_136,
}


class TestPositions:
    @pytest.mark.parametrize(("both", "vectors"), [(True, ENCODER), (False, DECODER)])
    def test_known_buckets(self, both: bool, vectors: dict[int, int]) -> None:
        found = relative_buckets(torch.tensor(list(vectors)), 64, 128, both=both)
        assert found.tolist() == list(vectors.values())

    @pytest.mark.parametrize("both", [True, False])
    @pytest.mark.parametrize(("buckets", "most"), [(64, 128), (32, 128), (64, 512), (16, 40), (4, 30)])
    def test_all_distances_as_transformers_has_them(self, both: bool, buckets: int, most: int) -> None:
        distance = torch.arange(-700, 701)
        expected = T5Attention._relative_position_bucket(distance, both, buckets, most)
        assert torch.equal(relative_buckets(distance, buckets, most, both=both), expected)


class TestSizes:
    @pytest.mark.parametrize(("size", "vocabulary"), COUNTS)
    def test_parameters_of_the_released_models(self, size: str, vocabulary: int) -> None:
        with torch.device("meta"):
            model = Ankh(AnkhConfig(**SPEC.sizes[size]), BuildContext(tokenizer(vocabulary), cast(ops.Ops, None)))
        assert sum(p.numel() for p in model.parameters()) == COUNTS[size, vocabulary]

    def test_encoder_of_ankh3_large(self) -> None:
        with torch.device("meta"):
            model = Ankh(AnkhConfig(**SPEC.sizes["ankh3-large"]), BuildContext(tokenizer(256), cast(ops.Ops, None)))
        counted = ("embedding", "encoder_")
        assert sum(p.numel() for n, p in model.named_parameters() if n.startswith(counted)) == 1_151_879_680

    @pytest.mark.parametrize("size", SPEC.sizes)
    def test_every_size_is_valid(self, size: str) -> None:
        AnkhConfig(**SPEC.sizes[size])


class TestInitialisation:
    def test_spread_of_every_parameter(self, tmp_path: Path) -> None:
        """The standard deviations are those of a T5 that transformers initialises."""
        import transformers

        torch.manual_seed(0)
        model = build(AnkhConfig(layers=1, decoder_layers=1, width=192, heads=3, head_size=32, inner=256), 256)
        config = transformers.T5Config(
            vocab_size=256, d_model=192, num_heads=3, d_kv=32, d_ff=256, num_layers=1, num_decoder_layers=1,
            feed_forward_proj="gated-silu", relative_attention_num_buckets=64, tie_word_embeddings=False,
        )  # fmt: skip
        theirs = dict(transformers.T5ForConditionalGeneration(config).named_parameters())
        block = "block.0.layer"
        pairs = {
            "embedding": "shared",
            "encoder_blocks.0.attention.q": f"encoder.{block}.0.SelfAttention.q",
            "encoder_blocks.0.attention.k": f"encoder.{block}.0.SelfAttention.k",
            "encoder_blocks.0.attention.v": f"encoder.{block}.0.SelfAttention.v",
            "encoder_blocks.0.attention.out": f"encoder.{block}.0.SelfAttention.o",
            "decoder_blocks.0.cross.q": f"decoder.{block}.1.EncDecAttention.q",
            "decoder_blocks.0.mlp.gate": f"decoder.{block}.2.DenseReluDense.wi_0",
            "decoder_blocks.0.mlp.up": f"decoder.{block}.2.DenseReluDense.wi_1",
            "decoder_blocks.0.mlp.down": f"decoder.{block}.2.DenseReluDense.wo",
        }
        own = dict(model.named_parameters())
        for name, other in pairs.items():
            expected = float(theirs[f"{other}.weight"].detach().std())
            assert float(own[f"{name}.weight"].detach().std()) == pytest.approx(expected, rel=0.03), name
        assert float(own["encoder_bias"].detach().std()) == pytest.approx(192**-0.5, rel=0.2)
        assert float(own["head.weight"].detach().std()) == pytest.approx(1.0, rel=0.03)
        assert all((p == 1).all() for name, p in own.items() if "norm" in name)

    def test_a_scaled_head_starts_near_guessing_evenly(self) -> None:
        torch.manual_seed(0)
        source, cu = packed([200])
        losses = {}
        for head in ("t5", "scaled"):
            model = build(AnkhConfig(**SPEC.sizes["small"], head_init=cast(Any, head)))
            with torch.no_grad():
                logits = model.logits(model.decode(source, cu, model.encode(source, cu).last, cu).last)
            losses[head] = float(F.cross_entropy(logits, torch.flip(source, (0,))))
        even = float(torch.log(torch.tensor(256.0)))
        assert losses["scaled"] < even + 1.0
        assert losses["t5"] > even + 10

    def test_scaled_is_the_only_difference(self) -> None:
        one, other = AnkhConfig(), AnkhConfig(head_init="scaled")
        differing = [n for n, _ in build(one).named_parameters() if initial_std(n, one) != initial_std(n, other)]
        assert differing == ["head.weight"]


class TestPrecision:
    def run(self, model: Ankh) -> Encoded:
        source, cu = packed([30, 50])
        target, target_cu = packed([20, 9])
        return model.decode(target, target_cu, model.encode(source, cu).last, cu)

    def test_fp16_weights_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"fp16: states of T5 .* 65504; use bf16 or fp32"):
            self.run(build(TINY).half())

    def test_fp16_autocast_is_refused(self) -> None:
        with pytest.raises(UserError, match="use bf16 or fp32"), torch.autocast("cpu", dtype=torch.float16):
            self.run(build(TINY))

    def test_bf16_autocast_stays_near_fp32(self) -> None:
        torch.manual_seed(0)
        model = build(AnkhConfig(**SPEC.sizes["small"])).train()
        exact = self.run(model).last
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = self.run(model).last
        assert near.dtype == torch.float32  # the residual stream stays wide
        assert float(((near - exact).abs().mean() / exact.abs().mean()).detach()) < 0.02
        near.square().sum().backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())

    @torch.no_grad()
    def test_float64_by_the_reference_kernels_agrees(self) -> None:
        torch.manual_seed(0)
        model = build(TINY)
        exact = build(TINY, kernels=ops.select("reference", OWN, {}, torch.device("cpu"), torch.float64)).double()
        exact.load_state_dict(model.state_dict())
        assert_close(self.run(model).last.double(), self.run(exact).last, **EXACT)
