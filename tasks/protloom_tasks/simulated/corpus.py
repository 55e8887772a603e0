"""The corpus ``demo:``: the simulated proteome as a source of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from protloom.contracts import Record
from protloom.settings import Section
from protloom_tasks.simulated.proteome import simulate


class DemoConfig(Section):
    """Options of ``demo:``, as in ``demo:?n=2000&seed=1``."""

    n: int = Field(default=20_000, ge=1, le=1_000_000, description="Number of simulated sequences")
    seed: int = Field(default=0, ge=0, description="Seed of the simulation")
    split: Literal["all", "train", "valid", "test"] = Field(
        default="all", description="Only the superfamilies of one split; tasks probe on theirs"
    )
    group: Literal["none", "family"] = Field(default="none", description="Sample the members of a family together")


def read(config: DemoConfig, uri: str) -> Iterator[Record]:
    """Yields SIMULATED sequences; every id begins with ``SIM|``.

    Args:
        config: what to simulate.
        uri: the address it was asked for by, not needed further.
    """
    proteome = simulate(config.n, config.seed)
    for i in range(len(proteome)):
        if config.split in ("all", proteome.split(i)):
            name = proteome.id(i)
            group = name.rpartition("|")[0] if config.group == "family" else None
            yield Record(name, proteome.sequence(i).encode(), group)
