"""FASTA reading against a line-by-line loop and needletail, and every kind of broken file."""

from __future__ import annotations

import gzip
import io
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from protloom.contracts import Record
from protloom.data import streams
from protloom.data.chunk import chunks_of
from protloom.data.fasta import fasta_chunks, read_fasta, write_fasta
from protloom.data.streams import ByteSource
from protloom.errors import UserError


def by_lines(data: bytes) -> list[tuple[str, bytes]]:
    """The slow referee: one line after the other."""
    records: list[tuple[str, list[bytes]]] = []
    for line in io.TextIOWrapper(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), "latin-1", newline=None):
        text = line.rstrip("\n")
        if text.startswith(";"):
            continue
        if text.startswith(">"):
            name = text[1:].encode("latin-1").split(None, 1) or [b""]
            records.append((name[0].decode("utf-8", "backslashreplace"), []))
        elif records:
            records[-1][1].append(text.encode("latin-1"))
    return [(name, b"".join(parts)) for name, parts in records]


ODD_FILES = {
    "one": b">a\nMKT\n",
    "no line end": b">a\nMKT",
    "wrapped": b">a desc\nMKT\nAYI\n>b\nAC\nD\n",
    "crlf": b">a x\r\nMKT\r\nAYI\r\n>b\r\nACD\r\n",
    "cr only": b">a\rMKT\rAYI\r>b\rACD\r",
    "mixed ends": b">a\r\nMK\nT\r>b\nAC\r\n",
    "blank lines": b"\n\n>a\n\nMKT\n\n\nAYI\n\n>b\n\nAC\n\n",
    "byte-order mark": b"\xef\xbb\xbf>a\nMKT\n",
    "comments": b"; made by hand\n>a\nMKT\n;note > here\nAYI\n;\n>b\nAC\n;end",
    "lower, stops, gaps, spaces": b">a\nmkT*\n>b\nA-C.D\n>c\nAC DE\tF \n",
    "signs in headers": b">a>b;c\t x>y\nMKT\n>sp|P1|X_HUMAN a;b\nAC\n",
    "sign in a sequence": b">a\nMK>T\nA;C\n",
    "empty records": b">a\n>b\nAC\n>c\n",
    "nameless": b">\nMKT\n> b first\nAC\n>\t\nAD\n",
    "not UTF-8": b">caf\xe9 x\nMKT\n>b\nAC\xc3\xa9\n",
    "UTF-8": ">prot\u00e9ine d\nMKT\n>b\nAC\n".encode(),
}


def read(path: Path, size: int = 1 << 20) -> list[tuple[str, bytes]]:
    found = []
    for chunk in fasta_chunks(ByteSource(path), size):
        assert len(chunk.ids) == len(chunk.offsets) - 1 == len(chunk.numbers)
        bounds = chunk.offsets.tolist()
        found += [(chunk.ids[i].decode(), chunk.residues[bounds[i] : bounds[i + 1]]) for i in range(len(chunk))]
    return found


@pytest.mark.parametrize("name", ODD_FILES)
@pytest.mark.parametrize(("block", "size"), [(1 << 20, 1 << 20), (1, 1), (2, 5), (3, 1 << 20), (7, 8)])
def test_odd_files_equal_the_line_loop(
    name: str, block: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "READ_BYTES", block)
    path = tmp_path / "x.fasta"
    path.write_bytes(ODD_FILES[name])
    assert read(path, size) == by_lines(ODD_FILES[name])


def random_fasta(rng: random.Random, records: int) -> bytes:
    end = rng.choice([b"\n", b"\r\n"])
    parts = []
    for i in range(records):
        residues = bytes(rng.choices(b"ACDEFGHIKLMNPQRSTVWYX", k=rng.choice([1, 59, 60, 61, 300])))
        width = rng.choice([7, 60, 1000])
        lines = [residues[k : k + width] for k in range(0, len(residues), width)]
        parts += [b">id%d some words" % i, *lines]
    return end.join(parts) + end


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_files_equal_needletail(seed: int, tmp_path: Path) -> None:
    needletail = pytest.importorskip("needletail")
    rng = random.Random(seed)
    data = random_fasta(rng, 200)
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(data))
    theirs = [(r.id.split()[0], r.seq.encode()) for r in needletail.parse_fastx_file(str(path))]
    assert read(path, rng.choice([100, 1000, 1 << 20])) == theirs


def test_lines_and_numbers_name_the_record(tmp_path: Path) -> None:
    data = b"\n; note\n>a\nMKT\n\n>b\n;x\nAC\nDE\n>c\nAC\n"
    path = tmp_path / "x.fasta"
    path.write_bytes(data)
    lines = data.split(b"\n")
    for size in (1, 10, 1000):
        chunks = list(fasta_chunks(ByteSource(path), size))
        told = [c.where(i) for c in chunks for i in range(len(c))]
        assert told == [
            f"record {k} (line {lines.index(b'>' + n) + 1}) {n.decode()!r}" for k, n in enumerate((b"a", b"b", b"c"), 1)
        ]


def test_a_record_far_longer_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\nM\n>titin\n" + b"ACDEF\n" * 20_000 + b">b\nK\n")
    found = dict(read(path, size=100))
    assert len(found["titin"]) == 100_000
    assert found["b"] == b"K"


def test_records_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(ODD_FILES["wrapped"])
    assert list(read_fasta(path)) == [Record("a", b"MKTAYI"), Record("b", b"ACD")]


# ------------------------------------------------------------------------------------------------------- compression


def compressed(kind: str, data: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(data)
    zstandard = pytest.importorskip("zstandard")
    result: bytes = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return result


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("block", [4, 17, 1 << 20])
def test_compression_is_seen_by_content(kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_fasta(random.Random(0), 20)
    path = tmp_path / "no-ending"
    path.write_bytes(compressed(kind, data))
    monkeypatch.setattr(streams, "READ_BYTES", block)
    assert read(path) == by_lines(data)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_many_members_as_block_gzip_writes_them(kind: str, tmp_path: Path) -> None:
    data = random_fasta(random.Random(1), 60)
    members = [compressed(kind, data[i : i + 1000]) for i in range(0, len(data), 1000)]
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(b"".join(members))
    assert read(path) == by_lines(data)


def test_zeros_after_gzip_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(b">a\nMKT\n") + bytes(5000))
    assert read(path) == [("a", b"MKT")]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_truncated_at_any_byte_is_an_error(kind: str, tmp_path: Path) -> None:
    whole = compressed(kind, random_fasta(random.Random(2), 30))
    path = tmp_path / "x.fasta.gz"
    for length in [5, 11, 20, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.fasta\.gz is truncated.*fetch it again"):
            read(path)


def test_truncated_between_members_cuts_a_record_but_not_silently(tmp_path: Path) -> None:
    # a cut exactly between members cannot be seen in gzip data; the second member must still be read in full
    path = tmp_path / "x.fasta.gz"
    second = gzip.compress(b">b\nAC\n")
    path.write_bytes(gzip.compress(b">a\nMKT\n") + second[:-3])
    with pytest.raises(UserError, match="truncated"):
        read(path)


@pytest.mark.parametrize("damage", ["flip", "checksum", "tail"])
def test_damaged_gzip_is_an_error(damage: str, tmp_path: Path) -> None:
    data = bytearray(gzip.compress(random_fasta(random.Random(3), 30)))
    if damage == "flip":
        data[len(data) // 2] ^= 0xFF
    elif damage == "checksum":
        data[-6] ^= 1
    else:
        data += b"<html>502 Bad Gateway</html>"
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"x\.fasta\.gz is (damaged|truncated)"):
        read(path)


def test_facts_hash_the_file_as_it_lies_on_disk(tmp_path: Path) -> None:
    import hashlib

    data = gzip.compress(b">a\nMKT\n")
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(data)
    source = ByteSource(path)
    list(source.blocks())
    assert source.facts() == {"name": "x.fasta.gz", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_zstd_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.fasta.zst"
    path.write_bytes(compressed("zstd", b">a\nMKT\n"))
    for module in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'protloom\[zstd\]'"):
        read(path)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is empty"),
        (b"\n \n\n", r"holds no sequence"),
        (b"; only\n;comments\n", r"holds no sequence"),
        (b"MKTAYI\nACD\n", r"line 1: expected a FASTA header that begins with '>', found 'MKTAYI'"),
        (b"\n\nMKTAYI\n>a\nACD\n", r"line 3: expected a FASTA header"),
        (b"id,sequence\na,MKT\n", r"line 1: .*tables need the ending"),
        (b"@read\nACGT\n+\nIIII\n", r"line 1: expected a FASTA header"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0", r"is a binary file, not FASTA"),
        (b">a\0\0\0\1\2\nMKT", r"is a binary file, not FASTA"),
        (b"PK\x03\x04junk", r"is a ZIP archive"),
        (b"BZh91AY", r"bzip2"),
        (b"\xfd7zXZ\x00", r"xz"),
        (b"\xff\xfe>\0a\0", r"UTF-16"),
    ],
)
def test_what_is_not_fasta_is_refused_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "x.fasta" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gzip_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="holds no sequence"):
        read(path)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "proteins.fasta").write_text(">a\nMKT\n")
    with pytest.raises(UserError, match=r"no such file: .*Did you mean 'proteins.fasta'"):
        read(tmp_path / "protein.fasta")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "nowhere" / "x.fasta")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


def test_a_failing_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\nMKT\n")
    source = ByteSource(path)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(source, "_file", Failing())
    with pytest.raises(UserError, match=r"cannot read .*x\.fasta: Input/output error"):
        list(fasta_chunks(source))


# ------------------------------------------------------------------------------------------------- records and writing


@pytest.mark.parametrize("size", [64, 1000, 1 << 20])
def test_chunks_of_records_keep_every_record(size: int) -> None:
    rng = random.Random(4)
    records = [Record(f"r{i}", bytes(rng.choices(b"ACDEF", k=rng.randint(0, 50)))) for i in range(300)]
    found = []
    for chunk in chunks_of(iter(records), size):
        bounds = chunk.offsets.tolist()
        found += [Record(chunk.ids[i].decode(), chunk.residues[bounds[i] : bounds[i + 1]]) for i in range(len(chunk))]
        assert [chunk.numbers[0], chunk.numbers[-1]] == [len(found) - len(chunk) + 1, len(found)]
    assert found == records


@pytest.mark.parametrize("name", ["x.fasta", "x.fasta.gz"])
def test_written_records_are_read_back(name: str, tmp_path: Path) -> None:
    records = [Record("a", b"ACDEF" * 50), Record("b", b"M")]
    assert write_fasta(iter(records), tmp_path / name) == 2
    assert list(read_fasta(tmp_path / name)) == records
    assert (zlib.decompress((tmp_path / name).read_bytes(), 31) if name.endswith("gz") else b"\n").endswith(b"\n")
    with pytest.raises(UserError, match="exists"):
        write_fasta(iter(records), tmp_path / name)


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        yield Record("a", b"MKT")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no space left to write"):
        write_fasta(records(), tmp_path / "x.fasta")
    assert list(tmp_path.iterdir()) == []
