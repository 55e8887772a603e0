"""Model folders: written whole or not at all, read from every form, refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from tiny_run import options_in
from torch import Tensor

from protloom import checkpoint, hub, model_folder, weights
from protloom.cli import main
from protloom.config import Chosen
from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.plugins import Registry

SIZE = {"layers": 2, "width": 24, "heads": 3}
INEXPRESSIBLE_OPTIONS = {"train_mask_ratio": 0.2}
INEXPRESSIBLE = "transformers fixes ESM-2's train_mask_ratio at 0.12, this model has 0.2"


@pytest.fixture
def chosen(registry: Registry) -> Callable[..., Chosen]:
    """Makes a small architecture of given options."""

    def make(**options: Any) -> Chosen:
        component = registry.resolve("architecture", "esm2")
        model = component.load_config()
        assert model is not None
        return Chosen(component, model(**{**SIZE, **options}))

    return make


@pytest.fixture
def tokenizer(registry: Registry) -> Chosen:
    component = registry.resolve("tokenizer", "esm")
    model = component.load_config()
    assert model is not None
    return Chosen(component, model())


@pytest.fixture
def network(registry: Registry, tokenizer: Chosen) -> Callable[[Chosen], Any]:
    from protloom.contracts import BuildContext
    from protloom.kernels import choose

    def make(chosen: Chosen) -> Any:
        made = tokenizer.component.load_factory()(tokenizer.config)
        kernels = choose("auto", registry, torch.device("cpu"), torch.float32)
        return chosen.component.load_factory()(chosen.config, BuildContext(made, kernels))

    return make


Save = Callable[..., dict[str, Tensor]]


@pytest.fixture
def save(chosen: Callable[..., Chosen], tokenizer: Chosen, network: Callable[[Chosen], Any]) -> Save:
    """Writes a random model into a folder and returns its tensors."""

    def write(folder: Path, *, layout: Any = "auto", seed: int = 0, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        architecture = chosen(**options)
        state: dict[str, Tensor] = network(architecture).state_dict()
        weights.save_pretrained(
            folder,
            component=architecture.component,
            config=architecture.config,
            state=state,
            tokenizer=tokenizer.component.load_factory()(tokenizer.config),
            tokenizer_component=tokenizer.component,
            tokenizer_config=tokenizer.config,
            layout=layout,
        )
        return state

    return write


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


class TestModelFolder:
    @pytest.mark.parametrize("layout", ["auto", "adapter", "native"])
    def test_round_trip_is_bitwise(self, tmp_path: Path, save: Save, registry: Registry, layout: str) -> None:
        options = {"init": "esm2", "rope_precision": "fp16"}
        state = save(tmp_path / "m", layout=layout, **options)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]  # nothing unfinished stays beside it
        assert not list((tmp_path / "m").glob("*.p*[kt]"))  # nothing pickled
        loaded = weights.load_pretrained(tmp_path / "m", registry)
        assert same(loaded.stored.state, state)
        assert same(loaded.model.state_dict(), state)
        assert isinstance(loaded.stored.config, BaseModel)
        assert loaded.stored.config.model_dump() | options == loaded.stored.config.model_dump()
        assert not loaded.model.training
        assert loaded.notes == ()

    def test_layouts(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        save(tmp_path / "a", layout="adapter")
        save(tmp_path / "n", layout="native")
        assert "esm.embeddings.word_embeddings.weight" in load_file(tmp_path / "a" / "model.safetensors")
        assert "embedding.weight" in load_file(tmp_path / "n" / "model.safetensors")
        one, two = (weights.load_pretrained(tmp_path / name, registry) for name in "an")
        assert one.fingerprint == two.fingerprint
        assert one.fingerprint != weights.fingerprint(save(tmp_path / "other", seed=1))

    def test_options_without_a_foreign_form_are_written_natively(self, tmp_path: Path, save: Save) -> None:
        save(tmp_path / "m", train_mask_ratio=0.2)
        record = json.loads((tmp_path / "m" / "protloom.json").read_text())
        assert record["layout"] == "native"
        assert record["layout_reason"] == INEXPRESSIBLE
        with pytest.raises(UserError, match=f"{INEXPRESSIBLE}: use --to protloom"):
            save(tmp_path / "n", train_mask_ratio=0.2, layout="adapter")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]

    @pytest.mark.parametrize(("layout", "options"), [("auto", {}), ("adapter", {}), ("native", INEXPRESSIBLE_OPTIONS)])
    def test_no_reason_where_the_layout_is_the_one_asked_for(
        self, tmp_path: Path, save: Save, layout: str, options: dict[str, Any]
    ) -> None:
        save(tmp_path / "m", layout=layout, **options)
        assert "layout_reason" not in json.loads((tmp_path / "m" / "protloom.json").read_text())

    def test_the_reason_is_known_before_anything_is_written(
        self,
        chosen: Callable[..., Chosen],
        network: Callable[[Chosen], Any],
        tokenizer: Chosen,
        registry: Registry,
    ) -> None:
        made = tokenizer.component.load_factory()(tokenizer.config)
        for options, said in (({}, None), (INEXPRESSIBLE_OPTIONS, INEXPRESSIBLE)):
            mine = chosen(**options)
            state = network(mine).state_dict()
            assert weights.why_native(mine.component, mine.config, state, made) == said
        # where there is no other form, nothing is lost
        assert weights.why_native(registry.resolve("architecture", "proteinbert2"), None, {}, made) is None

    @pytest.mark.parametrize("look", [Tensor.item, Tensor.numpy, Tensor.tolist, lambda value: bool((value > 0).any())])
    def test_an_adapter_that_looks_at_the_numbers_is_asked_later(
        self, look: Callable[[Tensor], Any], chosen: Callable[..., Chosen], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Adapter:
            def export(self, config: Any, state: dict[str, Tensor], tokenizer: Any) -> Any:
                look(state["one"])
                raise UserError("these numbers have no form there")

        monkeypatch.setattr(model_folder, "adapter_of", lambda component: Adapter())
        mine = chosen()
        arguments = mine.component, mine.config, {"one": torch.ones(())}
        assert weights.why_native(*arguments, cast(Any, None)) is None
        about = model_folder._layout("auto", *arguments, cast(Any, None))[0]
        assert about == {"layout": "native", "layout_reason": "these numbers have no form there"}

    def test_building_does_not_move_the_random_generator(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        save(tmp_path / "m")
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        weights.load_pretrained(tmp_path / "m", registry)
        assert torch.equal(torch.rand(4), expected)

    def test_nothing_is_overwritten(self, tmp_path: Path, save: Save) -> None:
        save(tmp_path / "m")
        before = (tmp_path / "m" / "model.safetensors").read_bytes()
        with pytest.raises(UserError, match="not overwritten"):
            save(tmp_path / "m", seed=1)
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match="not overwritten"):
            save(tmp_path / "file")

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(model_folder, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    def test_dtype(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        save(tmp_path / "m")
        loaded = weights.load_pretrained(tmp_path / "m", registry, dtype=torch.bfloat16, kernels="reference")
        assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
        tokens = torch.as_tensor(loaded.tokenizer.encode("MKTAY"))
        assert loaded.architecture.encode(tokens, Offsets.of([7])).last.dtype == torch.bfloat16
        assert loaded.fingerprint == weights.load_pretrained(tmp_path / "m", registry).fingerprint


def damage(folder: Path, how: str) -> None:
    record, tensors = folder / "protloom.json", folder / "model.safetensors"
    content = json.loads(record.read_text())
    if how == "tensors missing":
        tensors.unlink()
    elif how == "tensors changed":
        raw = bytearray(tensors.read_bytes())
        raw[-1] ^= 1
        tensors.write_bytes(raw)
    elif how == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif how == "record cut":
        record.write_text(record.read_text()[:50])
    elif how == "record a list":
        record.write_text("[]")
    elif how == "format":
        record.write_text(json.dumps({**content, "format": 99}))
    elif how == "section":
        del content["architecture"]
        record.write_text(json.dumps(content))
    elif how == "section of wrong type":
        record.write_text(json.dumps({**content, "tokenizer": "esm"}))
    elif how == "option":
        content["architecture"]["config"]["depth"] = 3
        record.write_text(json.dumps(content))
    elif how == "unknown component":
        content["architecture"]["name"] = "esm3"
        record.write_text(json.dumps(content))
    elif how == "foreign plugin":
        content["architecture"]["distribution"] = "acme-models"
        record.write_text(json.dumps(content))


class TestDamage:
    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("tensors missing", r"model\.safetensors is missing"),
            ("tensors changed", r"model\.safetensors is damaged: its SHA-256"),
            ("tensors cut", r"model\.safetensors is damaged"),
            ("record cut", r"protloom\.json: damaged"),
            ("record a list", r"protloom\.json: damaged"),
            ("format", r"format 99 is not 1"),
            ("section", r"protloom\.json: damaged: section 'architecture'"),
            ("section of wrong type", r"protloom\.json: damaged: section 'tokenizer'"),
            ("option", r"protloom\.json: architecture protloom/esm2: depth: Extra inputs"),
            ("unknown component", r"Did you mean 'protloom/esm2'"),
            ("foreign plugin", r"acme-models.*pip install"),
        ],
    )
    @pytest.mark.parametrize("layout", ["adapter", "native"])
    def test_one_clear_line(
        self, tmp_path: Path, save: Save, registry: Registry, layout: str, how: str, said: str
    ) -> None:
        save(tmp_path / "m", layout=layout)
        damage(tmp_path / "m", how)
        with pytest.raises(UserError, match=said) as caught:
            weights.load_pretrained(tmp_path / "m", registry)
        assert "\n" not in str(caught.value)

    def test_a_parameter_is_missing(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        folder = tmp_path / "m"
        state = save(folder, layout="native")
        for change, said in (
            ({k: v for k, v in state.items() if k != "head.bias"}, "'head.bias' is missing"),
            ({**state, "extra": torch.zeros(1)}, "unexpected parameter 'extra'"),
            ({**state, "head.bias": torch.zeros(2)}, r"'head.bias' has shape \[2\], expected \[33\]"),
        ):
            save_file(change, folder / "model.safetensors")
            record = json.loads((folder / "protloom.json").read_text())
            record["sha256"] = model_folder._file_hash(folder / "model.safetensors")
            (folder / "protloom.json").write_text(json.dumps(record))
            with pytest.raises(UserError, match=said):
                weights.load_pretrained(folder, registry)


class TestSources:
    @pytest.fixture
    def run(self, tmp_path: Path, save: Save) -> Path:
        """A run folder with checkpoints of steps 10 and 20."""
        for step in (10, 20):
            folder = checkpoint.folder_of(tmp_path / "run", step)
            folder.mkdir(parents=True)
            save(folder / "model", seed=step)
        return tmp_path / "run"

    def test_a_run_is_its_newest_checkpoint_or_its_best(self, run: Path, registry: Registry) -> None:
        newest = weights.locate(run)
        assert newest == checkpoint.folder_of(run, 20) / "model"
        checkpoint.note_best(run, 10, "validation/loss", 2.5)
        assert weights.locate(run) == checkpoint.folder_of(run, 10) / "model"
        assert weights.locate(checkpoint.folder_of(run, 20)) == newest
        assert weights.locate(newest) == newest
        assert weights.read(run, registry).source == checkpoint.folder_of(run, 10) / "model"

    def test_a_run_without_checkpoints(self, tmp_path: Path, run: Path, registry: Registry) -> None:
        shutil.rmtree(checkpoint.folder_of(run, 20) / "model")
        with pytest.raises(UserError, match=r"incomplete; name another"):
            weights.read(run, registry)
        (tmp_path / "new" / "checkpoints").mkdir(parents=True)
        with pytest.raises(UserError, match="no checkpoint yet"):
            weights.read(tmp_path / "new", registry)

    def test_a_folder_of_something_else(self, tmp_path: Path, registry: Registry) -> None:
        (tmp_path / "photos").mkdir()
        with pytest.raises(UserError, match=r"neither a run, .*esm2"):
            weights.read(tmp_path / "photos", registry)

    @pytest.mark.parametrize("text", ["nothing", "a/b/c", "/nowhere/x", "./x/y"])
    def test_a_path_that_is_not_there(self, text: str, registry: Registry) -> None:
        with pytest.raises(UserError, match="no such file or folder"):
            weights.read(text, registry)

    def test_a_misspelt_run_is_not_asked_of_the_hub(
        self, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "first").mkdir(parents=True)
        with pytest.raises(UserError, match=r"runs holds first"):
            weights.read("runs/fist", registry)

    def test_a_hub_id_is_downloaded(
        self, tmp_path: Path, save: Save, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        state = save(tmp_path / "remote")
        (tmp_path / "remote" / "protloom.json").unlink()  # as other programs publish it
        asked: list[tuple[str, str]] = []

        def download(repository: str, *, revision: str) -> Path:
            asked.append((repository, revision))
            return tmp_path / "remote"

        monkeypatch.setattr(hub, "download", download)
        for text in ("facebook/esm2_t6_8M_UR50D", "hf:facebook/esm2_t6_8M_UR50D@v1.0"):
            assert same(weights.load_pretrained(text, registry).model.state_dict(), state)
        assert asked == [("facebook/esm2_t6_8M_UR50D", "main"), ("facebook/esm2_t6_8M_UR50D", "v1.0")]

    def test_an_exported_folder_needs_no_record(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        state = save(tmp_path / "m")
        (tmp_path / "m" / "protloom.json").unlink()
        loaded = weights.load_pretrained(tmp_path / "m", registry)
        assert same(loaded.model.state_dict(), state)
        assert loaded.tokenizer.name == "esm"


class TestInit:
    def test_describe_fits_the_weights(self, tmp_path: Path, save: Save, registry: Registry) -> None:
        save(tmp_path / "m", layout="adapter")
        described = weights.describe(tmp_path / "m", registry)
        assert described["architecture"]["name"] == "esm2"
        assert SIZE.items() <= described["architecture"].items()
        assert described["tokenizer"]["name"] == "esm"
        (tmp_path / "m" / "protloom.json").unlink()
        assert SIZE.items() <= weights.describe(tmp_path / "m", registry)["architecture"].items()

    def test_load_into(
        self,
        tmp_path: Path,
        save: Save,
        registry: Registry,
        chosen: Callable[..., Chosen],
        network: Callable[[Chosen], Any],
        tokenizer: Chosen,
    ) -> None:
        state = save(tmp_path / "m", seed=4)
        made = tokenizer.component.load_factory()(tokenizer.config)
        mine = chosen()
        model = network(mine)
        assert weights.load_into(model, mine, made, tmp_path / "m", registry) == ((), frozenset())
        assert same(model.state_dict(), state)
        other = chosen(token_dropout=False)
        (note,) = weights.load_into(network(other), other, made, tmp_path / "m", registry).notes
        assert "token_dropout True (run: False)" in note
        wide = chosen(width=48)
        with pytest.raises(UserError, match=r"another size: width 24 \(run: 48\)"):
            weights.load_into(network(wide), wide, made, tmp_path / "m", registry)
        made.vocab = made.vocab[:-1]
        with pytest.raises(UserError, match=r"33 symbols.*32 symbols"):
            weights.load_into(model, mine, made, tmp_path / "m", registry)


def test_a_run_says_once_that_other_programs_will_not_read_its_weights(
    small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_in(tmp_path, small_fasta)
    assert main(["train", *options("own", architecture__train_mask_ratio=0.2, trainer__steps=4)]) == 0
    said = f"note     weights are written under protloom's own names, which other programs do not read: {INEXPRESSIBLE}"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    records = [json.loads(file.read_text()) for file in (tmp_path / "own").glob("checkpoints/*/model/protloom.json")]
    assert [record["layout_reason"] for record in records] == [INEXPRESSIBLE] * 2
    assert main(["train", *options("plain", trainer__steps=2)]) == 0
    assert "note     weights" not in capsys.readouterr().out
