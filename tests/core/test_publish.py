"""Stores appear whole; what a killed process left beside them is removed by the next build, and nothing else is."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protloom.data import publish
from protloom.data.build import build_store
from protloom.data.store import Store, open_corpus

STUCK = """
import sys, time
from protloom.data.build import build_store
from protloom.data.store import open_corpus
def wait(read):
    print("reading", flush=True)
    time.sleep(600)
if sys.argv[1] == "store":
    build_store(sys.argv[2], sys.argv[3], progress=wait)
else:
    open_corpus(sys.argv[2], cache_dir=sys.argv[3], progress=wait)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot ask whether a process is there")


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Starts a process that stays in the middle of a build."""
    process = subprocess.Popen([sys.executable, "-c", STUCK, *map(str, words)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_build_left_is_removed_by_the_next(small_fasta: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "s"
    process = start("store", small_fasta, out)
    try:
        (left,) = names(out.parent)
        assert left.startswith(".s.")
        # the process is there, so its folder is its own
        build_store(small_fasta, out)
        assert names(out.parent) == sorted([left, "s"])
    finally:
        kill(process)
    build_store(small_fasta, out.parent / "other")
    assert names(out.parent) == sorted([left, "s", "other"])  # that of another store is no business of this build
    assert len(build_store(small_fasta, out)) == 300
    assert names(out.parent) == ["other", "s"]


def test_the_cache_is_cleaned_too(small_fasta: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kill(start("cache", small_fasta, cache))
    assert len(names(cache)) == 2  # the hash of the file, and what was begun
    store = open_corpus(str(small_fasta), cache_dir=cache)
    assert names(cache) == sorted(["hashes", store.path.name])


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_store_that_was_moved_away_comes_back(small_fasta: Path, tmp_path: Path) -> None:
    store = build_store(small_fasta, tmp_path / "s")
    content = store.content_hash
    machine = publish.own_name("s").split(".")[1].split("-")[0]
    moved = tmp_path / f".s.{machine}-{dead_process()}-abcdef.old"
    (tmp_path / "s").rename(moved)
    publish.remove_leftovers(tmp_path, "s")
    assert Store.open(tmp_path / "s").content_hash == content
    assert not moved.exists()
    # where a store is in its place, the old one goes
    build_store(small_fasta, moved)
    publish.remove_leftovers(tmp_path, "s")
    assert not moved.exists()
    assert Store.open(tmp_path / "s").content_hash == content


def test_only_what_is_surely_left_over_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = publish.own_name("s").split(".")[1].split("-")[0]
    gone = dead_process()
    stays = [
        f".s.{machine}-{os.getpid()}-abcdef.tmp",  # this process
        f".s.{machine}-{gone}-abcdef.{machine}-{os.getpid()}-abcdef.tmp",  # of a process that is there
        f".s2.{machine}-{gone}-abcdef.tmp",  # another store
        f".s.{machine}-{gone}-abcdef.txt",
        ".s.tmp",
        "s.precious",
    ]
    for name in (*stays, f".s.{machine}-{gone}-abcdef.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / f".s.{machine}-{gone}-aaaaaa.tmp").write_text("a file is not what a build makes")
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "another machine")
        publish.remove_leftovers(tmp_path, "s")
    assert len(names(tmp_path)) == len(stays) + 2
    publish.remove_leftovers(tmp_path, "s")
    assert names(tmp_path) == sorted([*stays, f".s.{machine}-{gone}-aaaaaa.tmp"])
    publish.remove_leftovers(tmp_path / "nowhere", "s")
    assert not (tmp_path / "nowhere").exists()
