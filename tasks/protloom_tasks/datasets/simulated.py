"""The simulated proteome as task data: proteins drawn evenly from families, whole superfamilies in one split."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from protloom.settings import Section
from protloom_tasks.datasets.proteins import Labelled, draw_spread
from protloom_tasks.simulated.proteome import VERSION, Proteome, simulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NOTE", "STATES", "Proteome", "SimulatedConfig", "choose", "make", "provenance", "sequences", "structures"]

STATES = "HEC"
"""Helix, strand, coil: classes 0, 1 and 2."""

NOTE = "SIMULATED proteins: good for comparing models, no evidence about real proteins"


class SimulatedConfig(Section):
    """Which simulated proteome a task uses; the defaults are those of the corpus ``demo:``."""

    proteome_size: int = Field(default=20_000, ge=100, description="Sequences of the proteome, n of demo:?n=...")
    proteome_seed: int = Field(default=0, ge=0, description="Its seed")


def make(config: SimulatedConfig) -> Proteome:
    """Simulates the proteome; tasks that follow each other on the same one share it."""
    return _made(config.proteome_size, config.proteome_seed)


@lru_cache(maxsize=1)
def _made(size: int, seed: int) -> Proteome:
    return simulate(size, seed)


def sequences(config: SimulatedConfig, split: str) -> list[str]:
    """Returns all sequences of a split; see :class:`protloom.contracts.HasSequences`."""
    proteome = make(config)
    return [proteome.sequence(i) for i in proteome.indices(split).tolist()]


def provenance(config: SimulatedConfig) -> dict[str, object]:
    """Returns what identifies the proteome, for the details of a result."""
    return {"simulated": {"n": config.proteome_size, "seed": config.proteome_seed, "version": VERSION}}


def choose(proteome: Proteome, split: str, most: int, seed: int) -> NDArray[np.int64]:
    """Returns numbers of proteins of a split, drawn evenly from its families."""
    members = proteome.indices(split)
    purpose = ("train", "valid", "test").index(split)
    return members[draw_spread(proteome.family[members], most, seed, purpose)]


def structures(proteome: Proteome, indices: NDArray[np.int64]) -> list[Labelled]:
    """Returns proteins with their true secondary structure; those of one family are one group."""
    found = []
    for i in indices.tolist():
        labels = np.array([STATES.index(state) for state in proteome.ss3(i)], dtype=np.int64)
        found.append(Labelled(proteome.id(i), proteome.sequence(i), labels, f"family {proteome.family[i]}"))
    return found
