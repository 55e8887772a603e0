"""``protloom generate``: who writes with what, and what it says where that is not clear."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plugin_files import Site
from safetensors.torch import load_file, save_file
from tiny_run import options_in

from protloom.cli import main
from protloom.data.fasta import read_fasta
from protloom.generators import generate, trained_with
from protloom.testing.materials import proteins

SPECS = """
    from protloom import GeneratorSpec, ObjectiveSpec, hookimpl

    def spec(name, objectives):
        return GeneratorSpec(
            name=name, factory="acme_writer_code:Writer", config="acme_writer_code:Options", objectives=objectives
        )

    @hookimpl
    def protloom_generators():
        return [spec("writer", ("protloom/mlm",)), spec("other", ("own",)), spec("needy", ())]

    @hookimpl
    def protloom_objectives():
        home = "protloom_plugins.objectives"
        return [ObjectiveSpec(name="own", factory=f"{home}.mlm:MaskedLM", config=f"{home}.mlm_config:MaskedLMConfig")]
"""

CODE = """
import numpy as np
from protloom.settings import Section

class Options(Section):
    letters: str = "ACDE"
    needs: str = "encode"

class Writer:
    def __init__(self, config):
        self.config, self.needs = config, frozenset({config.needs})

    def write(self, model, tokenizer, lengths, numbers, rng):
        letters = np.array(list(self.config.letters))
        return ["".join(letters[rng.at(i, np.arange(n)) % len(letters)]) for n, i in zip(lengths, numbers)]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    site.add("acme", "acme_writer", SPECS)
    (site.folder / "acme_writer_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(site.folder)
    yield site
    for name in ("acme_writer", "acme_writer_code"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one step of masked LM."""
    folder = tmp_path_factory.mktemp("trained")
    fasta = folder / "proteins.fasta"
    fasta.write_text(
        "".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(proteins([40 + i for i in range(40)])))
    )
    assert main(["train", *options_in(folder, fasta)(trainer__steps=1)]) == 0
    return str(folder / "run")


def sequences(fasta: str) -> list[str]:
    return ["".join(part.split("\n")[1:]) for part in fasta.split(">")[1:]]


@pytest.mark.usefixtures("installed")
def test_a_run_is_written_with_by_the_way_for_its_objective(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained_with(model) == ("protloom/mlm",)
    capsys.readouterr()
    assert main(["generate", model, "--length", "30", "--n", "4", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    written = sequences(out)
    assert [len(text) for text in written] == [30] * 4
    assert set("".join(written)) == set("ACDE")
    assert out.startswith(">generated-1 length=30 seed=3\n")
    assert err == "4 sequences, by acme/writer\n"
    # the same, to a file, in other batches
    out_file = tmp_path / "written.fasta"
    words = ["--length", "30", "--n", "4", "--seed", "3", "--tokens-per-batch", "1", "-o", str(out_file)]
    assert main(["generate", model, *words]) == 0
    assert [record.residues.decode() for record in read_fasta(out_file)] == written
    assert main(["generate", model, *words]) == 2
    assert "exists: remove it first" in capsys.readouterr().err
    # a checkpoint's folder of weights says it too; the options are the generator's
    (folder,) = (Path(model) / "checkpoints").glob("step-*")
    assert main(["generate", str(folder), "letters=WY", "--length", "9", "--n", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["generator"] == {"name": "acme/writer", "letters": "WY", "needs": "encode"}
    assert set(told["sequences"][0]) <= set("WY")
    assert len(told["sequences"][0]) == 9


@pytest.mark.usefixtures("installed")
def test_lengths_of_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    like = tmp_path / "like.fasta"
    like.write_text(">a\nACDEF\n>b\nAC\n>c\nACDEFGHIKLMN\n")
    assert main(["generate", model, "--like", str(like)]) == 0
    assert [len(text) for text in sequences(capsys.readouterr().out)] == [5, 2, 12]
    assert main(["generate", model, "--like", str(like), "--n", "2"]) == 0
    assert [len(text) for text in sequences(capsys.readouterr().out)] == [5, 2]
    assert main(["generate", model, "--like", str(like), "--n", "4"]) == 2
    assert "like.fasta holds 3 sequences" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "how long? Give --length L, or --like FILE"),
        (["--length", "0"], "--length 0: must be at least 1"),
        (["--length", "5", "--n", "0"], "--n 0: must be at least 1"),
        (["--length", "5", "--like", "x.fasta"], "and not both"),
        (["--length", "5", "--tokens-per-batch", "0"], "--tokens-per-batch 0: must be at least 1"),
        (["--length", "5", "--device", "meta"], "--device: no device 'meta'; use auto, cpu, cuda or cuda:N"),
        (["--length", "5", "leters=A"], "leters: unknown key. Did you mean 'letters'?"),
        (["--length", "5", "letters"], "'letters' is not of the form key=value"),
        (["--length", "5", "needs=fly"], "generator 'acme/writer' (acme 1.0) needs fly, which this network cannot do"),
        (["--length", "5", "--generator", "writr"], "no generator 'writr'. Did you mean 'writer'?"),
    ],
)
def test_mistakes(words: list[str], says: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["generate", model, *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert says in err


@pytest.mark.usefixtures("installed")
def test_what_a_file_lacks(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without(part: str) -> str:
        out = tmp_path / part
        assert main(["convert", model, "--to", "hf", "--out", str(out)]) == 0
        tensors = load_file(out / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if part not in name}
        assert len(kept) < len(tensors)
        save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
        (out / "protloom.json").unlink()  # as another program's folder, which states no hash
        capsys.readouterr()
        return str(out)

    words = ["--length", "5", "--n", "1", "--generator", "writer"]
    assert main(["generate", without("contact_head"), *words]) == 0  # no residue depends on it
    out, err = capsys.readouterr()
    assert len(sequences(out)) == 1
    assert "warning: model.safetensors has no contact head" in err
    assert main(["generate", without("lm_head"), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "lm_head cannot generate: model.safetensors has no language-model head" in err


@pytest.mark.parametrize(
    ("tokens_per_batch", "numbers"),
    [(None, [[0, 1, 2, 3], [4]]), (2048, [[0, 1], [2, 3], [4]]), (2047, [[0], [1], [2], [3], [4]])],
)
def test_tokens_of_a_batch(tokens_per_batch: int | None, numbers: list[list[int]]) -> None:
    """On CPU 4,096 where nobody says; each sequence has two special symbols."""
    found: list[list[int]] = []

    class Recorder:
        needs = frozenset({"encode"})

        def write(self, _m: Any, _t: Any, lengths: Sequence[int], numbers: Sequence[int], _rng: Any) -> list[str]:
            found.append(list(numbers))
            return ["A" * length for length in lengths]

    chosen: Any = SimpleNamespace(component=SimpleNamespace(build=lambda _config, of: Recorder()), config=None)
    network: Any = torch.nn.Linear(1, 1)
    network.capabilities = frozenset({"encode"})
    tokenizer: Any = SimpleNamespace(prefix=(0,), suffix=(1,))
    written = list(generate(chosen, network, tokenizer, [1022] * 5, tokens_per_batch=tokens_per_batch))
    assert [len(text) for text in written] == [1022] * 5
    assert found == numbers


def test_a_model_that_nobody_writes_with(
    installed: Site, model: str, small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "exported")
    assert main(["convert", model, "--to", "protloom", "--out", out]) == 0
    capsys.readouterr()
    assert main(["generate", out, "--length", "5"]) == 2
    says = "does not say which objective it was trained with: --generator NAME takes one of needy, other, writer"
    assert says in capsys.readouterr().err
    assert main(["generate", out, "--length", "5", "--generator", "needy"]) == 0
    denoised = options_in(tmp_path, small_fasta)(
        "denoised", trainer__steps=1, architecture="ankh:tiny", objective="denoise"
    )
    assert main(["train", *denoised]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "denoised"), "--length", "5"]) == 2
    says = "was trained with protloom/denoise, and no installed plugin writes sequences with that (--generator NAME"
    assert says in capsys.readouterr().err
    own = options_in(tmp_path, small_fasta)("own", trainer__steps=1, objective="own")
    assert main(["train", *own]) == 0
    assert main(["generate", str(tmp_path / "own"), "--length", "5"]) == 0
    assert "by acme/other" in capsys.readouterr().err
    config = tmp_path / "own" / "checkpoints" / "step-00000001" / "config.yaml"
    config.write_text(config.read_text().replace("distribution: acme", "distribution: gone"))
    assert main(["generate", str(tmp_path / "own"), "--length", "5"]) == 2
    assert "was trained with gone/own, and no installed plugin writes sequences with that; install gone" in (
        capsys.readouterr().err
    )
