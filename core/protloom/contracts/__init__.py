"""The data classes and protocols that cross the border between the core and plugins.

Two worlds meet here. *Preparation* is numpy on the host: a :class:`SequenceBatch` comes from the loader and an
objective turns it into a :class:`Prepared`. *Computation* is torch on the device: an architecture maps packed tokens to
:class:`Encoded` states and an objective turns them into :class:`Losses`. Importing this module does not import torch.

Everywhere sequences lie end to end without padding: ``[T]`` is the number of tokens of all sequences together, ``n``
the number of sequences and ``cu`` ("cumulative") their ``n + 1`` offsets.
"""

from __future__ import annotations

from protloom.contracts.computation import (
    Architecture,
    BuildContext,
    Encoded,
    Generator,
    ImportedWeights,
    Losses,
    Metric,
    Offsets,
    Peer,
    StepContext,
    Term,
    WeightAdapter,
)
from protloom.contracts.evaluation import (
    Callback,
    Download,
    Extent,
    HasDownloads,
    HasExtent,
    HasSequences,
    Subject,
    Task,
    TaskResult,
    VariantScorer,
)
from protloom.contracts.network import NetworkSubject
from protloom.contracts.preparation import (
    Packed,
    PassRequest,
    Prepared,
    Record,
    SequenceBatch,
    Tokenizer,
)

__all__ = [
    "Architecture",
    "BuildContext",
    "Callback",
    "Download",
    "Encoded",
    "Extent",
    "Generator",
    "HasDownloads",
    "HasExtent",
    "HasSequences",
    "ImportedWeights",
    "Losses",
    "Metric",
    "NetworkSubject",
    "Offsets",
    "Packed",
    "PassRequest",
    "Peer",
    "Prepared",
    "Record",
    "SequenceBatch",
    "StepContext",
    "Subject",
    "Task",
    "TaskResult",
    "Term",
    "Tokenizer",
    "VariantScorer",
    "WeightAdapter",
]
