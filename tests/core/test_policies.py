"""The cleaning policies against the same rules written for one record at a time."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from protloom.contracts import Record
from protloom.data.chunk import Chunk, byte_counts, chunks_of, hash_slices, offsets_of
from protloom.data.policies import POLICIES, Tally, clean
from protloom.errors import UserError
from protloom.rng import _mix_int


def one_record(residues: bytes) -> tuple[bytes | None, set[str]]:
    """The referee: what becomes of one record, and which policies say so."""
    text = residues.decode("latin-1")
    if re.search(r"[^A-Za-z*.\- \t\v\f]", text):
        return None, {"illegal"}
    if re.search(r"\*[^A-Za-z]*[A-Za-z]", text):
        return None, {"inner_stop"}
    found = set()
    for name, pattern in (
        ("lower_case", "[a-z]"),
        ("whitespace", r"[ \t\v\f]"),
        ("gap", "[-.]"),
        ("final_stop", r"\*"),
    ):
        if re.search(pattern, text):
            found.add(name)
    text = re.sub("[^A-Z]", "", text.upper())
    if not text:
        return None, found | {"empty"}
    return text.encode(), found


def cleaned(chunk: Chunk) -> list[Record]:
    bounds = chunk.offsets.tolist()
    return [Record(chunk.ids[i].decode(), chunk.residues[bounds[i] : bounds[i + 1]]) for i in range(len(chunk))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("alphabet", [b"ACDUOBZJX", b"ACDacd", b"ACD*", b"ACDa*-. \t", b"ACDa*- 1\xc3>;\x00"])
def test_chunks_are_cleaned_as_single_records_are(seed: int, alphabet: bytes) -> None:
    rng = random.Random(seed)
    records = [Record(f"r{i}", bytes(rng.choices(alphabet, k=rng.randint(0, 8)))) for i in range(200)]
    tally, expected, counts = Tally("x"), [], Counter[str]()
    for record in records:
        residues, policies = one_record(record.residues)
        counts.update(policies)
        if residues is not None:
            expected.append(Record(record.id, residues))
    found = [r for chunk in chunks_of(records, 640) for r in cleaned(clean(chunk, tally))]
    assert found == expected
    assert {name: n for name, n in tally.counts.items() if n} == dict(counts)
    assert tally.read == 200
    together = b"".join(r.residues for r in expected)
    assert {bytes([b]): int(n) for b, n in enumerate(tally.composition) if n} == {
        bytes([b]): n for b, n in Counter(together).items()
    }


REFUSED = {
    "lower_case": b"ACd",
    "whitespace": b"AC D",
    "gap": b"AC-D",
    "final_stop": b"ACD*",
    "inner_stop": b"AC*D",
    "illegal": b"AC1D",
    "empty": b"",
}


@pytest.mark.parametrize("policy", REFUSED)
def test_strict_names_the_first_record_and_the_rule(policy: str) -> None:
    records = [Record("good", b"ACD"), Record("bad", REFUSED[policy]), Record("worse", REFUSED[policy])]
    (chunk,) = chunks_of(records)
    with pytest.raises(UserError) as caught:
        clean(chunk, Tally("x.fasta", strict=True))
    text = str(caught.value)
    assert text.startswith("x.fasta, record 2 'bad' ")
    assert POLICIES[policy].found in text
    assert "\n" not in text


def test_an_illegal_character_is_shown() -> None:
    for residues, shown in ((b"AC7D", "'7'"), (b"AC\xc3\xa9", "byte 0xc3"), (b"A\x00", "byte 0x00")):
        tally = Tally("x")
        for chunk in chunks_of([Record("p", residues)]):
            clean(chunk, tally)
        assert shown in tally.examples["illegal"]


def test_rare_amino_acids_are_residues() -> None:
    residues = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    (chunk,) = chunks_of([Record("p", residues)])
    assert clean(chunk, Tally("x", strict=True)).residues == residues


def test_a_record_without_a_name_gets_its_number() -> None:
    tally = Tally("x")
    (chunk,) = chunks_of([Record("a", b"ACD"), Record("", b"ACE")])
    assert clean(chunk, tally).ids == [b"a", b"record-2"]
    assert tally.counts["unnamed"] == 1


def test_places_stay_right_after_records_are_left_out() -> None:
    (chunk,) = chunks_of([Record("a", b""), Record("b", b"A1"), Record("c", b"ACD")])
    assert clean(chunk, Tally("x")).where(0) == "record 3 'c'"


# ------------------------------------------------------------------------------------------------------------- hashing


def plain_hash(data: bytes) -> int:
    """The formula of hash_slices with Python integers."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    total = sum(_mix_int(w + (k + 1) * golden) for k, w in enumerate(words))
    return _mix_int((total + len(data) * golden) & mask)


@pytest.mark.parametrize("seed", range(20))
def test_hashes_are_those_of_the_formula_wherever_a_slice_lies(seed: int) -> None:
    rng = random.Random(seed)
    items = [bytes(rng.choices(b"ACDEFGHIKLMNPQRSTVWY", k=rng.choice([0, 1, 7, 8, 9, 40, 41]))) for _ in range(30)]
    lengths = np.array([len(item) for item in items])
    assert hash_slices(b"".join(items), offsets_of(lengths)).tolist() == [plain_hash(item) for item in items]


def test_hashes_tell_near_sequences_apart() -> None:
    base = b"ACDEFGHIKLMNPQRSTVWYACDEFGHIKLMN"
    items = {base, base[::-1], base + b"A", base[1:], base[8:16] + base[:8] + base[16:], base[:-1], b"A", b"AA", b""}
    items |= {base[:i] + b"W" + base[i + 1 :] for i in range(len(base))}
    ordered = sorted(items)
    hashes = hash_slices(b"".join(ordered), offsets_of(np.array([len(i) for i in ordered])))
    assert len(set(hashes.tolist())) == len(ordered)


@pytest.mark.parametrize("data", [b"", b"A", b"AB", b"ABCAB", bytes(range(256)) * 3 + b"x"])
def test_byte_counts(data: bytes) -> None:
    assert byte_counts(data).tolist() == np.bincount(np.frombuffer(data, np.uint8), minlength=256).tolist()
