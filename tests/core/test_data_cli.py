"""``protloom data`` as a user calls it: output, exit codes, one line for every mistake."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protloom.cli import main
from protloom.data.fasta import read_fasta
from protloom.data.store import Store, build_store

Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture, *argv: str | Path) -> str:
    """Runs a command that must fail; returns its one line."""
    capsys.readouterr()
    assert main(["data", *map(str, argv)]) not in (0, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_prepare_counts_what_it_did(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">a\nMKTAYI\n>b\nmkt\n>c\nMK1\n>a\nMKTAYI\n")
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "s"), "--licence", "CC0"]) == 0
    out = capsys.readouterr().out
    assert "4 records read, 2 sequences kept, 9 residues" in out
    for rule in ("lower-case letters become upper case", "a character outside A-Z", "same id and sequence"):
        (line,) = [line for line in out.splitlines() if rule in line]
        assert line.startswith("1 ")
    assert "record 3 (line 5) 'c' ('1')" in out
    assert f"protloom train --data {tmp_path / 's'}" in out
    assert Store.open(tmp_path / "s").manifest["licence"] == "CC0"


def test_prepare_as_json(small_fasta: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "prepare", str(small_fasta), "--out", str(tmp_path / "s"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sequences"] == 300
    assert found["policies"]["rules"]["empty"]["records"] == 0


def test_inspect_a_store_and_a_file(small_fasta: Path, tmp_path: Path, capsys: Capture) -> None:
    build_store(small_fasta, tmp_path / "s")
    assert main(["data", "inspect", str(tmp_path / "s")]) == 0
    assert "sequences      300" in capsys.readouterr().out
    cache = str(tmp_path / "cache")
    assert main(["data", "inspect", str(small_fasta), "--cache-dir", cache, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is True
    assert 2.9 < found["entropy_nats"] <= 2.9958  # 20 letters drawn evenly: ln 20 = 2.9957


def test_inspect_finds_damage(small_fasta: Path, tmp_path: Path, capsys: Capture) -> None:
    store = build_store(small_fasta, tmp_path / "s")
    file = store.path / "residues.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert "residues.npy" in error_of(capsys, "inspect", store.path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"MKTAYI\n", "line 1: expected a FASTA header"),
        (b">only a header\n", "1 no residues: dropped"),
        (b">a\nMKT4YI\n", "a character outside A-Z"),
        (b">a\nMKT\xc3\xa9YI\n", "a character outside A-Z"),
        (b"\x00\x01\x02\x03", "binary"),
        (gzip.compress(b">a\nMKTAYI\n" * 100, mtime=0)[:-9], "is truncated"),
    ],
)
def test_bad_files(data: bytes, message: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(data)
    assert message in error_of(capsys, "prepare", path, "--out", tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["x.fasta"]


@pytest.mark.parametrize("residues", ["MK1", "MKÉ", "", "mkt", "MKT*", "M-K", "M K"])
def test_strict_turns_every_policy_into_a_refusal(residues: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(f">good\nMKTAYI\n>bad\n{residues}\n")
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "lenient")]) == 0
    line = error_of(capsys, "prepare", path, "--out", tmp_path / "strict", "--strict")
    assert "record 2 (line 3) 'bad'" in line
    assert "--strict refuses it" in line
    assert not (tmp_path / "strict").exists()


def test_strict_accepts_what_is_clean(small_fasta: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "prepare", str(small_fasta), "--out", str(tmp_path / "s"), "--strict"]) == 0
    assert "nothing was changed or dropped" in capsys.readouterr().out


def test_mistakes_of_the_command_line(small_fasta: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "no such file" in error_of(capsys, "prepare", tmp_path / "smal.fasta", "--out", tmp_path / "s")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("precious")
    assert "is not a store" in error_of(capsys, "prepare", small_fasta, "--out", tmp_path / "work")
    assert "cannot write" in error_of(capsys, "prepare", small_fasta, "--out", small_fasta / "s")
    assert "no column" in error_of(capsys, "prepare", small_fasta, "--out", tmp_path / "s", "--column", "seq")
    assert "has no columns" in error_of(capsys, "prepare", "demo:?n=5", "--out", tmp_path / "s", "--column", "seq")
    assert "no such file" in error_of(capsys, "inspect", tmp_path / "nowhere", "--cache-dir", tmp_path / "cache")
    assert "has no manifest.json" in error_of(capsys, "inspect", tmp_path / "work")
    assert (tmp_path / "work" / "notes.txt").read_text() == "precious"


def test_nucleotides_are_pointed_out(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">a\nACGTACGTAC\n>b\nGGGTTTACCA\n")
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "s")]) == 0
    assert "look like nucleotides" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- demo


def test_demo_as_fasta_and_as_store_is_one_corpus(tmp_path: Path, capsys: Capture) -> None:
    fasta, folder = tmp_path / "demo.fasta", tmp_path / "demo"
    for out in (fasta, folder):
        assert main(["data", "demo", "--n", "50", "--seed", "7", "--out", str(out)]) == 0
        assert "SIMULATED" in capsys.readouterr().out
    records = {r.id: r.residues for r in read_fasta(fasta)}
    store = Store.open(folder)
    assert {store.id(i): store.sequence(i).tobytes() for i in range(len(store))} == records
    assert len(records) == 50
    assert store.manifest["simulated"] is True
    assert main(["data", "inspect", str(folder)]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert "exists" in error_of(capsys, "demo", "--n", "50", "--out", fasta)
    assert "n" in error_of(capsys, "demo", "--n", "-3", "--out", tmp_path / "d.fasta")


def test_prepare_reads_a_uri(tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "prepare", "demo:?n=40", "--out", str(tmp_path / "s")]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert len(Store.open(tmp_path / "s")) == 40


# ------------------------------------------------------------------------------------------------- in its own process


def protloom(*argv: str | Path, stdin: bytes = b"", limit: int | None = None) -> subprocess.CompletedProcess[bytes]:
    def before() -> None:
        if limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "protloom", "data", *map(str, argv)]
    return subprocess.run(command, input=stdin, capture_output=True, preexec_fn=before, timeout=60, check=False)


def test_standard_input(small_fasta: Path, tmp_path: Path) -> None:
    done = protloom("prepare", "-", "--out", tmp_path / "s", stdin=gzip.compress(small_fasta.read_bytes()))
    assert done.returncode == 0, done.stderr
    assert b"standard input: 300 records read" in done.stdout
    assert Store.open(tmp_path / "s").content_hash == build_store(small_fasta, tmp_path / "t").content_hash


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_full_disk(small_fasta: Path, tmp_path: Path) -> None:
    old = build_store(small_fasta, tmp_path / "s").content_hash
    larger = tmp_path / "larger.fasta"
    larger.write_text("".join(f">q{i}\n{'MKTAYI' * 50}\n" for i in range(1000)))
    # the system refuses to let any file grow beyond 100 kB, as a full disk would
    done = protloom("prepare", larger, "--out", tmp_path / "s", limit=100_000)
    assert done.returncode != 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: no space left to write")
    assert line.endswith("nothing was changed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["larger.fasta", "s", "small.fasta"]
    assert Store.open(tmp_path / "s").content_hash == old


def test_help_needs_no_numpy() -> None:
    code = (
        "import sys\nfrom protloom.cli import main\n"
        "assert main(['data', 'prepare', '--help']) == 0\n"
        "print(sorted({'numpy', 'torch', 'pluggy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "zcat" in done.stdout
