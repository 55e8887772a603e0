"""Options of the probes that are no linear model on frozen features; each says which probes read it."""

from __future__ import annotations

from pydantic import Field

from protloom.settings import Section
from protloom_tasks.neighbours import Distance

EPOCHS = 5
"""Passes over the training rows, as in Ankh's benchmark."""


class ProbeOptions(Section):
    """What k-NN and heads that torch trains may be told."""

    neighbours: int = Field(default=5, ge=1, description="knn: how many neighbours count")
    distance: Distance = Field(default="cosine", description="knn: how far two rows are apart")
    epochs: int = Field(default=EPOCHS, ge=1, description="convbert: passes over the training rows")
    inner: int | None = Field(
        default=None, ge=1, description="convbert: width of its feed-forward layer; null: half of the features'"
    )
