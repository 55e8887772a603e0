"""One network at several layers and poolings: each sequence is seen once, however many of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from protloom.embedding import Embedder, Pool
from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]

Key = tuple[int, str]
"""A layer and a pooling."""


class Sweep:
    """Views of one network, one a layer.

    The first view that pools a sequence pools it for all of them; the others find it in memory, ``layers * poolings *
    width * 4`` bytes a sequence, until :meth:`forget`. Features of residues are larger, so each layer computes its own,
    with no block above it.

    Args:
        base: the network.
        layers: numbers of hidden states; negative ones count from the end.
        pools: ``mean``, ``max``, ``cls``.

    Raises:
        UserError: a layer or pooling does not exist, or is impossible for this tokenizer.
    """

    def __init__(self, base: Embedder, layers: Sequence[int], pools: Sequence[str]) -> None:
        for pool in pools:
            if pool not in get_args(Pool):
                raise UserError(f"--pool {pool}: no such pooling.{did_you_mean(pool, get_args(Pool))}")
            if pool == "cls" and not base.prefix:
                raise UserError(f"--pool cls: tokenizer {base.tokenizer.name!r} puts no symbol in front; use mean")
        self.views = {view.layer: view for view in (_View(self, base, layer) for layer in layers)}
        self.keys = [(layer, pool) for layer in self.views for pool in pools]
        self.bank: dict[tuple[bool, str], dict[Key, F32]] = {}

    def forget(self) -> None:
        """Drops what is in memory."""
        self.bank.clear()


class _View(Embedder):
    """The network at one layer."""

    def __init__(self, sweep: Sweep, base: Embedder, layer: int) -> None:
        super().__init__(
            base.model,
            base.tokenizer,
            layer=layer,
            tokens_per_batch=base.tokens_per_batch,
            max_length=base.max_length,
            long_policy=base.long_policy,
            prefix=base.prefix,
            dtype=base.dtype,
            name=base.name,
            summary=base.summary,
            cache=base.cache,
        )
        self.provenance = {**base.provenance, "layer": self.layer}
        self._sweep = sweep

    def _pool_pass(self, sequences: Sequence[str], wanted: Sequence[Key], include_specials: bool) -> dict[Key, F32]:
        """Returns ``[n, D]`` for each wanted pair, of a pass that computed the others too."""
        bank = self._sweep.bank
        every = list(dict.fromkeys([*self._sweep.keys, *wanted]))
        missing = [s for s in sequences if any(key not in bank.get((include_specials, s), {}) for key in wanted)]
        computed = super()._pool_pass(missing, every, include_specials)
        for i, sequence in enumerate(missing):
            bank[include_specials, sequence] = {key: computed[key][i] for key in every}
        empty = np.empty((0, self.width), dtype=np.float32)
        rows = {key: [bank[include_specials, s][key] for s in sequences] for key in wanted}
        return {key: np.stack(of) if of else empty for key, of in rows.items()}


def parse_layers(text: str, depth: int) -> list[int]:
    """Returns the layers that a user named: ``all``, or numbers with commas.

    Raises:
        UserError: it is neither.
    """
    if text == "all":
        return list(range(depth + 1))
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text}: write numbers with commas, such as 0,3,6, or all") from None
