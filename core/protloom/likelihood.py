"""What a network holds likely at positions of a protein: each residue hidden once, alone, or none hidden at all.

*Hidden*: a masked-token model reads the mask symbol at the place and is asked there (Salazar et al. 2020, "Masked
language model scoring"; Meier et al. 2021 for proteins). An encoder-decoder reads its first sentinel there; its decoder
is given the start symbol and that sentinel, and the last position's logits are about the residue (one-sentinel
decoding, as Ankh's authors score sequences). *Visible*: a masked-token model reads the protein as it is and is asked at
every place at once. Logarithms are natural and over all symbols.

A network that sees W residues at once reads the W of a longer protein in whose middle the place is, or the first or
last W near an end, between the tokenizer's prefix and suffix: see :func:`window`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.inference import batch_tokens, batches, device_of, frozen, letter_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from protloom.contracts import Architecture, Tokenizer
    from protloom.weights import Pretrained

    F32 = NDArray[np.float32]
    Logits = Callable[[Tensor, Offsets, Tensor], Tensor]
    Asked = tuple[NDArray[np.int64], list[int]]  # token ids of a sequence, and where in it the network is asked


class Place(NamedTuple):
    """One residue of a sequence.

    Attributes:
        sequence: residues as letters.
        position: of the residue, from 0.
    """

    sequence: str
    position: int


def window(length: int, position: int, size: int | None, stride: int = 1) -> tuple[int, int]:
    """Returns the residues ``[first, last)`` of a protein that a network sees when it is asked at ``position``.

    Args:
        length: of the protein.
        position: from 0.
        size: residues that the network sees at once; None: all.
        stride: windows begin at its multiples (the last one, at the end, excepted), so that neighbours share one.
    """
    if size is None or length <= size:
        return 0, length
    middle = position - size // 2
    first = min(max(0, (middle + stride // 2) // stride * stride), length - size)
    return first, first + size


@dataclass(frozen=True)
class Reader:
    """Asks a network what may stand at places of proteins.

    Attributes:
        model: a masked-token model or an encoder-decoder.
        tokenizer: the one that it was trained with.
        prefix: ids put before every sequence; None: the tokenizer's own.
        tokens_per_batch: encoder tokens of a packed batch; a longer sequence gets a batch of its own. None: see
            :func:`protloom.inference.batch_tokens`.
        max_length: residues that the network sees at once, see :func:`window`; None: any number.
        dtype: compute in this precision by autocast; None: the network's own.
    """

    model: Architecture
    tokenizer: Tokenizer
    prefix: Sequence[int] | None = None
    tokens_per_batch: int | None = None
    max_length: int | None = None
    dtype: torch.dtype | None = None

    def hidden(self, places: Iterable[Place]) -> Iterator[F32]:
        """Yields ``[vocabulary]`` log-probabilities of what stands at each place, which alone is hidden, in order.

        Each place costs a pass over its sequence; passes are packed, over sequences too.

        Raises:
            UserError: if nothing can be hidden from the model.
        """
        asked = self._hider
        yield from self._packed((self._hidden(place, asked.symbol) for place in places), asked.logits)

    def tables(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields ``[L, vocabulary]`` of each sequence: every residue hidden in turn; L passes each.

        Raises:
            UserError: if nothing can be hidden from the model, or a sequence is empty or not ASCII; names its position.
        """
        for number, sequence in enumerate(sequences, start=1):
            if not sequence or not sequence.isascii():
                what = "is empty" if not sequence else "holds characters that are not ASCII"
                raise UserError(f"sequence {number} of {len(sequences)} {what}: give residues as letters")
        rows = self.hidden(Place(sequence, i) for sequence in sequences for i in range(len(sequence)))
        for sequence in sequences:
            yield np.stack(list(islice(rows, len(sequence))))

    def residues(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields ``[L]`` log p(residue i | all others) of each sequence; takes and raises what :meth:`tables` does."""
        for sequence, table in zip(sequences, self.tables(sequences), strict=True):
            yield table[np.arange(len(sequence)), letter_ids(self.tokenizer, sequence)]

    def visible(self, sequence: str, positions: Sequence[int]) -> F32:
        """Returns ``[positions, vocabulary]`` log-probabilities where nothing is hidden.

        A sequence costs one pass; a longer one than ``max_length`` one for each of the windows round its positions,
        which begin at multiples of a quarter of their size.

        Raises:
            UserError: if the model's encoder says nothing about residues.
        """
        if not can_read(self.model):
            raise UserError("this model's encoder says nothing about residues, its decoder does: hide them instead")
        inside: dict[tuple[int, int], list[int]] = {}  # window -> numbers of its positions
        for number, position in enumerate(positions):
            inside.setdefault(self.visible_window(len(sequence), position), []).append(number)
        front, model = len(self._front), self.model
        asked = (
            (self._framed(sequence[first:last]), [front + positions[number] - first for number in numbers])
            for (first, last), numbers in inside.items()
        )
        rows = self._packed(asked, lambda tokens, cu, at: model.logits(model.encode(tokens, cu).last[at]))
        found = np.empty((len(positions), len(self.tokenizer.vocab)), dtype=np.float32)
        for number, row in zip((number for numbers in inside.values() for number in numbers), rows, strict=True):
            found[number] = row
        return found

    def hidden_window(self, length: int, position: int) -> tuple[int, int]:
        """Returns the residues ``[first, last)`` that :meth:`hidden` shows round a place."""
        return window(length, position, self.max_length)

    def visible_window(self, length: int, position: int) -> tuple[int, int]:
        """Returns the residues ``[first, last)`` that :meth:`visible` shows round a place."""
        return window(length, position, self.max_length, stride=max(1, (self.max_length or 1) // 4))

    # ------------------------------------------------------------------------------------------------ machinery

    @cached_property
    def _front(self) -> NDArray[np.int64]:
        return np.asarray(self.tokenizer.prefix if self.prefix is None else self.prefix, dtype=np.int64)

    @cached_property
    def _hider(self) -> _Mask | _Sentinel:
        return (_Sentinel if "decode" in self.model.capabilities else _Mask)(self.model, self.tokenizer)

    def _framed(self, residues: str) -> NDArray[np.int64]:
        back = np.asarray(self.tokenizer.suffix, dtype=np.int64)
        return np.concatenate([self._front, letter_ids(self.tokenizer, residues), back])

    def _hidden(self, place: Place, symbol: int) -> Asked:
        first, last = self.hidden_window(len(place.sequence), place.position)
        tokens = self._framed(place.sequence[first:last])
        at = len(self._front) + place.position - first
        tokens[at] = symbol
        return tokens, [at]

    def _packed(self, asked: Iterable[Asked], logits: Logits) -> Iterator[F32]:
        """Yields the log-probabilities at the given positions of token sequences, as many in a batch as fit."""
        device = device_of(cast("nn.Module", self.model))
        for batch in batches(asked, lambda one: len(one[0]), batch_tokens(device, self.tokens_per_batch)):
            yield from self._run(batch, logits, device)

    def _run(self, batch: Sequence[Asked], logits: Logits, device: torch.device) -> F32:
        cu = Offsets.of((len(tokens) for tokens, _ in batch), device)
        places = [first + place for first, (_, at) in zip(cu.bounds, batch, strict=False) for place in at]
        tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in batch])).to(device)
        with frozen(cast("nn.Module", self.model), self.dtype):
            found = logits(tokens, cu, torch.tensor(places, device=device))  # [R, V]
            return cast("F32", torch.log_softmax(found.float(), dim=-1).cpu().numpy())


def can_hide(model: Architecture, tokenizer: Tokenizer) -> bool:
    """Tells whether residues can be hidden from a model: behind a mask symbol, or a sentinel if it has a decoder."""
    return (
        bool(getattr(tokenizer, "sentinels", ())) if "decode" in model.capabilities else tokenizer.mask_id is not None
    )


def can_read(model: Architecture) -> bool:
    """Tells whether a model says what stands at a place that it sees: an encoder with a decoder behind it does not."""
    return "decode" not in model.capabilities


def refuse_untrained(pretrained: Pretrained, name: str, what: str) -> None:
    """Refuses a model whose probabilities of residues depend on parameters that nobody trained.

    Args:
        pretrained: the model.
        name: what messages call it.
        what: it cannot do, such as ``score``.

    Raises:
        UserError: says which parameters.
    """
    stored = pretrained.stored
    if untrained(pretrained.architecture, stored.initialised):
        raise UserError(f"{name} cannot {what}: {'; '.join(pretrained.notes)}")
    never = untrained(pretrained.architecture, stored.untrained)
    if never:
        raise UserError(f"{name} cannot {what}: {described_untrained(never)}")


def described_untrained(names: Sequence[str]) -> str:
    """Says that parameters are random, since no step of a run reached them."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"no objective of its training reached {names[0]}{more}, so its probabilities of residues are random; train "
        "with an objective that predicts residues too"
    )


def untrained(model: Architecture, initialised: Iterable[str]) -> tuple[str, ...]:
    """Returns those of the parameters that no weights were read for on which probabilities of residues depend.

    Args:
        model: the network.
        initialised: names of parameters that are random, see :class:`protloom.contracts.ImportedWeights`.
    """
    names = set(initialised)
    asked = {name: part for name, part in cast("nn.Module", model).named_parameters() if name in names}
    if not asked or not can_read(model):
        return tuple(asked)  # a decoder is nothing but what leads to residues
    trained = [part.requires_grad for part in asked.values()]
    try:
        for part in asked.values():
            part.requires_grad_(True)
        with torch.enable_grad():
            first = next(iter(asked.values()))
            logits = model.logits(torch.zeros(1, model.width, device=first.device, dtype=first.dtype))
            slopes = torch.autograd.grad(logits.sum(), list(asked.values()), allow_unused=True)
    finally:
        for part, before in zip(asked.values(), trained, strict=True):
            part.requires_grad_(before)
    return tuple(name for name, slope in zip(asked, slopes, strict=True) if slope is not None)


class _Mask:
    """Asks a masked-token model at the place of the mask."""

    def __init__(self, model: Architecture, tokenizer: Tokenizer) -> None:
        if tokenizer.mask_id is None:
            raise UserError(f"tokenizer {tokenizer.name!r} has no mask symbol, and the model no decoder: no likelihood")
        self._model, self.symbol = model, tokenizer.mask_id

    def logits(self, tokens: Tensor, cu: Offsets, at: Tensor) -> Tensor:
        return self._model.logits(self._model.encode(tokens, cu).last[at])


class _Sentinel:
    """Asks a decoder for what the first sentinel stands for."""

    def __init__(self, model: Architecture, tokenizer: Tokenizer) -> None:
        sentinels: Sequence[int] = getattr(tokenizer, "sentinels", ())
        if not sentinels:
            raise UserError(f"tokenizer {tokenizer.name!r} has no sentinels to hide a residue behind: no likelihood")
        # decoding is not in the protocol of all architectures, only in that of those that have the capability
        self._model: Any = model
        self.symbol, self._start = sentinels[0], tokenizer.pad_id

    def logits(self, tokens: Tensor, cu: Offsets, at: Tensor) -> Tensor:
        memory = self._model.encode(tokens, cu).last
        asked = torch.tensor([self._start, self.symbol], device=tokens.device).repeat(cu.n)  # [2R]
        states = self._model.decode(asked, Offsets.of([2] * cu.n, tokens.device), memory, cu).last
        logits: Tensor = self._model.logits(states[1::2])
        return logits
