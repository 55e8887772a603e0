"""What a measurement reads where no corpus is named: drawn sequences, with lengths as proteins have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protloom.contracts import Record
from protloom.data.build import build_store
from protloom.data.layout import Store
from protloom.errors import UserError

MEDIAN, SIGMA = 269.0, 0.6
"""Of log-normal lengths; cut to the range below, their mean is 292."""
SHORTEST, LONGEST = 30, 512
RESIDUES = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
REAL = "real"


def parse_lengths(text: str) -> int | None:
    """Returns the number of residues that ``fixed:N`` states, None for ``real``; raises UserError for another word."""
    if text == REAL:
        return None
    word, colon, number = text.partition(":")
    if word != "fixed" or not colon or not number.isdecimal() or int(number) < 1:
        raise UserError(f"--lengths {text}: write real, or fixed:N with the residues of each sequence, e.g. fixed:256")
    return int(number)


def draw(folder: Path, n: int, length: int | None = None, seed: int = 0) -> Store:
    """Draws sequences, all residues alike, and makes a store of them.

    Args:
        folder: is made.
        n: how many.
        length: residues of each; None: log-normal lengths.
        seed: of lengths and residues.
    """
    rng = np.random.default_rng(seed)
    if length is None:
        lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), SIGMA, n)), SHORTEST, LONGEST).astype(int)
    else:
        lengths = np.full(n, length)
    return build_store(_records(lengths.tolist(), rng), folder, simulated=True, origin={"name": described(length)})


def described(length: int | None) -> str:
    """Says what sequences were drawn."""
    if length is not None:
        return f"drawn sequences of {length} residues"
    return f"drawn sequences of {SHORTEST} to {LONGEST} residues (log-normal, mean 292)"


def _records(lengths: list[int], rng: np.random.Generator) -> Iterator[Record]:
    for number, length in enumerate(lengths):
        yield Record(f"drawn{number}", rng.choice(RESIDUES, length).tobytes())
