"""Embeds a corpus into a file, some batches at a time: memory does not grow with the number of sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from protloom.data.records import Entry
    from protloom.embedding import Embedder
    from protloom.embedding.files import EmbeddingFile

Pooling = Literal["mean", "max", "cls", "none"]

BATCHES_POOLED, BATCHES_RESIDUES = 16, 4
"""Batches taken together and sorted by length inside; fewer where every residue's vector is kept."""


@dataclass
class Summary:
    """What was done.

    Attributes:
        ids: sequences given.
        added: ids of them whose values were computed now.
        present: ids whose values were in the file before.
        skipped: ids left out because they are longer than the network sees at once.
        tokens: tokens that the network saw, special symbols included.
        seconds: time of reading, computing and writing together.
    """

    ids: int = 0
    added: int = 0
    present: int = 0
    skipped: int = 0
    tokens: int = 0
    seconds: float = 0.0


def embed_corpus(
    entries: Iterable[Entry],
    embedder: Embedder,
    file: EmbeddingFile,
    *,
    pool: Pooling,
    include_specials: bool = False,
    progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Computes what the file does not hold yet and adds it, in the order given.

    Args:
        entries: sequences with unique ids; read as they are needed.
        embedder: gives the features; its ``counts`` say how many sequences were cropped or covered by windows.
        file: takes them.
        pool: ``mean`` and ``max`` over positions, ``cls`` (the first symbol's state), or ``none``: a vector a residue.
        include_specials: let ``mean`` and ``max`` see the prefix and suffix symbols too.
        progress: told after every few batches.

    Raises:
        UserError: if the pooling is impossible for this tokenizer or the network gives numbers that are not finite.
    """
    summary, start = Summary(), time.monotonic()
    before = embedder.counts["tokens"]
    batches = BATCHES_RESIDUES if pool == "none" else BATCHES_POOLED
    for chunk in _chunks(entries, batches * embedder.tokens_per_batch):
        summary.ids += len(chunk)
        if embedder.long_policy == "skip":
            short = [entry for entry in chunk if len(entry.sequence) <= embedder.max_length]
            summary.skipped += len(chunk) - len(short)
            chunk = short  # noqa: PLW2901
        held = {s for s in {entry.sequence for entry in chunk} if file.holds(s)}
        missing = list(dict.fromkeys(entry.sequence for entry in chunk if entry.sequence not in held))
        values: dict[str, NDArray[np.float32]] = {}
        if missing and pool == "none":
            values = dict(zip(missing, embedder.residues(missing), strict=True))
        elif missing:
            values = dict(zip(missing, embedder.pooled(missing, pool, include_specials), strict=True))
        file.add(chunk, values)
        present = sum(entry.sequence in held for entry in chunk)
        summary.present += present
        summary.added += len(chunk) - present
        summary.tokens = embedder.counts["tokens"] - before
        summary.seconds = time.monotonic() - start
        if progress is not None:
            progress(summary)
    return summary


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Yields consecutive sequences of about ``size`` residues together."""
    chunk: list[Entry] = []
    total = 0
    for entry in entries:
        chunk.append(entry)
        total += len(entry.sequence)
        if total >= size:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
