"""What tokenizers with one symbol a letter and a fixed vocabulary share."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

STANDARD = "ACDEFGHIKLMNPQRSTVWY"


def to_ids(
    sequence: str, written: re.Pattern[str], ids: Mapping[str, int], table: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Returns the ids ``[L]`` of letters and written symbols.

    Args:
        sequence: letters, and symbols such as ``<mask>``.
        written: matches, in one group, the symbols of more than one letter.
        ids: the id of each symbol.
        table: ``[256]`` the id of each ASCII byte.
    """
    parts = [np.zeros(0, dtype=np.int32)]
    for piece in written.split(sequence):
        if piece in ids and len(piece) > 1:
            parts.append(np.array([ids[piece]], dtype=np.int32))
        else:
            # "?" stands for what is not ASCII: unknown either way
            parts.append(table[np.frombuffer(piece.encode("ascii", "replace"), dtype=np.uint8)])
    return np.concatenate(parts)


class LetterTokenizer:
    """One residue a token by one table; see :class:`protloom.contracts.Tokenizer` for the attributes.

    Args:
        name: the component's name.
        vocab: the symbol of each id; ``<pad>``, ``<unk>``, ``<mask>`` and the 20 standard letters are among them.
        begin: the symbol put before every sequence.
        end: the symbol put after every sequence.
        instead: letters that become another symbol than their own.
        fold: a lower-case letter counts as its capital; else it is unknown.
    """

    def __init__(
        self, name: str, vocab: Sequence[str], *, begin: str, end: str, instead: Mapping[str, str], fold: bool
    ) -> None:
        self.name = name
        self.vocab: Sequence[str] = vocab
        ids = {symbol: number for number, symbol in enumerate(vocab)}
        self._ids = ids
        self.prefix: tuple[int, ...] = (ids[begin],)
        self.suffix: tuple[int, ...] = (ids[end],)
        self.pad_id: int = ids["<pad>"]
        self.mask_id: int | None = ids["<mask>"]
        self.unknown_id: int = ids["<unk>"]
        self.residue_ids: tuple[int, ...] = tuple(ids[letter] for letter in STANDARD)
        self.sentinels: tuple[int, ...] = ()
        self.prefixes: Mapping[str, tuple[int, ...]] = {}
        self.table: NDArray[np.int32] = self._make_table(instead, fold)
        self.fingerprint: str = self._make_fingerprint()
        self._special = re.compile("(" + "|".join(re.escape(s) for s in vocab if s.startswith("<")) + ")")

    def _make_table(self, instead: Mapping[str, str], fold: bool) -> NDArray[np.int32]:
        table = np.full(256, self.unknown_id, dtype=np.int32)  # [256]
        for symbol, number in self._ids.items():
            if len(symbol) == 1:
                table[ord(symbol)] = number
        for letter, symbol in instead.items():
            table[ord(letter)] = self._ids[symbol]
        if fold:
            table[ord("a") : ord("z") + 1] = table[ord("A") : ord("Z") + 1]
        table.setflags(write=False)
        return table

    def _make_fingerprint(self) -> str:
        everything = [self.name, list(self.vocab), self.table.tolist(), self.prefix, self.suffix]
        everything += [self.pad_id, self.mask_id, self.unknown_id, self.residue_ids]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    def encode(self, sequence: str) -> NDArray[np.int32]:
        """Returns prefix + residues + suffix as ids ``[L]``; a written symbol such as ``<mask>`` keeps its id."""
        inner = to_ids(sequence, self._special, self._ids, self.table)
        return np.concatenate([np.array(self.prefix, np.int32), inner, np.array(self.suffix, np.int32)])

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Returns the symbols of ``ids`` joined, special symbols in their written form."""
        return "".join(self.vocab[int(number)] for number in ids)
