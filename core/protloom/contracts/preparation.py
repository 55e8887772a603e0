"""What is prepared on the host, in numpy: sequences, tokenizers and corrupted batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.rng import CounterRNG


class Record(NamedTuple):
    """One sequence as a reader gives it, before any policy is applied."""

    id: str
    residues: bytes
    """ASCII letters as they stand in the source."""
    group: str | None = None
    """Sequences of one group (a pair, a family) are sampled together; None: the sequence is its own group."""


@runtime_checkable
class Tokenizer(Protocol):
    """Maps residues to token ids, one residue a token, by one lookup table.

    Attributes:
        name: the component's name.
        vocab: the symbol of each id.
        table: ``[256]`` int32: the id of every ASCII byte (unknown bytes map to the unknown symbol).
        prefix: ids put before every sequence, such as ``<cls>``.
        suffix: ids put after every sequence, such as ``<eos>``.
        pad_id: id of the padding symbol (batches of protloom have none; other programs' do).
        mask_id: id of the mask symbol, or None where the vocabulary has none.
        unknown_id: id of the unknown symbol.
        residue_ids: ids that a random replacement may take (the 20 standard amino acids).
        sentinels: ids that stand for hidden runs of residues, in order of use; empty where there are none.
        prefixes: what may stand in front of a sequence to tell the network its mode: mode name -> ids. ``prefix`` is
            the default one of them. Empty where the vocabulary has no modes.
        fingerprint: a hash of everything above: equal fingerprints encode equally.
    """

    name: str
    vocab: Sequence[str]
    table: NDArray[np.int32]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    mask_id: int | None
    unknown_id: int
    residue_ids: tuple[int, ...]
    sentinels: tuple[int, ...]
    prefixes: Mapping[str, tuple[int, ...]]
    fingerprint: str

    def encode(self, sequence: str) -> NDArray[np.int32]:
        """Returns prefix + residues + suffix of one sequence as ids ``[L]``."""

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Returns the symbols of ``ids`` joined, special symbols in their written form."""


@dataclass(frozen=True)
class Packed:
    """Token sequences end to end.

    Attributes:
        tokens: ``[T]`` int32 ids, special symbols included.
        cu: ``[n + 1]`` int32 offsets; ``cu[0] == 0`` and ``cu[n] == T``.
    """

    tokens: NDArray[np.int32]
    cu: NDArray[np.int32]

    @property
    def n(self) -> int:
        """Number of sequences."""
        return len(self.cu) - 1


@dataclass(frozen=True)
class SequenceBatch:
    """What the loader gives an objective to corrupt.

    Attributes:
        packed: tokens with the tokenizer's prefix and suffix round every sequence.
        residue: ``[T]`` bool: True where the token stands for a residue, False on special symbols.
        epoch: ``[n]`` int64: how often each sequence had been seen before.
        index: ``[n]`` int64: number of each sequence in its corpus.
        corpus: ``[n]`` int32: number of the corpus in the mixture.
        group: ``[n]`` int32: sequences with the same number in this batch were sampled together.
        step: the optimizer step that this batch belongs to (for schedules of rates).
        metadata: what a corpus adds, arrays aligned with sequences or tokens.
    """

    packed: Packed
    residue: NDArray[np.bool_]
    epoch: NDArray[np.int64]
    index: NDArray[np.int64]
    corpus: NDArray[np.int32]
    group: NDArray[np.int32]
    step: int = 0
    metadata: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def keys(self, rng: CounterRNG) -> NDArray[np.uint64]:
        """Returns ``[n]`` random keys that depend on (rng, corpus, epoch, index) of each sequence alone."""
        return rng.at(self.corpus, self.epoch, self.index)

    def take(self, keep: NDArray[np.bool_]) -> SequenceBatch:
        """Returns the sequences where ``keep`` ``[n]`` is True, in their order."""
        if keep.all():
            return self
        lengths = np.diff(self.packed.cu)
        tokens = np.repeat(keep, lengths)
        cu = np.zeros(int(keep.sum()) + 1, dtype=np.int32)
        np.cumsum(lengths[keep], out=cu[1:])
        sizes = {len(keep): keep, len(tokens): tokens}
        return SequenceBatch(
            packed=Packed(self.packed.tokens[tokens], cu),
            residue=self.residue[tokens],
            epoch=self.epoch[keep],
            index=self.index[keep],
            corpus=self.corpus[keep],
            group=self.group[keep],
            step=self.step,
            metadata={name: values[sizes[len(values)]] for name, values in self.metadata.items()},
        )


@dataclass(frozen=True)
class PassRequest:
    """What an objective wants from the student pass over its corrupted input; requests of several are united.

    Attributes:
        layers: hidden states to keep: 0 is the embedding's output, ``depth`` the final state.
        stop_at: run only the first ``stop_at`` blocks, if every objective that shares the pass agrees.
        attentions: keep attention maps.
    """

    layers: tuple[int, ...] = ()
    stop_at: int | None = None
    attentions: bool = False


@dataclass(frozen=True)
class Prepared:
    """An objective's corruption of one micro-batch.

    Attributes:
        inputs: what the encoder reads.
        decoder: what the decoder reads, for encoder-decoders.
        arrays: anything else that ``loss`` needs, by name; they arrive there as tensors on the device. By convention
            ``index`` is the int64 positions (in ``inputs.tokens``) that are scored and ``targets`` their ids.
        counts: for each loss term, what its total is divided by (usually the number of scored tokens).
        clean: the uncorrupted input, where the objective reads it too.
    """

    inputs: Packed
    counts: Mapping[str, int]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    decoder: Packed | None = None
    clean: Packed | None = None
