"""The tokenizer of ESM-2: 33 symbols, one residue a token."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from protloom.settings import Section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# order of fair-esm's alphabet "ESM-1b" (Lin et al. 2023 keep it): the position is the id
VOCAB = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWC",
    *"XBUZO",
    *(".", "-", "<null_1>", "<mask>"),
)
STANDARD = "ACDEFGHIKLMNPQRSTVWY"


class EsmTokenizerConfig(Section):
    """What becomes of letters beyond the 20 standard amino acids.

    By default, as in ESM-2: ``X``, ``B``, ``U``, ``Z``, ``O``, ``.`` and ``-`` have ids of their own; ``J`` and ``*``
    are unknown to the vocabulary and become ``<unk>``, as does every other byte.
    """

    lower_case: Literal["upper", "unknown"] = Field(
        default="upper", description="upper: a lower-case letter counts as its capital; unknown: <unk>, as in fair-esm"
    )
    rare: Literal["own", "x"] = Field(
        default="own", description="own: B, U, Z, O keep their ids and J is <unk>; x: all five become X"
    )
    gap: Literal["own", "unknown"] = Field(default="own", description="own: '-' and '.' keep their ids; unknown: <unk>")


class EsmTokenizer:
    """ESM-2's tokenizer: ``<cls>`` residues ``<eos>``; see :class:`protloom.contracts.Tokenizer` for the attributes.

    Args:
        config: policies for unusual letters.
    """

    name = "esm"

    def __init__(self, config: EsmTokenizerConfig) -> None:
        self.config = config
        self.vocab: Sequence[str] = VOCAB
        ids = {symbol: number for number, symbol in enumerate(VOCAB)}
        self._ids = ids
        self.prefix: tuple[int, ...] = (ids["<cls>"],)
        self.suffix: tuple[int, ...] = (ids["<eos>"],)
        self.pad_id: int = ids["<pad>"]
        self.mask_id: int | None = ids["<mask>"]
        self.unknown_id: int = ids["<unk>"]
        self.residue_ids: tuple[int, ...] = tuple(ids[letter] for letter in STANDARD)
        self.sentinels: tuple[int, ...] = ()
        self.prefixes: Mapping[str, tuple[int, ...]] = {}
        self.table: NDArray[np.int32] = self._make_table(config)
        self.fingerprint: str = self._make_fingerprint()
        self._special = re.compile("(" + "|".join(re.escape(s) for s in VOCAB if s.startswith("<")) + ")")

    def _make_table(self, config: EsmTokenizerConfig) -> NDArray[np.int32]:
        table = np.full(256, self.unknown_id, dtype=np.int32)  # [256]
        for symbol, number in self._ids.items():
            if len(symbol) == 1:
                table[ord(symbol)] = number
        if config.rare == "x":
            for letter in "BUZOJ":
                table[ord(letter)] = self._ids["X"]
        if config.gap == "unknown":
            for letter in "-.":
                table[ord(letter)] = self.unknown_id
        if config.lower_case == "upper":
            table[ord("a") : ord("z") + 1] = table[ord("A") : ord("Z") + 1]
        table.setflags(write=False)
        return table

    def _make_fingerprint(self) -> str:
        everything = [self.name, list(self.vocab), self.table.tolist(), self.prefix, self.suffix]
        everything += [self.pad_id, self.mask_id, self.unknown_id, self.residue_ids]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    def encode(self, sequence: str) -> NDArray[np.int32]:
        """Returns prefix + residues + suffix as ids ``[L]``; a written symbol such as ``<mask>`` keeps its id."""
        parts = [np.array(self.prefix, dtype=np.int32)]
        for piece in self._special.split(sequence):
            if piece in self._ids and len(piece) > 1:
                parts.append(np.array([self._ids[piece]], dtype=np.int32))
            else:
                # "?" stands for what is not ASCII: unknown either way
                parts.append(self.table[np.frombuffer(piece.encode("ascii", "replace"), dtype=np.uint8)])
        return np.concatenate([*parts, np.array(self.suffix, dtype=np.int32)])

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Returns the symbols of ``ids`` joined, special symbols in their written form."""
        return "".join(self.vocab[int(number)] for number in ids)
