"""What a number depends on besides its options: the bytes of files, and the code that computed it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

FEATURES = (
    "protloom.embedding.embedder",
    "protloom.embedding.layers",
    "protloom.inference",
    "protloom.kernels",
    "protloom.likelihood",
    "protloom.ops",
    "protloom.precision",
    "protloom.subjects",
    "protloom.variants",
)
"""Modules of the core whose code decides the features of a sequence, or the scores of variants."""

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
"""Distributions that compute features, probes and metrics."""


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes; a file is read again only once its size or time changed."""
    status = path.stat()
    return _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_hash(modules: Iterable[str]) -> str:
    """Returns a hash of the source of modules; of a package, that of every ``.py`` and ``.yaml`` below it.

    Args:
        modules: a tuple of names; one without source files counts by its name alone.
    """
    digest = hashlib.sha256()
    for module in sorted(set(modules)):
        digest.update(f"\n{module}\n".encode())
        spec = importlib.util.find_spec(module)
        if spec is None:
            continue
        for folder in map(Path, spec.submodule_search_locations or ()):
            for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".yaml")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes())
        if spec.submodule_search_locations is None and spec.origin is not None and Path(spec.origin).is_file():
            digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


def versions(names: Iterable[str] = LIBRARIES) -> Mapping[str, str | None]:
    """Returns the installed version of each distribution, None where it is missing."""
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
