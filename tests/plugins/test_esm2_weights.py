"""ESM-2 weights of other programs, in and out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import esm
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from protloom import ops
from protloom.contracts import BuildContext, ImportedWeights, Offsets
from protloom.errors import UserError
from protloom_plugins.architectures.esm2 import Esm2
from protloom_plugins.architectures.esm2_config import Esm2Config
from protloom_plugins.architectures.esm2_weights import Esm2Weights
from protloom_plugins.kernels.reference import ReferenceBackend
from protloom_plugins.tokenizers.esm import VOCAB, EsmTokenizer, EsmTokenizerConfig

LAYERS, WIDTH, HEADS = 3, 24, 3
TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
ADAPTER = Esm2Weights()


def network(imported: ImportedWeights) -> Esm2:
    kernels = ops.select("auto", {"reference": ReferenceBackend()}, {}, torch.device("cpu"), torch.float32)
    model = Esm2(Esm2Config(**imported.config), BuildContext(TOKENIZER, kernels)).eval()
    model.load_state_dict(dict(imported.state))
    return model


@pytest.fixture(scope="module")
def fair() -> Any:
    torch.manual_seed(5)
    model = esm.model.esm2.ESM2(LAYERS, WIDTH, HEADS).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def hugging() -> Any:
    torch.manual_seed(6)
    config = transformers.EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
        emb_layer_norm_before=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.EsmForMaskedLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


Writer = Callable[..., Path]


@pytest.fixture
def write_fair(tmp_path: Path, fair: Any) -> Writer:
    """Writes the two files of fair-esm; ``change`` may edit the tensors, ``head`` says whether the second is there."""

    def write(
        change: Callable[[dict[str, Any]], None] = lambda _: None, *, head: bool = True, style: str = "cfg"
    ) -> Path:
        state = fair.state_dict()
        contact = {key: value for key, value in state.items() if key.startswith("contact_head.")}
        prefix = {"cfg": "encoder.sentence_encoder.", "args": "sentence_encoder.", "plain": ""}[style]
        tensors = {
            key if key.startswith("lm_head") and style == "args" else f"{prefix}{key}": value
            for key, value in state.items()
            if key not in contact
        }
        options = argparse.Namespace(
            encoder_layers=LAYERS, encoder_embed_dim=WIDTH, encoder_attention_heads=HEADS, token_dropout=True
        )
        content: dict[str, Any] = {"model": tensors}
        content |= {"cfg": {"cfg": {"model": options}}, "args": {"args": options}, "plain": {}}[style]
        change(content)
        file = tmp_path / "esm2_t3_test.pt"
        torch.save(content, file)
        if head:
            torch.save({"model": contact}, tmp_path / "esm2_t3_test-contact-regression.pt")
        return file

    return write


@pytest.fixture
def write_hugging(tmp_path: Path, hugging: Any) -> Writer:
    """Writes a Hugging Face folder with the names that released ESM-2 folders have."""

    def write(
        change: Callable[[dict[str, Tensor]], None] = lambda _: None,
        *,
        form: str = "safetensors",
        config: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir()
        hugging.config.save_pretrained(folder)
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, **(config or {})}))
        (folder / "vocab.txt").write_text("\n".join(VOCAB))
        tensors = {key: value.clone() for key, value in hugging.state_dict().items() if key != "lm_head.decoder.weight"}
        frequencies = tensors.pop("esm.rotary_embeddings.inv_freq")
        for i in range(LAYERS):
            name = f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"
            tensors[name] = frequencies.clone()
        tensors["esm.embeddings.position_ids"] = torch.arange(1026).unsqueeze(0)
        tensors["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, WIDTH)
        change(tensors)
        if form == "safetensors":
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        elif form == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            names = sorted(tensors)
            shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
            for shard, keys in shards.items():
                save_file({key: tensors[key] for key in keys}, folder / shard)
            table = {key: shard for shard, keys in shards.items() for key in keys}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        return folder

    return write


def same_logits(model: Esm2, referee: Any) -> None:
    ids = torch.as_tensor(TOKENIZER.encode("MKTAYIAKQR<mask>ISFVKSHFSRQ")).long()
    with torch.inference_mode():
        ours = model.logits(model.encode(ids, Offsets.of([len(ids)])).last)
        out = referee(ids.unsqueeze(0))
        theirs = out["logits"] if isinstance(out, dict) and "logits" in out else out.logits
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)


class TestFairEsm:
    @pytest.mark.parametrize("style", ["cfg", "args", "plain"])
    def test_reads(self, write_fair: Writer, fair: Any, style: str) -> None:
        file = write_fair(style=style)
        assert ADAPTER.recognises(file)
        imported = ADAPTER.read(file)
        assert imported.notes == ()
        assert imported.tokenizer == "esm"
        model = network(imported)
        same_logits(model, fair)
        assert torch.equal(model.contact_head.weight, fair.contact_head.regression.weight)

    def test_without_contact_head_it_is_initialised_and_told(self, write_fair: Writer, fair: Any) -> None:
        imported = ADAPTER.read(write_fair(head=False))
        (note,) = imported.notes
        assert "contact head" in note
        same_logits(network(imported), fair)

    def test_half_precision_files(self, write_fair: Writer) -> None:
        def halve(content: dict[str, Any]) -> None:
            content["model"] = {k: v.half() for k, v in content["model"].items()}

        imported = ADAPTER.read(write_fair(halve))
        assert imported.config["rope_precision"] == "fp16"
        assert all(value.dtype == torch.float32 for value in imported.state.values())

    def test_refuses_other_frequencies(self, write_fair: Writer) -> None:
        def change(content: dict[str, Any]) -> None:
            for key, value in content["model"].items():
                if key.endswith("inv_freq"):
                    content["model"][key] = value * 1.5

        with pytest.raises(UserError, match="rotary frequencies"):
            ADAPTER.read(write_fair(change))

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda m: m.pop("encoder.sentence_encoder.layers.1.fc1.weight"), "layers.1.fc1.weight' is missing"),
            (lambda m: m.pop("encoder.sentence_encoder.embed_tokens.weight"), "embed_tokens.weight' is missing"),
            (lambda m: m.update({"encoder.decoy": torch.zeros(1)}), "unexpected key 'decoy'"),
            (
                lambda m: m.update({"encoder.sentence_encoder.layers.0.fc2.bias": torch.zeros(5)}),
                r"layers.0.fc2.bias' has shape \[5\], expected \[24\]",
            ),
            (
                lambda m: m.update({"encoder.sentence_encoder.lm_head.weight": torch.zeros(33, WIDTH)}),
                "ties the two",
            ),
        ],
    )
    def test_wrong_keys(self, write_fair: Writer, edit: Callable[[dict[str, Any]], Any], said: str) -> None:
        file = write_fair(lambda content: edit(content["model"]))
        with pytest.raises(UserError, match=said) as caught:
            ADAPTER.read(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_damaged_file(self, write_fair: Writer) -> None:
        file = write_fair()
        file.write_bytes(file.read_bytes()[:2000])
        assert ADAPTER.recognises(file)
        with pytest.raises(UserError, match="damaged"):
            ADAPTER.read(file)

    def test_a_file_that_would_run_code_is_refused(self, write_fair: Writer, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "exploded",))

        file = write_fair(lambda content: content.update(extra=Bomb()))
        with pytest.raises(UserError, match="more than tensors"):
            ADAPTER.read(file)
        assert not (tmp_path / "exploded").exists()

    def test_the_contact_file_alone_is_explained(self, write_fair: Writer, tmp_path: Path) -> None:
        write_fair()
        with pytest.raises(UserError, match="only the contact head"):
            ADAPTER.read(tmp_path / "esm2_t3_test-contact-regression.pt")

    def test_other_files_are_not_recognised(self, tmp_path: Path) -> None:
        other = tmp_path / "other.pt"
        torch.save({"model": {"weight": torch.zeros(2)}}, other)
        assert not ADAPTER.recognises(other)
        (tmp_path / "notes.txt").write_text("embed_tokens.weight")
        assert not ADAPTER.recognises(tmp_path / "notes.txt")
        assert not ADAPTER.recognises(tmp_path / "nothing.pt")


class TestHuggingFace:
    @pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
    def test_reads(self, write_hugging: Writer, hugging: Any, form: str) -> None:
        folder = write_hugging(form=form)
        assert ADAPTER.recognises(folder)
        imported = ADAPTER.read(folder)
        assert imported.notes == ()
        same_logits(network(imported), hugging)

    def test_reads_what_transformers_writes_today(self, hugging: Any, tmp_path: Path) -> None:
        hugging.save_pretrained(tmp_path / "saved")
        same_logits(network(ADAPTER.read(tmp_path / "saved")), hugging)

    def test_an_encoder_without_head(self, write_hugging: Writer) -> None:
        """EsmModel saves names without 'esm.', a pooler, and no language-model head."""

        def change(tensors: dict[str, Tensor]) -> None:
            for key in list(tensors):
                value = tensors.pop(key)
                if key.startswith("esm."):
                    tensors[key.removeprefix("esm.")] = value
            tensors["pooler.dense.weight"] = torch.zeros(WIDTH, WIDTH)

        folder = write_hugging(change)
        imported = ADAPTER.read(folder)
        (note,) = imported.notes
        assert "language-model head" in note
        network(imported)
        # the same numbers every time, so that two loads of one file agree
        again = ADAPTER.read(folder)
        assert torch.equal(again.state["head.dense.weight"], imported.state["head.dense.weight"])

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"position_embedding_type": "absolute"}, "ESM-1b"),
            ({"emb_layer_norm_before": True}, "emb_layer_norm_before"),
            ({"hidden_size": None}, "'hidden_size' is missing"),
            ({"intermediate_size": 100}, "not a multiple"),
            ({"num_attention_heads": 5}, "multiple of 2"),
            ({"num_hidden_layers": 4}, "encoder.layer.3"),
            ({"num_hidden_layers": 2}, "unexpected key 'encoder.layer.2"),
            ({"rope_theta": 500.0, "rope_parameters": None}, "rotary frequencies"),
        ],
    )
    def test_configs_that_do_not_fit(self, write_hugging: Writer, config: dict[str, Any], said: str) -> None:
        folder = write_hugging(config=config)
        with pytest.raises(UserError, match=said) as caught:
            ADAPTER.read(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_another_vocabulary_is_refused(self, write_hugging: Writer) -> None:
        folder = write_hugging()
        (folder / "vocab.txt").write_text("\n".join(["<pad>", "<cls>", *VOCAB[2:]]))
        with pytest.raises(UserError, match="vocabulary"):
            ADAPTER.read(folder)

    def test_no_weights(self, write_hugging: Writer) -> None:
        folder = write_hugging()
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match="no weights"):
            ADAPTER.read(folder)

    def test_damaged_weights(self, write_hugging: Writer) -> None:
        folder = write_hugging()
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
            ADAPTER.read(folder)

    @pytest.mark.parametrize("reach", ["../hf.safetensors", "missing.safetensors"])
    def test_an_index_names_only_files_of_its_folder(self, write_hugging: Writer, reach: str) -> None:
        folder = write_hugging(form="sharded")
        index = folder / "model.safetensors.index.json"
        table = json.loads(index.read_text())["weight_map"]
        table[next(iter(table))] = reach
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(UserError, match=r"hf\.safetensors', which is not|no such file"):
            ADAPTER.read(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "bert"}'])
    def test_other_folders_are_not_recognised(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        assert not ADAPTER.recognises(tmp_path)


class TestExport:
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_transformers_loads_it_completely(self, tmp_path: Path, write_fair: Writer, precision: str) -> None:
        imported = ADAPTER.read(write_fair())
        options = {**imported.config, "rope_precision": precision}
        config, tensors, files = ADAPTER.export(Esm2Config(**options), imported.state, TOKENIZER)
        folder = tmp_path / "exported"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in files.items():
            (folder / name).write_text(text)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        model, told = transformers.EsmForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values()), told
        same_logits(network(ImportedWeights(options, imported.state)), model.eval())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer("MKTX-")["input_ids"] == TOKENIZER.encode("MKTX-").tolist()
        assert tokenizer.mask_token_id == TOKENIZER.mask_id
        again = ADAPTER.read(folder)
        assert again.config["rope_precision"] == precision

    @pytest.mark.parametrize("source", ["fair", "hugging"])
    def test_import_export_import_is_bitwise(
        self, tmp_path: Path, write_fair: Writer, write_hugging: Writer, source: str
    ) -> None:
        first = ADAPTER.read(write_fair() if source == "fair" else write_hugging())
        config, tensors, files = ADAPTER.export(Esm2Config(**first.config), first.state, TOKENIZER)
        folder = tmp_path / "again"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in files.items():
            (folder / name).write_text(text)
        save_file(tensors, folder / "model.safetensors")
        second = ADAPTER.read(folder)
        assert second.config == first.config
        assert second.notes == ()
        assert second.state.keys() == first.state.keys()
        for name, value in first.state.items():
            assert torch.equal(value, second.state[name]), name

    def test_exported_tensors_are_those_that_were_read(self, tmp_path: Path, write_hugging: Writer) -> None:
        folder = write_hugging()
        imported = ADAPTER.read(folder)
        _, tensors, _ = ADAPTER.export(Esm2Config(**imported.config), imported.state, TOKENIZER)
        original = load_file(folder / "model.safetensors")
        ignored = {"esm.embeddings.position_ids", "esm.embeddings.position_embeddings.weight"}
        assert tensors.keys() == original.keys() - ignored
        for name, value in tensors.items():
            assert torch.equal(value, original[name]), name

    def test_options_that_transformers_lacks_are_refused(self, write_fair: Writer) -> None:
        imported = ADAPTER.read(write_fair())
        config = Esm2Config(**{**imported.config, "train_mask_ratio": 0.2})
        with pytest.raises(UserError, match="train_mask_ratio"):
            ADAPTER.export(config, imported.state, TOKENIZER)
