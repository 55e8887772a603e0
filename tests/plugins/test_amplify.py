"""AMPLIFY against its formulas in float64, in the released layout; weights in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from encoder_contract import EXACT, KERNELS, EncoderContract, agrees, packed, refused, skewed_fasta, train
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from protloom import weights
from protloom.cli import main
from protloom.contracts import BuildContext, ImportedWeights
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.architectures import protloom_architectures
from protloom_plugins.architectures.amplify import Amplify
from protloom_plugins.architectures.amplify_config import AmplifyConfig
from protloom_plugins.architectures.amplify_weights import AmplifyWeights, gated_width
from protloom_plugins.tokenizers.amplify import AmplifyTokenizer, AmplifyTokenizerConfig

F64 = NDArray[np.float64]
TOKENIZER = AmplifyTokenizer(AmplifyTokenizerConfig())
ADAPTER = AmplifyWeights()
LAYERS, WIDTH, HEADS, INNER = 3, 24, 3, 64
SMALL = AmplifyConfig(layers=LAYERS, width=WIDTH, heads=HEADS, inner=INNER)
(SPEC,) = [s for s in protloom_architectures() if s.name == "amplify"]
# as the released folders state it; 2/3 of 96 is 64
STATED = {
    "architectures": ["AMPLIFY"],
    "model_type": "AMPLIFY",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "dropout_prob": 0,
    "embedding_init_range": 0.02,
    "decoder_init_range": 0.02,
    "rms_norm": True,
    "norm_eps": 1e-05,
    "hidden_act": "SwiGLU",
    "layer_norm_after_embedding": False,
    "layer_norm_before_last_layer": True,
    "vocab_size": 27,
    "ffn_bias": False,
    "att_bias": False,
    "pad_token_id": 0,
    "max_length": 2048,
}
W12 = "transformer_encoder.1.ffn.w12.weight"


def released_tensors() -> dict[str, Tensor]:
    """Random tensors under the released names, written here once more by hand: the adapter is not its own judge."""
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.75 * columns**-0.5

    def norm() -> Tensor:
        return 1 + 0.2 * torch.randn(WIDTH, generator=generator)

    tensors = {"encoder.weight": matrix(27, WIDTH), "layer_norm_2.weight": norm()}
    tensors |= {"decoder.weight": matrix(27, WIDTH), "decoder.bias": torch.randn(27, generator=generator)}
    for i in range(LAYERS):
        block = {f"{name}.weight": matrix(WIDTH, WIDTH) for name in ("q", "k", "v", "wo")}
        block |= {"ffn.w12.weight": matrix(2 * INNER, WIDTH), "ffn.w3.weight": matrix(WIDTH, INNER)}
        block |= {"attention_norm.weight": norm(), "ffn_norm.weight": norm()}
        tensors |= {f"transformer_encoder.{i}.{name}": value for name, value in block.items()}
    return tensors


Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a folder as released; ``change`` may edit the tensors, ``config`` what is stated."""

    def make(change: Callable[[dict[str, Tensor]], Any] = lambda _: None, config: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "released"
        folder.mkdir()
        tensors = released_tensors()
        change(tensors)
        (folder / "config.json").write_text(json.dumps({**STATED, **(config or {})}))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def export(imported: ImportedWeights, folder: Path) -> Path:
    config, tensors, files = ADAPTER.export(AmplifyConfig(**imported.config), imported.state, TOKENIZER)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name).write_text(content)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def network(imported: ImportedWeights, kernels: str = "torch") -> Amplify:
    model = Amplify(AmplifyConfig(**imported.config), BuildContext(TOKENIZER, KERNELS[kernels])).eval()
    model.load_state_dict(dict(imported.state))
    return model


class Reference:
    """The network by its formulas on released tensors: one sequence at a time, float64, pairs of neighbours turned."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.w = {name: value.double().numpy() for name, value in tensors.items()}

    def norm(self, name: str, x: F64) -> F64:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"]

    def block(self, name: str, x: F64) -> tuple[F64, list[F64]]:
        length, size = len(x), WIDTH // HEADS
        normed = self.norm(f"{name}.attention_norm", x)
        q, k, v = (normed @ self.w[f"{name}.{part}.weight"].T for part in "qkv")
        angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        mixed, maps = [], []
        for head in range(HEADS):
            columns = slice(head * size, (head + 1) * size)
            a, b = (
                (part[:, columns][:, 0::2] + 1j * part[:, columns][:, 1::2]) * np.exp(1j * angle) for part in (q, k)
            )
            scores = (a @ b.conj().T).real / math.sqrt(size)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            maps.append(weights / weights.sum(1, keepdims=True))
            mixed.append(maps[-1] @ v[:, columns])
        x = x + np.concatenate(mixed, axis=1) @ self.w[f"{name}.wo.weight"].T
        both = self.norm(f"{name}.ffn_norm", x) @ self.w[f"{name}.ffn.w12.weight"].T
        gate, up = both[:, :INNER], both[:, INNER:]
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{name}.ffn.w3.weight"].T, maps

    def run(self, ids: list[int]) -> tuple[list[F64], F64, F64]:
        """Returns states 0 to depth, logits, and maps ``[blocks, heads, L, L]``."""
        states, maps = [self.w["encoder.weight"][ids]], []
        for i in range(LAYERS):
            x, found = self.block(f"transformer_encoder.{i}", states[-1])
            states.append(x)
            maps.append(found)
        states[-1] = self.norm("layer_norm_2", states[-1])
        return states, states[-1] @ self.w["decoder.weight"].T + self.w["decoder.bias"], np.array(maps)


class TestAgainstFormulas:
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_states_logits_and_maps(self, write: Writer, kernels: str) -> None:
        model = network(ADAPTER.read(write()), kernels)
        agrees(model, Reference(released_tensors()).run, [1, 2, 7, 31, 70, 48, 230], TOKENIZER, **EXACT)

    def test_in_float64_the_formulas_agree_to_the_last_digits(self, write: Writer) -> None:
        model = network(ADAPTER.read(write()), "reference").double()
        agrees(model, Reference(released_tensors()).run, [60, 4], TOKENIZER, rtol=1e-11, atol=1e-11)


class TestContract(EncoderContract):
    name: ClassVar[str] = "amplify"
    factory: ClassVar[Any] = Amplify
    config: ClassVar[Any] = SMALL
    tokenizer: ClassVar[Any] = TOKENIZER


class TestSize:
    @pytest.mark.parametrize(("size", "parameters"), [("120M", 118_276_507), ("350M", 354_008_667)])
    def test_parameter_counts_are_the_published_ones(self, size: str, parameters: int) -> None:
        with torch.device("meta"):
            model = Amplify(AmplifyConfig(**SPEC.sizes[size]), BuildContext(TOKENIZER, KERNELS["torch"]))
        assert sum(p.numel() for p in model.parameters()) == parameters

    @pytest.mark.parametrize("size", SPEC.sizes)
    def test_the_gated_layer_is_8_thirds_of_the_width(self, size: str) -> None:
        assert gated_width(4 * SPEC.sizes[size]["width"]) == SPEC.sizes[size]["inner"]

    def test_120m_is_the_default(self) -> None:
        assert AmplifyConfig() == AmplifyConfig(**SPEC.sizes["120M"])

    @pytest.mark.parametrize(
        ("options", "said"), [({"width": 24, "heads": 5}, "multiple of 2 × heads"), ({"inner": 65}, "multiple of 8")]
    )
    def test_impossible_options_are_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            AmplifyConfig(**options)

    def test_initial_parameters(self) -> None:
        model = Amplify(AmplifyConfig(layers=1, width=240, heads=4), BuildContext(TOKENIZER, KERNELS["torch"]))
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            if value.ndim == 2:
                assert 0.0199 < float(value.abs().max()) <= 0.02, name
                assert float(value.std()) == pytest.approx(0.04 / 12**0.5, rel=0.05), name
            else:
                assert bool((value == (0 if name == "head.bias" else 1)).all()), name


class TestReading:
    def test_folders_as_released_are_recognised(self, write: Writer, registry: Registry) -> None:
        folder = write()
        assert ADAPTER.recognises(folder)
        loaded = weights.load_pretrained(folder, registry)
        assert (loaded.stored.architecture.name, loaded.tokenizer.name, loaded.notes) == ("amplify", "amplify", ())
        assert loaded.stored.config == SMALL

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "bert"}', '{"model_type": "esm"}'])
    def test_other_folders_are_not_recognised(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        assert not ADAPTER.recognises(tmp_path)
        assert not ADAPTER.recognises(tmp_path / "config.json")

    def test_halves_become_fp32(self, write: Writer) -> None:
        imported = ADAPTER.read(write(lambda t: t.update({k: v.bfloat16() for k, v in t.items()})))
        assert all(value.dtype == torch.float32 for value in imported.state.values())

    def test_options_left_out_are_those_of_amplify(self, write: Writer) -> None:
        folder = write()
        needed = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        (folder / "config.json").write_text(json.dumps({key: STATED[key] for key in needed}))
        assert ADAPTER.read(folder).config == SMALL.model_dump()

    def test_dropout_is_told(self, write: Writer) -> None:
        (note,) = ADAPTER.read(write(config={"dropout_prob": 0.1})).notes
        assert "dropout 0.1" in note

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda t: t.pop(W12), f"key '{W12}' is missing"),
            (lambda t: t.pop("decoder.bias"), "key 'decoder.bias' is missing"),
            (lambda t: t.update(decoy=torch.zeros(1)), "unexpected key 'decoy'"),
            (lambda t: t.update({W12: torch.zeros(5, 4)}), r"has shape \[5, 4\], expected \[128, 24\]"),
            (lambda t: t.update({"encoder.weight": torch.zeros(32, 24)}), r"expected \[27, 24\]"),
        ],
    )
    def test_wrong_keys(self, write: Writer, edit: Callable[[dict[str, Tensor]], Any], said: str) -> None:
        refused(ADAPTER, write(edit), f"model.safetensors: .*{said}")

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"hidden_size": None}, "key 'hidden_size' is missing"),
            ({"num_attention_heads": 5}, "multiple of 2"),
            ({"num_hidden_layers": 4}, "transformer_encoder.3.q.weight' is missing"),
            ({"num_hidden_layers": 2}, "unexpected key 'transformer_encoder.2"),
            ({"intermediate_size": 100}, r"expected \[144, 24\]"),
            ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
            ({"rms_norm": False}, "rms_norm is False"),
            ({"att_bias": True}, "att_bias is True"),
            ({"vocab_size": 32}, "vocab_size is 32"),
        ],
    )
    def test_configs_that_do_not_fit(self, write: Writer, config: dict[str, Any], said: str) -> None:
        refused(ADAPTER, write(config=config), said)

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda vocab: vocab.update(L=7, A=6), "'L' has id 7, in AMPLIFY's vocabulary it has 6"),
            (lambda vocab: vocab.update(X=27), "'X' has id 27, in AMPLIFY's vocabulary it has None"),
            (lambda vocab: vocab.pop("<bos>"), "'<bos>' has id None"),
        ],
    )
    def test_another_vocabulary_is_refused(self, tmp_path: Path, write: Writer, edit: Any, said: str) -> None:
        folder = export(ADAPTER.read(write()), tmp_path / "out")
        file = folder / "tokenizer.json"
        document = json.loads(file.read_text())
        edit(document["model"]["vocab"])
        file.write_text(json.dumps(document))
        refused(ADAPTER, folder, said)
        file.write_text("{")
        refused(ADAPTER, folder, r"tokenizer\.json: damaged")


class TestExport:
    def test_exported_tensors_are_those_that_were_read(self, write: Writer) -> None:
        imported = ADAPTER.read(write())
        _, tensors, _ = ADAPTER.export(AmplifyConfig(**imported.config), imported.state, TOKENIZER)
        original = released_tensors()
        assert tensors.keys() == original.keys()
        for name, value in tensors.items():
            assert torch.equal(value, original[name]), name

    def test_import_export_import_is_bitwise(self, write: Writer, tmp_path: Path) -> None:
        first = ADAPTER.read(write())
        second = ADAPTER.read(export(first, tmp_path / "out"))
        assert (second.config, second.tokenizer, second.notes) == (first.config, "amplify", ())
        assert second.state.keys() == first.state.keys()
        for name, value in first.state.items():
            assert torch.equal(value, second.state[name]), name

    @pytest.mark.parametrize("size", ["120M", "350M"])
    def test_the_config_of_released_sizes_is_the_released_one(self, size: str) -> None:
        config = AmplifyConfig(**SPEC.sizes[size])
        with torch.device("meta"):
            state = Amplify(config, BuildContext(TOKENIZER, KERNELS["torch"])).state_dict()
        stated, tensors, _ = ADAPTER.export(config, state, TOKENIZER)
        sizes = {"120M": (640, 24, 10, 2560), "350M": (960, 32, 15, 3840)}[size]
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        assert tuple(stated[name] for name in names) == sizes
        assert {key: stated[key] for key in STATED if key not in names} == {
            key: value for key, value in STATED.items() if key not in names
        }
        assert tensors["transformer_encoder.5.ffn.w12.weight"].shape == (2 * config.inner, config.width)

    @pytest.mark.parametrize("inner", [8, 40, 64, 1368])
    def test_any_width_of_the_gated_layer_is_stated(self, inner: int) -> None:
        config = AmplifyConfig(layers=1, width=24, heads=3, inner=inner)
        with torch.device("meta"):
            state = Amplify(config, BuildContext(TOKENIZER, KERNELS["torch"])).state_dict()
        assert gated_width(ADAPTER.export(config, state, TOKENIZER)[0]["intermediate_size"]) == inner

    def test_tokenizer_files_give_the_ids(self, write: Writer, tmp_path: Path) -> None:
        folder = export(ADAPTER.read(write()), tmp_path / "out")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("MKTAYIAKQR", "MX-|BK", "A<mask>C<unk>D", ""):
            assert tokenizer(text)["input_ids"] == TOKENIZER.encode(text).tolist()
        special = tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id
        assert special == (TOKENIZER.pad_id, TOKENIZER.unknown_id, TOKENIZER.mask_id)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (3, 4)

    def test_what_the_format_cannot_express_is_refused(self, write: Writer) -> None:
        imported = ADAPTER.read(write())
        with pytest.raises(UserError, match="rotary angles at 10000, this model has 500"):
            ADAPTER.export(AmplifyConfig(**{**imported.config, "rope_base": 500.0}), imported.state, TOKENIZER)
        other = AmplifyTokenizer(AmplifyTokenizerConfig())
        other.vocab = [*other.vocab, "X"]
        with pytest.raises(UserError, match="its own vocabulary of 27 symbols"):
            ADAPTER.export(SMALL, imported.state, other)

    def test_convert_both_ways(self, write: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        released = write()
        for source, to, out in ((released, "protloom", "own"), (tmp_path / "own", "hf", "hf")):
            assert main(["convert", str(source), "--to", to, "--out", str(tmp_path / out)]) == 0
            assert "difference of logits 0.00e+00" in capsys.readouterr().out
        back, original = load_file(tmp_path / "hf" / "model.safetensors"), released_tensors()
        assert back.keys() == original.keys()
        assert all(torch.equal(value, back[name]) for name, value in original.items())


class TestTraining:
    def test_training_lowers_the_loss_and_checkpoints_are_in_the_released_layout(self, tmp_path: Path) -> None:
        run, losses = train("amplify:tiny", skewed_fasta(tmp_path), tmp_path)
        assert losses[-1] < losses[0] - 0.5
        folder = run / "checkpoints" / "step-00000030" / "model"
        assert json.loads((folder / "config.json").read_text())["model_type"] == "AMPLIFY"
        assert "transformer_encoder.0.ffn.w12.weight" in load_file(folder / "model.safetensors")

    def test_a_first_guess_is_nearly_even(self) -> None:
        torch.manual_seed(0)
        model = Amplify(AmplifyConfig(**SPEC.sizes["tiny"]), BuildContext(TOKENIZER, KERNELS["torch"]))
        tokens, cu = packed([100, 200], TOKENIZER)
        logits = model.logits(model.encode(tokens, cu).last)
        loss = nn.functional.cross_entropy(logits, torch.randint(6, 26, tokens.shape))
        assert float(loss.detach()) == pytest.approx(math.log(27), abs=0.1)
