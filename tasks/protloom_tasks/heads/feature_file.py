"""Residue features on disk while a head is trained: they are read in every epoch and may be larger than memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]


class FeatureFile:
    """Features of sequences, ``[l, D]`` fp32 each, in one temporary memory-mapped file that nobody else sees.

    The network runs once a sequence; each epoch then reads 4 · l · D bytes a sequence, from the page cache while
    memory lasts. The file is gone when the object is.

    Args:
        states: features in order; some may be ``[0, D]``.

    Attributes:
        lengths: l of each sequence.
        width: D, 0 without a sequence.

    Raises:
        UserError: if the disk is full.
    """

    def __init__(self, states: Iterable[F32]) -> None:
        self.lengths: list[int] = []
        self.width = 0
        # TMPDIR says where
        self._file = tempfile.TemporaryFile(prefix="protloom-features-")  # noqa: SIM115 - lives as long as the object
        for of in states:
            try:
                self._file.write(np.ascontiguousarray(of, dtype=np.float32).tobytes())
            except OSError as error:
                raise _full(sum(self.lengths) * 4 * self.width, error) from error
            self.lengths.append(len(of))
            self.width = of.shape[1]
        try:
            self._file.flush()
        except OSError as error:
            raise _full(sum(self.lengths) * 4 * self.width, error) from error
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        rows = int(self._starts[-1])
        # a file of no bytes cannot be mapped
        self._rows: F32 = (
            np.memmap(self._file, dtype=np.float32, mode="r", shape=(rows, self.width))
            if rows
            else np.zeros((0, self.width), dtype=np.float32)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> F32:
        """Returns the features ``[l, D]`` of a sequence, a copy."""
        return np.array(self._rows[self._starts[number] : self._starts[number + 1]])


def _full(written: int, error: OSError) -> UserError:
    return UserError(
        f"cannot write residue features to {tempfile.gettempdir()} after {written / 2**20:.0f} MiB ({error}):"
        " let TMPDIR name a folder with more room, or use fewer training rows"
    )
