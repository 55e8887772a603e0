"""``protloom convert`` both ways, as a user runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import esm
import pytest
import torch
import transformers
from safetensors.torch import load_file

from protloom import weights
from protloom.cli import main


@pytest.fixture
def fair_file(tmp_path: Path) -> tuple[Path, Any]:
    """Random weights as fair-esm publishes them."""
    torch.manual_seed(0)
    model = esm.model.esm2.ESM2(2, 16, 2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = model.state_dict()
    contact = {key: value for key, value in state.items() if key.startswith("contact_head.")}
    options = argparse.Namespace(encoder_layers=2, encoder_embed_dim=16, encoder_attention_heads=2, token_dropout=True)
    file = tmp_path / "esm2_t2_test.pt"
    tensors = {f"encoder.sentence_encoder.{key}": value for key, value in state.items() if key not in contact}
    torch.save({"cfg": {"model": options}, "model": tensors}, file)
    torch.save({"model": contact}, tmp_path / "esm2_t2_test-contact-regression.pt")
    return file, model


def test_fair_esm_to_transformers_and_back(
    tmp_path: Path, fair_file: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file, fair = fair_file
    assert main(["convert", str(file), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "largest difference of logits 0.00e+00 over 4 sequences" in printed
    hugging = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([[0, 20, 15, 11, 32, 19, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(hugging(ids).logits, fair(ids)["logits"], rtol=1e-5, atol=1e-5)
    assert main(["convert", str(tmp_path / "hf"), "--to", "protloom", "--out", str(tmp_path / "own"), "--check"]) == 0
    own = load_file(tmp_path / "own" / "model.safetensors")
    assert torch.equal(own["embedding.weight"], fair.state_dict()["embed_tokens.weight"])
    assert main(["convert", str(tmp_path / "own"), "--to", "hf", "--out", str(tmp_path / "hf2")]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "hf2"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_refuses_to_overwrite(tmp_path: Path, fair_file: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("years of work")
    assert main(["convert", str(fair_file[0]), "--to", "hf", "--out", str(tmp_path / "there")]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("source", "said"), [("missing.pt", "no such file"), ("esm2_cut.pt", "damaged"), (".", "neither a run")]
)
def test_bad_sources_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "esm2_cut.pt").write_bytes(b"PK\x03\x04 not much")
    assert main(["convert", source, "--to", "hf", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_check_notices_other_weights(
    tmp_path: Path, fair_file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_save = weights.save_pretrained

    def save(folder: Path, **arguments: Any) -> None:
        state = dict(arguments["state"])
        state["head.bias"] = state["head.bias"].flip(0)
        true_save(folder, **{**arguments, "state": state})

    monkeypatch.setattr(weights, "save_pretrained", save)
    out = tmp_path / "hf"
    assert main(["convert", str(fair_file[0]), "--to", "hf", "--out", str(out), "--check"]) == 2
    assert "was not converted: logits before and after differ by" in capsys.readouterr().err
    assert not out.exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    assert "protloom convert runs/first --to hf" in capsys.readouterr().out
