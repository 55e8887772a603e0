"""Sequences read one after the other, against the store that is built of the same file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from protloom.data.records import Entry, Source
from protloom.data.store import build_store
from protloom.errors import UserError
from protloom.plugins import Registry


@pytest.mark.parametrize("seed", range(5))
def test_the_same_sequences_and_ids_as_a_store(tmp_path: Path, registry: Registry, seed: int) -> None:
    rng = random.Random(seed)
    text = []
    for _ in range(300):
        name = rng.choice(["a", "b", "c", "", f"d{rng.randrange(200)}"])
        sequence = "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=rng.randrange(1, 4)))
        text.append(f">{name}\n{rng.choice([sequence, sequence.lower(), sequence + '*', sequence + '*A', '', '-'])}\n")
    source = tmp_path / "x.fasta"
    source.write_text("".join(text))
    found = Source(str(source), registry)
    entries = list(found.entries())
    store = build_store(source, tmp_path / "store")
    stored = {Entry(store.id(i), store.sequence(i).tobytes().decode()) for i in range(len(store))}
    assert set(entries) == stored
    assert len(entries) == len(store)
    rules = store.manifest["policies"]["rules"]
    for name, facts in found.tally.as_dict().items():
        if name != "repeated_sequence":  # only noted, and by a store alone
            assert facts["records"] == rules[name]["records"], name
    # the order of the file
    of_file = iter([record.partition("\n")[0] for record in text])
    assert all(f">{entry.id.partition('#')[0]}" in of_file for entry in entries if not entry.id.startswith("record-"))
    again = list(Source(str(tmp_path / "store"), registry).entries())
    assert set(again) == stored


def test_an_id_that_looks_like_a_repeat(tmp_path: Path, registry: Registry) -> None:
    source = tmp_path / "x.fasta"
    source.write_text(">a\nMK\n>a#2\nGG\n>a\nWW\n>a\nGG\n>a\nWW\n")
    found = list(Source(str(source), registry).entries())
    assert found == [("a", "MK"), ("a#2", "GG"), ("a#3", "WW"), ("a#4", "GG")]


def test_uri(registry: Registry) -> None:
    entries = list(Source("demo:?n=12", registry).entries())
    assert len(entries) == 12
    with pytest.raises(UserError, match="is no table"):
        Source("demo:?n=12", registry, column="x")


def test_nothing_usable(tmp_path: Path, registry: Registry) -> None:
    source = tmp_path / "x.fasta"
    source.write_text(">a\nM*K\n")
    with pytest.raises(UserError, match=r"no usable sequence: 1 records read; 1 '\*' inside"):
        list(Source(str(source), registry).entries())
    with pytest.raises(UserError, match="strict"):
        list(Source(str(source), registry, strict=True).entries())
