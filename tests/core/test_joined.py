"""One store of several sources: the same as of all their records in one file, and counted for each source."""

from __future__ import annotations

import gzip
import io
import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from protloom.cli import main
from protloom.contracts import Record
from protloom.data.build import build_joined, build_store
from protloom.data.drop import DropList
from protloom.data.inputs import Input
from protloom.data.layout import Store
from protloom.errors import UserError

Capture = pytest.CaptureFixture[str]


def content(store: Store) -> list[tuple[str, str]]:
    return [(store.id(i), store.sequence(i).tobytes().decode()) for i in range(len(store))]


def groups(store: Store) -> list[list[str]]:
    assert store.groups is not None
    bounds = zip(store.groups[:-1], store.groups[1:], strict=True)
    return sorted(sorted(store.id(i) for i in range(low, high)) for low, high in bounds)


def prepare(*words: str | Path) -> int:
    return main(["data", "prepare", *map(str, words)])


def error_of(capsys: Capture, *words: str | Path) -> str:
    """Prepares what must fail; returns the one line."""
    capsys.readouterr()
    assert prepare(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize("seed", range(4))
def test_files_are_read_as_if_they_were_one(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    parts = []
    for number in range(3):
        records = []
        for _ in range(150):
            name = rng.choice(["a", "b", "a#2", f"d{rng.randrange(150)}"])
            sequence = "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=rng.randrange(1, 4)))
            odd = rng.choice([sequence, sequence.lower(), f"{sequence}*", f"{sequence}*A", "", f"{sequence}1"])
            records.append(f">{name}\n{odd}\n")
        text = "".join(records)
        parts.append(text)
        (tmp_path / f"{number}.fasta.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "all.fasta").write_text("".join(parts))
    read: list[int] = []
    inputs = [Input(tmp_path / f"{number}.fasta.gz") for number in range(3)]
    several = build_joined(inputs, tmp_path / "several", progress=read.append)
    one = build_store(tmp_path / "all.fasta", tmp_path / "one")
    several.verify()
    assert content(several) == content(one)
    assert several.content_hash == one.content_hash
    assert read[-1] == 450
    both = several.manifest, one.manifest
    for key in ("sequences", "residues", "lengths", "composition", "groups"):
        assert both[0][key] == both[1][key], key
    rules = [{name: facts["records"] for name, facts in m["policies"]["rules"].items()} for m in both]
    assert rules[0] == rules[1]
    assert both[0]["policies"]["read"] == 450
    # what is told of each source adds up
    sources = both[0]["sources"]
    assert [source["name"] for source in sources] == ["0.fasta.gz", "1.fasta.gz", "2.fasta.gz"]
    for total, key in ((450, "read"), (both[1]["sequences"], "sequences"), (both[1]["residues"], "residues")):
        assert sum(source[key] for source in sources) == total
    for name, records in rules[1].items():
        assert sum(source["rules"].get(name, {"records": 0})["records"] for source in sources) == records, name
    assert [len(source["sha256"]) for source in sources] == [64] * 3
    assert "rules" not in both[1]["sources"][0]
    again = build_joined(inputs, tmp_path / "again")
    assert (again.path / "manifest.json").read_bytes() == (several.path / "manifest.json").read_bytes()
    turned = build_joined(inputs[::-1], tmp_path / "turned")
    assert turned.content_hash != several.content_hash


def test_ids_that_an_earlier_source_had(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "one.fasta").write_text(">a\nMKT\n>b\nmkw\n>c\nMKY\n")
    (tmp_path / "two.csv").write_text("id,sequence\na,MKT\nb,MKV\nd,MKY\n")
    (tmp_path / "drop.txt").write_text("b#2\nc\n")
    assert prepare(tmp_path / "one.fasta", tmp_path / "two.csv", "--out", tmp_path / "s") == 0
    assert sorted(content(Store.open(tmp_path / "s"))) == [
        ("a", "MKT"),
        ("b", "MKW"),
        ("b#2", "MKV"),
        ("c", "MKY"),
        ("d", "MKY"),
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["2", "sources:", "6", "records", "read,", "5", "sequences", "kept,", "15", "residues"]
    assert ["one.fasta", "3", "3", "9"] in lines
    assert ["two.csv", "3", "2", "6"] in lines
    told = {(line[0], line[1], line[2], tuple(line[-3:])) for line in lines if line[:1] in (["one.fasta"], ["two.csv"])}
    assert ("one.fasta", "1", "lower-case", ("record", "2", "'b'")) not in told  # a line is given where there are lines
    assert any(line[:3] == ["one.fasta", "1", "lower-case"] and line[-2:] == ["3)", "'b'"] for line in lines)
    assert ("two.csv", "1", "same", ("record", "2", "'b'")) in told
    assert ("two.csv", "1", "same", ("record", "1", "'a'")) in told
    assert any(line[:4] == ["two.csv", "1", "same", "sequence"] for line in lines)
    # the whole manifest says which source the first one is in
    rules = Store.open(tmp_path / "s").manifest["policies"]["rules"]
    assert rules["repeated_id"]["first"] == "two.csv, record 2 'b'"
    assert rules["lower_case"]["first"] == "one.fasta, record 2 (line 3) 'b'"
    # a list is about the ids of the store
    drop = ("--drop", tmp_path / "drop.txt", "--out", tmp_path / "t")
    assert prepare(tmp_path / "one.fasta", tmp_path / "two.csv", *drop, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(content(Store.open(tmp_path / "t"))) == [("a", "MKT"), ("b", "MKW"), ("d", "MKY")]
    assert [source["rules"].get("listed", {}).get("records") for source in found["sources"]] == [1, 1]
    assert [source["sequences"] for source in found["sources"]] == [2, 1]
    assert found["composition"] == {"K": 3, "M": 3, "T": 1, "W": 1, "Y": 1}
    assert main(["data", "inspect", str(tmp_path / "t")]) == 0
    out = capsys.readouterr().out
    assert "one.fasta sha256" in out
    assert "in the list of what to drop: dropped" in out


def test_every_kind_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / "a.fasta").write_text(">a\nMKTA\n")
    (tmp_path / "b.csv").write_text("name,primary,other,group\nb,MKVV,x,g\nc,MKWW,x,h\nd,MKYY,x,g\n")
    build_store(
        [Record(f"s{i}", b"MK" + c.encode(), "g") for i, c in enumerate("ACD")], tmp_path / "old", licence="CC0"
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b">in\nMKPP\n")))
    sources: list[str | Path] = [tmp_path / "a.fasta", tmp_path / "b.csv", tmp_path / "old", "demo:?n=30", "-"]
    assert prepare(*sources, "--column", "primary", "--out", tmp_path / "s", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [source["name"] for source in found["sources"]] == [
        "a.fasta",
        "b.csv",
        "?",  # records that nobody named
        "demo:?n=30",
        "standard input",
    ]
    assert [source["sequences"] for source in found["sources"]] == [1, 3, 3, 30, 1]
    assert found["simulated"] is True
    assert found["sources"][2]["licence"] == "CC0"
    assert found["licence"] is None  # nobody knows that of the others
    store = Store.open(tmp_path / "s")
    store.verify()
    # "g" of the table is not the group of the same name in the store
    made = groups(store)
    assert ["b", "d"] in made
    assert ["s0", "s1", "s2"] in made
    assert ["a"] in made
    assert ["in"] in made


def test_groups_of_tables_are_one_scheme(tmp_path: Path) -> None:
    for name, rows in (("a", "x,MK,g\ny,MKT,h\n"), ("b", "z,MKV,g\nw,MKW,\n")):
        (tmp_path / f"{name}.csv").write_text(f"id,sequence,group\n{rows}")
    store = build_joined([Input(tmp_path / "a.csv"), Input(tmp_path / "b.csv")], tmp_path / "s")
    assert groups(store) == [["w"], ["x", "z"], ["y"]]


def test_licences(tmp_path: Path) -> None:
    for name, licence in (("a", "CC0"), ("b", "CC BY 4.0"), ("c", "CC0")):
        build_store([Record(name, b"MKT")], tmp_path / name, licence=licence)
    for name in "abc":
        assert prepare(tmp_path / name, "--out", tmp_path / "one") == 0
    assert prepare(tmp_path / "a", tmp_path / "b", tmp_path / "c", "--out", tmp_path / "s") == 0
    assert Store.open(tmp_path / "s").manifest["licence"] == "CC0; CC BY 4.0"
    assert prepare(tmp_path / "a", tmp_path / "b", "--licence", "mine", "--out", tmp_path / "s") == 0
    assert Store.open(tmp_path / "s").manifest["licence"] == "mine"


def test_mistakes(tmp_path: Path, capsys: Capture) -> None:
    good, bad = tmp_path / "good.fasta", tmp_path / "bad.fasta"
    good.write_text(">a\nMKT\n")
    bad.write_text(">b\nMK4\n")
    out = ("--out", tmp_path / "s")
    line = error_of(capsys, good, bad, *out)
    assert line.startswith(f"error: {bad} holds no usable sequence: 1 records read; 1 a character outside A-Z")
    # the missing one is told before the others are read
    assert "no such file" in error_of(capsys, bad, tmp_path / "goood.fasta", *out)
    assert f"{good} is named twice" in error_of(capsys, good, bad, good, *out)
    assert "which has no column 'seq'" in error_of(capsys, good, bad, *out, "--column", "seq")
    line = error_of(capsys, good, bad, *out, "--strict")
    assert f"{bad}, record 1 (line 1) 'b' ('4') has a character outside A-Z: --strict refuses it" in line
    bad.write_text(">a\nMKV\n")
    line = error_of(capsys, good, bad, *out, "--strict")
    assert f"{bad}, record 1 'a' has the id of an earlier record: --strict refuses it" in line
    (tmp_path / "t.csv").write_text("id,sequence\nx,MKT\n")
    assert "has no column 'seq'" in error_of(capsys, good, tmp_path / "t.csv", *out, "--column", "seq")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.fasta", "good.fasta", "t.csv"]


def test_a_store_among_the_sources_may_be_the_one_that_is_made(tmp_path: Path) -> None:
    build_store([Record("a", b"MKT")], tmp_path / "s")
    (tmp_path / "b.fasta").write_text(">b\nMKV\n")
    assert prepare(tmp_path / "s", tmp_path / "b.fasta", "--out", tmp_path / "s") == 0
    assert sorted(content(Store.open(tmp_path / "s"))) == [("a", "MKT"), ("b", "MKV")]


# ----------------------------------------------------------------------------------------------------- with a drop list


def test_the_line_that_overlap_prints_works(
    tmp_path: Path, random_proteins: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    proteins = random_proteins(12, seed=3, low=60, high=90)
    monkeypatch.chdir(tmp_path)
    # ids that several corpora have: of other sequences (p), and of the same one (same)
    Path("a b.fasta").write_text(f">p\n{proteins[0]}\n>same\n{proteins[1]}\n>q\n{proteins[2]}\n")
    Path("t.csv").write_text(f"id,x,y\np,{proteins[3]},1\nq,{proteins[4]},1\n")
    build_store([Record("p", proteins[5].encode()), Record("same", proteins[1].encode())], "store")
    Path("mine.fasta").write_text("".join(f">t{i}\n{proteins[i]}\n" for i in (0, 1, 4, 5)))
    sources = ["a b.fasta", "t.csv", "store", "demo:?n=30"]
    words = ["data", "overlap", *sources, "--column", "x", "--against", "mine.fasta"]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next ")]
    expected = "protloom data prepare 'a b.fasta' t.csv store 'demo:?n=30' --column x --drop drop.tsv --out CLEANED"
    assert line == f"next     the same with --out drop.tsv, then: {expected}"
    assert main([*words, "--out", "drop.tsv"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("next ")]
    assert line == f"next     {expected}"
    rows = [row.split("\t") for row in Path("drop.tsv").read_text().splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [
        ("p", "a b.fasta"),
        ("same", "a b.fasta"),
        ("q#2", "t.csv"),
        ("p#3", "store"),
    ]
    assert main(shlex.split(expected)[1:]) == 0
    assert capsys.readouterr().err == ""
    left = {sequence for _, sequence in content(Store.open("CLEANED"))}
    assert left.isdisjoint({proteins[0], proteins[1], proteins[4], proteins[5]})
    assert {proteins[2], proteins[3]} <= left
    assert main(["data", "overlap", "CLEANED", "--against", "mine.fasta", "--json", "--out", "none.tsv"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["mine.fasta"] == {
        "tested": 4,
        "exact": 0,
        "above": 0,
        "corpus": 0,
    }
    # where there is nothing to drop, nothing is to be done
    assert main(["data", "overlap", "CLEANED", "--against", "mine.fasta", "--out", "none.tsv"]) == 0
    assert "next" not in capsys.readouterr().out


def test_a_list_that_would_not_be_clear(
    tmp_path: Path, random_proteins: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    one, two, three = random_proteins(3, low=60, high=90)
    monkeypatch.chdir(tmp_path)
    Path("a.fasta").write_text(f">a\n{one}\n>a\n{two}\n")
    Path("b.fasta").write_text(f">a#2\n{three}\n")
    Path("mine.fasta").write_text(f">t\n{two}\n")
    words = ["data", "overlap", "a.fasta", "b.fasta", "--against", "mine.fasta"]
    assert main([*words, "--out", "drop.tsv"]) == 2
    error = capsys.readouterr().err
    assert "the id 'a#2' is that of a sequence" in error
    assert not Path("drop.tsv").exists()
    command = error.partition("first '")[2].partition("'")[0]
    assert main(shlex.split(command)[1:]) == 0
    assert main(["data", "overlap", "CLEANED", "--against", "mine.fasta", "--out", "drop.tsv"]) == 0
    assert main(["data", "prepare", "CLEANED", "--drop", "drop.tsv", "--out", "left"]) == 0
    assert {sequence for _, sequence in content(Store.open("left"))} == {one, three}
    # counting needs no list
    assert main(words) == 0


def test_a_corpus_of_which_an_earlier_one_has_everything(tmp_path: Path, capsys: Capture) -> None:
    for name in "ab":
        (tmp_path / f"{name}.fasta").write_text(">a\nMKTAYIAKQRQISFVK\n")
    words = [str(tmp_path / "a.fasta"), str(tmp_path / "b.fasta")]
    assert main(["data", "overlap", *words, "--against", words[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["corpora"][word]["overlapping"] for word in words] == [1, 0]
    assert prepare(*words, "--out", tmp_path / "s") == 0
    assert len(Store.open(tmp_path / "s")) == 1


def test_the_origin_of_records_is_kept(tmp_path: Path) -> None:
    inputs = [Input([Record("a", b"MKT")], origin={"name": "first"}), Input([Record("a", b"MKV")])]
    store = build_joined(inputs, tmp_path / "s")
    assert [source.get("name") for source in store.manifest["sources"]] == ["first", None]
    assert store.manifest["policies"]["rules"]["repeated_id"]["first"] == "the records, record 1 'a'"
    with pytest.raises(UserError, match="first, the records: every sequence of it is to be dropped"):
        build_joined(inputs, tmp_path / "s", drop=DropList("l", "0" * 64, (b"a", b"a#2")))
