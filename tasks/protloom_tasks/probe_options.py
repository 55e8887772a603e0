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
    epochs: int = Field(default=EPOCHS, ge=1, description="convbert, lora: passes over the training rows, at most")
    inner: int | None = Field(
        default=None, ge=1, description="convbert: width of its feed-forward layer; null: half of the features'"
    )
    rank: int = Field(default=16, ge=1, description="lora: r of the updates")
    alpha: float = Field(default=16.0, gt=0, description="lora: updates are scaled by alpha / r")
    learning_rate: float = Field(default=1e-3, gt=0, description="lora: of updates and head")
    patience: int = Field(default=2, ge=1, description="lora: epochs without a lower held-out loss before it stops")
