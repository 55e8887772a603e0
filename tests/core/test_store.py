"""The store: what goes in comes out, in a shuffled but fixed order; nothing that exists is ever damaged."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom.contracts import Record
from protloom.data import build, parts
from protloom.data.store import Store, build_store, open_corpus
from protloom.errors import UserError
from protloom.plugins import Registry


def make_records(n: int, seed: int = 0, groups: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [
        Record(
            f"p{i}",
            bytes(rng.choices(b"ACDEFGHIKLMNPQRSTVWY", k=rng.randint(5, 60))),
            f"g{rng.randrange(groups)}" if groups and rng.random() < 0.8 else None,
        )
        for i in range(n)
    ]


def contents(store: Store) -> list[tuple[str, bytes]]:
    return [(store.id(i), store.sequence(i).tobytes()) for i in range(len(store))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_sequence_is_there_once(tmp_path: Path) -> None:
    records = make_records(2000)
    store = build_store(records, tmp_path / "s")
    assert sorted(contents(store)) == sorted((r.id, r.residues) for r in records)
    assert len(store) == store.n_groups == 2000
    assert store.groups is None
    assert store.lengths().tolist() == [len(s) for _, s in contents(store)]
    assert store.ids() == [name for name, _ in contents(store)]
    assert store.offsets.dtype == np.int64
    assert store.residues.dtype == np.uint8
    store.verify()
    with pytest.raises(IndexError):
        store.sequence(2000)
    with pytest.raises(ValueError, match="read-only"):
        store.sequence(0)[0] = 65


def test_the_order_is_shuffled_and_fixed(tmp_path: Path) -> None:
    records = make_records(3000)
    first = build_store(iter(records), tmp_path / "a")
    again = build_store(iter(records), tmp_path / "b")
    other = build_store(iter(records), tmp_path / "c", seed=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert other.content_hash != first.content_hash == again.content_hash
    numbers = np.array([int(name[1:]) for name in first.ids()])
    # a random order has correlation 0 with a standard error of 1/sqrt(3000) = 0.018
    assert abs(np.corrcoef(numbers, np.arange(3000))[0, 1]) < 0.08
    # every run of 300 holds about a tenth of each tenth of the source: expect 30, standard deviation about 5
    spread = [np.bincount(numbers[i : i + 300] // 300, minlength=10) for i in range(0, 3000, 300)]
    assert np.min(spread) >= 8
    assert np.max(spread) <= 60


def test_a_corpus_larger_than_a_pass_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(1000)
    build_store(records, tmp_path / "a")
    monkeypatch.setattr(parts, "SORT_BYTES", 3000)
    monkeypatch.setattr(parts, "WRITE_ROWS", 7)
    build_store(records, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_groups_lie_together_in_the_order_of_the_source(tmp_path: Path) -> None:
    records = make_records(800, groups=50)
    store = build_store(records, tmp_path / "s")
    labels = {r.id: r.group or r.id for r in records}
    assert store.groups is not None
    assert store.n_groups == len(set(labels.values()))
    seen = []
    for a, b in zip(store.groups[:-1], store.groups[1:], strict=True):
        names = [store.id(i) for i in range(a, b)]
        assert len({labels[n] for n in names}) == 1
        assert [int(n[1:]) for n in names] == sorted(int(n[1:]) for n in names)
        seen.append(labels[names[0]])
    assert len(seen) == len(set(seen))
    assert sorted(contents(store)) == sorted((r.id, r.residues) for r in records)
    store.verify()


def test_the_manifest_states_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\nACDEF\n>b\nACDac*\n>c\nACX\n>d\nA1\n")
    manifest = build_store(path, tmp_path / "s", licence="CC BY 4.0").manifest
    assert manifest["sequences"] == 3
    assert manifest["residues"] == 13
    assert manifest["licence"] == "CC BY 4.0"
    assert manifest["simulated"] is False
    assert manifest["composition"] == {"A": 4, "C": 4, "D": 2, "E": 1, "F": 1, "X": 1}
    assert manifest["lengths"]["quantiles"]["0"] == 3
    assert manifest["lengths"]["quantiles"]["100"] == 5
    assert manifest["lengths"]["histogram"] == {"2": 1, "4": 2}
    assert manifest["sources"][0]["bytes"] == path.stat().st_size
    rules = manifest["policies"]["rules"]
    assert {k: v["records"] for k, v in rules.items() if v["records"]} == {
        "lower_case": 1,
        "final_stop": 1,
        "illegal": 1,
    }
    assert rules["illegal"]["first"] == "record 4 (line 7) 'd' ('1')"
    assert manifest["policies"]["read"] == 4


def test_a_sequence_of_60000_residues(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">short\nMKT\n>titin\n" + b"ACDEFGHIKL\n" * 6000 + b">b\nK\n")
    store = build_store(path, tmp_path / "s", strict=True)
    assert dict(contents(store))["titin"] == b"ACDEFGHIKL" * 6000


# -------------------------------------------------------------------------------------------------------- duplicate ids


def test_duplicate_ids(tmp_path: Path) -> None:
    records = [
        Record("x", b"AAAA"),
        Record("y", b"CCCC"),
        Record("x", b"AAAA"),  # repeats: dropped
        Record("x", b"DDDD"),  # another sequence: x#2 is taken below, so x#3
        Record("x#2", b"EEEE"),
        Record("x", b"FFFF"),
        Record("x", b"DDDD"),  # repeats the renamed one: dropped
        Record("z", b"CCCC"),  # same sequence, other id: kept
    ]
    store = build_store(records, tmp_path / "s")
    assert sorted(contents(store)) == [
        ("x", b"AAAA"),
        ("x#2", b"EEEE"),
        ("x#3", b"DDDD"),
        ("x#4", b"FFFF"),
        ("y", b"CCCC"),
        ("z", b"CCCC"),
    ]
    rules = store.manifest["policies"]["rules"]
    assert [rules[k]["records"] for k in ("repeated_record", "repeated_id", "repeated_sequence")] == [2, 2, 1]
    assert rules["repeated_id"]["first"] == "record 4 'x'"
    assert store.manifest["composition"] == {"A": 4, "C": 8, "D": 4, "E": 4, "F": 4}
    store.verify()


@pytest.mark.parametrize(("second", "found"), [(b"AAAA", "repeats an earlier record"), (b"CC", "has the id of")])
def test_strict_refuses_duplicate_ids(second: bytes, found: str, tmp_path: Path) -> None:
    records = [Record("x", b"AAAA"), Record("y", b"D"), Record("x", second)]
    with pytest.raises(UserError, match=f"the records, record 3 'x' {found}"):
        build_store(records, tmp_path / "s", strict=True)
    assert list(tmp_path.iterdir()) == []
    build_store([Record("x", b"AAAA"), Record("y", b"AAAA")], tmp_path / "s", strict=True)  # two names are no fault


def test_a_file_of_one_id_is_kept(tmp_path: Path) -> None:
    store = build_store([Record("unknown", r.residues) for r in make_records(500)], tmp_path / "s")
    assert len(set(store.ids())) == len(store) == 500


# ------------------------------------------------------------------------------------------------------ damaged stores


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return build_store(make_records(50, groups=5), tmp_path / "s").path


@pytest.mark.parametrize("name", ["residues", "offsets", "ids", "id_offsets", "hashes", "groups"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "header", "other type"])
def test_a_damaged_file_is_named(name: str, damage: str, built: Path) -> None:
    file = built / f"{name}.npy"
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "other type":
        np.save(file, np.zeros(3, dtype=np.float32))
    else:
        file.write_bytes({"empty": b"", "short": data[:-1], "header": b"x" + data[1:]}[damage])
    with pytest.raises(UserError, match=rf"store .* is damaged: {name}\.npy") as caught:
        Store.open(built)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "version 99"),
        (lambda m: m.update(format="other"), "another program"),
        (lambda m: m.pop("arrays"), "does not list the arrays"),
        (lambda m: m["arrays"].pop("residues"), "does not list the arrays"),
        (lambda m: m["arrays"]["residues"].update(length=7), "residues.npy"),
        (lambda m: m.pop("content_hash"), "does not list the arrays"),
    ],
)
def test_a_manifest_that_does_not_fit(change: Callable[[dict[str, Any]], object], message: str, built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    change(manifest)
    (built / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        Store.open(built)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_is_no_manifest(text: bytes, built: Path) -> None:
    (built / "manifest.json").write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Store.open(built)


@pytest.mark.parametrize("name", ["residues", "offsets", "hashes", "groups"])
def test_verify_finds_a_changed_byte(name: str, built: Path) -> None:
    file = built / f"{name}.npy"
    data = bytearray(file.read_bytes())
    data[len(data) - 20] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"is damaged: (residues|offsets|hashes|groups)\.npy"):
        Store.open(built).verify()


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Store.open(tmp_path)


# ------------------------------------------------------------------------------------------ nothing existing is damaged


def test_an_older_store_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build_store(make_records(20), tmp_path / "s").content_hash

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, failing in ((build, "_write_all"), (parts, "_write_ids"), (build, "publish")):
        with monkeypatch.context() as patch:
            patch.setattr(module, failing, full)
            with pytest.raises(UserError, match=r"no space left to write .*/s: .*nothing was changed"):
                build_store(make_records(30, seed=1), tmp_path / "s")
        assert [p.name for p in tmp_path.iterdir()] == ["s"]
        assert Store.open(tmp_path / "s").content_hash == old
    new = build_store(make_records(30, seed=1), tmp_path / "s").content_hash
    assert Store.open(tmp_path / "s").content_hash == new != old
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        yield Record("a", b"MKT")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(records(), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name, message in (("work", "is not a store"), ("file", "is a file"), ("file/x/s", "cannot write")):
        with pytest.raises(UserError, match=message):
            build_store(make_records(5), tmp_path / name)
    assert (tmp_path / "work" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert len(build_store(make_records(5), tmp_path / "empty")) == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
        build_store(make_records(5), tmp_path / "locked" / "s")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\n>b\n--\n>c\n1234\n")
    with pytest.raises(UserError, match=r"holds no usable sequence: 3 records read; .*2 no residues"):
        build_store(path, tmp_path / "s")
    with pytest.raises(UserError, match="holds no usable sequence: 0 records"):
        build_store([], tmp_path / "s")


# ----------------------------------------------------------------------------------------------------------- the cache


def stores_in(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.name != "hashes")


def test_a_file_is_built_once_and_known_by_its_content(
    small_fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = open_corpus(str(small_fasta), cache_dir=cache)
    made = stores_in(cache)
    assert len(made) == 1
    copy = tmp_path / "copy.fasta"
    copy.write_bytes(small_fasta.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("protloom.data.store.build_store", lambda *_, **__: pytest.fail("built again"))
        assert open_corpus(str(small_fasta), cache_dir=cache).content_hash == first.content_hash
        assert open_corpus(str(copy), cache_dir=cache).path == first.path
        assert open_corpus(str(first.path), cache_dir=cache).content_hash == first.content_hash
    assert open_corpus(str(small_fasta), cache_dir=cache, strict=True).content_hash == first.content_hash
    assert len(stores_in(cache)) == 2
    small_fasta.write_text(small_fasta.read_text() + ">new\nMKTAYI\n")
    changed = open_corpus(str(small_fasta), cache_dir=cache)
    assert changed.content_hash != first.content_hash
    assert len(changed) == len(first) + 1
    assert Store.open(first.path).content_hash == first.content_hash


def test_a_damaged_cached_store_is_built_again(small_fasta: Path, tmp_path: Path) -> None:
    store = open_corpus(str(small_fasta), cache_dir=tmp_path / "cache")
    before = store.content_hash
    (store.path / "residues.npy").unlink()
    assert open_corpus(str(small_fasta), cache_dir=tmp_path / "cache").content_hash == before


def test_a_failed_build_leaves_no_cache_entry(tmp_path: Path) -> None:
    bad = tmp_path / "bad.fasta"
    bad.write_text(">a\nMK1\n")
    with pytest.raises(UserError, match="no usable sequence"):
        open_corpus(str(bad), cache_dir=tmp_path / "cache")
    assert stores_in(tmp_path / "cache") == []


def test_an_unwritable_cache_names_the_key(small_fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*cache_dir"):
        open_corpus(str(small_fasta), cache_dir=tmp_path / "file" / "cache")


def test_two_processes_at_once(small_fasta: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom protloom.data.store import open_corpus\n"
        "store = open_corpus(sys.argv[1], cache_dir=sys.argv[2])\nstore.verify()\nprint(store.content_hash, len(store))"
    )
    command = [sys.executable, "-c", code, str(small_fasta), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [p.communicate(timeout=60)[0] for p in running]
    assert [p.returncode for p in running] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert outputs[0].endswith(" 300\n")
    assert len(stores_in(tmp_path / "cache")) == 1


def test_the_loser_of_a_race_uses_the_winners_store(
    small_fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def slow(*args: Any, **options: Any) -> Store:
        # while this process builds, another one finishes
        monkeypatch.setattr("protloom.data.store.build_store", build_store)
        open_corpus(str(small_fasta), cache_dir=cache)
        return build_store(*args, **options)

    monkeypatch.setattr("protloom.data.store.build_store", slow)
    store = open_corpus(str(small_fasta), cache_dir=cache)
    assert stores_in(cache) == [store.path.name]
    store.verify()


# ---------------------------------------------------------------------------------------------------------------- URIs


def test_a_uri_is_read_through_its_plugin_and_cached(tmp_path: Path, registry: Registry) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "registry": registry}
    store = open_corpus("demo:?n=60&seed=3", **options)
    assert len(store) == 60
    assert store.manifest["simulated"] is True
    assert store.name == "demo:?n=60&seed=3"
    assert store.manifest["sources"][0]["component"] == "protloom/demo"
    assert open_corpus("demo:?n=60&seed=3", **options).path == store.path
    assert open_corpus("demo:?n=60&seed=4", **options).content_hash != store.content_hash


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("dmeo:?n=5", r"no file 'dmeo:\?n=5', and no corpus reader 'dmeo:'. Did you mean 'demo'"),
        ("demo:?m=5", "'?m'?"),
        ("demo:?n=many", "n"),
        ("demo:?n=0", "n"),
    ],
)
def test_a_wrong_uri(uri: str, message: str, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_corpus(uri, cache_dir=tmp_path, registry=registry)
    assert "\n" not in str(caught.value)


def test_a_file_wins_over_a_scheme(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo:x").write_text(">a\nMKT\n")
    assert open_corpus("demo:x", cache_dir=tmp_path / "cache", registry=registry).ids() == ["a"]


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "sequences", "residues"),
    [
        ("uniref90_sample_10k", 10_000, 3_353_645),
        ("reference_proteomes", 54_022, 15_655_120),
        ("profet_uniprot_2014", 15_946, 3_902_085),
    ],
)
def test_real_corpora(name: str, sequences: int, residues: int, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "pretrain_corpus" / f"{name}.fasta.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    store = build_store(path, tmp_path / "s")
    assert (len(store), len(store.residues)) == (sequences, residues)
    assert sum(store.manifest["composition"].values()) == residues
    rules = store.manifest["policies"]["rules"]
    # the README of the data: exact duplicates and other letters were removed; ids may repeat
    assert {k for k, v in rules.items() if v["records"]} <= {"repeated_id", "repeated_sequence"}
    store.verify()
