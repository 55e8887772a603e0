"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protloom.plugins import Registry

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Embeddings, stores and weights of tests are not kept in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTLOOM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development data; the test is skipped where it is missing."""
    folder = Path(os.environ.get("PROTLOOM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set PROTLOOM_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The installed components."""
    return Registry.discover()


@pytest.fixture
def random_proteins() -> Callable[..., list[str]]:
    """Makes seeded random sequences: ``random_proteins(n, seed=0, low=20, high=120)``."""

    def make(n: int, seed: int = 0, low: int = 20, high: int = 120) -> list[str]:
        rng = np.random.default_rng(seed)
        letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
        return ["".join(rng.choice(letters, size=rng.integers(low, high))) for _ in range(n)]

    return make


@pytest.fixture
def small_fasta(tmp_path: Path, random_proteins: Callable[..., list[str]]) -> Path:
    """A FASTA file of 300 random proteins."""
    path = tmp_path / "small.fasta"
    path.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(random_proteins(300))))
    return path
