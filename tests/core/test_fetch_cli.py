"""``protloom data fetch`` from a server on this machine: tables made, licences shown, nothing good overwritten."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serve

from protloom import download
from protloom.cli import data_fetch, main
from protloom.contracts import HasSequences
from protloom.download import Patience
from protloom.plugins import Registry
from protloom.task import suite as task_suite

Capture = pytest.CaptureFixture[str]

TRAIN = b"seq,y\n" + b"".join(b"MKT%s,%d\n" % (b"A" * i, i) for i in range(40))
TEST = b">t1 Y=5\nWWW\n>t2 Y=7\nYYY\n"


def archive(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name, content in members.items():
            out.writestr(f"{name}.fasta", content)
    return packed.getvalue()


ZIP = archive(test=TEST, more=b">m Y=1\nCCC\n")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(FileServer({"/repo/train.csv": TRAIN, "/repo/v/test.zip": ZIP})) as state:
        yield state


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes downloads give up at once, and lets no folder of the user's be the data folder."""
    monkeypatch.setattr(download, "Patience", lambda: Patience(attempts=1, pause=0.0))
    monkeypatch.delenv(data_fetch.VARIABLE, raising=False)


def definition(path: Path, sha256: str = hashlib.sha256(ZIP).hexdigest()) -> str:
    """Writes a task of three files, two of which come out of one archive; returns its path."""
    path.write_text(
        f"""\
title: t
kind: regression
sequence: seq
label: y
splits:
  train: d/train.csv.gz
  test: [d/test.csv, d/more.csv]
origin: somebody's repository
licence: CC BY 4.0
fetch:
  - file: d/train.csv.gz
    parts: [{{url: https://host/repo/train.csv, bytes: {len(TRAIN)}}}]
  - file: d/test.csv
    parts:
      - url: https://host/repo/v/test.zip
        sha256: {sha256}
        member: test.fasta
        header: '(?P<id>\\S+) Y=(?P<y>\\S+)'
        columns: {{seq: sequence, y: y}}
  - file: d/more.csv
    parts:
      - url: https://host/repo/v/test.zip
        sha256: {sha256}
        member: more.fasta
        header: '(?P<id>\\S+) Y=(?P<y>\\S+)'
        columns: {{seq: sequence, y: y}}
"""
    )
    return str(path)


def fetch(*words: str | Path) -> int:
    return main(["data", "fetch", *map(str, words)])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


MADE = [".downloads/.lock", "d/more.csv", "d/test.csv", "d/train.csv.gz"]


def test_a_task_from_nothing_to_its_sequences(
    server: FileServer, tmp_path: Path, registry: Registry, capsys: Capture
) -> None:
    task, data = definition(tmp_path / "t.yaml"), tmp_path / "data"
    assert fetch(task, "--out", data, "--url-base", server.address) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    lines = printed.splitlines()
    assert "  licence: CC BY 4.0" in lines
    assert f"  address: {server.address}/repo/v/test.zip" in lines
    assert lines.index("  licence: CC BY 4.0") < next(i for i, line in enumerate(lines) if line.startswith("fetched"))
    assert names(data) == MADE
    assert gzip.decompress((data / "d" / "train.csv.gz").read_bytes()) == TRAIN
    assert (data / "d" / "test.csv").read_text() == "seq,y\nWWW,5\nYYY,7\n"
    assert [request.path for request in server.requests] == ["/repo/train.csv", "/repo/v/test.zip"]  # the archive once
    choice = task_suite.select([task], registry).choices[0]
    built = task_suite.build(choice.component, registry, data_dir=str(data), options=choice.options)
    assert isinstance(built, HasSequences)
    assert list(built.sequences("test")) == ["WWW", "YYY", "CCC"]
    # a second time there is nothing to do
    assert fetch(task, "--out", data, "--url-base", server.address) == 0
    assert "is there" in capsys.readouterr().out
    assert len(server.requests) == 2


def test_what_is_there_is_left_alone(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    task, data = definition(tmp_path / "t.yaml"), tmp_path / "data"
    (data / "d").mkdir(parents=True)
    (data / "d" / "test.csv").write_text("seq,y\nMINE,1\n")
    assert fetch(task, "--out", data, "--url-base", server.address, "--json") == 0
    states = {file["path"]: file["state"] for file in json.loads(capsys.readouterr().out)["files"]}
    assert states == {"d/train.csv.gz": "fetched", "d/test.csv": "ready", "d/more.csv": "fetched"}
    assert (data / "d" / "test.csv").read_text() == "seq,y\nMINE,1\n"


def test_a_cut_download_goes_on(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    task, data = definition(tmp_path / "t.yaml"), tmp_path / "data"
    server.cuts["/repo/train.csv"] = [100]
    assert fetch(task, "--out", data, "--url-base", server.address) == 1
    errors = capsys.readouterr().err
    assert "error: d/train.csv.gz: " in errors
    assert "what has arrived is kept, the same command goes on" in errors
    assert "1 of 3 files are not there: d/train.csv.gz" in errors
    kept = [name for name in names(data) if name.startswith(".downloads/") and "train.csv" in name]
    assert [name.split("-")[1] for name in kept] == ["train.csv.part", "train.csv.part.etag"]
    assert "d/test.csv" in names(data)  # one file that cannot be had does not stop the others
    server.requests.clear()
    assert fetch(task, "--out", data, "--url-base", server.address) == 0
    assert server.asked() == ["bytes=100-"]
    assert names(data) == MADE


def test_a_wrong_hash_and_a_missing_file(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    task, data = definition(tmp_path / "t.yaml", sha256="0" * 64), tmp_path / "data"
    assert fetch(task, "--out", data, "--url-base", server.address) == 1
    errors = capsys.readouterr().err
    assert f"/repo/v/test.zip: what arrived has the SHA-256 {hashlib.sha256(ZIP).hexdigest()[:12]}…" in errors
    assert "2 of 3 files are not there: d/test.csv, d/more.csv" in errors
    assert names(data) == [".downloads/.lock", "d/train.csv.gz"]
    del server.files["/repo/v/test.zip"]
    assert fetch(definition(tmp_path / "t.yaml"), "--out", data, "--url-base", server.address) == 1
    assert "there is no such file (404)" in capsys.readouterr().err


def test_a_file_that_is_something_else(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    server.files["/repo/v/test.zip"] = archive(test=b">t1 no label\nWWW\n", more=b">m Y=1\nCCC\n")
    sha256 = hashlib.sha256(server.files["/repo/v/test.zip"]).hexdigest()
    data = tmp_path / "data"
    assert fetch(definition(tmp_path / "t.yaml", sha256), "--out", data, "--url-base", server.address) == 1
    assert "the header '>t1 no label' does not fit" in capsys.readouterr().err
    # no half table; the archive stays, so that nothing is downloaded again once the definition is mended
    assert [name for name in names(data) if not name.startswith(".downloads")] == ["d/more.csv", "d/train.csv.gz"]
    server.requests.clear()
    fetch(definition(tmp_path / "t.yaml", sha256), "--out", data, "--url-base", server.address)
    assert server.requests == []


def test_a_list_downloads_nothing(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    task, data = definition(tmp_path / "t.yaml"), tmp_path / "data"
    assert fetch(task, "--out", data, "--url-base", server.address, "--list") == 0
    printed = capsys.readouterr().out
    assert f"address: {server.address}/repo/train.csv" in printed
    assert "fetched" not in printed
    assert server.requests == []
    assert not data.exists()


def test_what_nobody_can_download_is_told(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.yaml"
    definition(path)
    path.write_text(path.read_text().partition("fetch:")[0])
    assert fetch(path, "--out", tmp_path / "data") == 1
    printed, errors = capsys.readouterr()
    assert "by hand: make d/test.csv of it with the columns seq, y" in printed
    assert (
        "error: d/test.csv: nobody can download it; it comes from somebody's repository (licence: CC BY 4.0): make "
        "d/test.csv of it with the columns seq, y"
    ) in errors


def test_what_lies_beside_the_task_is_there(tmp_path: Path, capsys: Capture) -> None:
    """Where 'task run' finds a table, 'data fetch' does not ask for it."""
    path = tmp_path / "t.yaml"
    definition(path)
    path.write_text(path.read_text().partition("fetch:")[0])
    (tmp_path / "d").mkdir()
    for name in ("train.csv.gz", "test.csv"):
        (tmp_path / "d" / name).write_bytes(b"")
    assert fetch(path, "--out", tmp_path / "data") == 1
    printed, errors = capsys.readouterr()
    assert f"d/test.csv: is there, beside the task's file: {tmp_path / 'd' / 'test.csv'}" in printed
    assert "make d/more.csv" in printed
    assert "make d/test.csv" not in printed + errors
    assert "1 of 3 files are not there: d/more.csv" in errors
    (tmp_path / "d" / "more.csv").write_bytes(b"")
    assert fetch(path, "--out", tmp_path / "data") == 0


def test_shipped_tasks_do_not_take_another_file(server: FileServer, tmp_path: Path, capsys: Capture) -> None:
    base = "/sameerkhurana10/DSOL_rv0.2/9cc5da72f1cf3f46350470a06a4d04abbf171f32/data"
    for name in ("val_src", "val_tgt", "test_src", "test_tgt"):
        server.files[f"{base}/{name}"] = b"another file"
    assert fetch("solubility", "--out", tmp_path / "data", "--url-base", f"{server.address}/") == 1
    errors = capsys.readouterr().err
    assert "val_src: what arrived has 12 bytes, not 2,099,995" in errors
    assert [request.path for request in server.requests] == [f"{base}/val_src", f"{base}/test_src"]
    assert names(tmp_path / "data") == [".downloads/.lock"]


def test_mistakes(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (["solubility"], "give the data folder by --out or PROTLOOM_DATA"),
        (["solubilty", "--out", str(tmp_path)], "Did you mean 'solubility'?"),
        (["solubility", "--out", str(tmp_path), "--url-base", "mirror"], "an address of a web server"),
        (["solubility", "--out", __file__], "cannot write"),
    ):
        assert fetch(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    monkeypatch.setenv(data_fetch.VARIABLE, "")  # a variable that says nothing, not the current folder
    assert fetch("solubility") == 2
    assert "give the data folder by --out or PROTLOOM_DATA" in capsys.readouterr().err
    assert fetch("sim-retrieval", "--out", tmp_path / "data") == 0
    assert capsys.readouterr().out == "nothing to fetch: these tasks read no files\n"
    assert not (tmp_path / "data").exists()
