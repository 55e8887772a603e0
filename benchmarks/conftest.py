"""What the benchmarks of ``make bench`` share: a corpus with lengths like those of proteins, and runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.data.build import build_store
from protloom.data.layout import Store
from protloom.distributed import join
from protloom.plugins import Registry

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
MakeRun = Callable[..., Assembly]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The installed components: those of third parties are measured too."""
    return Registry.discover()


@pytest.fixture(scope="session")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 random sequences with lengths like those of UniRef (log-normal, mean about 290, 30 to 510)."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "random.fasta"
    with path.open("wb") as file:
        for i, length in enumerate(np.clip(generator.lognormal(5.5, 0.6, 5000), 30, 510).astype(int)):
            file.write(b">s%d\n%s\n" % (i, bytes(generator.choice(LETTERS, length))))
    return path


@pytest.fixture(scope="session")
def store(fasta: Path) -> Store:
    """The same as a store."""
    return build_store(fasta, fasta.parent / "store")


@pytest.fixture(scope="session")
def make_run(store: Store, registry: Registry) -> MakeRun:
    """Makes an assembled run on the corpus; keyword arguments with ``__`` for dots are its options."""

    def make(architecture: str, objective: Any, **options: Any) -> Assembly:
        base: dict[str, Any] = {
            "architecture": architecture,
            "objective": objective,
            "data": {"corpus": str(store.path), "max_length": 510, "validation_fraction": 0},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            base.setdefault(section, {})[name] = value
        return assemble(config.load(None, [], registry, base=base), registry, join("none", "auto"), initial=None)

    return make
