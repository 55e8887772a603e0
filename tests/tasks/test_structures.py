"""The reader of structures, and contacts from coordinates."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.contracts import Subject, Task
from protloom.errors import UserError
from protloom_tasks import floors
from protloom_tasks.contacts import Contact, ContactConfig
from protloom_tasks.datasets import structures


def record(**changes: Any) -> dict[str, Any]:
    """Four residues on a line, the third unknown, one residue number left out."""
    cb = [[0.0, 0.0, 0.0], [3.9, 0.0, 0.0], None, [11.9, 0.0, 0.0]]
    whole = {"id": "a", "source": "ts50", "sequence": "MKTA", "cb": cb, "resnum": [3, 4, 5, 8]}
    return {key: value for key, value in (whole | changes).items() if value != "absent"}


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records))
    return path


def test_a_record_becomes_a_structure(tmp_path: Path) -> None:
    (found,) = structures.read_structures(write(tmp_path / "x.jsonl", record(ca=[]), ""))
    assert (found.id, found.source, found.sequence) == ("a", "ts50", "MKTA")
    np.testing.assert_array_equal(found.numbers, [3, 4, 5, 8])
    np.testing.assert_array_equal(np.isfinite(found.cb).all(axis=1), [True, True, False, True])


def test_contacts_are_nearer_than_eight_angstroms() -> None:
    cb = np.array([[0, 0, 0], [7.99, 0, 0], [np.nan] * 3, [8.0, 0, 0], [0, 7.99, 0]], dtype=np.float32)
    near, resolved = structures.contacts_of(structures.Structure("a", "ts50", "MKTAC", cb, np.arange(5)))
    expected = np.zeros((5, 5), dtype=bool)
    for i in range(5):
        for j in range(5):
            expected[i, j] = i != j and math.dist(cb[i], cb[j]) < 8
    assert expected.sum() == 6  # 0-1, 0-4, 1-3; exactly 8 Å is none, nor is 1-4 at 11.3 Å
    np.testing.assert_array_equal(near, expected)
    np.testing.assert_array_equal(resolved, [True, True, False, True, True])


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "line 2: no JSON"),
    "no object": ([1], "line 2: a list"),
    "no key": (record(id="b", cb="absent"), "line 2: no 'cb'"),
    "wrong length": (record(id="b", cb=[None] * 3), r"line 2 \(b\): 'cb' holds 3 values for 4 residues"),
    "no list": (record(id="b", resnum=3), r"line 2 \(b\): 'resnum' holds a int for 4 residues"),
    "two coordinates": (record(id="b", cb=[None, [1, 2], None, None]), "'cb' of residue 2 is \\[1, 2\\]; give"),
    "NaN": (record(id="b", cb=[[math.nan, 0, 0], None, None, None]), "'cb' of residue 1 is \\[NaN, 0, 0\\]"),
    "text": (record(id="b", cb=[["1", 0, 0], None, None, None]), "'cb' of residue 1"),
    "absurd": (record(id="b", cb=[[1e5, 0, 0], None, None, None]), "'cb' of residue 1"),
    "order": (record(id="b", resnum=[3, 4, 4, 8]), "'resnum' of residue 3 is 4 after 4; give whole numbers"),
    "insertion code": (record(id="b", resnum=[3, "4A", 5, 8]), "'resnum' of residue 2 is \"4A\""),
    "small letters": (record(id="b", sequence="mkta"), "sequence 'mkta'"),
    "source": (record(id="b", source="ts5"), "source 'ts5'. Did you mean 'ts50'"),
    "twice": (record(), "'a' is there twice with one sequence"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_one_line_with_its_place(case: str, tmp_path: Path) -> None:
    bad, message = BAD[case]
    path = write(tmp_path / "x.jsonl", record(), bad)
    with pytest.raises(UserError, match=message) as caught:
        structures.read_structures(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(record()).encode())[:-12])
    with pytest.raises(UserError, match="damaged"):
        structures.read_structures(path)


def helix(n: int, name: str, source: str, gap: int = 0) -> dict[str, Any]:
    """A random coil of ``n`` residues, with ``gap`` numbers left out in the middle."""
    rng = np.random.default_rng(n)
    steps = rng.normal(size=(n, 3))
    walk = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0) * 0.6
    letters = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), n))
    numbers = [i + (gap if i >= n // 2 else 0) for i in range(n)]
    return {"id": name, "source": source, "sequence": letters, "cb": walk.round(2).tolist(), "resnum": numbers}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    sources = ["bm5_unbound"] * 4 + ["ts50"] * 3 + ["metl-pub"] * 2
    lines = [json.dumps(helix(50 + i, f"p{i}", source, gap=10)) for i, source in enumerate(sources)]
    (tmp_path / "contacts").mkdir()
    with gzip.open(tmp_path / "contacts/structures.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    return tmp_path


def test_splits_and_separations_by_residue_numbers(data_dir: Path) -> None:
    task = Contact(ContactConfig(data_dir=str(data_dir)))
    assert isinstance(task, Task)
    splits = task._load(0, None)
    assert [p.id for p in splits.train] == ["p0", "p1", "p2", "p3"]
    assert [p.id for p in splits.test] == ["p4", "p5", "p6"]
    assert [p.id for p in Contact(ContactConfig(data_dir=str(data_dir), split="test"))._load(0, None).test] == [
        "p7",
        "p8",
    ]
    assert task.sequences("test") == [helix(57, "p7", "")["sequence"], helix(58, "p8", "")["sequence"]]
    result = task.run(floors.Separation())
    # every pair of the upper triangle, by its numbers: 10 are left out in the middle
    shares = []
    for protein in splits.test:
        truth = []
        for i in range(len(protein.sequence)):
            for j in range(i + 1, len(protein.sequence)):
                half = len(protein.sequence) // 2
                apart = j - i + (10 if i < half <= j else 0)
                if apart >= 24:
                    truth.append(protein.contacts[i, j])
        shares.append(np.mean(truth))
    assert result.metrics["chance:long"] == pytest.approx(np.mean(shares))
    assert result.n == 3
    assert result.details["available"] == {"train": 4, "valid": 3, "test": 2}


def test_missing_data_say_where_they_come_from(tmp_path: Path) -> None:
    task = Contact(ContactConfig(data_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"structures.jsonl.gz.*metl-pub.*MIT"):
        task.check()
    assert task.card()["status"] == {"contacts/structures.jsonl.gz": "missing contacts/structures.jsonl.gz"}


def test_a_jacobian_leaves_out_long_proteins_whatever_the_subject(data_dir: Path) -> None:
    config = ContactConfig(data_dir=str(data_dir), head="jacobian", jacobian_length=55, jacobian_proteins=1)
    result = Contact(config).run(floors.Separation())
    assert result.details["test_proteins_left_out"] == {"too_long": 1, "not_drawn": 1}
    assert result.details["test_proteins"] == 1
    assert result.details["head"] == "attention"
    with pytest.raises(UserError, match="floor:onehot has no logits"):
        Contact(config).run(floors.OneHot())


def test_real_structures(shared_data: Path) -> None:
    task = Contact(ContactConfig(data_dir=str(shared_data), head="pairs", train_proteins=12, components=24))
    for floor in task.floors().values():
        assert isinstance(floor, Subject)
        result = task.run(floor, limit=6)
        assert result.n == 6
        # what the README of these data measured: 1.6 to 3.7 % of long-range pairs touch
        assert 0.005 < result.metrics["chance:long"] < 0.1
        assert all(0 <= result.metrics[name] <= 1 for name in task.card()["also"])
    found, _ = task._data()
    assert {split: len(of) for split, of in found.items()} == {"train": 226, "valid": 50, "test": 155}
    assert len({structure.id for structure in found["test"]}) == 153  # two are there in two lengths
    rates = []
    for structure in found["valid"]:
        near, resolved = structures.contacts_of(structure)
        i, j = np.triu_indices(len(near), 1)
        far = resolved[i] & resolved[j] & (structure.numbers[j] - structure.numbers[i] >= 24)
        rates.append(near[i, j][far])
    assert np.concatenate(rates).mean() == pytest.approx(0.027, abs=0.0005)
