"""Tasks tell the sequences of their splits: as the data have them, not drawn, with those left out of training."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from protloom.contracts import HasSequences
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.task import suite as task_suite
from protloom_tasks.sequence_task import SequenceConfig, SequenceTask
from protloom_tasks.simulated.proteome import simulate


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_a_definition_tells_what_its_tables_hold(tmp_path: Path) -> None:
    rows = [("MKT", "train"), ("MKV", "train"), ("MKA", "train"), ("MKV", "test"), ("MKW", "test")]
    write_csv(tmp_path / "t.csv", [{"sequence": s, "part": p, "y": str(i)} for i, (s, p) in enumerate(rows)])
    (tmp_path / "t.yaml").write_text(
        "title: t\nkind: regression\nsequence: sequence\nlabel: y\norigin: here\nlicence: none\n"
        "splits:\n  train: {file: t.csv, where: {part: train}}\n  test: {file: t.csv, where: {part: test}}\n"
    )
    task = SequenceTask(SequenceConfig(definition=str(tmp_path / "t.yaml"), rows=2))
    assert isinstance(task, HasSequences)
    assert list(task.sequences("test")) == ["MKV", "MKW"]
    # MKV is left out of training because it is tested, and an audit of duplicates must see it all the same
    assert sorted(task.sequences("train")) == ["MKA", "MKT", "MKV"]
    assert list(task.sequences("valid")) == []


def test_of_a_pair_both_are_told(tmp_path: Path) -> None:
    rows = [{"a": "MKT", "b": "AAA", "y": "0"}, {"a": "MKV", "b": "CCC", "y": "1"}]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", [{"a": "WWW", "b": "MKT", "y": "0"}, {"a": "WWY", "b": "CCC", "y": "1"}])
    (tmp_path / "t.yaml").write_text(
        "title: t\nkind: binary\nsequence: a\npartner: b\nlabel: y\norigin: here\nlicence: none\n"
        "splits: {train: train.csv, test: test.csv}\n"
    )
    task = SequenceTask(SequenceConfig(definition=str(tmp_path / "t.yaml")))
    assert list(task.sequences("test")) == ["WWW", "MKT", "WWY", "CCC"]


def test_the_tasks_with_readers_of_their_own(tmp_path: Path, registry: Registry) -> None:
    domain = {"class": "a", "fold": "a.1", "superfamily": "a.1.1", "family": "a.1.1.1"}
    write_csv(
        tmp_path / "scope_retrieval" / "scope204_30id.csv.gz",
        [{"id": f"d{i}", "sequence": s, **domain} for i, s in enumerate(("MKT", "MKV"))],
    )
    chain = {"ss3": "HHC", "resolved_mask": "111"}
    write_csv(
        tmp_path / "secondary_structure" / "netsurfp_q3_train_valid_new364.csv.gz",
        [
            {"id": s, "split": p, "sequence": s, **chain}
            for s, p in (("MKT", "train"), ("MKV", "valid"), ("MKW", "test"))
        ],
    )
    write_csv(
        tmp_path / "secondary_structure" / "TS115.csv.gz", [{"input": "MKY", "dssp3": "HHC", "disorder": "1.0 1.0 1.0"}]
    )

    def told(name: str, split: str) -> list[str]:
        task = task_suite.build(name, registry, data_dir=str(tmp_path))
        assert isinstance(task, HasSequences)
        return list(task.sequences(split))

    assert told("scope-retrieval", "test") == ["MKT", "MKV"]
    assert told("scope-retrieval", "train") == []
    assert [told("ss3:new364", split) for split in ("train", "valid", "test")] == [["MKT"], ["MKV"], ["MKW"]]
    assert [told("ss3:ts115", split) for split in ("train", "test")] == [["MKT"], ["MKY"]]
    with pytest.raises(UserError, match=r"CB513\.csv\.gz"):
        told("ss3:cb513", "test")


def test_simulated_tasks_tell_the_split_of_the_proteome(registry: Registry) -> None:
    proteome = simulate(200, 0)
    for name in ("sim-ss3", "sim-retrieval", "sim-contact"):
        task = task_suite.build(name, registry, options={"proteome_size": 200})
        assert isinstance(task, HasSequences)
        for split in ("train", "valid", "test"):
            assert list(task.sequences(split)) == [proteome.sequence(i) for i in proteome.indices(split)]
