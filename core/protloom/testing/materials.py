"""What checks work with: random proteins in batches, small networks, ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from protloom.contracts import Packed, SequenceBatch

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import Tokenizer
    from protloom.plugins import Component, Registry

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LENGTHS = (31, 64, 12, 70, 33, 21, 50, 16)
"""Residues of the sequences in a batch."""

T = TypeVar("T")


def proteins(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[str]:
    """Returns random sequences of the 20 standard residues, of the lengths given."""
    letters = np.array(list(RESIDUES))
    rng = np.random.default_rng([seed, *lengths])
    return ["".join(rng.choice(letters, size=length)) for length in lengths]


def batch_of(tokenizer: Tokenizer, sequences: Sequence[str], *, epoch: int = 0, step: int = 0) -> SequenceBatch:
    """Returns a batch of sequences, which belong together two by two.

    Args:
        tokenizer: how they are encoded.
        sequences: residues as letters.
        epoch: how often each was seen before.
        step: the optimizer step.
    """
    parts = [tokenizer.encode(sequence) for sequence in sequences]
    n, before = len(parts), len(tokenizer.prefix)
    cu = np.zeros(n + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=cu[1:])
    residue = np.zeros(int(cu[-1]), dtype=np.bool_)
    for start, sequence in zip(cu[:-1].tolist(), sequences, strict=True):
        residue[start + before : start + before + len(sequence)] = True
    tokens = np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, dtype=np.int32)
    return SequenceBatch(
        packed=Packed(tokens, cu),
        residue=residue,
        epoch=np.full(n, epoch, dtype=np.int64),
        index=np.arange(n, dtype=np.int64) * 7 + 3,  # numbers in a corpus are not those in a batch
        corpus=np.zeros(n, dtype=np.int32),
        group=np.arange(n, dtype=np.int32) // 2,
        step=step,
    )


def small_sizes(registry: Registry, only: str | None = None) -> Iterator[str]:
    """Yields architectures to test others with, as ``NAME:SIZE``: the smallest of each, protloom's own first.

    Args:
        registry: where they are found.
        only: yield this one alone.
    """
    if only is not None:
        yield only
        return
    found = sorted(registry.components("architecture"), key=lambda component: not component.builtin)
    for component in found:
        yield smallest(component, registry)


def smallest(component: Component, registry: Registry) -> str:
    """Returns an architecture's size for tests: ``tiny``, or else the first that it lists."""
    sizes = list(getattr(component.spec, "sizes", ()))
    name = registry.shortest(component)
    if not sizes:
        return name
    return f"{name}:{'tiny' if 'tiny' in sizes else sizes[0]}"


class Ranks:
    """Collectives between threads that stand for the ranks of a run.

    The tensors of all ranks are in one graph, so the gradient of the ranks' summed losses is what the ranks of a real
    run would have after adding up their gradients.

    Args:
        n: how many ranks.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._barrier = threading.Barrier(n, timeout=60)
        self._slots: list[Tensor | None] = [None] * n
        self._rank = threading.local()

    def run(self, work: Callable[[int], T]) -> list[T]:
        """Returns what ``work(rank)`` gives on each rank, all at once; raises the first error of any."""

        def one(rank: int) -> T:
            self._rank.number = rank
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()  # or the others would wait for this one
                raise

        with ThreadPoolExecutor(self.n) as pool:
            running = [pool.submit(one, rank) for rank in range(self.n)]
            errors = [error for error in (job.exception() for job in running) if error is not None]
            real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
            for error in (*real, *errors):
                raise error
            return [job.result() for job in running]

    def all_sum(self, x: Tensor) -> Tensor:
        """Adds a tensor over ranks."""
        import torch

        return torch.stack(self._exchange(x)).sum(dim=0)

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenates a tensor over ranks along dimension 0."""
        import torch

        return torch.cat(self._exchange(x))

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._slots[self._rank.number] = x
        self._barrier.wait()
        found = [slot for slot in self._slots if slot is not None]
        self._barrier.wait()  # nobody writes the next one before all have read this
        return found


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seeds the generators that everybody shares, and puts them back afterwards."""
    import random

    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def global_state() -> dict[str, object]:
    """Returns the state of each generator that everybody shares, as something to compare."""
    import random

    import torch

    name, keys, place, *_ = np.random.get_state(legacy=True)
    return {
        "random": random.getstate(),
        "numpy.random": (name, np.asarray(keys).tobytes(), place),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
