"""Bootstrap over items (proteins, queries): intervals of a metric, and of differences by shared draws.

Residues of one protein are not independent, so what is resampled is always the protein. All subjects of a task are
resampled by the same draws: they depend on (seed, number of items) alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLICATES = 2000
"""Bootstrap replicates of every interval."""


def draws(n: int, *, seed: int, replicates: int = REPLICATES) -> Iterator[NDArray[np.int64]]:
    """Yields the resampled items in blocks ``[b, n]`` ``replicates`` rows in all; none for fewer than two items."""
    if n < 2:
        return
    rng = np.random.default_rng([seed, n])
    block = max(1, 2_000_000 // n)
    for start in range(0, replicates, block):
        yield rng.integers(n, size=(min(block, replicates - start), n))


def bootstrap_ratio(
    total: NDArray[np.floating],
    count: NDArray[np.floating] | None = None,
    *,
    seed: int,
    replicates: int = REPLICATES,
) -> NDArray[np.float64]:
    """Returns replicates ``[B]`` of Σ total / Σ count over resampled items; of the mean where ``count`` is None.

    Args:
        total: ``[n]``, such as right residues of each protein.
        count: ``[n]``, such as scored residues of each protein.
        seed: of the draws.
        replicates: how many; none come back for fewer than two items.
    """
    found: list[NDArray[np.float64]] = []
    for index in draws(len(total), seed=seed, replicates=replicates):
        below = float(len(total)) if count is None else count[index].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(total[index].sum(axis=1) / below)
    return np.concatenate(found) if found else np.zeros(0)


def fingerprint(task: str, items: Iterable[str], seed: int) -> str:
    """Returns a hash of what was scored and how it was resampled (``TaskResult.items``)."""
    digest = hashlib.sha256(f"{task}\n{seed}\n{REPLICATES}".encode())
    for item in items:
        digest.update(b"\n" + item.encode())
    return digest.hexdigest()[:16]
