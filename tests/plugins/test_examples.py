"""The example plugins as their authors would ship them: wheels in a fresh environment, tested by their own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_plugin_wheel import fresh_environment

from protloom.data.fasta import read_fasta

EXAMPLES = Path(__file__).resolve().parents[2] / "plugins" / "examples"
NAMES = ("masked-diffusion", "prefix-lm", "contrastive-pairs")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_is_tested_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if (path / "pyproject.toml").is_file()} == set(NAMES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples: building leaves files behind."""
    folder = tmp_path_factory.mktemp("examples") / "sources"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def python(sources: Path) -> Path:
    """The Python of a fresh environment into which the wheels of all examples were installed."""
    folder = sources.parent
    python = fresh_environment(folder / "venv")
    for name in NAMES:
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder / "dist", name, cwd=sources)
    pip = [sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", *(folder / "dist").glob("*.whl"), cwd=folder)
    return python


@pytest.fixture
def uniref(shared_data: Path) -> Path:
    """Real sequences."""
    path = shared_data / "pretrain_corpus" / "uniref90_sample_10k.fasta.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_passes_its_own_tests_as_a_wheel(name: str, python: Path, sources: Path) -> None:
    run(python, "-m", "pytest", "-q", "tests", cwd=sources / name)


@pytest.mark.slow
def test_the_examples_keep_their_promises(python: Path, tmp_path: Path) -> None:
    distributions = [f"protloom-{name}" for name in NAMES]
    assert "promises hold" in run(python, "-m", "protloom", "check-plugin", *distributions, cwd=tmp_path)


def overlapping(corpus: Path, path: Path) -> None:
    """Writes pairs of windows of real proteins that overlap by half."""
    found = [record.residues.decode() for record in read_fasta(corpus) if len(record.residues) >= 120][:2000]
    path.write_text("".join(f"p{i}\t{s[:80]}\t{s[40:120]}\n" for i, s in enumerate(found)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_learns_from_real_proteins(name: str, python: Path, tmp_path: Path, uniref: Path) -> None:
    """Held-out loss falls within some steps."""
    corpus, tokens, rate = str(uniref), 2048, 0.004
    if name == "contrastive-pairs":
        overlapping(uniref, tmp_path / "pairs.tsv")
        corpus, tokens, rate = "pairs:pairs.tsv", 16384, 0.001  # a hundred pairs to tell apart
    network = "ankh:tiny" if name == "prefix-lm" else "esm2:tiny"
    options = [f"objective={name}", "trainer.steps=60", f"trainer.tokens_per_step={tokens}", f"optimizer.lr={rate}"]
    options += ["schedule.warmup_steps=5", "trainer.validation_tokens=20000", "data.validation_fraction=0.05"]
    options += ["trainer.precision=fp32", "trainer.tensorboard=false", f"data.cache_dir={tmp_path / 'cache'}"]
    run(python, "-m", "protloom", "train", "--data", corpus, "--arch", network, *options, "--out", "run", cwd=tmp_path)
    log = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["validation/loss"] for line in log if "validation/loss" in line]
    assert losses[-1] < 0.97 * losses[0], losses


@pytest.mark.slow
def test_a_trained_diffusion_model_writes_proteins(python: Path, tmp_path: Path, small_fasta: Path) -> None:
    options = ["objective=masked-diffusion", "trainer.steps=3", "trainer.tensorboard=false"]
    corpus = [f"--data={small_fasta}", f"data.cache_dir={tmp_path / 'cache'}"]
    run(python, "-m", "protloom", "train", *corpus, "--arch=esm2:tiny", *options, "--out=run", cwd=tmp_path)
    command = [python, "-m", "protloom", "generate", "run", "--n=3", "--length=40", "steps=8", "--json"]
    written = json.loads(run(*command, cwd=tmp_path))
    assert written["generator"]["name"] == "protloom-masked-diffusion/masked-diffusion"
    sequences = written["sequences"]
    assert [len(sequence) for sequence in sequences] == [40] * 3
    assert set("".join(sequences)) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert json.loads(run(*command, cwd=tmp_path)) == written


@pytest.mark.slow
def test_what_is_written_is_compared_with_real_proteins(
    python: Path, sources: Path, tmp_path: Path, uniref: Path
) -> None:
    """The evaluation of the diffusion example on real sequences, small: what it holds side by side is comparable.

    A few steps teach no network to write: that the generated ones are nearer than the unigram is shown by the full
    evaluation, and on simple sequences by the example's own tests.
    """
    options = ["trainer.steps=20", "trainer.tokens_per_step=2048", "schedule.warmup_steps=2"]
    command = [python, sources / "masked-diffusion" / "evaluate.py", uniref, "--out", "out", "--arch", "esm2:tiny"]
    command += ["--n", "500", "--max-length", "200", "--steps", "4", "--seconds", "100000", "--options", *options]
    told = run(*command, cwd=tmp_path)
    parts = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.fasta")}
    sequences = {name: ["".join(r.split("\n")[1:]) for r in text.split(">")[1:]] for name, text in parts.items()}
    assert set(sequences) == {"train", "reference", "real", "generated"}
    assert [len(s) for s in sequences["generated"]] == [len(s) for s in sequences["real"]]
    assert not set(sequences["train"]) & {*sequences["real"], *sequences["reference"]}
    assert not set(sequences["real"]) & set(sequences["reference"])
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["real"]["divergence"] < found["shuffled"]["divergence"] < found["unigram"]["divergence"], told
    assert found["real"]["low"] > 0, told
    assert found["real"]["divergence"] < found["generated"]["divergence"] < 1, told
    for name in ("real", "generated", "shuffled", "unigram"):
        assert f"| {name} |" in told
