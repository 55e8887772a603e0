"""What every tokenizer promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import RESIDUES, proteins

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer

LETTERS = "".join(map(chr, range(ord("A"), ord("Z") + 1))) + "acdefghiklmnpqrstvwyx-.*"
"""What a file may hold: letters beyond the residues, lower case, gaps, a stop."""


def _make(request: Request) -> Tokenizer:
    from protloom import assembly, config

    name = request.component.full_name
    tokenizer: Tokenizer = assembly.make(config.choose("tokenizer", name, request.options, request.registry))
    return tokenizer


@promise("tokenizer")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("tokenizer")
def it_says_what_it_is(request: Request) -> None:
    """It has everything that the contract names, of the types that the contract states."""
    from protloom.contracts import Tokenizer

    tokenizer = _make(request)
    require(isinstance(tokenizer, Tokenizer), f"A {type(tokenizer).__name__} lacks attributes of the contract.")
    table = tokenizer.table
    require(table.shape == (256,) and table.dtype == np.int32, f"table is {table.dtype} {list(table.shape)}.")
    require(len(set(tokenizer.vocab)) == len(tokenizer.vocab), "vocab holds a symbol twice.")


@promise("tokenizer")
def every_id_is_in_the_vocabulary(request: Request) -> None:
    """The table, prefix, suffix, mask, padding, sentinels and residues are ids of the vocabulary."""
    tokenizer = _make(request)
    size = len(tokenizer.vocab)
    single = {"pad_id": tokenizer.pad_id, "unknown_id": tokenizer.unknown_id}
    if tokenizer.mask_id is not None:
        single["mask_id"] = tokenizer.mask_id
    groups = {
        "table": tokenizer.table.tolist(),
        "prefix": tokenizer.prefix,
        "suffix": tokenizer.suffix,
        "residue_ids": tokenizer.residue_ids,
        "sentinels": tokenizer.sentinels,
        **{name: [number] for name, number in single.items()},
        **{f"prefixes[{mode!r}]": ids for mode, ids in tokenizer.prefixes.items()},
    }
    for name, ids in groups.items():
        wrong = [number for number in ids if not 0 <= number < size]
        require(not wrong, f"{name} holds {wrong[:1]}, the vocabulary has {size} symbols.")


@promise("tokenizer")
def a_residue_is_a_token(request: Request) -> None:
    """``encode`` gives prefix, one token a letter by the table, suffix; residues are told apart."""
    tokenizer = _make(request)
    for sequence in (*proteins((1, 40)), "", LETTERS):
        ids = tokenizer.encode(sequence)
        inner = tokenizer.table[np.frombuffer(sequence.encode(), dtype=np.uint8)]
        wanted = [*tokenizer.prefix, *inner.tolist(), *tokenizer.suffix]
        require(ids.tolist() == wanted, f"{sequence[:9]!r} gives {ids.tolist()[:12]}, by the table {wanted[:12]}.")
        require(ids.dtype == np.int32, f"encode() gives {ids.dtype}.")
    known = [int(tokenizer.table[ord(letter)]) for letter in RESIDUES]
    require(len(set(known)) == len(RESIDUES), "Two of the 20 standard residues have one id.")
    require(tokenizer.unknown_id not in known, "A standard residue is unknown.")
    require(sorted(tokenizer.residue_ids) == sorted(known), "residue_ids are not those of the 20 standard residues.")


@promise("tokenizer")
def an_unusual_letter_is_no_residue(request: Request) -> None:
    """Beside the 20 standard residues and their lower case, nothing counts as one: a policy maps it to something else.

    ``X``, the letter itself or the unknown symbol, for example; whoever replaces U by C says so in an option.
    """
    tokenizer = _make(request)
    residues = set(tokenizer.residue_ids)
    for byte in range(256):
        standard = chr(byte).upper() in RESIDUES
        symbol = tokenizer.vocab[int(tokenizer.table[byte])]
        counts = int(tokenizer.table[byte]) in residues
        require(standard or not counts, f"{chr(byte)!r} becomes the residue {symbol!r}.")
        own = not standard or not counts or symbol == chr(byte).upper()
        require(own, f"The residue {chr(byte)!r} becomes {symbol!r}.")


@promise("tokenizer")
def decoding_undoes_encoding(request: Request) -> None:
    """``decode`` of a sequence's residues gives them back."""
    tokenizer = _make(request)
    (sequence,) = proteins((40,))
    ids = tokenizer.encode(sequence)
    inner = ids[len(tokenizer.prefix) : len(ids) - len(tokenizer.suffix)]
    require(tokenizer.decode(inner) == sequence, f"{sequence!r} comes back as {tokenizer.decode(inner)!r}.")


@promise("tokenizer")
def special_symbols_are_no_residues(request: Request) -> None:
    """Padding, mask, sentinels, prefix and suffix are other ids than the residues'."""
    tokenizer = _make(request)
    special = {tokenizer.pad_id, *tokenizer.sentinels, *tokenizer.prefix, *tokenizer.suffix}
    special |= set() if tokenizer.mask_id is None else {tokenizer.mask_id}
    both = special & set(tokenizer.residue_ids)
    require(not both, f"{tokenizer.vocab[min(both)] if both else ''!r} is both.")


@promise("tokenizer")
def its_fingerprint_is_its_own(request: Request) -> None:
    """Two instances with the same options have one fingerprint, which is not empty."""
    one, other = _make(request), _make(request)
    require(bool(one.fingerprint), "It is empty.")
    require(one.fingerprint == other.fingerprint, f"{one.fingerprint!r} and {other.fingerprint!r}.")
