"""Labelled sequences from tables: formats, splits, carves, labels, and a clear line for every bad input."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.errors import UserError
from protloom_tasks.datasets import formats, tables
from protloom_tasks.datasets.files import Source, sha256
from protloom_tasks.datasets.tables import Row, Rows
from protloom_tasks.definition_kinds import SequenceDefinition

SOURCE = Source("x", "from here", "none", ("a",))


def defined(**keys: Any) -> SequenceDefinition:
    base: dict[str, Any] = {
        "title": "t",
        "kind": "regression",
        "sequence": "s",
        "label": "y",
        "splits": {
            "train": {"file": "t.csv", "where": {"p": "train"}},
            "test": {"file": "t.csv", "where": {"p": "test"}},
        },
        "origin": "from here",
        "licence": "none",
    }
    return SequenceDefinition.model_validate(base | keys)


def read(folder: Path, rows: Sequence[str], scored: str = "valid", **keys: Any) -> Rows:
    (folder / "t.csv").write_text("\n".join(["s,y,p,g", *rows]) + "\n")
    return tables.read(defined(**keys), None, folder, scored)


def values(rows: Sequence[Row]) -> list[Any]:
    return [row.value for row in rows]


# ------------------------------------------------------------------------------------------------------- formats

RECORDS = [{"a": "1", "b": "x"}, {"a": "2", "b": ""}, {"a": "3.5", "b": "z"}]
TEXTS = {
    "t.csv": "a,b\n1,x\n\n2,\n3.5,z\n",
    "t.tsv": "a\tb\n1\tx\n2\t\n3.5\tz\n",
    "t.json": json.dumps([{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": 3.5, "b": "z"}]),
    "columns.json": json.dumps({"a": {"5": 1, "7": 2, "9": 3.5}, "b": {"5": "x", "7": None, "9": "z"}}),
    "lists.json": json.dumps({"a": [1, 2, 3.5], "b": ["x", None, "z"]}),
    "t.jsonl": '{"a": 1, "b": "x"}\n\n{"a": 2, "b": null}\n{"a": 3.5, "b": "z"}\n',
}


@pytest.mark.parametrize("name", list(TEXTS))
@pytest.mark.parametrize("packed", [False, True])
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(TEXTS[name].encode()) if packed else TEXTS[name].encode())
    assert [cells for _, cells in formats.rows(path, SOURCE)] == RECORDS


def test_a_file_of_a_spreadsheet_and_one_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,x\r\n")
    assert list(formats.rows(path, SOURCE)) == [("line 2", {"a": "1", "b": "x"})]
    assert [cells for _, cells in formats.rows(path, SOURCE, ["a", "c"])][1] == {"a": "1", "c": "x"}
    (tmp_path / "long.csv").write_text(f"a\n{'1.0 ' * 60_000}\n")
    assert len(next(formats.rows(tmp_path / "long.csv", SOURCE))[1]["a"]) == 240_000


def test_the_line_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n"1\n2",x\n3,y\n')
    assert [place for place, _ in formats.rows(tmp_path / "t.csv", SOURCE)] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "b,c\n1,2\n", r"t\.csv: no column 'a'; it has b, c"),
        ("t.csv", "", r"t\.csv: no column 'a'; it has none"),
        ("t.csv", "a,b\n1\n", r"t\.csv, line 2: not 2 cells, but 1"),
        ("t.csv", "a,a\n1,2\n", r"t\.csv: two columns are named 'a'"),
        ("t.txt", "a\n", r"t\.txt: a table ends in \.csv, \.tsv, \.json or \.jsonl"),
        ("t.csv.gz", "a,b\n", r"damaged .*get it again from from here"),
        ("t.json", "[1]", r"t\.json, record 1: should be a record"),
        ("t.json", '[{"a": 1}, {"b": 2}]', r"t\.json, record 2: no column 'a'; it has b"),
        ("t.json", '[{"a": {"b": 1}}]', r"record 1: a: should be a text, a number or a list"),
        ("t.json", '{"a": 1}', r"t\.json: should be a list of records, or columns of values"),
        ("t.json", '{"a": [1, 2], "b": [1]}', r"columns 'a' and 'b' do not have the same rows"),
        ("t.json", '[{"a":\n 1,}]', r"t\.json, line 2: not JSON"),
        ("t.jsonl", '{"a": 1}\n\n{"a": }\n', r"t\.jsonl, line 3: not JSON"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(formats.rows(tmp_path / name, SOURCE))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_file_of_another_encoding(tmp_path: Path, name: str) -> None:
    """As spreadsheets write it: the line is told, although text is decoded in blocks of many lines."""
    text = "a,b\n" + "1,2\n" * 5000 + "é,2\n" + "1,2\n" * 5000
    (tmp_path / name).write_bytes(gzip.compress(text.encode("latin-1")) if ".gz" in name else text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}, line 5002: not UTF-8 text .*: save it as UTF-8$"):
        list(formats.rows(tmp_path / name, SOURCE))


# -------------------------------------------------------------------------------------------------------- splits


def test_rows_of_splits_with_all_that_is_left_out_counted(tmp_path: Path) -> None:
    rows = [
        "mk t,1,train,",
        "MKV*A,2,train,",
        ",3,train,",
        "MKA,nan,train,",
        "MKC,,train,",
        "MKD,inf,train,",
        "MKE,4,test,",
    ]
    found = read(tmp_path, rows)
    assert [row.sequence for row in found.splits["train"]] == ["MKT", "MKVA"]
    assert values(found.splits["train"]) == [1, 2]
    assert {reason: n for reason, n in found.counts.items() if n} == {
        "no label": 3,
        "no sequence": 1,
        "stop codons cut out": 1,
    }
    assert found.files == {"t.csv": sha256(tmp_path / "t.csv")}


def test_duplicates_of_tested_sequences_leave_training(tmp_path: Path) -> None:
    rows = [
        "MKT,1,train,",
        "MKV,2,train,",
        "MKT,3,test,",
        "MKW,4,valid,",
        "MKW,5,train,",
        "MKT,6,train,",
        "MKQ,7,train,",
    ]
    keys = {"splits": {p: {"file": "t.csv", "where": {"p": p}} for p in ("train", "valid", "test")}}
    found = read(tmp_path, rows, **keys)
    assert values(found.splits["train"]) == [2, 7]
    assert values(found.repeated) == [1, 5, 6]
    assert found.counts["in training and another split: left out of training"] == 3
    assert sorted(found.sequences("train")) == ["MKQ", "MKT", "MKT", "MKV", "MKW"]
    with pytest.raises(UserError, match="all 1 training rows are in another split too"):
        read(tmp_path, ["MKT,1,train,", "MKT,3,test,"])


def test_a_carve_is_the_same_for_everybody_and_keeps_groups_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{''.join(rng.choice(list('ACDEFGH'), 8))},{i},train,g{i % 40}" for i in range(400)]
    keys = {
        "splits": {"train": "t.csv"},
        "carve": [{"split": "test", "share": 0.3, "by": "g"}, {"split": "valid", "share": 0.2}],
    }
    found = read(tmp_path, rows, **keys)
    groups = {split: {int(row.value) % 40 for row in of} for split, of in found.splits.items()}  # type: ignore[arg-type]
    assert not groups["test"] & groups["train"]
    assert 6 <= len(groups["test"]) <= 18
    assert sum(map(len, found.splits.values())) == 400
    assert 30 < len(found.splits["valid"]) < 90
    shuffled = read(tmp_path, [rows[i] for i in rng.permutation(400)], **keys)
    for split, of in found.splits.items():
        assert {row.sequence for row in of} == {row.sequence for row in shuffled.splits[split]}
    # the test rows do not depend on what is scored, and validation rows that we made are training rows for the test
    back = read(tmp_path, rows, "test", **keys)
    assert back.splits["test"] == found.splits["test"]
    assert "valid" not in back.splits
    assert values(back.splits["train"]) == sorted(values([*found.splits["train"], *found.splits["valid"]]))


def test_the_group_of_the_definition_is_that_of_a_carve(tmp_path: Path) -> None:
    rows = [f"{'ACDEFGHIKL'[i % 10]}{'ACDEFGHIKL'[i // 10]}W,{i},train,g{i % 10}" for i in range(100)]
    found = read(
        tmp_path, rows, group="g", splits={"train": "t.csv"}, carve=[{"split": "test", "share": 0.4}], scored="test"
    )
    assert not {row.group for row in found.splits["train"]} & {row.group for row in found.splits["test"]}
    assert {row.group for row in found.splits["test"]} <= {f"g{i}" for i in range(10)}
    assert len(found.splits["test"]) % 10 == 0


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (["MKT,1,train,", "MKV,x2,test,"], {}, r"t\.csv, line 3: y is 'x2', which is not a number"),
        (["MKT,1,train,", "MK1,2,test,"], {}, r"line 3: a sequence holds '1'; residues are letters"),
        (["MKT,1,train,", "MKÄ,2,test,"], {}, "line 3: a sequence holds 'Ä'"),
        (["MKT,1,train,"], {}, r"no row is selected: 'where' wants p = test; it is train"),
        ([], {}, r"t\.csv: holds no rows"),
        (["MKT,,train,", "MKV,1,test,"], {}, r"the train split is empty: left out were no label \(1\)"),
        (["MKT,1,train,", "MKV,1,test,"], {"sequence": "seq"}, r"no column 'seq'; it has s, y, p, g"),
        (["MKT,1,train,", "MKV,1,test,"], {"group": "h"}, "no column 'h'"),
        (
            ["MKT,1;2,train,", "MKV,1,test,"],
            {"label": {"column": "y", "separator": ";"}},
            "holds 2 numbers: say 'mean: t",
        ),
        (
            ["MKT,1,train,", "MKV,1,test,"],
            {"splits": {"train": {"file": "t.csv", "where": {"q": 1}}, "test": "t.csv"}},
            "no column 'q' for 'where'",
        ),
        (
            ["MKT,1,train,", "MKV,1,test,"],
            {"splits": {"train": "t.csv", "test": "u.csv"}},
            r"needs u\.csv: put it into .*, or give the data",
        ),
        (["MKT,1,train,", "MKV,1,test,"], {"fasta": "u.fasta"}, r"needs u\.fasta: put it into .*, or give the data"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], keys: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, rows, **keys)
    assert len(str(caught.value).splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- labels


def test_means_of_lists(tmp_path: Path) -> None:
    rows = ["MKT,1;nan;4,train,", "MKV,999;;5,train,", "MKW,nan;999,train,", "MKA,2,test,"]
    found = read(tmp_path, rows, label={"column": "y", "separator": ";", "mean": True, "below": 900})
    assert values(found.splits["train"]) == [2.5, 5]
    assert found.counts["no label"] == 1
    records = [{"s": "MKT", "y": [1, 2.5], "p": "train"}, {"s": "MKV", "y": [999, 3], "p": "test"}]
    (tmp_path / "t.json").write_text(json.dumps(records))
    splits = {p: {"file": "t.json", "where": {"p": p}} for p in ("train", "test")}
    found = tables.read(defined(splits=splits, label={"column": "y", "mean": True, "below": 900}), None, tmp_path)
    assert values(found.splits["train"] + found.splits["test"]) == [1.75, 3]


def encoded(rows: dict[str, list[Any]], **keys: Any) -> tuple[dict[str, list[Any]], list[str]]:
    made = {split: [Row(f"M{i}", "", value, "") for i, value in enumerate(of)] for split, of in rows.items()}
    labels, classes = tables.encode(made, defined(**keys))
    return {split: of.tolist() for split, of in labels.items()}, classes


def test_classes_are_numbered_and_unseen_ones_last() -> None:
    rows = {"train": ["b", "a", "b"], "test": ["c", "a", "aa"]}
    assert encoded(rows, kind="multiclass") == ({"train": [1, 0, 1], "test": [3, 0, 2]}, ["a", "b", "aa", "c"])
    rows = {"train": [("x", "y"), (), ("z",)], "test": [("y", "new"), ("x",)]}
    labels, classes = encoded(rows, kind="multilabel")
    assert classes == ["x", "y", "z"]
    assert labels == {"train": [[1, 1, 0], [0, 0, 0], [0, 0, 1]], "test": [[0, 1, 0], [1, 0, 0]]}


def test_the_positive_class_of_two() -> None:
    rows = {"train": ["binder", "none", "none"], "test": ["binder", "none"]}
    assert encoded(rows, kind="binary")[0]["test"] == [0, 1]
    positive = {"column": "y", "positive": "binder"}
    assert encoded(rows, kind="binary", label=positive)[0]["test"] == [1, 0]
    with pytest.raises(UserError, match=r"label\.positive is 'bind', but the classes are binder and none"):
        encoded(rows, kind="binary", label={"column": "y", "positive": "bind"})


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ({"train": ["0", "1", "2"], "test": ["0"]}, "binary", "a binary task needs two classes, .* it has 3: 0, 1, 2"),
        ({"train": ["0", "1"], "test": ["2"]}, "binary", "it has 3: 0, 1, 2"),
        ({"train": ["1", "1"], "test": ["0"]}, "binary", "it has 2: 1, 0"),
        ({"train": ["a", "a"], "test": ["b"]}, "multiclass", "hold 1 class: there is nothing to tell apart"),
        ({"train": [f"c{i}" for i in range(30)], "test": ["c1"]}, "binary", r"it has 30: .*, \.\.\.$"),
    ],
)
def test_classes_that_do_not_suffice(rows: dict[str, list[Any]], kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoded(rows, kind=kind)


def test_dropped_and_missing_classes_are_counted(tmp_path: Path) -> None:
    rows = ["MKT,a,train,", "MKV,b,train,", "MKX,bad,train,", "MKY,NaN,train,", "MKW,a,test,"]
    found = read(tmp_path, rows, kind="multiclass", label={"column": "y", "drop": ["bad"]})
    assert values(found.splits["train"]) == ["a", "b"]
    assert found.counts["label 'bad' dropped"] == found.counts["no label"] == 1
    found = read(
        tmp_path,
        ["MKT,a;b;a,train,", "MKV,,train,", "MKW,b,test,"],
        kind="multilabel",
        label={"column": "y", "separator": ";"},
    )
    assert values(found.splits["train"]) == [("a", "b"), ()]  # a row without labels is a row


# --------------------------------------------------------------------------------------------------------- pairs


def pairs(folder: Path, n: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    proteins = {f"P{i}": "".join(rng.choice(list("ACDEFGH"), 9)) for i in range(n)}
    proteins["twin"] = proteins["P0"]  # another name of the same sequence
    (folder / "p.fasta").write_text("".join(f">{name} words\n{s}\n" for name, s in proteins.items()))
    rows = [
        f"{a}\t{b}\t{int((i + j) % 3 == 0)}.0" for i, a in enumerate(proteins) for j, b in enumerate(proteins) if i < j
    ]
    (folder / "p.tsv").write_text("\n".join(rows) + "\n")
    return {
        "kind": "binary",
        "sequence": "a",
        "partner": "b",
        "fasta": "p.fasta",
        "splits": {"train": {"file": "p.tsv", "columns": ["a", "b", "y"]}},
        "carve": [{"split": s, "share": 0.4, "partners": True} for s in ("test", "valid")],
    }


def proteins_of(rows: Sequence[Row]) -> set[str]:
    return {letters for row in rows for letters in (row.sequence, row.partner)}


def test_pairs_are_split_by_protein(tmp_path: Path) -> None:
    keys = pairs(tmp_path)
    found = tables.read(defined(**keys), None, tmp_path)
    of = {split: proteins_of(rows) for split, rows in found.splits.items()}
    assert not of["test"] & of["train"]
    assert not of["valid"] & of["train"]
    assert not of["valid"] & of["test"]
    assert all(len(rows) > 5 for rows in found.splits.values())
    left = {reason: n for reason, n in found.counts.items() if n}
    assert sum(map(len, found.splits.values())) + sum(left.values()) == 41 * 40 // 2
    assert set(left) == {f"pairs of one protein inside and one outside of {split}" for split in ("test", "valid")}
    assert set(found.files) == {"p.tsv", "p.fasta"}
    back = tables.read(defined(**keys), None, tmp_path, "test")
    assert back.splits["test"] == found.splits["test"]
    # for the test, the pairs that validation kept out are training pairs
    outside = left["pairs of one protein inside and one outside of valid"]
    assert len(back.splits["train"]) == len(found.splits["train"]) + len(found.splits["valid"]) + outside


def test_a_pair_turned_round_is_the_same_pair(tmp_path: Path) -> None:
    rows = ["MKT,1,train,MKV", "MKW,0,train,MKV", "MKV,1,test,MKT", "MKA,0,test,MKA"]
    found = read(tmp_path, rows, kind="binary", partner="g")
    assert [(row.sequence, row.partner) for row in found.splits["train"]] == [("MKW", "MKV")]


def test_ids_that_are_wrong(tmp_path: Path) -> None:
    keys = pairs(tmp_path, 5)
    with (tmp_path / "p.tsv").open("a") as file:
        file.write("P1\tP99\t1.0\n")
    with pytest.raises(UserError, match=r"p\.tsv, line 16: no sequence is named 'P99' in p\.fasta"):
        tables.read(defined(**keys), None, tmp_path)
    (tmp_path / "p.fasta").write_text(">P0\nMKT\n>P0\nMKV\n")
    with pytest.raises(UserError, match=r"p\.fasta: two sequences are named 'P0'"):
        tables.read(defined(**keys), None, tmp_path)
