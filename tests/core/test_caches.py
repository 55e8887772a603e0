"""Where caches are: one variable moves all of them, and without it they are where they always were."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from protloom import hub
from protloom.caches import Part, cache_folder
from protloom.cli import task_run
from protloom.data.store import is_store, open_corpus
from protloom.plugins import Registry

HOME = Path.home()


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"PROTLOOM_CACHE": "/y", "XDG_CACHE_HOME": "/x"}, Path("/y")),
        ({"PROTLOOM_CACHE": "~/y"}, HOME / "y"),
        ({"PROTLOOM_CACHE": "", "XDG_CACHE_HOME": "/x"}, Path("/x/protloom")),
        ({"XDG_CACHE_HOME": ""}, HOME / ".cache" / "protloom"),
        ({}, HOME / ".cache" / "protloom"),
    ],
)
@pytest.mark.parametrize("part", ["embeddings", "hub", "stores"])
def test_where_it_is(part: Part, environment: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(part, environment) == folder / part
    for name in ("PROTLOOM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(part) == folder / part


def test_weights_of_a_hub_have_a_variable_of_their_own() -> None:
    assert hub.Settings.of({"PROTLOOM_CACHE": "/y"}).cache == Path("/y/hub")
    assert hub.Settings.of({"PROTLOOM_CACHE": "/y", "PROTLOOM_HUB_CACHE": "/z"}).cache == Path("/z")
    assert hub.Settings.of({"PROTLOOM_HUB_CACHE": "~/z"}).cache == HOME / "z"


def test_a_store_is_built_there(
    small_fasta: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTLOOM_CACHE", str(tmp_path / "caches"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    open_corpus(str(small_fasta), registry=registry)
    assert [is_store(path) for path in (tmp_path / "caches" / "stores").iterdir() if path.name != "hashes"] == [True]
    assert not (tmp_path / "elsewhere").exists()


def test_embeddings_are_kept_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTLOOM_CACHE", str(tmp_path / "caches"))
    for given, folder in ((None, tmp_path / "caches" / "embeddings"), (str(tmp_path / "own"), tmp_path / "own")):
        cache = task_run._cache(argparse.Namespace(no_cache=False, cache_dir=given, cache_gb=None))
        assert cache is not None
        assert cache.folder == folder
