"""The base class of training objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import nn

from protloom.contracts import PassRequest, Term
from protloom.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import (
        Architecture,
        BuildContext,
        Encoded,
        Losses,
        Metric,
        Offsets,
        Prepared,
        SequenceBatch,
        StepContext,
    )
    from protloom.rng import CounterRNG


class Forward(Protocol):
    """The passes that objectives of one corrupted batch share; each runs at most once, when first asked for."""

    @property
    def tokens(self) -> Tensor:
        """``[T]`` the corrupted input's ids."""

    @property
    def cu(self) -> Offsets:
        """Offsets of the corrupted input."""

    @property
    def encoded(self) -> Encoded:
        """The student pass over the corrupted input, with everything that the objectives sharing it asked for."""

    @property
    def decoded(self) -> Encoded:
        """The decoder's states, for encoder-decoders."""

    @property
    def clean(self) -> tuple[Tensor, Offsets] | None:
        """The uncorrupted input, if the objective prepared it."""


class Objective(nn.Module):
    """A training objective: corrupts batches on the host, then scores the network's states on the device.

    It is a module, so it may own what it trains (a predictor) or keeps (an averaged teacher); the trainer moves, wraps
    and saves it. The least a subclass does is to set ``terms`` and to write ``prepare`` and ``loss``.

    Attributes:
        needs: capabilities that the architecture must have.
        terms: the named parts of the loss.
        least_residues: fewest residues that a sequence must have; shorter ones are left out, and counted.
        scored_as: what is predicted at the positions ``index``, where there are no ``targets``: a word for previews.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encode"})
    least_residues: ClassVar[int] = 1
    scored_as: str = "scored"
    terms: Mapping[str, Term]

    def __init__(self, config: Any, build: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = build.tokenizer

    def request(self) -> PassRequest:
        """Returns what this objective needs of the student pass beside the final state."""
        return PassRequest()

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Corrupts a batch; numpy only, may run in a thread, must not read or change the network.

        Args:
            batch: packed sequences.
            rng: this objective's stream; hash positions with it (``batch.keys(rng)``), so that the result for a
                sequence depends on (seed, epoch, sequence, position) alone.
        """
        raise NotImplementedError(f"{type(self).__name__} must define prepare()")

    def prepare_shared(self, batch: SequenceBatch, base: Prepared, rng: CounterRNG) -> Prepared:
        """Builds on another objective's corruption ``base`` (``corruption: NAME``); must keep ``base.inputs``."""
        raise UserError(
            f"objective {type(self).__name__} cannot share another objective's corruption: drop 'corruption'"
        )

    def prepare_validation(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Corrupts a validation batch; by default as in training."""
        return self.prepare(batch, rng)

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Scores one micro-batch.

        Args:
            model: the network; use it for logits or for passes of your own.
            passes: the shared passes over the corrupted input.
            prepared: the arrays of ``Prepared.arrays`` as tensors on the device.
            ctx: step number, randomness and collectives.

        Returns:
            The *sum* of each term over scored items (the trainer divides by the global count) and metrics. Zero rows
            must give a zero that still depends on the parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def flops(self, forward: float, head: float, scored: int) -> float:
        """Returns the FLOPs of a step that this objective adds to forward and backward of the network's blocks.

        By default those of the output head at what is scored; an objective with passes or networks of its own adds
        them.

        Args:
            forward: FLOPs of one forward pass of the blocks over the step's sequences.
            head: FLOPs of the output head for one row, forward.
            scored: items of the additive terms.
        """
        return 3.0 * head * scored

    def after_step(self, model: Architecture, step: int) -> Mapping[str, Metric] | None:
        """Called after every optimizer step, for example to move an averaged teacher; may return metrics to log."""
