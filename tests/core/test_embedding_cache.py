"""Features on disk: the same bits, for whoever asks; damage, full disks, limits and company."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import toy_tasks

from protloom.cli import main
from protloom.embedding import Embedder
from protloom.embedding import cache as embedding_cache
from protloom.embedding.cache import EmbeddingCache
from protloom.plugins import Registry
from protloom.subjects import open_subjects

SPACE = {"weights": "w", "layer": 2, "pool": "mean"}


def vectors(n: int, seed: int = 0, rows: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, 8)).astype(np.float32) for _ in range(n)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.emb"))


def names(n: int, start: int = 0) -> list[str]:
    return [f"SEQ{'A' * i}" for i in range(start, start + n)]


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    assert cache.get(SPACE, names(3)) == {}
    values = [*vectors(2), *vectors(1, seed=1, rows=5)]
    cache.put(SPACE, names(3), values)
    for reader in (cache, EmbeddingCache(tmp_path)):
        found = reader.get(SPACE, [*names(1, start=7), *names(3)])
        assert sorted(found) == [1, 2, 3]
        for i, value in enumerate(values):
            np.testing.assert_array_equal(found[i + 1], value)
            assert found[i + 1].dtype == np.float32
    assert cache.counts == {"found": 3, "missing": 4, "kept": 3}


@pytest.mark.parametrize("change", [{"weights": "v"}, {"layer": 1}, {"pool": "max"}, {"new": None}])
def test_other_circumstances_are_another_space(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put(SPACE, names(3), vectors(3))
    assert cache.get({**SPACE, **change}, names(3)) == {}
    assert json.loads(next(tmp_path.glob("*/space.json")).read_text()) == SPACE


def test_a_damaged_entry_is_dropped_counted_and_replaced(tmp_path: Path) -> None:
    values = vectors(4)
    EmbeddingCache(tmp_path).put(SPACE, names(4), values)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4  # one bit of one number
    path.write_bytes(content)
    cache = EmbeddingCache(tmp_path)
    found = cache.get(SPACE, names(4))
    assert len(found) == 3
    assert cache.counts["corrupt"] == 1
    (lost,) = set(range(4)) - set(found)
    cache.put(SPACE, [names(4)[lost]], [values[lost]])
    for reader in (cache, EmbeddingCache(tmp_path)):
        for i, value in enumerate(values):
            np.testing.assert_array_equal(reader.get(SPACE, names(4))[i], value)
    assert cache.counts["corrupt"] == 1
    assert path not in files(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "index", "empty", "head", "longer"])
def test_a_file_that_is_damaged_as_a_whole_is_removed(tmp_path: Path, damage: str) -> None:
    EmbeddingCache(tmp_path).put(SPACE, names(4), vectors(4))
    EmbeddingCache(tmp_path).put(SPACE, names(2, start=4), vectors(2, seed=1))
    path = files(tmp_path)[0]
    whole = bytearray(path.read_bytes())
    changed = {
        "cut": whole[:-1],
        "index": whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
        "empty": b"",
        "head": bytes([whole[0] ^ 1]) + whole[1:],
        "longer": whole + b"x",
    }
    path.write_bytes(changed[damage])
    cache = EmbeddingCache(tmp_path)
    assert sorted(cache.get(SPACE, names(6))) == [4, 5]
    assert cache.counts["corrupt"] == 1
    assert not path.exists()


def test_an_entry_under_another_key_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put(SPACE, ["AAAA"], vectors(1))
    keys = embedding_cache._keys
    # a hash of 64 bits would take the one for the other; the second half tells them apart
    half = keys(["AAAA"])[0, 0]

    def clash(sequences: Any) -> Any:
        found = keys(sequences).copy()
        found[:, 0] = half
        return found

    monkeypatch.setattr(embedding_cache, "_keys", clash)
    assert EmbeddingCache(tmp_path).get(SPACE, ["CCCC"]) == {}
    assert list(EmbeddingCache(tmp_path).get(SPACE, ["AAAA"])) == [0]


def test_the_oldest_use_goes_first(tmp_path: Path) -> None:
    size = 0
    for i in range(3):
        EmbeddingCache(tmp_path).put({**SPACE, "layer": i}, names(8), vectors(8))
        size = sum(path.stat().st_size for path in files(tmp_path)) // (i + 1)
    now = time.time()
    for age, layer in ((30_000, 0), (20_000, 1), (10_000, 2)):
        path = next(p for p in files(tmp_path) if json.loads((p.parent / "space.json").read_text())["layer"] == layer)
        os.utime(path, (now - age, now - age))
    cache = EmbeddingCache(tmp_path, gigabytes=3.5 * size / 2**30)
    assert len(cache.get({**SPACE, "layer": 0}, names(8))) == 8  # used, so it is the youngest now
    cache.put({**SPACE, "layer": 3}, names(8), vectors(8))
    left = {json.loads((p.parent / "space.json").read_text())["layer"] for p in files(tmp_path)}
    assert left == {0, 2, 3}
    assert cache.counts["evicted"] == 1
    small = EmbeddingCache(tmp_path, gigabytes=0.5 * size / 2**30)
    small.put({**SPACE, "layer": 4}, names(8), vectors(8))  # larger than everything that may be there
    assert {json.loads((p.parent / "space.json").read_text())["layer"] for p in files(tmp_path)} == left


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path).put(SPACE, names(1), vectors(1))
    old, new = files(tmp_path)[0].with_name("old.tmp"), files(tmp_path)[0].with_name("new.tmp")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 10_000,) * 2)
    EmbeddingCache(tmp_path).put(SPACE, names(1, start=3), vectors(1))
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    cache = EmbeddingCache(tmp_path, warn=told.append)
    cache.put(SPACE, names(1), vectors(1))

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        cache.put(SPACE, names(1, start=1), vectors(1))
        cache.put(SPACE, names(1, start=2), vectors(1))
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert list(cache.get(SPACE, names(3))) == [0]  # reading goes on
    assert not list(tmp_path.glob("*/*.tmp"))


def _write(folder: Path, which: int) -> None:
    cache = EmbeddingCache(folder)
    for i in range(20):
        cache.put(SPACE, names(3, start=3 * i), vectors(3, seed=i))
        cache.get(SPACE, names(60))
    os._exit(0 if cache.counts["corrupt"] == 0 else 1 + which)


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path, i)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = EmbeddingCache(tmp_path).get(SPACE, names(60))
    for i in range(20):
        for at, value in enumerate(vectors(3, seed=i)):
            np.testing.assert_array_equal(found[3 * i + at], value)


# -------------------------------------------------------------------------------------------------- with a network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", registry)


@pytest.mark.parametrize("long_policy", ["crop", "window", "skip", "auto"])
def test_features_from_the_cache_are_the_same_bits(
    tmp_path: Path, model: Path, registry: Registry, random_proteins: Callable[..., list[str]], long_policy: Any
) -> None:
    sequences = [*random_proteins(40, low=1, high=60), *random_proteins(5, seed=1)]
    sequences += sequences[:3]

    def features(cache: EmbeddingCache | None) -> tuple[list[Any], Embedder]:
        embedder, _, _ = open_subjects(
            str(model), registry, max_length=40, long_policy=long_policy, twin=None, cache=cache
        )
        found: list[Any] = [embedder.pooled(sequences, pool) for pool in ("mean", "max", "cls")]
        found += [embedder.pooled(sequences, "mean", include_specials=True), *embedder.residues(sequences)]
        return found, embedder

    plain, without = features(None)
    cold, first = features(EmbeddingCache(tmp_path))
    warm, second = features(EmbeddingCache(tmp_path))
    for a, b, c in zip(plain, cold, warm, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert first.counts["tokens"] == without.counts["tokens"]
    assert "cached" not in first.counts
    assert second.counts["tokens"] == 0
    assert second.counts["cached"] > 0
    kinds = ("sequences", "computed", "cropped", "windowed", "skipped")
    assert [first.counts[kind] for kind in kinds] == [second.counts[kind] for kind in kinds]


def test_only_what_is_missing_is_computed(
    tmp_path: Path, model: Path, registry: Registry, random_proteins: Callable[..., list[str]]
) -> None:
    sequences = random_proteins(20)

    def opened(**options: Any) -> Embedder:
        return open_subjects(str(model), registry, twin=None, cache=EmbeddingCache(tmp_path), **options)[0]

    opened().pooled(sequences[:12])
    later = opened()
    later.pooled(sequences)
    assert later.counts["tokens"] == sum(len(s) + 2 for s in sequences[12:])
    for options in ({"layer": 1}, {"max_length": 50}, {"long_policy": "skip"}, {"precision": "bf16"}):
        other = opened(**options)
        other.pooled(sequences[:12])
        assert "cached" not in other.counts, options
    nameless = opened()
    del nameless.provenance["weights"]  # nobody knows what it is
    nameless.pooled(sequences)
    assert "cached" not in nameless.counts


def test_from_the_command_line(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_tasks.enter(tmp_path, monkeypatch)
    arguments = ["task", "run", "toy:plain", "--model", str(model), "--no-floors", "--json"]
    found = []
    for more in (["--no-cache"], ["--cache-dir", str(tmp_path / "c")], ["--cache-dir", str(tmp_path / "c")]):
        assert main([*arguments, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["tasks"][0]["results"])
    assert [[entry["metrics"] for entry in entries] for entries in found[1:]] == [[e["metrics"] for e in found[0]]] * 2
    assert [[entry["counts"].get("cached", 0) for entry in entries] for entries in found] == [[0, 0], [0, 0], [5, 5]]
    assert main([*arguments, "--no-cache", "--cache-gb", "1"]) == 2
    assert "--no-cache: nothing is kept" in capsys.readouterr().err
    assert main([*arguments, "--cache-gb", "-1"]) == 2
