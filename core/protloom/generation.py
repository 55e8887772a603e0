"""Writes sequences with any encoder-decoder: greedy, sampled or by beam search, batched, with a cache.

What is needed of a network is :class:`Writer`. Choices are made on the host in float64, and a random choice is a hash
of (seed, sequence, position): a sequence's continuation does not depend on what it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.rng import CounterRNG, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from protloom.contracts import Encoded

    F64 = NDArray[np.float64]


class Cache(Protocol):
    """What a network remembers of sequences that it is writing."""

    def select(self, rows: Tensor) -> None:
        """Keeps the sequences ``rows`` (int64, on the device), in that order; one may come several times."""


class Writer(Protocol):
    """An encoder-decoder that writes token by token; see :class:`protloom.contracts.Architecture` for the rest."""

    def encode(self, tokens: Tensor, cu: Offsets) -> Encoded:
        """Maps the source ``[T]`` to states ``[T, D]``."""

    def start_cache(self, memory: Tensor, memory_cu: Offsets) -> Any:
        """Returns a :class:`Cache` for writing one sequence for each of the encoder's."""

    def decode(self, tokens: Tensor, cu: Offsets, memory: Tensor, memory_cu: Offsets, *, cache: Any) -> Encoded:
        """Maps the next token of each sequence ``[n]`` to states ``[n, D]`` and brings the cache forward."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps states ``[n, D]`` to ``[n, vocabulary]``."""


@dataclass(frozen=True)
class Decoding:
    """How sequences are written.

    Attributes:
        max_length: most tokens to write, one number or one a sequence; the end symbol counts as one.
        min_length: tokens before the end symbol is allowed, one number or one a sequence.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the fewest likeliest tokens whose probability is at least this (Holtzman et al. 2020).
        beams: hypotheses kept a sequence; above 1 the likeliest sequence is looked for (temperature 0 only).
        length_penalty: a finished hypothesis is ranked by log-probability / length ** length_penalty.
        allowed: ids that may be written beside the end symbol; None: all.
        seed: of the drawing.
    """

    max_length: int | Sequence[int] = 512
    min_length: int | Sequence[int] = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1
    length_penalty: float = 1.0
    allowed: Sequence[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for values that make no sense."""
        if self.temperature < 0 or not np.isfinite(self.temperature):
            raise UserError(f"temperature is {self.temperature}: must be 0 (the likeliest token) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: must be above 0 and at most 1")
        if self.beams < 1:
            raise UserError(f"beams is {self.beams}: must be at least 1")
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                "beams look for the likeliest sequence and do not draw: set temperature to 0, or beams to 1"
            )
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise UserError("top_k and top_p say among which tokens to draw: give a temperature above 0 with them")
        if self.allowed is not None and not self.allowed:
            raise UserError("allowed is empty: name at least one token that may be written")


class Written(NamedTuple):
    """One written sequence.

    Attributes:
        tokens: ids, without start and end symbols.
        log_probability: sum over the chosen tokens and the end symbol of log softmax(logits), at temperature 1.
        ended: whether the network ended it; else it was cut at ``max_length``.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool


@torch.no_grad()
def write(
    model: Writer,
    tokens: Tensor,
    cu: Offsets,
    decoding: Decoding,
    *,
    start: int,
    end: int,
    keys: Sequence[int] | None = None,
) -> list[Written]:
    """Writes one sequence for each source sequence.

    Args:
        model: the network, in evaluation mode.
        tokens: ``[T]`` ids that the encoder reads, packed.
        cu: offsets of them.
        decoding: how.
        start: the symbol that the decoder begins with.
        end: the symbol that ends a sequence.
        keys: a number for each sequence that its random choices hang on; default: 0, 1, …. Give the number in the whole
            input where it is written in several batches.

    Raises:
        UserError: if lengths or keys are not one a sequence, or a length makes no sense.
    """
    most, least = _lengths("max_length", decoding.max_length, cu.n), _lengths("min_length", decoding.min_length, cu.n)
    for i in range(cu.n):
        if most[i] < 1 or not 0 <= least[i] <= most[i]:
            raise UserError(f"lengths of sequence {i}: 0 ≤ min_length ({least[i]}) ≤ max_length ({most[i]}) must hold")
    if keys is not None and len(keys) != cu.n:
        raise UserError(f"{len(keys)} keys for {cu.n} sequences")
    if decoding.allowed is not None and any(least) and not set(decoding.allowed) - {end}:
        raise UserError("allowed names only the end symbol, which min_length forbids at first")
    if cu.n == 0:
        return []
    job = _Job(model, tokens, cu, decoding, start, end, most, least)
    if decoding.beams > 1:
        return _beam_search(job)
    return _token_by_token(job, np.arange(cu.n) if keys is None else np.asarray(keys, dtype=np.int64))


def _lengths(name: str, value: int | Sequence[int], n: int) -> list[int]:
    if isinstance(value, int):
        return [value] * n
    if len(value) != n:
        raise UserError(f"{name} has {len(value)} numbers for {n} sequences: give one number, or one a sequence")
    return [int(number) for number in value]


class _Job:
    """The encoder's states and the cache of sequences that are being written."""

    def __init__(
        self,
        model: Writer,
        tokens: Tensor,
        cu: Offsets,
        decoding: Decoding,
        start: int,
        end: int,
        most: list[int],
        least: list[int],
    ) -> None:
        self.model, self.cu, self.decoding = model, cu, decoding
        self.start, self.end, self.most, self.least = start, end, most, least
        self.device = tokens.device
        self.memory = model.encode(tokens, cu).last
        self.cache: Cache = model.start_cache(self.memory, cu)
        self._barred: NDArray[np.bool_] | None = None

    def step(self, last: NDArray[np.int64]) -> F64:
        """Feeds the last token of each row ``[n]`` and returns log-probabilities ``[n, V]`` of the next."""
        ids = torch.from_numpy(last).to(self.device)
        offsets = Offsets.of([1] * len(last), self.device)
        hidden = self.model.decode(ids, offsets, self.memory, self.cu, cache=self.cache).last
        logits = self.model.logits(hidden)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = cast("F64", wide.log_softmax(-1).double().cpu().numpy())
        if np.isnan(scores).any():
            raise UserError(
                "the network's probabilities are not numbers (NaN): its weights are damaged; try fp32", exit_code=1
            )
        return scores

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> None:
        """Keeps these rows of the cache."""
        self.cache.select(torch.as_tensor(np.asarray(rows, dtype=np.int64)).to(self.device))

    def barred(self, vocabulary: int) -> NDArray[np.bool_]:
        """Returns ``[V]`` which tokens may never be written."""
        if self._barred is None:
            self._barred = np.zeros(vocabulary, dtype=np.bool_)
            if self.decoding.allowed is not None:
                self._barred[:] = True
                self._barred[[*self.decoding.allowed, self.end]] = False
        return self._barred

    def permitted(self, scores: F64, too_short: NDArray[np.bool_]) -> F64:
        """Returns log-probabilities with −inf where a token is barred, or is an end that comes too early."""
        out = np.where(self.barred(scores.shape[1]), -np.inf, scores)
        out[too_short, self.end] = -np.inf
        return cast("F64", out)


# ------------------------------------------------------------------------------------------- greedy and sampling


def _token_by_token(job: _Job, keys: NDArray[np.int64]) -> list[Written]:
    decoding = job.decoding
    rng = CounterRNG(decoding.seed, "write")
    written: list[list[int]] = [[] for _ in range(job.cu.n)]
    scores = np.zeros(job.cu.n)
    ended = np.zeros(job.cu.n, dtype=np.bool_)
    alive = np.arange(job.cu.n)  # the sequence of each row of the cache
    last = np.full(job.cu.n, job.start, dtype=np.int64)
    most, least = np.array(job.most), np.array(job.least)
    for position in range(max(job.most)):
        log_probabilities = job.step(last)
        choice = job.permitted(log_probabilities, position < least[alive])
        if decoding.temperature == 0:
            last = choice.argmax(-1)
        else:
            last = draw(choice, decoding, uniform(rng.at(keys[alive], position)))
        scores[alive] += log_probabilities[np.arange(len(alive)), last]
        ended[alive] = last == job.end
        for row, token in zip(alive, last, strict=True):
            if token != job.end:
                written[row].append(int(token))
        going = ~ended[alive] & (position + 1 < most[alive])
        if not going.any():
            break
        if not going.all():
            job.select(np.flatnonzero(going))
            alive, last = alive[going], last[going]
    return [Written(tuple(written[i]), float(scores[i]), bool(ended[i])) for i in range(job.cu.n)]


def draw(log_probabilities: F64, decoding: Decoding, numbers: F64) -> NDArray[np.int64]:
    """Draws one token a row by inverting the cumulative distribution.

    Args:
        log_probabilities: ``[n, V]``, −inf where a token is not allowed.
        decoding: temperature, top_k, top_p, applied in this order.
        numbers: ``[n]`` uniform in [0, 1).
    """
    scaled = log_probabilities / decoding.temperature
    order = np.argsort(-scaled, axis=-1, kind="stable")
    ranked = np.take_along_axis(scaled, order, -1)
    if decoding.top_k is not None:
        ranked[:, decoding.top_k :] = -np.inf
    weights = np.exp(ranked - ranked[:, :1])
    weights /= weights.sum(-1, keepdims=True)
    if decoding.top_p is not None:
        # a token stays if those before it do not yet have the probability asked for
        before = np.cumsum(weights, -1) - weights
        weights[before >= decoding.top_p] = 0.0
    cumulative = np.cumsum(weights, -1)
    reached = numbers[:, None] * cumulative[:, -1:] < cumulative
    return np.take_along_axis(order, reached.argmax(-1)[:, None], -1)[:, 0]


# --------------------------------------------------------------------------------------------------- beam search


class _Hypothesis(NamedTuple):
    tokens: tuple[int, ...]
    log_probability: float
    ended: bool = False


@dataclass
class _Search:
    """The beams of one sequence.

    A hypothesis that ends among the best ``beams`` candidates is finished, and ranked by log-probability / length **
    penalty, where the end symbol counts. The search is over when ``beams`` are finished and the best open one, at its
    present length, would rank below all of them.
    """

    beams: int
    penalty: float
    most: int
    least: int
    open: list[_Hypothesis] = field(default_factory=lambda: [_Hypothesis((), 0.0)])
    finished: list[tuple[float, _Hypothesis]] = field(default_factory=list)

    def advance(self, scores: F64, end: int) -> list[int]:
        """Takes one step and returns, for each open hypothesis now, which one before it goes on from.

        Args:
            scores: ``[open, V]`` log-probabilities of whole hypotheses, −inf where a token is not allowed.
            end: the end symbol.
        """
        flat = scores.ravel()
        wanted = min(2 * self.beams, flat.size)
        best = np.argpartition(-flat, wanted - 1)[:wanted]
        best = best[np.argsort(-flat[best], kind="stable")]
        length = len(self.open[0].tokens) + 1
        parents: list[int] = []
        going: list[_Hypothesis] = []
        for rank, index in enumerate(best):
            if not np.isfinite(flat[index]):
                break
            parent, token = divmod(int(index), scores.shape[1])
            before = self.open[parent].tokens
            ends = token == end
            if ends or length == self.most:
                # what ends beyond the best `beams` is only there to fill up the open ones
                if rank < self.beams:
                    done = _Hypothesis(before if ends else (*before, token), float(flat[index]), ends)
                    self.finished.append((done.log_probability / length**self.penalty, done))
            elif len(going) < self.beams:
                parents.append(parent)
                going.append(_Hypothesis((*before, token), float(flat[index])))
        self.finished = sorted(self.finished, key=lambda item: -item[0])[: self.beams]
        full = len(self.finished) == self.beams
        over = bool(going) and full and going[0].log_probability / length**self.penalty <= self.finished[-1][0]
        self.open = [] if over else going
        return [] if over else parents


def _beam_search(job: _Job) -> list[Written]:
    decoding = job.decoding
    searches = [
        _Search(decoding.beams, decoding.length_penalty, most, least)
        for most, least in zip(job.most, job.least, strict=True)
    ]
    alive = searches
    last = np.full(len(alive), job.start, dtype=np.int64)
    for position in range(max(job.most)):
        sizes = [len(search.open) for search in alive]
        too_short = np.repeat([position < search.least for search in alive], sizes)
        scores = job.permitted(job.step(last), too_short)
        scores += np.array([h.log_probability for search in alive for h in search.open])[:, None]
        rows: list[int] = []
        first = 0
        for search, size in zip(alive, sizes, strict=True):
            rows += [first + parent for parent in search.advance(scores[first : first + size], job.end)]
            first += size
        alive = [search for search in alive if search.open]
        if not alive:
            break
        job.select(rows)
        last = np.array([h.tokens[-1] for search in alive for h in search.open], dtype=np.int64)
    return [Written(*search.finished[0][1]) for search in searches]


__all__ = ["Cache", "Decoding", "Writer", "Written", "draw", "write"]
