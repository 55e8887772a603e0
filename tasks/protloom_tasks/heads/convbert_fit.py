"""Trains :class:`protloom_tasks.heads.convbert.ConvBertHead` on frozen residue features and applies it.

As in Ankh's benchmark: 5 epochs of AdamW at 1e-3, 16 sequences a step, no weight decay, warm-up over 1000 steps but at
most a tenth of all. Padding is little, since a batch holds sequences of about one length, and masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from protloom.errors import UserError
from protloom_tasks.heads import training
from protloom_tasks.heads.convbert import ConvBertHead, Pool, padded
from protloom_tasks.heads.feature_file import FeatureFile
from protloom_tasks.heads.losses import Kind, Targets
from protloom_tasks.probe_options import EPOCHS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]

POSITIONS = 16_384
"""Padded positions that go through the head at once; a step adds up the gradients of several such parts."""


@dataclass(frozen=True)
class Options:
    """How the head is made and trained.

    Attributes:
        kind: of the labels.
        pool: over the positions of a sequence; None for residues.
        inner: width of the feed-forward layer; None: half of the features'.
        epochs: passes over the training sequences.
        seed: of weights, order and dropout.
        device: where it is trained.
    """

    kind: Kind
    pool: Pool | None
    inner: int | None = None
    epochs: int = EPOCHS
    seed: int = 0
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Trained:
    """A trained head.

    Attributes:
        head: the network.
        shift: added to its outputs after ``scale`` (regression learns standardised labels).
        scale: its outputs are multiplied by this.
        details: what it is and how it was trained.
        device: where it is.
    """

    head: ConvBertHead
    shift: float
    scale: float
    details: dict[str, Any]
    device: torch.device | str

    @torch.no_grad()
    def outputs(self, states: Iterable[F32]) -> Iterator[NDArray[np.float64]]:
        """Yields the outputs ``[C]``, or ``[l, C]`` for residues, of sequences ``[l, D]``, in order; zeros without any.

        Sequences go through one by one: no output can depend on its neighbours.
        """
        self.head.eval()
        width = self.head.linear.out_features
        for of in states:
            if not len(of):
                yield np.zeros((0, width) if self.head.pool is None else width)
                continue
            x, mask = padded([torch.from_numpy(of)])
            values = self.head(x.to(self.device), mask.to(self.device))[0].cpu().numpy()
            yield np.asarray(values, dtype=np.float64) * self.scale + self.shift


def fit(features: FeatureFile, labels: Sequence[Any], options: Options) -> Trained:
    """Trains the head.

    Args:
        features: of the training sequences; those without any are passed over.
        labels: of each sequence: a number, a class, ``[C]`` of 0 and 1 (multilabel), or of each of its l residues.
        options: the head and its training.

    Raises:
        UserError: if no training sequence has features.
    """
    used = [i for i, length in enumerate(features.lengths) if length]
    if not used:
        raise UserError("no training sequence has features: the head has nothing to learn from")
    targets = Targets.of([labels[i] for i in used], options.kind)
    cuda = [torch.device(options.device)] if torch.device(options.device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(training.SEED + options.seed)
        head = ConvBertHead(features.width, targets.outputs, pool=options.pool, inner=options.inner).to(options.device)
        lengths = [features.lengths[i] for i in used]
        steps = options.epochs * sum(1 for _ in training.batches(lengths, np.random.default_rng(0)))
        schedule = training.Schedule(head.parameters(), steps)
        rng = np.random.default_rng([training.SEED, options.seed])
        head.train()
        for _ in range(options.epochs):
            total = count = 0.0
            for batch in training.batches(lengths, rng):
                size = targets.size(batch.tolist())
                for part in _parts(batch, lengths):
                    x, mask = padded([torch.from_numpy(features[used[i]]) for i in part])
                    found = head(x.to(options.device), mask.to(options.device))
                    loss = targets.loss(found, targets.padded(part))
                    (loss / max(1.0, size)).backward()
                    total += float(loss.detach())
                schedule.step()
                count += size
    details = {
        "probe": f"ConvBERT layer ({options.pool or 'no'} pooling), linear layer; AdamW",
        "features": features.width,
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "epochs": options.epochs,
        "steps": steps,
        "last_loss": total / max(1.0, count),
    }
    if head.added:
        details["zeros_added_to_features"] = head.added
    return Trained(head, targets.shift, targets.scale, details, options.device)


def _parts(batch: NDArray[np.int64], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields a batch in parts of :data:`POSITIONS` padded positions at most, or one sequence."""
    longest = max(lengths[i] for i in batch)
    size = max(1, POSITIONS // longest)
    for start in range(0, len(batch), size):
        yield batch[start : start + size].tolist()
