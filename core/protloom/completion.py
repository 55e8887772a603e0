"""Writes the rest of a protein whose beginning is given, and compares it with the true rest.

Definitions. A sequence of L residues is cut after ⌊keep · L⌋ of them. *Identity* of a written rest is the number of
positions i at which its residue i equals residue i of the true rest, divided by the length of the true rest: without
alignment; what is written beyond the true end is not looked at, and positions that were not written count as wrong. Two
floors stand beside it, neither of which sees the true rests:

- *unigram*: the residue that is the most frequent in all the given beginnings together, at every position;
- *copy*: the beginning again, from its start and round again where the rest is longer.

Over several sequences, positions are pooled: all equal positions divided by all positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.generation import Decoding, Writer, write
from protloom.inference import batch_tokens, batches, device_of, frozen, letter_ids
from protloom.scoring import percentile_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from protloom.contracts import Architecture, Tokenizer
    from protloom.data.records import Entry

REPLICATES = 1000
"""Bootstrap replicates of an interval."""


class Completion(NamedTuple):
    """One completed sequence.

    Attributes:
        id: of the sequence.
        kept: the beginning that was given.
        truth: the rest that was hidden.
        written: the rest that the network wrote.
        ended: whether the network ended it; else it was cut at the most that may be written.
    """

    id: str
    kept: str
    truth: str
    written: str
    ended: bool

    @property
    def equal(self) -> int:
        """Number of positions at which the written rest equals the true one."""
        return _equal(self.written, self.truth)


def cut(sequence: str, keep: float) -> tuple[str, str]:
    """Returns (beginning, rest) of a sequence; the beginning is empty where the sequence is too short to cut.

    Raises:
        UserError: if ``keep`` is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise UserError(f"--keep {keep}: must lie between 0 and 1, such as 0.5: the share of a sequence that is given")
    # the decimal number that the user wrote: 0.29 of 100 residues are 29, not 28
    at = math.floor(Fraction(str(keep)) * len(sequence))
    return sequence[:at], sequence[at:]


def complete(
    model: Architecture,
    tokenizer: Tokenizer,
    entries: Iterable[Entry],
    keep: float,
    decoding: Decoding,
    *,
    max_length: int | None = None,
    prefix: Sequence[int] | None = None,
    tokens_per_batch: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Completion]:
    """Yields each sequence with a rest written by the network, in the order given.

    Only letters are written; a sequence ends with the first symbol of the tokenizer's suffix. What is written for a
    sequence depends on it, its number in the input and ``decoding``, not on its batch.

    Args:
        model: an encoder-decoder with the capability ``complete``.
        tokenizer: the one that it was trained with.
        entries: sequences, each long enough to be cut.
        keep: share of each that is given, between 0 and 1.
        decoding: how to write; its ``max_length`` and ``allowed`` are set here.
        max_length: most residues to write; None: twice what ``keep`` lets expect, and 16 more.
        prefix: ids put before every beginning; None: the tokenizer's own.
        tokens_per_batch: encoder tokens of a packed batch, special symbols included; a longer beginning gets a batch of
            its own. None: see :func:`protloom.inference.batch_tokens`.
        dtype: compute in this precision by autocast; None: the network's own.

    Raises:
        UserError: if the model cannot complete, ``keep`` is out of range or a sequence is too short.
    """
    _refuse(model, max_length)
    letters = [i for i, symbol in enumerate(tokenizer.vocab) if len(symbol) == 1 and symbol.isalpha()]
    device = device_of(cast("nn.Module", model))
    front = np.asarray(tokenizer.prefix if prefix is None else prefix, dtype=np.int64)
    back = np.asarray(tokenizer.suffix, dtype=np.int64)
    first = 0
    budget, specials = batch_tokens(device, tokens_per_batch), len(front) + len(back)
    for batch in batches(_cut_all(entries, keep), lambda one: len(one[1]) + specials, budget):
        sources = [np.concatenate([front, letter_ids(tokenizer, kept), back]) for _, kept, _ in batch]
        tokens = torch.from_numpy(np.concatenate(sources)).to(device)
        cu = Offsets.of((len(source) for source in sources), device)
        most = [max_length or 2 * round(len(kept) * (1 - keep) / keep) + 16 for _, kept, _ in batch]
        with frozen(cast("nn.Module", model), dtype):
            written = write(
                cast("Writer", model),
                tokens,
                cu,
                replace(decoding, max_length=most, allowed=letters),
                start=tokenizer.pad_id,
                end=tokenizer.suffix[0],
                keys=range(first, first + len(batch)),
            )
        first += len(batch)
        for (name, kept, truth), result in zip(batch, written, strict=True):
            yield Completion(name, kept, truth, tokenizer.decode(result.tokens), result.ended)


def _refuse(model: Architecture, max_length: int | None) -> None:
    """Raises UserError for a model that cannot complete, and for a length below 1."""
    if "complete" not in model.capabilities:
        able = ", ".join(sorted(model.capabilities))
        raise UserError(
            f"this model cannot complete sequences ({type(model).__name__} can {able}): use an encoder-decoder"
        )
    if max_length is not None and max_length < 1:
        raise UserError(f"--max-length {max_length}: must be at least 1")


def _cut_all(entries: Iterable[Entry], keep: float) -> Iterator[tuple[str, str, str]]:
    """Yields (id, beginning, rest) of each sequence; raises UserError for one that is too short."""
    for entry in entries:
        kept, truth = cut(entry.sequence, keep)
        if not kept:
            raise UserError(
                f"{entry.id!r} is too short to cut: {keep} of {len(entry.sequence)} residues is less than one"
            )
        yield entry.id, kept, truth


def _equal(written: str, truth: str) -> int:
    return sum(a == b for a, b in zip(written, truth, strict=False))


# ------------------------------------------------------------------------------------------------------ comparison


@dataclass(frozen=True)
class Identity:
    """Identity of written rests, or of a floor, to the true ones.

    Attributes:
        equal: positions that are equal.
        positions: positions of the true rests.
        ahead: of a floor: identity of the model minus its own.
        interval: of a floor: 95 % interval of ``ahead``, by resampling sequences (paired bootstrap).
    """

    equal: int
    positions: int
    ahead: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def value(self) -> float:
        """The share of equal positions."""
        return self.equal / self.positions


class Comparison:
    """Adds up completions and compares them with the floors.

    Attributes:
        sequences: completions added.
        kept: residues that were given.
        written: residues that were written.
        ended: completions that the network ended by itself.
    """

    def __init__(self) -> None:
        self.sequences = self.kept = self.written = self.ended = 0
        self._beginnings = np.zeros(256, dtype=np.int64)
        self._rows: list[tuple[int, int, int]] = []  # equal, equal by copying, positions
        self._letters: list[NDArray[np.int32]] = []  # of each true rest, from A to Z

    def add(self, completion: Completion) -> None:
        """Takes one more."""
        kept, truth = completion.kept, completion.truth
        self.sequences += 1
        self.kept += len(kept)
        self.written += len(completion.written)
        self.ended += completion.ended
        self._beginnings += np.bincount(np.frombuffer(kept.encode(), dtype=np.uint8), minlength=256)
        copied = _equal(kept * -(-len(truth) // len(kept)), truth)
        self._rows.append((completion.equal, copied, len(truth)))
        self._letters.append(
            np.bincount(np.frombuffer(truth.encode(), np.uint8), minlength=256)[65:91].astype(np.int32)
        )

    @property
    def commonest(self) -> str:
        """The residue that is the most frequent in the beginnings; the first in the alphabet of several."""
        return chr(int(self._beginnings.argmax()))

    def result(self, *, seed: int = 0) -> Mapping[str, Identity]:
        """Returns the identities of ``model``, ``unigram`` and ``copy``; needs at least one completion.

        Args:
            seed: of the resampling.
        """
        model, copy, positions = np.array(self._rows, dtype=np.int64).T  # each [n]
        unigram = np.array([row[ord(self.commonest) - 65] for row in self._letters], dtype=np.int64)
        floors = np.stack([unigram, copy])  # [2, n]
        n, total = len(model), int(positions.sum())
        rng = np.random.default_rng(seed)
        gaps = np.empty((REPLICATES if n > 1 else 0, 2))
        for i in range(len(gaps)):
            drawn = np.bincount(rng.integers(n, size=n), minlength=n)  # how often each sequence is drawn
            gaps[i] = (model - floors) @ drawn / (positions @ drawn)
        found = {"model": Identity(int(model.sum()), total)}
        for k, name in enumerate(("unigram", "copy")):
            equal = int(floors[k].sum())
            ahead = (found["model"].equal - equal) / total
            found[name] = Identity(equal, total, ahead, percentile_interval(gaps[:, k]))
        return found
