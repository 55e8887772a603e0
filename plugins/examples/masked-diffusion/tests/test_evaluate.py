"""The comparison of compositions, against scipy and cases whose answer is known."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from protloom.errors import UserError
from protloom.rng import CounterRNG
from protloom.testing.materials import proteins

SCRIPT = Path(__file__).resolve().parents[1] / "evaluate.py"
spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
evaluate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluate)

RNG = CounterRNG(0, "test")


def test_three_mers_are_counted() -> None:
    sequences = ["ACDAC", "AC", "WWWW"]
    counts = evaluate.Composition(sequences).counts()
    expected = Counter(s[i : i + 3] for s in sequences for i in range(len(s) - 2))
    named = {a + b + c: i for i, (a, b, c) in enumerate(all_names())}
    assert {name: counts[i] for name, i in named.items() if counts[i]} == dict(expected)
    assert evaluate.Composition(sequences).counts(np.array([2, 1, 0])).sum() == 6
    with pytest.raises(ValueError, match="sequence 1 has other letters"):
        evaluate.codes(["ACD", "AXC"])


def all_names() -> list[tuple[str, str, str]]:
    return [(a, b, c) for a in evaluate.RESIDUES for b in evaluate.RESIDUES for c in evaluate.RESIDUES]


def test_the_divergence_is_that_of_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    draw = np.random.default_rng(0)
    for _ in range(5):
        one, other = draw.poisson(0.5, 8000).astype(float), draw.poisson(2.0, 8000).astype(float)
        assert evaluate.divergence(one, other) == pytest.approx(distance.jensenshannon(one, other, base=2) ** 2)
    assert evaluate.divergence(one, one) == 0
    apart = np.zeros(8000), np.zeros(8000)
    apart[0][0], apart[1][1] = 3, 5
    assert evaluate.divergence(*apart) == pytest.approx(1)


def repeats(n: int, seed: int) -> list[str]:
    """Sequences that repeat a motif of their own: 3-mers that residues drawn one by one do not give."""
    motifs = np.random.default_rng(1).choice(list(evaluate.RESIDUES), (8, 5))
    chosen = np.random.default_rng(seed).integers(8, size=n)
    return ["".join(motifs[i]) * 12 for i in chosen]


def test_what_is_like_the_reference_is_nearer() -> None:
    real = repeats(200, 3)
    lengths = [len(sequence) for sequence in real]
    drawn = evaluate.unigram(lengths, repeats(500, 4), RNG.stream("unigram"))
    assert [len(sequence) for sequence in drawn] == lengths
    mixed = evaluate.shuffled(real, RNG.stream("shuffled"))
    assert [sorted(sequence) for sequence in mixed] == [sorted(sequence) for sequence in real]
    assert mixed != real
    sets = {"real": real, "shuffled": mixed, "unigram": drawn}
    found = evaluate.compare(repeats(200, 2), sets, replicates=50)
    assert found["real"]["divergence"] < found["shuffled"]["divergence"] < found["unigram"]["divergence"]
    assert found["real"]["low"] > 0.1
    assert found["real"]["low"] < found["real"]["nearer"] < found["real"]["high"]
    assert found["unigram"]["nearer"] == found["unigram"]["low"] == found["unigram"]["high"] == 0
    assert found == evaluate.compare(repeats(200, 2), sets, replicates=50)
    told = evaluate.table(found, 200, sum(lengths))
    assert told.index("| real |") < told.index("| shuffled |") < told.index("| unigram |")
    with pytest.raises(ValueError, match="differ in their lengths"):
        evaluate.compare(real, {"real": real, "short": ["ACDEF"] * 200})


def test_frequencies_are_those_of_the_training_part() -> None:
    drawn = "".join(evaluate.unigram([5000] * 4, ["AAAC", "AAAW"], RNG))
    counts = Counter(drawn)
    assert set(counts) == {"A", "C", "W"}
    assert counts["A"] / len(drawn) == pytest.approx(0.75, abs=0.02)


def test_parts_are_apart(tmp_path: Path) -> None:
    fasta = tmp_path / "proteins.fasta"
    found = [*proteins([40 + i % 60 for i in range(90)]), "ACDX" * 20, "ACDE" * 400, "ACDEF"]
    found += found[:10]  # the same once more
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(found)))
    parts = evaluate.split([str(fasta)], 20, 512, RNG)
    assert {name: len(part) for name, part in parts.items()} == {"train": 50, "reference": 20, "real": 20}
    assert set().union(*parts.values()) == set(found[:90])
    assert parts == evaluate.split([str(fasta)], 20, 512, RNG)
    with pytest.raises(UserError, match=r"90 sequences can be used .* 80 are held out"):
        evaluate.split([str(fasta)], 40, 512, RNG)


def test_what_a_network_has_learnt_shows_in_what_it_writes(tmp_path: Path) -> None:
    """Each protein has three kinds of residues, of six sorts: to write such, a residue must fit those that are there.

    Also that a second call does nothing again.
    """
    draw = np.random.default_rng(0)
    sorts = ("ACD", "EFG", "HIK", "LMN", "PQR", "STV")
    sequences = ["".join(draw.choice(list(sorts[draw.integers(6)]), 40 + i % 30)) for i in range(600)]
    fasta, out = tmp_path / "proteins.fasta", tmp_path / "out"
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    command = [sys.executable, str(SCRIPT), str(fasta), "--out", str(out), "--arch", "esm2:tiny", "--n", "60"]
    command += ["--steps", "16", "--seconds", "100000", "--options", "trainer.steps=120", "trainer.precision=fp32"]
    command += ["trainer.tokens_per_step=2048", "optimizer.lr=0.01", "schedule.warmup_steps=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ protloom train" in done.stdout
    assert "$ protloom generate" in done.stdout
    found = json.loads((out / "result.json").read_text())
    assert set(found) == set(evaluate.SETS)
    assert found["generated"]["low"] > 0.1, done.stdout
    assert found["real"]["divergence"] < found["generated"]["divergence"]
    assert [len(s) for s in evaluate.read(out / "generated.fasta")] == [
        len(s) for s in evaluate.read(out / "real.fasta")
    ]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "$ protloom" not in again.stdout
    assert json.loads((out / "result.json").read_text()) == found
