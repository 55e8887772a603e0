"""``protloom embed`` from the command line: values against embedder and transformers, files against their readers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny_model
import torch
from pyarrow import parquet

from protloom.cli import main
from protloom.contracts import Offsets
from protloom.data.records import Entry
from protloom.embedding import files as embedding_files
from protloom.embedding.corpus import embed_corpus
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom.weights import load_pretrained

Proteins = Callable[..., list[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", registry)


@pytest.fixture
def proteins(random_proteins: Proteins) -> dict[str, str]:
    """Ids whose order is neither that of the alphabet nor of the lengths."""
    return {f"p{(7 * i) % 40}": sequence for i, sequence in enumerate(random_proteins(40, low=1, high=90))}


@pytest.fixture
def fasta(tmp_path: Path, proteins: dict[str, str]) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">{name} some words\n{sequence}\n" for name, sequence in proteins.items()))
    return path


def embed(source: Path | str, out: Path, model: Path, *options: str) -> None:
    assert main(["embed", str(source), "-o", str(out), "--model", str(model), *options]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail, and returns its one line."""
    capsys.readouterr()
    assert main(["embed", *map(str, arguments)]) != 0
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith("error: ")
    return error


def key(sequence: str) -> str:
    return hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()


def read_hdf5(path: Path) -> dict[str, Any]:
    """Reads a file as users of biotrainer do: by ``original_id``."""
    with h5py.File(path, "r") as file:
        return {dataset.attrs["original_id"]: dataset[()] for dataset in file.values()}


# ------------------------------------------------------------------------------------------------- values and formats


def test_hdf5_has_the_embedders_values_in_order(
    fasta: Path, proteins: dict[str, str], model: Path, registry: Registry, tmp_path: Path
) -> None:
    embedder, _, _ = open_subjects(str(model), registry, twin=None, layer=1)
    for pool in ("mean", "max", "cls"):
        out = tmp_path / f"{pool}.h5"
        embed(fasta, out, model, "--pool", pool, "--layer", "1", "--tokens-per-batch", "200")
        found = read_hdf5(out)
        assert list(found) == list(proteins)
        np.testing.assert_allclose(
            np.stack(list(found.values())), embedder.pooled(list(proteins.values()), pool), atol=1e-5
        )
    with h5py.File(out, "r") as file:
        assert [file[key(sequence)].attrs["original_id"] for sequence in proteins.values()] == list(proteins)


def test_residues(fasta: Path, proteins: dict[str, str], model: Path, registry: Registry, tmp_path: Path) -> None:
    embedder, _, _ = open_subjects(str(model), registry, twin=None)
    expected = dict(zip(proteins, embedder.residues(list(proteins.values())), strict=True))
    for suffix in (".h5", ".npz", ".parquet"):
        embed(fasta, tmp_path / f"x{suffix}", model, "--pool", "none", "--tokens-per-batch", "150")
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    files: list[dict[str, Any]] = [
        read_hdf5(tmp_path / "x.h5"),
        dict(np.load(tmp_path / "x.npz")),
        {row["id"]: np.array(row["embedding"], dtype=np.float32) for row in rows},
    ]
    assert [row["length"] for row in rows] == [len(sequence) for sequence in proteins.values()]
    for found in files:
        assert list(found) == list(proteins)
        for name, states in expected.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], states, atol=1e-5)


def test_pooled_npz_and_parquet(
    fasta: Path, proteins: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "BLOCK_BYTES", 1000)  # several row groups
    monkeypatch.setattr(embedding_files, "ID_ROWS", 7)
    for suffix in (".h5", ".npz", ".parquet"):
        embed(fasta, tmp_path / f"x{suffix}", model, "--tokens-per-batch", "20")
    expected = np.stack(list(read_hdf5(tmp_path / "x.h5").values()))
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["ids"].tolist() == list(proteins)
    np.testing.assert_array_equal(arrays["embeddings"], expected)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups > 1
    assert table["id"].to_pylist() == list(proteins)
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), expected)
    assert json.loads(table.schema.metadata[b"protloom"])["pool"] == "mean"
    assert not list(tmp_path.glob(".*"))


def test_mean_pooling_of_transformers(fasta: Path, proteins: dict[str, str], model: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    referee = transformers.EsmModel.from_pretrained(model, add_pooling_layer=False).eval()
    ids = {letter: 4 + i for i, letter in enumerate("LAGVSERTIDPKQNFYMHWC")}  # fair-esm's alphabet
    embed(fasta, tmp_path / "x.h5", model)
    found = read_hdf5(tmp_path / "x.h5")
    for name, sequence in list(proteins.items())[:10]:
        tokens = torch.tensor([[0, *(ids[letter] for letter in sequence), 2]])
        with torch.no_grad():
            states = referee(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
        np.testing.assert_allclose(found[name], states[1:-1].mean(0).numpy(), atol=1e-5)


def test_special_symbols_are_included_on_demand(
    fasta: Path, proteins: dict[str, str], model: Path, registry: Registry, tmp_path: Path
) -> None:
    embed(fasta, tmp_path / "x.npz", model, "--include-specials")
    embedder, _, _ = open_subjects(str(model), registry, twin=None)
    expected = embedder.pooled(list(proteins.values()), "mean", include_specials=True)
    np.testing.assert_allclose(np.load(tmp_path / "x.npz")["embeddings"], expected, atol=1e-5)


def test_prefix(fasta: Path, proteins: dict[str, str], registry: Registry, tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "ankh", registry, architecture="ankh:tiny", tokenizer="ankh3")
    loaded = load_pretrained(folder, registry)
    network, vocab = loaded.architecture, list(loaded.tokenizer.vocab)
    vectors = {}
    for mode in ("NLU", "S2S"):
        embed(fasta, tmp_path / f"{mode}.npz", folder, "--prefix", mode)
        vectors[mode] = np.load(tmp_path / f"{mode}.npz")["embeddings"]
        for sequence, vector in list(zip(proteins.values(), vectors[mode], strict=True))[:8]:
            ids = [vocab.index(symbol) for symbol in (f"[{mode}]", *sequence, "</s>")]
            with torch.no_grad():
                states = network.encode(torch.tensor(ids), Offsets.of([len(ids)])).last
            np.testing.assert_allclose(vector, states[1:-1].mean(0).numpy(), atol=1e-4)
    embed(fasta, tmp_path / "default.npz", folder)
    np.testing.assert_array_equal(np.load(tmp_path / "default.npz")["embeddings"], vectors["NLU"])
    assert np.abs(vectors["NLU"] - vectors["S2S"]).max() > 1e-3


# --------------------------------------------------------------------------------------------------- ids and sources


def test_duplicates(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.fasta"
    source.write_text(">a\nMKTAY\n>b\nGGGG\n>c\nmktay\n>a\nMKTAY\n>b\nMKTAY\n>b\nWWWW\n>b\nWWWW\n>d/e\nGGGG*\n")
    ids = {"a": "MKTAY", "b": "GGGG", "c": "MKTAY", "b#2": "MKTAY", "b#3": "WWWW", "d/e": "GGGG"}
    embed(source, tmp_path / "x.h5", model)
    with h5py.File(tmp_path / "x.h5") as file:
        assert [dataset.attrs["original_id"] for dataset in file.values()] == ["a", "b", "b#3"]
        assert list(file[key("MKTAY")].attrs["other_ids"]) == ["c", "b#2"]
        assert list(file[key("GGGG")].attrs["other_ids"]) == ["d/e"]
        vectors = {sequence: file[key(sequence)][()] for sequence in ids.values()}
    for suffix, read in ((".npz", np.load), (".parquet", lambda p: parquet.read_table(p).to_pylist())):
        out = tmp_path / f"x{suffix}"
        embed(source, out, model, "--json")
        found: Any = read(out)
        found = (
            {r["id"]: r["embedding"] for r in found}
            if suffix == ".parquet"
            else dict(zip(found["ids"].tolist(), found["embeddings"], strict=True))
        )
        assert list(found) == list(ids)
        for name, sequence in ids.items():
            np.testing.assert_allclose(found[name], vectors[sequence], atol=1e-6)
    document = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    rules = {name: facts["records"] for name, facts in document["policies"].items() if facts["records"]}
    assert rules == {"lower_case": 1, "final_stop": 1, "repeated_record": 2, "repeated_id": 2}
    # again, with a new id of a sequence that is there
    source.write_text(">a\nMKTAY\n>z\nWWWW\n")
    embed(source, tmp_path / "x.h5", model)
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file[key("WWWW")].attrs["other_ids"]) == ["z"]
        assert list(file[key("MKTAY")].attrs["other_ids"]) == ["c", "b#2"]


def test_many_ids_of_one_sequence(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "x.fasta"
    source.write_text("".join(f">protein-{i}\nMK\n" for i in range(6000)))
    embed(source, tmp_path / "x.h5", model, "--tokens-per-batch", "100")
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file) == 1
        assert list(file[key("MK")].attrs["other_ids"]) == [f"protein-{i}" for i in range(1, 6000)]


def test_every_source_gives_the_same(
    fasta: Path, proteins: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(fasta, tmp_path / "fasta.h5", model)
    expected = read_hdf5(tmp_path / "fasta.h5")
    table = tmp_path / "x.csv"
    table.write_text("name,protein\n" + "".join(f"{n},{s}\n" for n, s in proteins.items()))
    embed(table, tmp_path / "csv.h5", model, "--column", "protein")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(fasta.read_bytes())))
    embed("-", tmp_path / "stdin.h5", model)
    assert main(["data", "prepare", str(fasta), "--out", str(tmp_path / "store")]) == 0
    embed(tmp_path / "store", tmp_path / "store.h5", model)
    for name in ("csv", "stdin", "store"):
        found = read_hdf5(tmp_path / f"{name}.h5")
        assert list(found) == list(expected) or (name == "store" and set(found) == set(expected))
        for each, vector in expected.items():
            np.testing.assert_allclose(found[each], vector, atol=1e-5)


def test_long_sequences(
    model: Path, registry: Registry, tmp_path: Path, random_proteins: Proteins, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = random_proteins(2, low=60, high=61)
    short = short[:20]
    source = tmp_path / "x.fasta"
    source.write_text(f">short\n{short}\n>long\n{long}\n")
    counts = {"crop": ("cropped", 1), "window": ("windowed", 1), "skip": ("skipped", 1), "auto": ("cropped", 1)}
    for policy, (word, count) in counts.items():
        out = tmp_path / f"{policy}.h5"
        capsys.readouterr()
        embed(source, out, model, "--max-length", "32", "--long", policy, "--json")
        document = json.loads(capsys.readouterr().out)
        assert {name: document[name] for name in ("cropped", "windowed", "skipped")} == {
            "cropped": 0, "windowed": 0, "skipped": 0, word: count
        }  # fmt: skip
        found = read_hdf5(out)
        assert list(found) == ["short"] if policy == "skip" else ["short", "long"]
        embedder, _, _ = open_subjects(str(model), registry, twin=None, max_length=32, long_policy=policy)  # type: ignore[arg-type]
        for name, sequence in (("short", short), ("long", long)):
            if name in found:
                np.testing.assert_allclose(found[name], embedder.pooled([sequence])[0], atol=1e-5)


# ---------------------------------------------------------------------------------------------- going on after a stop


def test_a_second_run_computes_nothing(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.h5"
    embed(fasta, out, model)
    before = read_hdf5(out)
    capsys.readouterr()
    embed(fasta, out, model, "--json")
    document = json.loads(capsys.readouterr().out)
    assert (document["added"], document["tokens"]) == (0, 0)
    assert document["already_there"] == len(before)
    after = read_hdf5(out)
    assert all((after[name] == before[name]).all() for name in before)


SCRIPT = """
import sys
from protloom.embedding import files as embedding_files
from protloom.cli import embed, main
embedding_files.COMMIT_SECONDS = 0.0
embed._show = lambda summary: print(summary.added, file=sys.stderr, flush=True)
sys.stderr.isatty = lambda: True
sys.exit(main(["embed", *sys.argv[1:]]))
"""


def test_killed_and_continued(model: Path, tmp_path: Path, random_proteins: Proteins) -> None:
    source, out = tmp_path / "x.fasta", tmp_path / "x.h5"
    proteins = {f"p{i}": sequence for i, sequence in enumerate(random_proteins(600))}
    source.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in proteins.items()))
    options = ["--pool", "none", "--tokens-per-batch", "200"]
    command = [sys.executable, "-c", SCRIPT, source, "-o", out, "--model", model, *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stderr is not None
        for _ in range(random.randrange(1, 8)):
            assert process.stderr.readline().strip().isdigit()
        time.sleep(0.05 * random.random())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    # before anything is repaired, others can read the file (unless the kill hit the moment of a commit)
    if not embedding_files.journal_of(out).exists():
        partial = read_hdf5(out)
        assert list(partial) == list(proteins)[: len(partial)]
        assert 0 < len(partial) < len(proteins)
    embed(source, out, model, *options)
    embed(source, tmp_path / "whole.h5", model, *options)
    found, expected = read_hdf5(out), read_hdf5(tmp_path / "whole.h5")
    assert list(found) == list(expected) == list(proteins)
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert not list(tmp_path.glob(".*"))


def test_other_settings_are_refused(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], registry: Registry
) -> None:
    out = tmp_path / "x.h5"
    embed(fasta, out, model, "--layer", "1")
    before = out.read_bytes()
    for options, words in (
        (("--layer", "2"), "layer 1 (now 2)"),
        (("--layer", "1", "--pool", "max"), "pool 'mean' (now 'max')"),
        (("--layer", "1", "--max-length", "64"), "max_length 1024 (now 64)"),
    ):
        error = refused(capsys, fasta, "-o", out, "--model", model, *options)
        assert words in error
        assert "--overwrite" in error
        assert out.read_bytes() == before
    embed(fasta, out, model, "--layer", "2", "--overwrite")
    embed(fasta, tmp_path / "other.h5", model, "--layer", "2")
    for name, vector in read_hdf5(tmp_path / "other.h5").items():
        np.testing.assert_array_equal(read_hdf5(out)[name], vector)


def test_files_of_others_are_refused(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, text = tmp_path / "other.h5", tmp_path / "text.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(3)
    text.write_text("not HDF5")
    for path, words in ((other, "was not written by 'protloom embed'"), (text, "not a readable HDF5 file")):
        before = path.read_bytes()
        assert words in refused(capsys, fasta, "-o", path, "--model", model)
        assert path.read_bytes() == before


def test_a_file_that_is_being_written_is_refused(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.h5"
    embed(fasta, out, model)
    writer = embedding_files.JournaledFile(out)
    try:
        assert "is being written by another process" in refused(capsys, fasta, "-o", out, "--model", model)
    finally:
        writer.close()


def test_what_goes_wrong_leaves_npz_and_parquet_as_they_were(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.fasta"
    bad.write_text(">a\nMKTAY\n>b\nMK*AY\n")
    for suffix in (".npz", ".parquet"):
        out = tmp_path / f"x{suffix}"
        out.write_text("precious")
        assert "exists" in refused(capsys, bad, "-o", out, "--model", model)
        error = refused(capsys, bad, "-o", out, "--model", model, "--overwrite", "--strict")
        assert "'b'" in error
        assert out.read_text() == "precious"
        embed(bad, out, model, "--overwrite")
        assert out.read_bytes() != b"precious"
    assert not list(tmp_path.glob(".*"))


def test_overwriting_loses_nothing_where_it_fails_at_once(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, odd = tmp_path / "x.h5", tmp_path / "odd.fasta"
    odd.write_text(">a\nMKT\n>b\nMK*T\n")
    embed(fasta, out, model)
    before = out.read_bytes()
    refused(capsys, odd, "-o", out, "--model", model, "--strict", "--overwrite")
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.glob(".*")] == []
    # and where there was nothing, nothing stays that a second try would stumble over
    other = tmp_path / "y.h5"
    refused(capsys, odd, "-o", other, "--model", model, "--strict")
    assert not other.exists()
    embed(odd, other, model, "--pool", "max")
    embed(odd, out, model, "--overwrite")
    assert set(read_hdf5(out)) == {"a"}  # without --strict the other one is dropped


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".parquet"])
def test_no_space_left(fasta: Path, model: Path, tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource")
    out, small = tmp_path / f"x{suffix}", tmp_path / "small.fasta"
    small.write_text(">first\nMKTAY\n")
    if suffix == ".h5":
        embed(small, out, model, "--pool", "none")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-m", "protloom", "embed", fasta, "-o", out, "--model", model, "--pool", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(out) in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "x."))) == (
        ["x.fasta", "x.h5"] if suffix == ".h5" else ["x.fasta"]
    )
    if suffix == ".h5":
        assert list(read_hdf5(out)) == ["first"]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_one_line_for_each_mistake(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.h5"

    def line(*options: object, to: Path = out) -> str:
        return refused(capsys, fasta, "-o", to, "--model", model, *options)

    assert "'esm' of this model has no prefixes" in line("--prefix", "NLU")
    assert "Did you mean '.hdf5'?" in line(to=tmp_path / "x.hd5")
    assert "there is no folder" in line(to=tmp_path / "no" / "x.h5")
    assert "has no meaning with --pool none" in line("--pool", "none", "--include-specials")
    assert "0 (embedding) to 2 (final)" in line("--layer", "9")
    assert "--tokens-per-batch 0: must be at least 1" in line("--tokens-per-batch", "0")
    assert "--max-length 0: must be at least 1" in line("--max-length", "0")
    assert "--device: no device 'meta'; use auto, cpu, cuda or cuda:N" in line("--device", "meta")
    assert "--precision: found 'bf17': should be auto, fp32 or bf16" in line("--precision", "bf17")
    assert "no column" in line("--column", "x")
    for module, suffix in (("h5py", ".h5"), ("pyarrow", ".parquet")):
        monkeypatch.setitem(sys.modules, module, None)
        assert f"needs {module}: pip install 'protloom[embed]'" in line(to=tmp_path / f"x{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.fasta"]


# ------------------------------------------------------------------------------------------------------------- memory


def test_sequences_are_read_as_they_are_needed(model: Path, registry: Registry, random_proteins: Proteins) -> None:
    embedder, _, _ = open_subjects(str(model), registry, twin=None, tokens_per_batch=100)
    given = [Entry(f"p{i}", sequence) for i, sequence in enumerate(random_proteins(400))]
    read, most = 0, 0

    def entries() -> Iterator[Entry]:
        nonlocal read
        for entry in given:
            read += len(entry.sequence)
            yield entry

    class Counting:
        """Takes values and looks how far ahead was read."""

        taken = 0

        def holds(self, sequence: str) -> bool:
            return False

        def add(self, chunk: Any, values: Any) -> None:
            nonlocal most
            most = max(most, read - self.taken)
            self.taken += sum(len(entry.sequence) for entry in chunk)
            assert set(values) == {entry.sequence for entry in chunk}

    file = Counting()
    summary = embed_corpus(entries(), embedder, file, pool="none")
    assert file.taken == read == sum(len(entry.sequence) for entry in given)
    assert most < 4 * 100 + 120
    assert (summary.ids, summary.added) == (400, 400)
    assert summary.tokens == read + 2 * 400
