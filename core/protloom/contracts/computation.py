"""What is computed on the device, in torch: packed states, losses, and the networks that give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from protloom.contracts.preparation import Tokenizer
    from protloom.ops import Ops
    from protloom.rng import CounterRNG


@dataclass(frozen=True)
class Offsets:
    """Where packed sequences begin and end, on the device and on the host (so that no kernel has to synchronise).

    Attributes:
        cu: ``[n + 1]`` int32 tensor on the device of the tokens.
        bounds: the same ``n + 1`` numbers as Python integers.
    """

    cu: Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Iterable[int], device: torch.device | str = "cpu") -> Offsets:
        """Makes the offsets of sequences of these lengths."""
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + int(length))
        return cls.from_bounds(bounds, device)

    @classmethod
    def from_bounds(cls, bounds: Iterable[int], device: torch.device | str = "cpu") -> Offsets:
        """Makes offsets of ``n + 1`` cumulative numbers that start at 0."""
        import torch

        numbers = tuple(int(b) for b in bounds)
        return cls(torch.tensor(numbers, dtype=torch.int32, device=device), numbers)

    @property
    def n(self) -> int:
        """Number of sequences."""
        return len(self.bounds) - 1

    @property
    def total(self) -> int:
        """Number of tokens T."""
        return self.bounds[-1]

    @property  # not cached: torch.compile breaks its graph at the lock of functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Length of each sequence."""
        return tuple(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def longest(self) -> int:
        """Length of the longest sequence, 0 without any."""
        return max(self.lengths, default=0)


class Encoded(NamedTuple):
    """What an encoder (or a decoder) returns.

    Attributes:
        last: ``[T, D]`` the state after the last block that ran; after the final norm if all blocks ran.
        layers: the states asked for, by number; number ``depth`` equals ``last`` of a full pass.
        attentions: None, or for each sequence ``[blocks, heads, L, L]`` probabilities.
    """

    last: Tensor
    layers: Mapping[int, Tensor]
    attentions: Sequence[Tensor] | None = None


class Term(NamedTuple):
    """A named part of a loss.

    Attributes:
        additive: the total is a sum over scored items, so micro-batches and ranks add up exactly. False for statistics
            of a batch, which return value × count.
        weight: what the term counts in the sum where the run file says nothing; a run file's single ``weight``
            multiplies it, a ``weight`` for each term replaces it.
        nats: each item is −log p of a symbol in nats: the perplexity exp(mean) is logged too.
    """

    additive: bool = True
    weight: float = 1.0
    nats: bool = False


@dataclass(frozen=True)
class Metric:
    """A quantity to log as ``total / count``, both added over micro-batches and ranks."""

    total: Tensor | float
    count: Tensor | float


class Losses(NamedTuple):
    """What ``Objective.loss`` returns: the summed value of each term, and metrics to log.

    The names of both are the same on all processes and in all micro-batches of a step: they are added by name.
    """

    totals: Mapping[str, Tensor]
    metrics: Mapping[str, Metric] = {}


class StepContext(NamedTuple):
    """What a loss may know of the step.

    Attributes:
        step: the optimizer step, from 0.
        rng: randomness of this step, the same on all ranks.
        all_sum: adds a tensor over ranks, differentiably; the identity on one rank.
        all_gather: concatenates a tensor over ranks along dimension 0, however many rows each has, differentiably;
            the identity on one rank.
        logging: the metrics of this step are written: those that are dear to compute can be left out elsewhere.
    """

    step: int
    rng: CounterRNG
    all_sum: Callable[[Tensor], Tensor]
    all_gather: Callable[[Tensor], Tensor]
    logging: bool = True


@runtime_checkable
class Architecture(Protocol):
    """A network over packed sequences; the output for a sequence does not depend on what else is in the batch.

    Attributes:
        width: D, the size of a hidden state.
        depth: number of encoder blocks; hidden states are numbered 0 (embedding) to depth (final).
        heads: attention heads of a block.
        capabilities: what it can do: ``encode``, ``decode``, ``attentions``, ``complete`` …
        config: the options that it was built with.
    """

    width: int
    depth: int
    heads: int
    capabilities: frozenset[str]
    config: Any

    def encode(
        self,
        tokens: Tensor,
        cu: Offsets,
        *,
        layers: Sequence[int] = (),
        stop_at: int | None = None,
        attentions: bool = False,
    ) -> Encoded:
        """Maps ``tokens`` ``[T]`` to states ``[T, D]``; zero sequences are allowed.

        Args:
            tokens: ``[T]`` int ids.
            cu: offsets of the sequences.
            layers: numbers of the states to return beside the last.
            stop_at: run only this many blocks (no final norm unless it is ``depth``).
            attentions: return attention maps of the blocks that ran.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps final states ``[M, D]`` at chosen positions to ``[M, vocabulary]``."""


@dataclass(frozen=True)
class BuildContext:
    """What a component is built for.

    Attributes:
        tokenizer: the run's tokenizer.
        ops: the kernels that were chosen for this run.
        architecture: the built network, for objectives; None while the network itself is built.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        total_steps: optimizer steps of the run, for schedules inside a component; 0 where there is no training.
    """

    tokenizer: Tokenizer
    ops: Ops
    architecture: Architecture | None = None
    activation_checkpointing: bool = False
    total_steps: int = 0


@runtime_checkable
class Generator(Protocol):
    """Writes sequences with a trained network, for ``protloom generate``.

    Attributes:
        needs: capabilities that the network must have.
    """

    needs: frozenset[str]

    def write(
        self,
        model: Architecture,
        tokenizer: Tokenizer,
        lengths: Sequence[int],
        numbers: Sequence[int],
        rng: CounterRNG,
    ) -> Sequence[str]:
        """Returns one sequence of each length, as letters, written in one batch.

        Args:
            model: the network, in evaluation mode and without gradients.
            tokenizer: the one that it was trained with.
            lengths: residues of each; at most so many, where the network itself ends a sequence.
            numbers: of each sequence among all that are asked for. Every random choice is a hash of it (``rng.at``), so
                that a sequence does not depend on those that it is batched with.
            rng: the stream of all random choices.

        Raises:
            protloom.errors.UserError: if the network or the tokenizer cannot serve.
        """


@dataclass(frozen=True)
class ImportedWeights:
    """Weights in an architecture's own names.

    Attributes:
        config: options for the architecture's config model.
        state: parameter name -> tensor, exactly those of ``state_dict()``.
        tokenizer: name of the tokenizer that goes with them, or a mapping with options.
        notes: things worth telling the user, such as parameters that were missing and initialised.
        initialised: names of the parameters that the source does not hold and that are random.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokenizer: str | Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()


class WeightAdapter(Protocol):
    """Reads and writes an architecture's weights in formats of other programs, without importing them."""

    def recognises(self, source: Path) -> bool:
        """Tells whether ``source`` (a folder or a file) holds weights of this architecture; cheap, loads no tensor."""

    def read(self, source: Path) -> ImportedWeights:
        """Reads ``source``; raises UserError naming the file and the key where it does not fit."""

    def export(
        self, config: Any, state: Mapping[str, Tensor], tokenizer: Tokenizer
    ) -> tuple[dict[str, Any], dict[str, Tensor], Mapping[str, str | bytes]]:
        """Returns (config.json, tensors under the other program's names, further files by name).

        Args:
            config: options of the network.
            state: its whole ``state_dict()`` on the host (a sharded network's is gathered first). Before a run it is
                asked with the same shapes on torch's device ``meta``, which hold no numbers.
            tokenizer: the vocabulary.

        Raises:
            protloom.errors.UserError: if the other program cannot express these options. Says why and no more: it is
                shown to who trains and to who converts.
        """


class Peer(Protocol):
    """Another program that trains an architecture's network, to be measured beside protloom.

    ``protloom bench`` does the rest, alike for all: it pads the sequences whose corruption an objective made, in the
    order drawn or sorted by length, and steps AdamW. Making a peer must not import the program: ``unavailable`` is
    asked first.
    """

    @property
    def attentions(self) -> Sequence[str]:
        """Names of its ways to compute attention, its own default first."""

    def unavailable(self) -> str | None:
        """Returns None if the program can be used here, else why not and what to do, in one line."""

    def version(self) -> str:
        """Returns the version of the program."""

    def load(self, folder: Path, attention: str) -> nn.Module:
        """Loads the network from what the architecture's weight adapter wrote, in training mode and without dropout."""

    def loss(self, model: nn.Module, inputs: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean of −log p over the labels of a padded batch, in nats.

        Args:
            model: what ``load`` returned.
            inputs: ``[n, L]`` int64: what the encoder reads, padded with the tokenizer's ``pad_id``.
            mask: ``[n, L]`` int64: 1 at tokens, 0 at padding.
            labels: −100 at what is not scored. Without a decoder ``[n, L]``, the symbols that belong where they stand;
                with one ``[n, M]``, all that it writes.
        """
