"""Probabilities of residues are refused where no objective ever trained what they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from tiny_run import ALONE, options_in

from protloom import config
from protloom.assembly import assemble
from protloom.cli import main
from protloom.likelihood import untrained
from protloom.plugins import Registry
from protloom.weights import load_pretrained

Capture = pytest.CaptureFixture[str]
HEAD = ("head.bias", "head.dense.bias", "head.dense.weight", "head.norm.bias", "head.norm.weight")
SAYS = "no objective of its training reached head."
JEPA: dict[str, Any] = {"objective": "jepa", "trainer__steps": 2}
SCAN = "title: t\nkind: variant-effect\nfile: v.csv\nwild_type: MKTAYIAKQRQISFVK\norigin: here\nlicence: none\n"


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    (tmp_path / "asked.fasta").write_text(">a\nMKTAYIAK\n")
    return ["score", str(tmp_path / "asked.fasta"), "--model"]


def train(folder: Path, fasta: Path, out: str, **changes: Any) -> str:
    assert main(["train", *options_in(folder, fasta)(out, **changes)]) == 0
    return str(folder / out)


def record(run: str) -> dict[str, Any]:
    (newest,) = sorted(Path(run, "checkpoints").glob("step-*"))[-1:]
    found: dict[str, Any] = json.loads((newest / "model" / "protloom.json").read_text())
    return found


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_latent_prediction_alone(
    tmp_path: Path, small_fasta: Path, asked: list[str], registry: Registry, capsys: Capture
) -> None:
    run = train(tmp_path, small_fasta, "run", **JEPA)
    found = load_pretrained(run, registry)
    assert set(untrained(found.architecture, found.stored.untrained)) == set(HEAD)
    assert f"{run} cannot score: {SAYS}" in refused(capsys, *asked, run)
    # a task that asks for scores fails, with and without the command of its own
    (tmp_path / "v.csv").write_text("mutant,DMS_score\nK2A,1\nT3G,2\nA4C,3\nY5W,1\n")
    (tmp_path / "v.yaml").write_text(SCAN)
    words = ["task", "run", str(tmp_path / "v.yaml"), "--model", run, "--no-random-init"]
    assert main(words) == 1
    assert f"cannot score variants: {SAYS}" in capsys.readouterr().err
    # features are fine
    assert main(["embed", asked[1], "-o", str(tmp_path / "f.npz"), "--model", run]) == 0
    # a folder that is made of it says the same
    for target in ("protloom", "hf"):
        out = str(tmp_path / target)
        assert main(["convert", run, "--to", target, "--out", out]) == 0
        assert SAYS in refused(capsys, *asked, out)
    # more of the same changes nothing, an objective that predicts residues does
    assert main(["resume", run, "trainer.steps=4"]) == 0
    assert SAYS in refused(capsys, *asked, run)
    more = train(tmp_path, small_fasta, "more", init=run, **JEPA)
    assert SAYS in refused(capsys, *asked, more)
    mended = train(tmp_path, small_fasta, "mended", init=run, trainer__steps=1)
    assert "untrained" not in record(mended)
    assert main([*asked, mended]) == 0


def test_what_predicts_residues_is_scored(
    tmp_path: Path, small_fasta: Path, asked: list[str], registry: Registry, capsys: Capture
) -> None:
    run = train(tmp_path, small_fasta, "run", trainer__steps=2)
    assert "untrained" not in record(run)
    assert main([*asked, run]) == 0
    # a head that was trained once is not random, whatever trains the rest of the network later
    later = train(tmp_path, small_fasta, "later", init=run, **JEPA)
    assert "untrained" not in record(later)
    assert main([*asked, later]) == 0


@pytest.mark.parametrize(("architecture", "objective"), [("ankh:tiny", "denoise"), ("ankh:tiny", "complete")])
def test_objectives_of_decoders_reach_everything(
    architecture: str, objective: str, tmp_path: Path, small_fasta: Path
) -> None:
    run = train(tmp_path, small_fasta, "run", architecture=architecture, objective=objective, trainer__steps=2)
    assert "untrained" not in record(run)


def test_a_decoder_that_was_never_trained(
    tmp_path: Path, asked: list[str], registry: Registry, capsys: Capture
) -> None:
    folder = tiny_model.save(tmp_path / "ankh", registry, architecture="ankh:tiny", tokenizer="ankh")
    found = json.loads((folder / "protloom.json").read_text())
    names = [name for name, _ in load_pretrained(folder, registry).model.named_parameters() if "decoder" in name]
    (folder / "protloom.json").write_text(json.dumps({**found, "untrained": names}))
    says = f"no objective of its training reached {names[0]} and {len(names) - 1} more"
    assert f"{folder} cannot score: {says}" in refused(capsys, *asked, str(folder))
    command = ("complete", asked[1], "--keep", "0.5", "--model", str(folder))
    assert f"{folder} cannot complete: {says}" in refused(capsys, *command)


def test_nothing_is_said_before_the_first_step(tmp_path: Path, small_fasta: Path, registry: Registry) -> None:
    run = assemble(
        config.load(None, options_in(tmp_path, small_fasta)(**JEPA), registry), registry, ALONE, initial=None
    )
    assert run.untrained() == ()
    assert set(HEAD) <= run.random
