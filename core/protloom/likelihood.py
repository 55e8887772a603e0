"""What a network holds likely at each position of a protein when it sees all the others: pseudo-likelihood.

Every residue is hidden once, alone. A masked-token model reads the mask symbol there and is asked at that place
(Salazar et al. 2020, "Masked language model scoring"; Meier et al. 2021 for proteins). An encoder-decoder reads its
first sentinel there; its decoder is given the start symbol and that sentinel, and the last position's logits are about
the residue (one-sentinel decoding, as Ankh's authors score variants). Logarithms are natural and over all symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.inference import frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from protloom.contracts import Architecture, Tokenizer

    F32 = NDArray[np.float32]


def pseudo_log_likelihoods(
    model: Architecture,
    tokenizer: Tokenizer,
    sequences: Sequence[str],
    *,
    prefix: Sequence[int] | None = None,
    tokens_per_batch: int = 8192,
    dtype: torch.dtype | None = None,
) -> Iterator[F32]:
    """Yields ``[L]`` log p(residue i | all others) of each sequence, in nats; their sum is the pseudo-log-likelihood.

    Takes and raises what :func:`position_log_probabilities` does.
    """
    tables = position_log_probabilities(
        model, tokenizer, sequences, prefix=prefix, tokens_per_batch=tokens_per_batch, dtype=dtype
    )
    for sequence, table in zip(sequences, tables, strict=True):
        yield table[np.arange(len(sequence)), _ids(tokenizer, sequence)]


def position_log_probabilities(
    model: Architecture,
    tokenizer: Tokenizer,
    sequences: Sequence[str],
    *,
    prefix: Sequence[int] | None = None,
    tokens_per_batch: int = 8192,
    dtype: torch.dtype | None = None,
) -> Iterator[F32]:
    """Yields ``[L, vocabulary]`` log-probabilities of what may stand at each position, in the order given.

    A sequence of L residues costs L passes over it, which are packed.

    Args:
        model: a masked-token model or an encoder-decoder.
        tokenizer: the one that it was trained with.
        sequences: residues as letters.
        prefix: ids put before every sequence; None: the tokenizer's own.
        tokens_per_batch: encoder tokens of a packed batch; a longer sequence gets a batch of its own.
        dtype: compute in this precision by autocast; None: the network's own.

    Raises:
        UserError: if the model can do neither, or a sequence is empty or not ASCII; names its position.
    """
    asked = _Sentinel(model, tokenizer) if "decode" in model.capabilities else _Mask(model, tokenizer)
    front = np.asarray(tokenizer.prefix if prefix is None else prefix, dtype=np.int64)
    back = np.asarray(tokenizer.suffix, dtype=np.int64)
    device = next(cast("nn.Module", model).parameters()).device
    for number, sequence in enumerate(sequences, start=1):
        if not sequence or not sequence.isascii():
            what = "is empty" if not sequence else "holds characters that are not ASCII"
            raise UserError(f"sequence {number} of {len(sequences)} {what}: give residues as letters")
        whole = np.concatenate([front, _ids(tokenizer, sequence), back])  # [L + specials]
        places = np.arange(len(front), len(front) + len(sequence))
        rows = max(1, tokens_per_batch // len(whole))
        found = []
        for start in range(0, len(places), rows):
            hidden = places[start : start + rows]  # [R]
            copies = np.tile(whole, (len(hidden), 1))  # [R, L + specials]
            copies[np.arange(len(hidden)), hidden] = asked.symbol
            cu = Offsets.of([len(whole)] * len(hidden), device)
            tokens = torch.from_numpy(copies.reshape(-1)).to(device)
            at = torch.from_numpy(hidden + np.arange(len(hidden)) * len(whole)).to(device)  # [R]
            with frozen(cast("nn.Module", model), dtype):
                logits = asked.logits(tokens, cu, at)  # [R, V]
                found.append(torch.log_softmax(logits.float(), dim=-1).cpu().numpy())
        yield np.concatenate(found)


def _ids(tokenizer: Tokenizer, sequence: str) -> NDArray[np.int64]:
    return tokenizer.table[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)].astype(np.int64)


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
