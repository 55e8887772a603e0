"""Features of protein sequences from a frozen network: packed, pooled, in the order given.

Sequences are packed end to end without padding, sorted by length inside. Since an architecture promises that the output
for a sequence does not depend on what else is in the batch, neither packing nor order changes a feature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from protloom.contracts import Extent, Offsets
from protloom.errors import UserError, did_you_mean
from protloom.inference import batch_tokens, batches, device_of, frozen, letter_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Architecture, Tokenizer
    from protloom.embedding.cache import EmbeddingCache
    from protloom.variants import Variant

    F32 = NDArray[np.float32]

Pool = Literal["mean", "max", "cls"]
LongPolicy = Literal["auto", "crop", "window", "skip"]

WINDOW = 256
"""Sequences of which :meth:`Embedder.residues` holds features at once, at least; bounds its memory."""
CHUNK = 2048
"""Sequences pooled, and kept in a cache, at once: what a killed process loses."""


class Embedder:
    """Features of sequences from the hidden states of one network.

    Args:
        model: the network, an ``nn.Module`` that is a :class:`protloom.contracts.Architecture`.
        tokenizer: the one that it was trained with.
        layer: which hidden state: 0 is the embedding's output, ``model.depth`` the final one; negative numbers count
            from the end; None is the final one.
        tokens_per_batch: tokens of a packed batch, special symbols included; a longer sequence gets a batch of its own.
            None: see :func:`protloom.inference.batch_tokens`.
        max_length: residues that the network sees at once.
        long_policy: what happens to a longer sequence. ``crop``: only its first ``max_length`` residues get features.
            ``window``: windows that overlap by half cover it; a residue's feature comes from the window that has it
            farthest from an edge; ``mean`` and ``max`` pool over all residues, without special symbols. ``skip``: no
            features (``[0, D]``, or a row of NaN). ``auto``: ``crop`` for pooled features, as benchmarks do, ``window``
            for residues. Attention maps are always cropped. :attr:`counts` says how many sequences were concerned.
        prefix: ids put before every sequence; None: the tokenizer's own.
        device: where to compute; the network is moved there. None: where it is.
        dtype: compute in this precision by autocast; None: the network's own. Features are float32 in any case.
        name: what tables call it.
        summary: what it is, in a few words.
        cache: where features are looked for before they are computed, and kept; used once ``provenance`` tells the
            ``weights``. A value from there is what was computed then, bit by bit.

    Attributes:
        provenance: what identifies it, for results and the cache; the maker fills it in.
        counts: ``sequences`` (given), ``computed`` (distinct ones), ``cached`` (of those), ``cropped``, ``windowed``
            and ``skipped`` so far; ``tokens`` that the network saw.
        memo: see :class:`protloom.contracts.Subject`.

    Raises:
        UserError: if the layer does not exist or an option is unknown.
    """

    def __init__(
        self,
        model: Architecture,
        tokenizer: Tokenizer,
        *,
        layer: int | None = None,
        tokens_per_batch: int | None = None,
        max_length: int = 1024,
        long_policy: LongPolicy = "auto",
        prefix: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        name: str = "model",
        summary: str = "frozen network",
        cache: EmbeddingCache | None = None,
    ) -> None:
        depth = model.depth
        number = depth if layer is None else layer + depth + 1 if layer < 0 else layer
        if not 0 <= number <= depth:
            raise UserError(f"layer {layer}: the network has hidden states 0 (embedding) to {depth} (final)")
        if long_policy not in get_args(LongPolicy):
            raise UserError(f"long policy {long_policy!r}.{did_you_mean(long_policy, get_args(LongPolicy))}")
        if max_length < 1 or (tokens_per_batch is not None and tokens_per_batch < 1):
            raise UserError("max_length and tokens_per_batch must be at least 1")
        self.model, self.tokenizer, self.layer, self.name = model, tokenizer, number, name
        self.max_length, self.long_policy = max_length, long_policy
        self.prefix = tuple(tokenizer.prefix if prefix is None else prefix)
        self.dtype, self.summary, self.cache = dtype, summary, cache
        self.provenance: dict[str, Any] = {"layer": number, "max_length": max_length, "long_policy": long_policy}
        module = cast("nn.Module", model)
        if device is not None:
            module.to(device)
        self.device = device_of(module)
        self.tokens_per_batch = batch_tokens(self.device, tokens_per_batch)
        self.counts: Counter[str] = Counter()
        self.memo: dict[tuple[Any, ...], Any] = {}

    @property
    def extent(self) -> Extent:
        """How much of long sequences gets features."""
        return Extent(self.long_policy, self.max_length)

    @property
    def width(self) -> int:
        """D, the number of features."""
        return self.model.width

    # ------------------------------------------------------------------------------------------------- features

    def residues(self, sequences: Sequence[str]) -> Iterator[F32]:
        """Yields ``[L, D]`` features of each sequence's residues, without special symbols, in the order given.

        A sequence that occurs several times is computed once and kept until its last use.

        Raises:
            UserError: if a sequence is empty or not ASCII; names its position.
        """
        uses = Counter(sequences)
        policy = "window" if self.long_policy == "auto" else self.long_policy
        self._count(sequences, uses, policy)
        ready: dict[str, F32] = {}
        pending = iter(dict.fromkeys(sequences))
        for sequence in sequences:
            while sequence not in ready:
                chunk = [s for _, s in zip(range(WINDOW), pending, strict=False)]
                ready.update(self._kept_residues(chunk, policy))
            uses[sequence] -= 1
            yield ready[sequence] if uses[sequence] else ready.pop(sequence)

    def pooled(self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False) -> F32:
        """Returns one feature vector a sequence, ``[n, D]``, in the order given.

        Args:
            sequences: residues as letters.
            pool: ``mean`` or ``max`` over positions, or ``cls``: the state of the first prefix symbol.
            include_specials: let ``mean`` and ``max`` see the prefix and suffix symbols too.

        Raises:
            UserError: if the pooling is unknown or impossible, or a sequence is empty or not ASCII.
        """
        if pool not in get_args(Pool):
            raise UserError(f"pooling {pool!r}.{did_you_mean(pool, get_args(Pool))}")
        if pool == "cls" and not self.prefix:
            raise UserError(f"pooling 'cls': tokenizer {self.tokenizer.name!r} puts no symbol in front; use mean")
        # the first symbol's state sees one window
        windows = pool == "cls" and self.long_policy == "window"
        policy = "crop" if self.long_policy == "auto" or windows else self.long_policy
        uses = Counter(sequences)
        self._count(sequences, uses, policy)
        distinct = list(uses)
        seen = [s for s in distinct if policy != "skip" or len(s) <= self.max_length]
        known = self._kept(
            {"pool": pool, "specials": include_specials, "long": policy},
            seen,
            lambda part: list(self._pooled(part, pool, policy, include_specials)[:, None]),
        )
        nothing = np.full(self.width, np.nan, dtype=np.float32)
        rows = {s: row[0] for s, row in zip(seen, known, strict=True)}
        return np.stack([rows.get(s, nothing) for s in sequences]) if sequences else np.empty((0, self.width), "f4")

    def contact_features(self, sequence: str) -> F32:
        """Returns attention maps as features of residue pairs, ``[L, L, layers * heads]``.

        Each map of a head, special symbols cut off, is made symmetric (A + Aᵀ) and corrected by the average product,
        A − (row sum · column sum) / total (Dunn et al. 2008; used on attention by Rao et al. 2021, "Transformer protein
        language models are unsupervised structure learners"). The channel of layer l and head h is ``l * heads + h``.

        Raises:
            UserError: if the network cannot return attention maps.
        """
        if "attentions" not in self.model.capabilities:
            raise UserError(f"{self.name}: this architecture returns no attention maps, which contacts are read from")
        tokens, cu = self.pack([sequence[: self.max_length]])
        start, stop = len(self.prefix), len(self.tokenizer.suffix)
        with self._frozen():
            maps = self.model.encode(tokens, cu, attentions=True).attentions
            if maps is None:
                raise UserError(f"{self.name}: this architecture returned no attention maps")
            inner = maps[0].float()  # [blocks, heads, L + specials, L + specials]
            size = inner.shape[-1]
            inner = inner[..., start : size - stop, start : size - stop].flatten(0, 1)  # [C, L, L]
            symmetric = inner + inner.transpose(-1, -2)
            rows = symmetric.sum(-1, keepdim=True)
            total = rows.sum(-2, keepdim=True)
            corrected = symmetric - rows * rows.transpose(-1, -2) / total
            return cast("F32", corrected.permute(1, 2, 0).contiguous().cpu().numpy())

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> NDArray[np.float64]:
        """Returns ``[n]`` scores of variants in nats; see :func:`protloom.variants.scores.score_variants`.

        The layer does not matter: the network's own head is asked. :attr:`counts` adds up ``variants``,
        ``variant_passes`` and ``variants_windowed``: those whose protein is longer than ``max_length``.

        Raises:
            UserError: also if the weights hold no head, so that the network's is random.
        """
        from protloom.likelihood import Reader, described_untrained, untrained
        from protloom.variants.scores import score_variants

        missing = untrained(self.model, self.provenance.get("initialised", ()))
        if missing:
            raise UserError(f"{self.name} cannot score variants: its weights hold no {missing[0]}")
        if never := self.provenance.get("untrained"):
            raise UserError(f"{self.name} cannot score variants: {described_untrained(never)}")
        reader = Reader(
            self.model, self.tokenizer, self.prefix, self.tokens_per_batch, max_length=self.max_length, dtype=self.dtype
        )
        found = score_variants(reader, wild_type, variants, method)
        self.counts.update(variants=len(variants), variant_passes=found.passes, variants_windowed=found.windowed)
        return found.values

    # ------------------------------------------------------------------------------------------------ machinery

    def _kept(
        self, space: dict[str, Any], sequences: Sequence[str], compute: Callable[[list[str]], list[F32]]
    ) -> list[F32]:
        """Returns ``[rows, D]`` of each sequence, from the cache where it is there, else computed and kept."""
        cache = self.cache if "weights" in self.provenance else None
        if cache is not None:
            device = {"device": self.device.type, "torch": torch.__version__, "dtype": str(self.dtype)}
            space = {**self.provenance, "prefix": list(self.prefix), **device, **space}
        found = {} if cache is None else cache.get(space, sequences)
        if found:
            self.counts["cached"] += len(found)
        missing = [i for i in range(len(sequences)) if i not in found]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            part = [sequences[i] for i in chunk]
            values = compute(part)
            found.update(zip(chunk, values, strict=True))
            if cache is not None:
                cache.put(space, part, values)
        return [found[i] for i in range(len(sequences))]

    def _kept_residues(self, sequences: Sequence[str], policy: str) -> dict[str, F32]:
        """Returns the features of distinct sequences' residues; none of those that are left out."""
        seen = [s for s in sequences if policy != "skip" or len(s) <= self.max_length]

        def compute(part: list[str]) -> list[F32]:
            found = self._residues_of(part, policy)
            return [found[s] for s in part]

        rows = dict(zip(seen, self._kept({"pool": "none", "long": policy}, seen, compute), strict=True))
        nothing = np.empty((0, self.width), dtype=np.float32)
        return {s: rows.get(s, nothing) for s in sequences}

    def _pooled(self, distinct: Sequence[str], pool: str, policy: str, include_specials: bool) -> F32:
        """Returns ``[n, D]`` of distinct sequences."""
        rows = np.empty((len(distinct), self.width), dtype=np.float32)
        short = [i for i, s in enumerate(distinct) if len(s) <= self.max_length or policy == "crop"]
        cut = [distinct[i][: self.max_length] for i in short]
        rows[short] = self._pool_pass(cut, [(self.layer, pool)], include_specials)[self.layer, pool]
        for i in sorted(set(range(len(distinct))) - set(short)):
            inner = self._residues_of([distinct[i]], policy)[distinct[i]]
            rows[i] = inner.mean(0) if pool == "mean" else inner.max(0)
        return rows

    def _pool_pass(
        self, sequences: Sequence[str], wanted: Sequence[tuple[int, str]], include_specials: bool
    ) -> dict[tuple[int, str], F32]:
        """Returns ``[n, D]`` for several pairs of layer and pooling; the network sees each sequence once."""
        start, stop = len(self.prefix), len(self.tokenizer.suffix)
        rows = {key: np.empty((len(sequences), self.width), dtype=np.float32) for key in wanted}
        layers = sorted({layer for layer, _ in wanted})

        def one(states: Tensor, pool: str) -> Tensor:
            if pool == "cls":
                return states[0]
            seen = states if include_specials else states[start : len(states) - stop]
            return seen.mean(0) if pool == "mean" else seen.amax(0)

        with self._frozen():
            for batch in self._batches(sequences):
                for layer, parts in self._run([sequences[i] for i in batch], layers).items():
                    for pool in [pool for at, pool in wanted if at == layer]:
                        rows[layer, pool][batch] = torch.stack([one(part, pool) for part in parts]).cpu().numpy()
        return rows

    def _residues_of(self, sequences: Sequence[str], policy: str) -> dict[str, F32]:
        """Returns the features of distinct sequences."""
        pieces: list[str] = []
        places: list[tuple[str, int, int, int]] = []  # (sequence, first residue kept, from, to) within the piece
        for sequence in sequences:
            for offset, begin, end in self._windows(len(sequence), policy):
                pieces.append(sequence[offset : offset + self.max_length])
                places.append((sequence, offset + begin, begin, end))
        start = len(self.prefix)
        covered = {s: min(len(s), self.max_length) if policy == "crop" else len(s) for s in sequences}
        found = {s: np.empty((covered[s], self.width), dtype=np.float32) for s in sequences}
        with self._frozen():
            for batch in self._batches(pieces):
                chunk = [pieces[i] for i in batch]
                states = torch.cat(self._run(chunk, [self.layer])[self.layer]).cpu().numpy()
                first = start  # of the piece's residues in ``states``
                for i, piece in zip(batch, chunk, strict=True):
                    sequence, target, begin, end = places[i]
                    found[sequence][target : target + end - begin] = states[first + begin : first + end]
                    first += len(piece) + start + len(self.tokenizer.suffix)
        return found

    def _windows(self, length: int, policy: str) -> Iterator[tuple[int, int, int]]:
        """Yields (offset, begin, end): the window at ``offset`` gives the features of its residues begin to end."""
        size = self.max_length
        if length <= size or policy != "window":
            yield 0, 0, min(length, size)
            return
        stride = max(1, size // 2)
        offsets = [*range(0, length - size, stride), length - size]
        done = 0
        for this, after in zip(offsets, [*offsets[1:], length], strict=True):
            # two windows share [after, this + size): each gives the half that lies farther from its own edge
            until = length if after == length else (after + this + size) // 2
            yield this, done - this, until - this
            done = until

    def _batches(self, sequences: Sequence[str]) -> Iterator[list[int]]:
        """Returns positions of sequences, batch by batch; longest first so that memory peaks at once."""
        extra = len(self.prefix) + len(self.tokenizer.suffix)
        longest_first = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        return batches(longest_first, lambda i: len(sequences[i]) + extra, self.tokens_per_batch)

    def _frozen(self) -> AbstractContextManager[None]:
        """Around all batches of a call, autocast casts each weight once; around each, once a batch."""
        return frozen(cast("nn.Module", self.model), self.dtype)

    def _run(self, sequences: Sequence[str], layers: Sequence[int]) -> dict[int, tuple[Tensor, ...]]:
        """Returns the states of layers, one ``[L + specials, D]`` a sequence."""
        tokens, cu = self.pack(sequences)
        last, inner = max(layers), tuple(layer for layer in layers if layer < self.model.depth)
        # the embedding's state needs no block, but stop_at=0 is not in the contract
        stop_at = None if last == self.model.depth else max(1, last)
        with self._frozen():
            encoded = self.model.encode(tokens, cu, layers=inner, stop_at=stop_at)
            states = {layer: encoded.last if layer == self.model.depth else encoded.layers[layer] for layer in layers}
            if not all(bool(torch.isfinite(of).all()) for of in states.values()):
                raise UserError(f"{self.name}: hidden states are not finite: the weights are damaged or have diverged")
            return {layer: torch.split(of.float(), list(cu.lengths)) for layer, of in states.items()}

    def pack(self, sequences: Sequence[str]) -> tuple[Tensor, Offsets]:
        """Returns the ids ``[T]`` of sequences end to end, special symbols included, and where each begins."""
        prefix = np.asarray(self.prefix, dtype=np.int64)
        suffix = np.asarray(self.tokenizer.suffix, dtype=np.int64)
        parts: list[NDArray[np.int64]] = []
        for sequence in sequences:
            parts += [prefix, letter_ids(self.tokenizer, sequence), suffix]
        extra = len(prefix) + len(suffix)
        cu = Offsets.of((len(s) + extra for s in sequences), self.device)
        self.counts["tokens"] += cu.total
        return torch.from_numpy(np.concatenate(parts)).to(self.device), cu

    def _count(self, sequences: Sequence[str], distinct: Counter[str], policy: str) -> None:
        """Checks the sequences and adds them to the counts."""
        for i, sequence in enumerate(sequences):
            if not sequence or not sequence.isascii():
                what = "is empty" if not sequence else "holds characters that are not ASCII"
                raise UserError(f"sequence {i + 1} of {len(sequences)} {what}: give residues as letters")
        long = sum(len(sequence) > self.max_length for sequence in distinct)
        self.counts.update(sequences=len(sequences), computed=len(distinct))
        if long:
            self.counts[{"crop": "cropped", "window": "windowed", "skip": "skipped"}[policy]] += long
