"""T5 folders of transformers, in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ankh_referee import EXACT, Pair, build, make_pair, ours, packed, theirs
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from protloom import weights
from protloom.cli import main
from protloom.contracts import ImportedWeights, Offsets
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.architectures.ankh import Ankh
from protloom_plugins.architectures.ankh_config import AnkhConfig
from protloom_plugins.architectures.ankh_weights import AnkhWeights
from protloom_plugins.tokenizers.ankh import Ankh3Tokenizer, Ankh3TokenizerConfig
from protloom_plugins.tokenizers.ankh_vocabulary import ANKH, ANKH3, sentencepiece_model, with_sentinels

ADAPTER = AnkhWeights()
TOKENIZER = Ankh3Tokenizer(Ankh3TokenizerConfig())
CROSS = "decoder.block.1.layer.1.EncDecAttention.k.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("original"))


Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, original: Pair) -> Writer:
    """Writes the folder once more; ``change`` may edit the tensors, ``config`` its keys, ``form`` its file."""

    def make(
        change: Callable[[dict[str, Tensor]], Any] = lambda _: None,
        *,
        config: dict[str, Any] | None = None,
        form: str = "safetensors",
    ) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir()
        stated = json.loads((original.folder / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
        tensors = load_file(original.folder / "model.safetensors")
        change(tensors)
        if form == "safetensors":
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        elif form == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            names = sorted(tensors)
            shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
            for shard, keys in shards.items():
                save_file({key: tensors[key] for key in keys}, folder / shard, {"format": "pt"})
            table = {key: shard for shard, keys in shards.items() for key in keys}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        return folder

    return make


def export(imported: ImportedWeights, folder: Path) -> Path:
    config, tensors, files = ADAPTER.export(AnkhConfig(**imported.config), imported.state, TOKENIZER)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def same_logits(model: Ankh, referee: Any) -> None:
    source, cu = packed([40])
    target, target_cu = packed([25])
    own = model.logits(model.decode(target, target_cu, model.encode(source, cu).last, cu).last)
    assert_close(own, referee(input_ids=source[None], decoder_input_ids=target[None]).logits[0], **EXACT)


class TestReading:
    @pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
    def test_every_form(self, write: Writer, original: Pair, form: str) -> None:
        folder = write(form=form)
        assert ADAPTER.recognises(folder)
        imported = ADAPTER.read(folder)
        assert imported.notes == ()
        assert imported.tokenizer == "ankh3"
        same_logits(ours(folder), original.theirs)

    def test_halves_become_fp32(self, write: Writer) -> None:
        imported = ADAPTER.read(write(lambda t: t.update({k: v.bfloat16() for k, v in t.items()})))
        assert all(value.dtype == torch.float32 for value in imported.state.values())

    def test_aliases_of_the_embedding(self, write: Writer, original: Pair) -> None:
        def rename(tensors: dict[str, Tensor]) -> None:
            tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
            tensors["decoder.embed_tokens.weight"] = tensors["encoder.embed_tokens.weight"].clone()
            # old versions of transformers wrote this, and read past it
            tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(64, 3)

        same_logits(ours(write(rename)), original.theirs)

    @pytest.mark.parametrize("scaled", [True, False])
    def test_a_tied_network_as_transformers_saves_it(self, tmp_path: Path, scaled: bool) -> None:
        torch.manual_seed(1)
        config = transformers.T5Config(
            vocab_size=256, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, feed_forward_proj="gated-silu",
            relative_attention_num_buckets=64, dropout_rate=0.0, tie_word_embeddings=scaled,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config).eval()
        model.save_pretrained(tmp_path / "tied")
        imported = ADAPTER.read(tmp_path / "tied")
        assert [("scales" in note) for note in imported.notes] == ([False, True] if scaled else [False])
        same_logits(ours(tmp_path / "tied"), model)
        # exported it is not tied any more, and gives the same logits
        same_logits(ours(tmp_path / "tied"), theirs_scaled(export(imported, tmp_path / "out"), scaled=scaled))

    def test_dropout_is_told(self, write: Writer) -> None:
        (note,) = ADAPTER.read(write(config={"dropout_rate": 0.1})).notes
        assert "dropout 0.1" in note

    def test_an_encoder_alone(self, original: Pair, tmp_path: Path) -> None:
        encoder = transformers.T5EncoderModel.from_pretrained(original.folder, attn_implementation="eager").eval()
        encoder.save_pretrained(tmp_path / "encoder")
        imported = ADAPTER.read(tmp_path / "encoder")
        (note,) = imported.notes
        assert "no decoder: initialised" in note
        model = ours(tmp_path / "encoder")
        source, cu = packed([40])
        with torch.no_grad():
            assert_close(model.encode(source, cu).last, encoder(source[None]).last_hidden_state[0], **EXACT)
        # drawn as a new network's, and the same numbers every time
        drawn = imported.state["decoder_blocks.0.cross.q.weight"]
        assert float(drawn.std()) == pytest.approx((24 * 8) ** -0.5, rel=0.1)
        assert torch.equal(drawn, ADAPTER.read(tmp_path / "encoder").state["decoder_blocks.0.cross.q.weight"])

    def test_a_decoder_without_head(self, write: Writer) -> None:
        imported = ADAPTER.read(write(lambda t: t.pop("lm_head.weight")))
        (note,) = imported.notes
        assert "ties the output head" in note
        assert torch.equal(imported.state["head.weight"], imported.state["embedding.weight"])

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "bert"}'])
    def test_other_folders_are_not_recognised(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        assert not ADAPTER.recognises(tmp_path)


def theirs_scaled(folder: Path, *, scaled: bool) -> Any:
    """Loads an export whose head was the embedding: without the factor the two are still equal, hence tied."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    assert torch.equal(model.lm_head.weight, model.shared.weight) is not scaled
    assert not model.config.scale_decoder_outputs
    return model


class TestVocabulary:
    def pieces(self, folder: Path, layout: Any, edit: Callable[[list[str]], Any] = lambda _: None) -> Path:
        vocab = list(with_sentinels(layout.pieces, layout))
        edit(vocab)
        (folder / "spiece.model").write_bytes(sentencepiece_model(vocab))
        return folder

    def test_ids_come_from_the_file(self, write: Writer) -> None:
        def swap(vocab: list[str]) -> None:
            vocab[3], vocab[5] = vocab[5], vocab[3]

        section = ADAPTER.read(self.pieces(write(), ANKH3, swap)).tokenizer
        assert isinstance(section, dict)
        assert section["name"] == "ankh3"
        assert section["pieces"][5] == "[NLU]"

    def test_a_file_of_another_family(self, write: Writer) -> None:
        folder = self.pieces(write(), ANKH)
        with pytest.raises(UserError, match=r"spiece\.model: the vocabulary of tokenizer 'ankh', but .* 256 symbols"):
            ADAPTER.read(folder)

    def test_the_older_vocabulary(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "old", vocab_size=144, feed_forward_proj="gated-gelu")
        assert ADAPTER.read(pair.folder).tokenizer == "ankh"

    def test_any_other_is_refused(self, tmp_path: Path) -> None:
        folder = make_pair(tmp_path / "small", vocab_size=144).folder
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stated | {"vocab_size": 100}))
        tensors = load_file(folder / "model.safetensors")
        for key in ("shared.weight", "lm_head.weight"):
            tensors[key] = tensors[key][:100].clone()
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UserError, match="has 100 symbols, those of Ankh have 256 or 144"):
            ADAPTER.read(folder)


class TestMistakes:
    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda t: t.pop(CROSS), f"key '{CROSS}' is missing"),
            (lambda t: t.pop("shared.weight"), "key 'shared.weight' is missing"),
            (lambda t: t.update(decoy=torch.zeros(1)), "unexpected key 'decoy'"),
            (lambda t: t.update({CROSS: torch.zeros(5, 4)}), r"has shape \[5, 4\], expected \[24, 24\]"),
            (
                lambda t: t.update({"encoder.embed_tokens.weight": torch.zeros(256, 24)}),
                "'encoder.embed_tokens.weight' differs from 'shared.weight'",
            ),
            (lambda t: t.update({"shared.weight": torch.zeros(9, 24)}), "'shared.weight' has 9 rows"),
        ],
    )
    def test_wrong_keys(self, write: Writer, edit: Callable[[dict[str, Tensor]], Any], said: str) -> None:
        folder = write(edit)
        with pytest.raises(UserError, match=said) as caught:
            ADAPTER.read(folder)
        assert str(folder / "model.safetensors") in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"d_model": None}, "key 'd_model' is missing"),
            ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu': only the gated networks"),
            ({"num_layers": 4}, "encoder.block.3.* is missing"),
            ({"num_decoder_layers": 1}, "unexpected key 'decoder.block.1"),
            ({"relative_attention_num_buckets": 32}, r"expected \[32, 3\]"),
            ({"relative_attention_num_buckets": 30}, "not a valid T5 size"),
            ({"vocab_size": 144}, "has 256 rows, but .* says 144"),
        ],
    )
    def test_configs_that_do_not_fit(self, write: Writer, config: dict[str, Any], said: str) -> None:
        folder = write(config=config)
        with pytest.raises(UserError, match=said) as caught:
            ADAPTER.read(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_would_run_code_is_refused(self, write: Writer, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "exploded",))

        folder = write(form="bin")
        torch.save({"shared.weight": torch.zeros(1), "extra": Bomb()}, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="more than tensors"):
            ADAPTER.read(folder)
        assert not (tmp_path / "exploded").exists()

    def test_damaged_weights(self, write: Writer) -> None:
        file = write() / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
            ADAPTER.read(file.parent)

    def test_the_exact_gelu_cannot_be_told_to_transformers(self) -> None:
        config = AnkhConfig(activation="gelu", layers=1, decoder_layers=1, width=8, heads=1, head_size=8, inner=8)
        with pytest.raises(UserError, match="no gate with the exact GELU"):
            ADAPTER.export(config, build(config).state_dict(), TOKENIZER)


class TestExport:
    def test_transformers_gives_equal_logits(self, original: Pair, tmp_path: Path) -> None:
        folder = export(ADAPTER.read(original.folder), tmp_path / "out")
        model, told = transformers.T5ForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
        assert not any(told.values()), told
        same_logits(original.ours, model.eval())
        assert model.generation_config.decoder_start_token_id == TOKENIZER.pad_id
        assert model.generation_config.eos_token_id == TOKENIZER.suffix[0]

    def test_both_matrices_are_always_written(self, original: Pair) -> None:
        state = dict(original.ours.state_dict())
        state["head.weight"] = state["embedding.weight"]
        _, tensors, _ = ADAPTER.export(original.ours.config, state, TOKENIZER)
        assert {"shared.weight", "lm_head.weight"} <= tensors.keys()

    def test_the_names_are_those_that_were_read(self, original: Pair) -> None:
        _, tensors, _ = ADAPTER.export(original.ours.config, original.ours.state_dict(), TOKENIZER)
        read = load_file(original.folder / "model.safetensors")
        assert tensors.keys() == read.keys()
        for name, value in tensors.items():
            assert torch.equal(value, read[name]), name

    def test_import_export_import_is_bitwise(self, write: Writer, tmp_path: Path) -> None:
        first = ADAPTER.read(write())
        second = ADAPTER.read(export(first, tmp_path / "out"))
        assert second.config == first.config
        assert second.notes == ()
        assert second.tokenizer == {"name": "ankh3"}  # read from the files that were written
        assert second.state.keys() == first.state.keys()
        for name, value in first.state.items():
            assert torch.equal(value, second.state[name]), name

    def test_tokenizer_files_give_the_ids(self, original: Pair, tmp_path: Path) -> None:
        folder = export(ADAPTER.read(original.folder), tmp_path / "out")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer("[NLU]MKTAX<extra_id_3>")["input_ids"] == TOKENIZER.encode("MKTAX<extra_id_3>").tolist()


class TestCommand:
    def test_convert_both_ways(self, original: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for source, to, out in (("original", "protloom", "own"), ("own", "hf", "hf"), ("hf", "protloom", "again")):
            path = original.folder if source == "original" else tmp_path / source
            assert main(["convert", str(path), "--to", to, "--out", str(tmp_path / out), "--check"]) == 0
            assert "difference of logits 0.00e+00" in capsys.readouterr().out
        same_logits(original.ours, theirs(tmp_path / "hf"))
        first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "again"))
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    def test_the_check_reads_the_decoder(
        self, original: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        true_save = weights.save_pretrained

        def save(folder: Path, **arguments: Any) -> None:
            state = dict(arguments["state"])
            state["decoder_blocks.0.cross.v.weight"] = state["decoder_blocks.0.cross.v.weight"].flip(0)
            true_save(folder, **{**arguments, "state": state})

        monkeypatch.setattr(weights, "save_pretrained", save)
        arguments = ["convert", str(original.folder), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]
        assert main(arguments) == 2
        assert "was not converted: logits before and after differ by" in capsys.readouterr().err
        assert not (tmp_path / "hf").exists()

    def test_loading_by_name(self, original: Pair, registry: Registry) -> None:
        loaded = weights.load_pretrained(original.folder, registry)
        assert loaded.tokenizer.name == "ankh3"
        ids = torch.as_tensor(loaded.tokenizer.encode("MKTAYIAK")).long()
        with torch.no_grad():
            found = loaded.architecture.encode(ids, Offsets.of([len(ids)])).last
            assert_close(found, original.theirs.encoder(ids[None]).last_hidden_state[0], **EXACT)
