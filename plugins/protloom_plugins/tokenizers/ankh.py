"""The tokenizers of Ankh: one residue a token, T5's sentinels, and for Ankh3 a mode in front of a sequence."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from protloom.errors import UserError, did_you_mean
from protloom.settings import Section
from protloom_plugins.tokenizers.ankh_vocabulary import (
    ANKH,
    ANKH3,
    END,
    MODE,
    PAD,
    SENTINEL,
    UNKNOWN,
    Layout,
    check,
    read,
    with_sentinels,
)
from protloom_plugins.tokenizers.letters import STANDARD, to_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


class AnkhTokenizerConfig(Section):
    """Which ids, and what becomes of letters beyond the 20 standard amino acids.

    A letter that the vocabulary lacks (``J`` always, ``O`` in Ankh3), ``*``, ``-`` and every other byte become
    ``<unk>``, one for each residue; sentencepiece itself makes one ``<unk>`` of several in a row.
    """

    vocabulary_file: Path | None = Field(
        default=None, description="A released spiece.model or tokenizer.json to take the ids from; default: built in"
    )
    pieces: tuple[str, ...] | None = Field(
        default=None, description="The symbols of ids 0, 1, 2 …, where a run should not depend on a file"
    )
    lower_case: Literal["upper", "unknown"] = Field(
        default="upper", description="upper: a lower-case letter counts as its capital; unknown: <unk>, as released"
    )
    rare: Literal["own", "x"] = Field(
        default="own", description="own: B, U, Z, O keep their ids where they have one; x: they and J become X"
    )
    legacy_leading_unk: bool = Field(
        default=False, description="Put <unk> first, as transformers' T5Tokenizer did in several versions"
    )

    @model_validator(mode="after")
    def _one_source(self) -> AnkhTokenizerConfig:
        if self.vocabulary_file is not None and self.pieces is not None:
            raise ValueError("give vocabulary_file or pieces, not both")
        return self


class Ankh3TokenizerConfig(AnkhTokenizerConfig):
    """Options of Ankh3's tokenizer."""

    mode: str = Field(default="NLU", description="What stands in front of a sequence: NLU or S2S")


class AnkhTokenizer:
    """The tokenizer of Ankh base, large and 2: residues ``</s>``; see :class:`protloom.contracts.Tokenizer`.

    Args:
        config: where ids come from, and policies for unusual letters.

    Raises:
        UserError: if a vocabulary is another family's; names the piece and its id.
    """

    layout: ClassVar[Layout] = ANKH

    def __init__(self, config: AnkhTokenizerConfig) -> None:
        self.config = config
        self.name = self.layout.name
        self.vocab: Sequence[str] = self._vocabulary(config)
        ids = {symbol: number for number, symbol in enumerate(self.vocab)}
        self._ids = ids
        self.pad_id: int = ids[PAD]
        self.mask_id: int | None = None
        self.unknown_id: int = ids[UNKNOWN]
        self.residue_ids: tuple[int, ...] = tuple(ids[letter] for letter in STANDARD)
        numbered = {int(m[1]): number for symbol, number in ids.items() if (m := SENTINEL.fullmatch(symbol))}
        self.sentinels: tuple[int, ...] = tuple(numbered[i] for i in sorted(numbered))
        front = (self.unknown_id,) if config.legacy_leading_unk else ()
        self.prefixes: Mapping[str, tuple[int, ...]] = {
            m[1]: (*front, number) for symbol, number in ids.items() if (m := MODE.fullmatch(symbol))
        }
        self.prefix: tuple[int, ...] = self._default_prefix(front)
        self.suffix: tuple[int, ...] = (ids[END],)
        self.table: NDArray[np.int32] = self._make_table(config)
        self.fingerprint: str = self._make_fingerprint()
        self._special = re.compile("(" + "|".join(re.escape(s) for s in self.vocab if len(s) > 1) + ")")

    def _vocabulary(self, config: AnkhTokenizerConfig) -> tuple[str, ...]:
        if config.vocabulary_file is not None:
            return read(config.vocabulary_file, self.layout)
        if config.pieces is None:
            return with_sentinels(self.layout.pieces, self.layout)
        vocab = with_sentinels(config.pieces, self.layout)
        check(vocab, self.layout, f"tokenizer {self.layout.name}: pieces")
        return vocab

    def _default_prefix(self, front: tuple[int, ...]) -> tuple[int, ...]:
        return front

    def _make_table(self, config: AnkhTokenizerConfig) -> NDArray[np.int32]:
        table = np.full(256, self.unknown_id, dtype=np.int32)  # [256]
        for symbol, number in self._ids.items():
            if len(symbol) == 1 and symbol.isascii():
                table[ord(symbol)] = number
        if config.rare == "x":
            for letter in "BUZOJ":
                table[ord(letter)] = self._ids.get("X", self.unknown_id)
        if config.lower_case == "upper":
            table[ord("a") : ord("z") + 1] = table[ord("A") : ord("Z") + 1]
        table.setflags(write=False)
        return table

    def _make_fingerprint(self) -> str:
        everything = [self.name, list(self.vocab), self.table.tolist(), self.prefix, self.suffix, self.pad_id]
        everything += [self.unknown_id, self.residue_ids, self.sentinels, dict(self.prefixes)]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    def encode(self, sequence: str) -> NDArray[np.int32]:
        """Returns prefix + residues + suffix as ids ``[L]``; a written symbol such as ``<extra_id_0>`` keeps its id.

        A text that begins with a written mode, such as ``[S2S]MKT``, has that in place of the default one.
        """
        prefix = self.prefix
        mode = MODE.match(sequence)
        if mode and mode[1] in self.prefixes:
            prefix, sequence = self.prefixes[mode[1]], sequence[mode.end() :]
        inner = to_ids(sequence, self._special, self._ids, self.table)
        return np.concatenate([np.array(prefix, np.int32), inner, np.array(self.suffix, np.int32)])

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Returns the symbols of ``ids`` joined, special symbols in their written form."""
        return "".join(self.vocab[int(number)] for number in ids)


class Ankh3Tokenizer(AnkhTokenizer):
    """The tokenizer of Ankh3: ``[NLU]`` or ``[S2S]``, residues, ``</s>``; 225 sentinels.

    Args:
        config: where ids come from, the default mode, and policies for unusual letters.

    Raises:
        UserError: if a vocabulary is another family's (names the piece and its id), or there is no such mode.
    """

    layout = ANKH3
    config: Ankh3TokenizerConfig

    def _default_prefix(self, front: tuple[int, ...]) -> tuple[int, ...]:
        mode = self.config.mode
        if mode not in self.prefixes:
            raise UserError(f"tokenizer {self.name}: mode: no mode {mode!r}.{did_you_mean(mode, self.prefixes)}")
        return self.prefixes[mode]
