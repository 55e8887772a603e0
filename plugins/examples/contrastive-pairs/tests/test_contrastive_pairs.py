"""The loss against its formula, and the corpus of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from protloom.cli import main
from protloom.data.store import open_corpus
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.testing.checks import Request
from protloom.testing.materials import proteins
from protloom.testing.objective_bench import Bench

REGISTRY = Registry.discover()
NAME = "protloom-contrastive-pairs/contrastive-pairs"


def bench() -> Bench:
    return Bench(Request(REGISTRY.resolve("objective", NAME), REGISTRY, {"temperature": 0.5}))


def test_the_loss_is_its_formula() -> None:
    tested = bench()
    made = tested.make()
    batch = tested.batch(made)
    losses, counts = tested.score(made, batch)
    assert counts == {"contrast": 8}
    share, _ = tested.share(made, batch)
    states = made.model.encode(share.inputs.tokens, share.inputs.cu).last.detach()
    rows = [part[1:-1].mean(0) for part in states.split(share.inputs.cu.lengths)]  # <cls> and <eos> cut off
    units = torch.stack([row / row.norm() for row in rows]).double()
    expected = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scores = torch.stack([units[i] @ units[j] / 0.5 for j in others])
        expected -= float(scores.log_softmax(0)[others.index(i ^ 1)])
    assert float(losses.totals["contrast"].detach()) == pytest.approx(expected, rel=1e-4)


def written(folder: Path, n: int = 60) -> Path:
    """Pairs that differ in a tenth of their residues."""
    rng = np.random.default_rng(0)
    lines = []
    for i, sequence in enumerate(proteins([60] * n)):
        letters = np.array(list(sequence))
        letters[rng.random(60) < 0.1] = "A"
        lines.append(f"p{i}\t{sequence}\t{''.join(letters)}")
    path = folder / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pairs_come_as_groups(tmp_path: Path) -> None:
    path = written(tmp_path)
    store = open_corpus(f"pairs:{path}", cache_dir=tmp_path / "cache", registry=REGISTRY)
    assert (len(store), store.n_groups) == (120, 60)
    path.write_text(path.read_text() + "more\tACDEF\tACDEY\n")  # another file under the same name is another corpus
    assert len(open_corpus(f"pairs:{path}", cache_dir=tmp_path / "cache", registry=REGISTRY)) == 122


def test_bad_tables(tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("p0\tACD\n")
    with pytest.raises(UserError, match=r"bad.tsv, line 1: 2 fields"):
        open_corpus(f"pairs:{tmp_path / 'bad.tsv'}", cache_dir=tmp_path, registry=REGISTRY)
    with pytest.raises(UserError, match="cannot be read"):
        open_corpus(f"pairs:{tmp_path / 'none.tsv'}", cache_dir=tmp_path, registry=REGISTRY)


def test_it_learns_who_belongs_together(tmp_path: Path) -> None:
    options = [
        "architecture=esm2:tiny",
        f"data.corpus=pairs:{written(tmp_path)}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"objective={NAME}",
        "optimizer.lr=0.003",
        "trainer.steps=25",
        "trainer.tokens_per_step=2000",
        "trainer.log_every=1",
        "trainer.precision=fp32",
        "trainer.tensorboard=false",
    ]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "learning_rate" in line]
    assert losses[-1] < 0.5 * losses[0]


def test_a_corpus_without_pairs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = tmp_path / "single.fasta"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins([40] * 50))))
    options = ["architecture=esm2:tiny", f"data.corpus={fasta}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(["train", *options, f"objective={NAME}", "--out", str(tmp_path / "run")]) == 2
    assert "this corpus has none" in capsys.readouterr().err
