"""``protloom generate``: who writes with what, and what it says where that is not clear."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_files import Site
from tiny_run import options_in

from protloom.cli import main
from protloom.data.fasta import read_fasta
from protloom.generators import trained_with
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
