"""Sequences that are dropped on request: found by the ids that a store has, counted, and no part of its hash."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from protloom.cli import main
from protloom.contracts import Record
from protloom.data.build import build_store
from protloom.data.drop import DropList
from protloom.data.layout import Store
from protloom.errors import UserError

Capture = pytest.CaptureFixture[str]


def listing(path: Path, text: str) -> DropList:
    path.write_text(text)
    return DropList.read(path)


def content(store: Store) -> dict[str, str]:
    return {store.id(i): store.sequence(i).tobytes().decode() for i in range(len(store))}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\tb\tc\nd\te\tf\n", ["a", "d"]),
        ("# made by hand\nid\tshare\na\t0.5\n\n  b  \na\n", ["a", "b"]),
        ("ID\na\n", ["a"]),
        ("\ufeffa\r\nb b", ["a", "b b"]),
        ("a\nid\n", ["a", "id"]),
    ],
)
def test_lists(text: str, ids: list[str], tmp_path: Path) -> None:
    assert [name.decode() for name in listing(tmp_path / "l", text).ids] == ids


def test_bad_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no id"):
        listing(tmp_path / "l", "# nothing\nid\n\n")
    (tmp_path / "b").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        DropList.read(tmp_path / "b")
    with pytest.raises(UserError, match="no such file"):
        DropList.read(tmp_path / "nowhere")


def test_dropped_sequences_are_gone_and_counted(tmp_path: Path, random_proteins: Callable[..., list[str]]) -> None:
    sequences = dict(zip((f"p{i}" for i in range(200)), random_proteins(200), strict=True))
    records = [Record(name, s.encode()) for name, s in sequences.items()]
    drop = listing(tmp_path / "drop.tsv", "id\ttask\np7\tx\np199\tx\nstranger\tx\np7\ty\n")
    whole = build_store(records, tmp_path / "whole")
    left = build_store(
        records, tmp_path / "left", drop=drop, strict=True
    )  # asked for, so strict has nothing against it
    kept = {name: s for name, s in sequences.items() if name not in ("p7", "p199")}
    assert content(left) == kept
    policies = left.manifest["policies"]
    assert policies["rules"]["listed"]["records"] == 2
    assert policies["rules"]["listed"]["first"] == "record 8 'p7'"
    assert policies["drop"] == {
        "name": "drop.tsv",
        "sha256": drop.sha256,
        "ids": 3,
        "not_found": 1,
        "first_not_found": ["stranger"],
    }
    assert left.manifest["residues"] == sum(map(len, kept.values()))
    assert left.manifest["composition"] == {c: "".join(kept.values()).count(c) for c in "ACDEFGHIKLMNPQRSTVWY"}
    left.verify()
    assert left.content_hash != whole.content_hash
    # the same as if they had never been there
    without = build_store([r for r in records if r.id in kept], tmp_path / "without")
    assert left.content_hash == without.content_hash
    assert "drop" not in whole.manifest["policies"]


def test_ids_are_those_of_the_store(tmp_path: Path) -> None:
    records = [Record("a", b"MKT"), Record("a", b"MKV"), Record("a", b"MKT"), Record("", b"MKW"), Record("b", b"MKT")]
    whole = build_store(records, tmp_path / "s")
    assert content(whole) == {"a": "MKT", "a#2": "MKV", "record-4": "MKW", "b": "MKT"}
    left = build_store(records, tmp_path / "s", drop=listing(tmp_path / "l", "a#2\nrecord-4\n"))
    assert content(left) == {"a": "MKT", "b": "MKT"}
    assert left.manifest["policies"]["rules"]["listed"]["records"] == 2
    # 'a' is the first of that name alone
    left = build_store(records, tmp_path / "s", drop=listing(tmp_path / "l", "a\n"))
    assert content(left) == {"a#2": "MKV", "record-4": "MKW", "b": "MKT"}
    assert left.manifest["composition"] == {"K": 3, "M": 3, "T": 1, "V": 1, "W": 1}


def test_groups_lose_members_and_vanish_when_empty(tmp_path: Path) -> None:
    records = [Record(f"{g}{i}", b"MKT" + c.encode(), g) for g in "xyz" for i, c in enumerate("ACD")]
    left = build_store(records, tmp_path / "s", drop=listing(tmp_path / "l", "x1\ny0\ny1\ny2\n"))
    assert left.groups is not None
    members = sorted(
        sorted(left.id(i) for i in range(low, high))
        for low, high in zip(left.groups[:-1], left.groups[1:], strict=True)
    )
    assert members == [["x0", "x2"], ["z0", "z1", "z2"]]


def test_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every sequence of it is to be dropped"):
        build_store([Record("a", b"MKT")], tmp_path / "s", drop=listing(tmp_path / "l", "a\n"))
    assert not (tmp_path / "s").exists()


# --------------------------------------------------------------------------------------------------- from every source


def prepare(*words: str | Path) -> int:
    return main(["data", "prepare", *map(str, words)])


def test_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    records = {"a": "MKTA", "b": "MKVV", "c": "MKWW"}
    fasta = "".join(f">{name} words\n{s}\n" for name, s in records.items())
    (tmp_path / "x.fasta.gz").write_bytes(gzip.compress(fasta.encode()))
    (tmp_path / "x.csv").write_text("id,sequence\n" + "".join(f"{n},{s}\n" for n, s in records.items()))
    (tmp_path / "drop.txt").write_text("b\nd\n")
    drop = ("--drop", tmp_path / "drop.txt", "--out", tmp_path / "out")
    expected = {name: s for name, s in records.items() if name != "b"}

    def check(source: str | Path) -> None:
        assert prepare(source, *drop) == 0
        out, err = capsys.readouterr()
        assert "3 records read, 2 sequences kept" in out
        assert "1        in the list of what to drop: dropped" in out
        assert err == "warning: 1 of 2 ids of drop.txt are not in the corpus: 'd'\n"
        assert content(Store.open(tmp_path / "out")) == expected

    check(tmp_path / "x.fasta.gz")
    check(tmp_path / "x.csv")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(fasta.encode())))
    check("-")
    assert prepare(tmp_path / "x.csv", "--out", tmp_path / "store", "--licence", "CC0") == 0
    capsys.readouterr()
    check(tmp_path / "store")
    assert Store.open(tmp_path / "out").manifest["licence"] == "CC0"
    assert prepare("demo:?n=100", "--out", tmp_path / "demo") == 0
    names = Store.open(tmp_path / "demo").ids()
    (tmp_path / "drop.txt").write_text("\n".join(names[:40]))
    assert prepare("demo:?n=100", *drop) == 0
    assert sorted(Store.open(tmp_path / "out").ids()) == sorted(names[40:])
    assert Store.open(tmp_path / "out").manifest["simulated"] is True


def test_a_store_is_prepared_again_with_its_groups(tmp_path: Path, capsys: Capture) -> None:
    records = [Record(f"{g}{i}", b"MKT" + c.encode(), g) for g in "xyz" for i, c in enumerate("ACD")]
    old = build_store(records, tmp_path / "old", simulated=True, seed=3)
    assert prepare(tmp_path / "old", "--out", tmp_path / "new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["store"] == old.content_hash
    new = Store.open(tmp_path / "new")

    def groups(store: Store) -> list[list[str]]:
        assert store.groups is not None
        bounds = zip(store.groups[:-1], store.groups[1:], strict=True)
        return sorted(sorted(store.id(i) for i in range(low, high)) for low, high in bounds)

    assert groups(new) == groups(old)
    assert content(new) == content(old)
    assert new.manifest["simulated"] is True
    assert prepare(tmp_path / "old", "--out", tmp_path / "new", "--column", "sequence") == 2
    assert "has no columns" in capsys.readouterr().err
    (tmp_path / "drop.txt").write_text("x0\n")
    assert (
        prepare(tmp_path / "old", "--out", tmp_path / "old", "--drop", tmp_path / "drop.txt") == 0
    )  # in its own place
    assert len(Store.open(tmp_path / "old")) == 8
