"""Low-rank updates of query and value projections, trained end to end on a copy of a network (LoRA, Hu et al. 2021).

A matrix W becomes W + (α / r) B A, with A ``[r, inputs]`` random and B ``[outputs, r]`` zero at first, so that training
begins at the network as it is. The updates are parametrizations of :mod:`torch.nn.utils`, not the wrappers of ``peft``:
those replace ``nn.Linear`` as a whole, and here queries, keys and values are rows of one matrix in several
architectures, or a module of another class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protloom.errors import UserError
from protloom.inference import batches
from protloom_tasks.heads import training
from protloom_tasks.heads.losses import Kind, Targets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Architecture, NetworkSubject

FUSED = ("qkv",)
"""Modules whose weight holds the rows of queries, keys and values, in this order."""
APART = ("q", "v", "query", "value", "q_proj", "v_proj")
"""Modules whose weight makes queries or values alone."""


class LowRank(nn.Module):
    """Adds a product of rank r to some of the equal blocks of rows of a matrix; a parametrization.

    Args:
        weight: ``[blocks · n, inputs]``.
        blocks: of rows.
        chosen: numbers of those that get an update, each its own A and B.
        rank: r.
        alpha: α.
    """

    def __init__(self, weight: Tensor, blocks: int, chosen: Sequence[int], *, rank: int, alpha: float) -> None:
        super().__init__()
        rows, inputs = len(weight) // blocks, weight.shape[1]
        self.blocks, self.chosen, self.scale = blocks, tuple(chosen), alpha / rank
        self.a = nn.Parameter(weight.new_empty(len(self.chosen), rank, inputs))
        self.b = nn.Parameter(weight.new_zeros(len(self.chosen), rows, rank))
        nn.init.uniform_(self.a, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the matrix with its updates."""
        parts = list(weight.unflatten(0, (self.blocks, -1)))
        for number, update in zip(self.chosen, self.b @ self.a, strict=True):
            parts[number] = parts[number] + self.scale * update
        return torch.cat(parts)


def adapt(network: nn.Module, *, rank: int, alpha: float) -> list[str]:
    """Freezes a network and gives its encoder's query and value projections low-rank updates; returns their names.

    Raises:
        UserError: if there is none that is known by its name.
    """
    network.requires_grad_(False)
    names = []
    for name, module in list(network.named_modules()):
        path = name.split(".")
        fused = path[-1] in FUSED
        if (fused or path[-1] in APART) and not any(part.startswith("decoder") for part in path):
            weight = cast("Tensor", module.weight)
            update = LowRank(weight, 3 if fused else 1, (0, 2) if fused else (0,), rank=rank, alpha=alpha)
            parametrize.register_parametrization(module, "weight", update)
            names.append(name)
    if not names:
        raise UserError(
            f"probe: lora finds no query and value projections in {type(network).__name__}: no module is called"
            f" {', '.join((*FUSED, *APART))}; use probe: convbert"
        )
    return names


@dataclass(frozen=True)
class Options:
    """How a network is tuned.

    Attributes:
        kind: of the labels.
        pool: ``mean``, ``max`` or ``cls``; None for residues.
        specials: ``mean`` and ``max`` see special symbols too.
        rank: r.
        alpha: α.
        epochs: at most.
        patience: epochs without a lower loss on the held-out rows after which training stops.
        learning_rate: of updates and head.
        seed: of weights, order and held-out rows.
    """

    kind: Kind
    pool: str | None
    specials: bool = False
    rank: int = 16
    alpha: float = 16.0
    epochs: int = 5
    patience: int = 2
    learning_rate: float = training.LEARNING_RATE
    seed: int = 0


class Tuned(nn.Module):
    """A copy of a subject's network with low-rank updates, and a linear layer on its states.

    Args:
        subject: whose network; it stays as it is.
        outputs: numbers that the linear layer gives.
        options: pooling and rank.
    """

    def __init__(self, subject: NetworkSubject, outputs: int, options: Options) -> None:
        super().__init__()
        # in a tuple, which nn.Module does not look into: the subject's own network must not become a part of this one
        self._subject = (subject,)
        self.options = options
        self.network = copy.deepcopy(cast("nn.Module", subject.model))
        self.adapted = adapt(self.network, rank=options.rank, alpha=options.alpha)
        device = next(self.network.parameters()).device
        self.linear = training.start(nn.Linear(subject.model.width, outputs)).to(device)

    def trained(self) -> dict[str, nn.Parameter]:
        """Returns what is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, sequences: Sequence[str]) -> Tensor:
        """Returns ``[n, C]``, or ``[R, C]`` for all residues; of long sequences only ``max_length`` are read."""
        subject, pool = self._subject[0], self.options.pool
        tokens, cu = subject.pack([sequence[: subject.max_length] for sequence in sequences])
        network = cast("Architecture", self.network)
        with torch.autocast(
            tokens.device.type, dtype=subject.dtype, enabled=subject.dtype not in (None, torch.float32)
        ):
            if subject.layer == network.depth:
                states = network.encode(tokens, cu).last
            else:
                encoded = network.encode(tokens, cu, layers=(subject.layer,), stop_at=max(1, subject.layer))
                states = encoded.layers[subject.layer]
        start, stop = len(subject.prefix), len(subject.tokenizer.suffix)
        parts = torch.split(states.float(), list(cu.lengths))
        if pool == "cls":
            return cast("Tensor", self.linear(torch.stack([part[0] for part in parts])))
        inner = [part if self.options.specials else part[start : len(part) - stop] for part in parts]
        if pool is None:
            return cast("Tensor", self.linear(torch.cat(inner)))
        pooled = [part.mean(0) if pool == "mean" else part.amax(0) for part in inner]
        return cast("Tensor", self.linear(torch.stack(pooled)))

    def parts(self, sequences: Sequence[str], chosen: Sequence[int]) -> Iterator[list[int]]:
        """Returns numbers of sequences, as many at a time as fit in a packed batch."""
        subject = self._subject[0]
        extra = len(subject.prefix) + len(subject.tokenizer.suffix)
        return batches(chosen, lambda i: min(len(sequences[i]), subject.max_length) + extra, subject.tokens_per_batch)


@dataclass(frozen=True)
class Trained:
    """A tuned network.

    Attributes:
        tuned: it.
        targets: what its outputs are scaled by.
        details: how it was trained.
    """

    tuned: Tuned
    targets: Targets
    details: dict[str, Any]

    @torch.no_grad()
    def outputs(self, sequences: Sequence[str]) -> list[NDArray[np.float64]]:
        """Returns ``[C]``, or ``[l, C]`` for residues, of each sequence, in order."""
        self.tuned.eval()
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        found: dict[int, NDArray[np.float64]] = {}
        longest = self.tuned._subject[0].max_length
        for part in self.tuned.parts(sequences, order):
            values = self.tuned([sequences[i] for i in part]).cpu()
            scaled = np.asarray(values.numpy(), dtype=np.float64) * self.targets.scale + self.targets.shift
            sizes = [min(len(sequences[i]), longest) for i in part] if self.tuned.options.pool is None else None
            pieces = list(scaled) if sizes is None else np.split(scaled, np.cumsum(sizes)[:-1])
            found.update(zip(part, pieces, strict=True))
        return [found[i] for i in range(len(sequences))]


def fit(subject: NetworkSubject, sequences: Sequence[str], labels: Sequence[Any], options: Options) -> Trained:
    """Tunes a copy of a subject's network on training rows; a tenth of them is held out and says when to stop.

    The weights of the epoch with the lowest loss on the held-out rows stay. What a task scores is never looked at.

    Raises:
        UserError: if there are fewer than two rows, or the architecture has no projections that are known by name.
    """
    if len(sequences) < 2:
        raise UserError(
            f"probe: lora has {len(sequences)} training rows; it needs two, one to learn from, one to stop by"
        )
    if options.kind.startswith("residue"):
        labels = [np.asarray(label)[: subject.max_length] for label in labels]
    targets = Targets.of(labels, options.kind)
    rng = np.random.default_rng([training.SEED, options.seed])
    order = rng.permutation(len(sequences))
    held, rest = np.sort(order[: max(1, len(order) // 10)]), np.sort(order[max(1, len(order) // 10) :])
    device = next(cast("nn.Module", subject.model).parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.SEED + options.seed)
        tuned = Tuned(subject, targets.outputs, options)
        lengths = [len(sequences[i]) for i in rest]
        steps = options.epochs * -(-len(rest) // training.BATCH)
        schedule = training.Schedule(tuned.trained().values(), steps, learning_rate=options.learning_rate)
        kept, epoch_kept, losses = _copied(tuned), 0, [_loss(tuned, sequences, targets, held.tolist())]
        for epoch in range(1, options.epochs + 1):
            tuned.train()
            for batch in training.batches(lengths, rng):
                _step(tuned, sequences, targets, rest[batch].tolist(), schedule)
            losses.append(_loss(tuned, sequences, targets, held.tolist()))
            if losses[-1] < losses[epoch_kept]:
                kept, epoch_kept = _copied(tuned), epoch
            elif epoch - epoch_kept >= options.patience:
                break
    tuned.load_state_dict(kept, strict=False)
    what = f"LoRA (r={options.rank}, alpha={options.alpha:g}) of {len(tuned.adapted)} modules"
    details = {
        "probe": f"{what}, linear layer; AdamW",
        "parameters": sum(value.numel() for value in kept.values()),
        "epochs": len(losses) - 1,
        "epoch_kept": epoch_kept,
        "held_out_rows": len(held),
        "held_out_loss": losses,
    }
    return Trained(tuned, targets, details)


def _copied(tuned: Tuned) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tuned.trained().items()}


def _truth(targets: Targets, part: list[int]) -> Tensor:
    """Returns the targets of packed outputs."""
    return torch.cat([targets.each[i] for i in part]) if targets.kind.startswith("residue") else targets.padded(part)


def _step(
    tuned: Tuned, sequences: Sequence[str], targets: Targets, batch: list[int], schedule: training.Schedule
) -> None:
    """Takes a step by the mean loss of a batch, whose gradients are added up over packed parts."""
    size = max(1.0, targets.size(batch))
    for part in tuned.parts(sequences, batch):
        loss = targets.loss(tuned([sequences[i] for i in part]), _truth(targets, part))
        (loss / size).backward()
    schedule.step()


@torch.no_grad()
def _loss(tuned: Tuned, sequences: Sequence[str], targets: Targets, rows: list[int]) -> float:
    """Returns the mean loss of rows."""
    tuned.eval()
    parts = tuned.parts(sequences, rows)
    total = sum(float(targets.loss(tuned([sequences[i] for i in part]), _truth(targets, part))) for part in parts)
    return total / max(1.0, targets.size(rows))
