"""``protloom score`` against the library, for a masked model and an encoder-decoder."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from tiny_run import options_in

from protloom.cli import main
from protloom.likelihood import Reader
from protloom.plugins import Registry
from protloom.weights import load_pretrained

SEQUENCES = {"one": "MKTAYIAK", "two": "ACDEFGHIKLMNPQRSTVWY"}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "asked.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in SEQUENCES.items()))
    return path


@pytest.mark.parametrize("architecture", ["esm2:tiny", "ankh:tiny"])
def test_rows_are_the_likelihoods(
    architecture: str, fasta: Path, small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    words = options_in(tmp_path, small_fasta)(architecture=architecture, trainer__steps=2)
    assert main(["train", *words]) == 0
    run = str(tmp_path / "run")
    assert main(["score", str(fasta), "--model", run, "-o", str(tmp_path / "s.csv")]) == 0
    assert main(["score", str(fasta), "--model", run, "-o", str(tmp_path / "r.csv"), "--residues"]) == 0
    pretrained = load_pretrained(run, registry)
    expected = list(Reader(pretrained.architecture, pretrained.tokenizer).residues(list(SEQUENCES.values())))
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["id"] for row in rows] == list(SEQUENCES)
    for row, values in zip(rows, expected, strict=True):
        assert int(row["length"]) == len(values)
        assert float(row["pseudo_log_likelihood"]) == pytest.approx(float(values.sum()), abs=1e-4)
        assert float(row["perplexity"]) == pytest.approx(math.exp(-float(values.mean())), rel=1e-5)
    each = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["residue"] for row in each] == list("".join(SEQUENCES.values()))
    assert [float(row["log_p"]) for row in each] == pytest.approx([x for v in expected for x in v.tolist()], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tokens-per-batch", "0"], "--tokens-per-batch 0: must be at least 1"),
        (["-o", "asked.fasta"], "exists: remove it first"),
        (["--precision", "fp16"], "--precision: found 'fp16': fp16 is not offered"),
        (["--device", "mps"], "--device: no device 'mps'; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes(
    words: list[str],
    says: str,
    fasta: Path,
    small_fasta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["train", *options_in(tmp_path, small_fasta)(trainer__steps=1)]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["score", str(fasta), "--model", "run", *words]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
