"""SCOPe domains with their place in the hierarchy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom_tasks.datasets.files import Source, read_csv

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LEVELS = ("fold", "superfamily", "family")

SCOPE = Source(
    "scope_retrieval/scope204_30id.csv.gz",
    "github.com/ddofer/ProFET, fastas/Benchmarks/SCOP/SCOPe_Orig_0.3ID.fasta at 0b7a7a1",
    "SCOPe/ASTRAL data from a GPL-3.0 repository",
    ("id", "sequence", *LEVELS),
)


@dataclass(frozen=True)
class Domains:
    """Domains and their labels.

    Attributes:
        ids: names.
        sequences: residues as letters.
        labels: level -> ``[n]`` number of the class that each domain is in.
    """

    ids: list[str]
    sequences: list[str]
    labels: dict[str, NDArray[np.int64]]


def read_scope(path: Path) -> Domains:
    """Reads the Astral SCOPe 2.04 domains at 30 % identity."""
    rows = list(read_csv(path, SCOPE))
    labels = {level: np.unique([row[level] for row in rows], return_inverse=True)[1] for level in LEVELS}
    return Domains(
        [row["id"] for row in rows],
        [row["sequence"] for row in rows],
        {level: found.astype(np.int64) for level, found in labels.items()},
    )
