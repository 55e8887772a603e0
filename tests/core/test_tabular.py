"""Tables as corpora: which column is meant, and what is refused."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from protloom.contracts import Record
from protloom.data import streams
from protloom.data.store import build_store
from protloom.data.streams import ByteSource
from protloom.data.tabular import is_table, table_records
from protloom.errors import UserError


def read(path: Path, column: str | None = None) -> list[Record]:
    return list(table_records(ByteSource(path), column))


def table(tmp_path: Path, text: str | bytes, name: str = "x.csv") -> Path:
    path = tmp_path / name
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(block: int, name: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "READ_BYTES", max(block, 4))
    lines = ["name,note,Sequence", 'a,"one, two",MKT', 'é,"line', 'break", AYI ', "", "c,,ACD"]
    path = table(tmp_path, "\ufeff" + end.join(lines) + end, name)
    assert read(path) == [Record("a", b"MKT"), Record("é", b"AYI"), Record("c", b"ACD")]


def test_tsv_without_ids_counts_rows(tmp_path: Path) -> None:
    path = table(tmp_path, "seq\tscore\nMKT\t1\nAYI\t2\n", "x.tsv")
    assert read(path) == [Record("1", b"MKT"), Record("2", b"AYI")]


def test_groups(tmp_path: Path) -> None:
    path = table(tmp_path, "id,group,sequence\na,f1,MKT\nb,,AYI\nc,f1,ACD\n")
    assert [r.group for r in read(path)] == ["f1", None, "f1"]
    store = build_store(path, tmp_path / "s")
    assert store.n_groups == 2


def test_a_very_long_field(tmp_path: Path) -> None:
    path = table(tmp_path, f"id,sequence\na,{'M' * 200_000}\n")
    assert len(read(path)[0].residues) == 200_000


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,b\n1,2\n", None, r"no column named 'sequence': choose one with --column; its columns are 'a', 'b'"),
        ("seq,primary\nA,C\n", None, r"several columns that may hold sequences: .*'seq', 'primary'"),
        ("id,primary\na,C\n", "primry", r"no column 'primry'\. Did you mean 'primary'"),
        ("id,sequence\na,C,D\n", None, r"line 2: 3 fields, but the header has 2"),
        ("id,sequence\na\n", None, r"line 2: 1 fields"),
        ("sequence,sequence\na,b\n", None, r"two columns 'sequence'"),
        ('id,sequence\na,"MKT\n', None, r"not a valid table"),
        ("", None, r"is empty"),
        ("\n", None, r"no column named|no header"),
        (b"id,sequence\n\xff\xfea,MKT\n", None, r"is not UTF-8 text"),
        (b"id,sequence\na,M\0KT\n", None, r"x\.csv"),
    ],
)
def test_refusals(text: str | bytes, column: str | None, message: str, tmp_path: Path) -> None:
    path = table(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        build_store(path, tmp_path / "s", column=column)
    assert "x.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_a_truncated_table(tmp_path: Path) -> None:
    path = table(tmp_path, "id,sequence\n" + "a,MKTAYI\n" * 500, "x.csv.gz")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        read(path)


def test_a_column_for_fasta_is_refused(small_fasta: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'seq'"):
        build_store(small_fasta, tmp_path / "s", column="seq")


def test_endings() -> None:
    assert [is_table(n) for n in ("a.csv", "a.TSV.gz", "a.parquet", "a.fasta", "a.csv.fasta", "csv")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def parquet(tmp_path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    path = tmp_path / "x.parquet"
    writer.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"accession": ["a", "b", None], "sequence": ["MKT", "AYI", None], "y": [1, 2, 3]})
    assert read(path) == [Record("a", b"MKT"), Record("b", b"AYI"), Record("", b"")]
    assert read(parquet(tmp_path, {"seq": [b"MKT"]})) == [Record("1", b"MKT")]
    assert read(parquet(tmp_path, {"seq": ["MKT"], "group": [7]})) == [Record("1", b"MKT", "7")]


def test_parquet_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold text"):
        read(parquet(tmp_path, {"sequence": [1.5]}))
    with pytest.raises(UserError, match="its columns are 'a', 'b'"):
        read(parquet(tmp_path, {"a": [1], "b": [2]}))
    path = parquet(tmp_path, {"sequence": ["MKT"] * 100})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a readable Parquet file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, {"sequence": ["MKT"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'protloom\[parquet\]'"):
        read(path)


def test_a_real_parquet_shape(shared_data: Path, tmp_path: Path) -> None:
    # the same sequences as a FASTA and as a table give the same store
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    from protloom.data.fasta import read_fasta

    source = shared_data / "pretrain_corpus" / "uniref90_sample_10k.fasta.gz"
    records = list(read_fasta(source))
    path = tmp_path / "x.parquet"
    columns = {"id": [r.id for r in records], "sequence": [r.residues.decode() for r in records]}
    writer.write_table(pyarrow.table(columns), path)
    assert build_store(path, tmp_path / "a").content_hash == build_store(source, tmp_path / "b").content_hash
