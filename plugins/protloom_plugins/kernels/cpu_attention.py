"""Attention of packed sequences on CPU in bf16, by exponentials of scores instead of a softmax.

Three observations make it faster than products with ``softmax`` between them (``benchmarks/attention_cpu.py``):

- Passes over the scores, not products, are most of the time. If scores are moderate, the exponential needs no shift by
  the row's maximum, and the denominators come out of the product with the values, to which a column of ones is added.
  So one pass is left of softmax's three. Where scores are not moderate, which the denominators tell, rows are shifted.
- A product of a new shape costs more to prepare than to compute, and lengths of proteins are all different. So lengths
  are rounded up. Padding needs no mask: a padded key has a value of zeros, without the one.
- Sequences of the same rounded length share one product, which short ones need most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protloom.contracts import Offsets
from protloom_plugins.kernels.reference import visible

STEP = 32
"""Lengths are rounded up to multiples of this; rows of 32 bf16 numbers are whole cache lines."""
STEP_FORWARD = 16
"""The same where no gradient is asked for: with fewer products a shape, padding weighs more than preparing shapes."""
GROUPED_SCORES = 1 << 20
"""Scores of one product at most, unless a single sequence has more: they should stay in the processor's cache."""
MODERATE = 1e24
"""Row sums of exponentials from 1/this to this need no shift: gradients divided by them stay in bf16's range, 1e±38."""


@dataclass(frozen=True)
class Group:
    """Sequences whose scores are computed together.

    Attributes:
        rows: where the queries of each begin and how many there are.
        columns: the same for keys.
        queries: rounded number of queries.
        keys: rounded number of keys.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    queries: int
    keys: int


def groups(lengths: Iterable[tuple[int, int]], heads: int, step: int = STEP) -> list[Group]:
    """Puts sequences of (queries, keys) with the same rounded lengths together; those without either are left out."""
    pairs = list(lengths)
    rows = accumulate((q for q, _ in pairs), initial=0)
    columns = accumulate((k for _, k in pairs), initial=0)
    alike: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    for (q, k), row, column in zip(pairs, rows, columns, strict=False):
        if q and k:
            alike.setdefault((_rounded(q, step), _rounded(k, step)), []).append(((row, q), (column, k)))
    found = []
    for (queries, keys), members in alike.items():
        most = max(1, GROUPED_SCORES // (heads * queries * keys))
        for first in range(0, len(members), most):
            part = members[first : first + most]
            found.append(Group(tuple(r for r, _ in part), tuple(c for _, c in part), queries, keys))
    return found


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


class ExponentialAttention(torch.autograd.Function):
    """softmax(scale · q kᵀ + bias) v within each packed sequence.

    With E = exp(scores), l = E·1 and o = E v / l; for the gradient g of o and h = g / l:
    ∂v = Eᵀ h, ∂scores = E ⊙ (h vᵀ − (h ⊙ o)·1), and ∂q, ∂k, ∂bias follow from ∂scores. A row's shift cancels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        parts: list[Group],
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        """Maps ``[Tq, H, d]`` and ``[H, 2R - 1]`` to ``[Tq, H, d]``; queries that see no key get zeros."""
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        saved: list[Tensor] = []
        learning = any(ctx.needs_input_grad)  # else memory of one group serves the next, and stays in the cache
        with torch.autocast("cpu", enabled=False):
            for group in parts:
                left, right = _gather(q, group.rows, group.queries), _gather(k, group.columns, group.keys)
                values = _gather(v, group.columns, group.keys, ones=True)  # [n·H, K, d + 2]
                spread = None if bias is None else _spread(bias, group, q.dtype)
                seen = visible(group.queries, group.keys, causal, window, q.device)
                weights, mixed = _weigh(left, right, values, spread, seen, scale)
                _scatter(out, mixed, group.rows)
                if learning:
                    saved += [left, right, values, weights, mixed]
        ctx.save_for_backward(bias, *saved)
        ctx.parts, ctx.scale, ctx.shapes = parts, scale, (q.shape, k.shape, v.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of ``q``, ``k``, ``v`` and ``bias``."""
        bias, *saved = ctx.saved_tensors
        # laid out by head, as rotations and projections of heads read them
        dq, dk, dv = (grads[0].new_zeros(s[1], s[0], s[2]).transpose(0, 1) for s in ctx.shapes)
        dbias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for group, (left, right, values, weights, mixed) in zip(
                ctx.parts, zip(*[iter(saved)] * 5, strict=True), strict=True
            ):
                part = _gather(grads[0], group.rows, group.queries, ones=True)  # [n·H, Q, d + 2]
                total = mixed[..., -2:-1]
                _divide(part, total)
                part[..., -2:-1] = (part[..., :-2] * mixed[..., :-2]).sum(-1, keepdim=True).neg_()
                _scatter(dv, torch.bmm(weights.transpose(1, 2), part[..., :-2]), group.columns)
                dscores = torch.bmm(part, values.transpose(1, 2)).mul_(weights)  # [n·H, Q, K]
                _scatter(dq, torch.bmm(dscores, right).mul_(ctx.scale), group.rows)
                _scatter(dk, torch.bmm(dscores.transpose(1, 2), left).mul_(ctx.scale), group.columns)
                if dbias is not None:
                    _add_by_distance(dbias, dscores)
        return dq, dk, dv, None if dbias is None else dbias.to(bias.dtype), None, None, None, None


def _weigh(
    q: Tensor, k: Tensor, values: Tensor, bias: Tensor | None, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns E ``[n·H, Q, K]`` and o with its denominators, ``[n·H, Q, d + 2]``."""
    weights, mixed = _weighed(_scores(q, k, bias, scale), values, seen)
    total = mixed[..., -2:-1]
    low, high = total.aminmax()
    if not (low >= 1 / MODERATE and high <= MODERATE):
        scores = _scores(q, k, bias, scale)
        largest = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
        # row by row, so that no sequence's result depends on its neighbours
        shift = largest.amax(-1, keepdim=True).masked_fill_((total >= 1 / MODERATE) & (total <= MODERATE), 0.0)
        weights, mixed = _weighed(scores.sub_(shift), values, seen)
        total = mixed[..., -2:-1]
    _divide(mixed, total)
    return weights, mixed


def _divide(x: Tensor, total: Tensor) -> None:
    """Divides all but the last two columns of ``[n·H, Q, d + 2]`` by ``[n·H, Q, 1]``, in place.

    Spread out first: a division of short rows by one number each runs number by number, three times as long.
    """
    x[..., :-2].div_(total.expand(-1, -1, x.shape[-1] - 2).contiguous())


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Returns ``[n·H, Q, K]``."""
    if bias is None:
        return torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    biases = bias if len(q) == len(bias) else bias.repeat(len(q) // len(bias), 1, 1)
    return torch.baddbmm(biases, q, k.transpose(1, 2), alpha=scale)


def _weighed(scores: Tensor, values: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turns scores into exponentials, in place, and returns them with their products with ``values``."""
    weights = scores.exp_()
    if seen is not None:
        weights.masked_fill_(~seen, 0.0)
    mixed = torch.bmm(weights, values)
    if seen is not None:
        present = values[..., -2] @ seen.to(values.dtype).T  # [n·H, Q]: how many keys that are no padding a query sees
        mixed[..., -2].masked_fill_(present == 0, 1.0)  # 0/1, not 0/0
    return weights, mixed


def _gather(x: Tensor, spans: tuple[tuple[int, int], ...], rounded: int, *, ones: bool = False) -> Tensor:
    """Copies sequences of ``[T, H, d]`` to ``[n·H, rounded, d]``, zeros behind each.

    With ``ones``, a column of ones is added, and one of zeros, because bf16 products run over pairs.
    """
    heads, size = x.shape[1:]
    found = x.new_zeros(len(spans), heads, rounded, size + 2 * ones)
    for sequence, (start, length) in zip(found, spans, strict=True):
        sequence[:, :length, :size] = x[start : start + length].transpose(0, 1)
        if ones:
            sequence[:, :length, size] = 1.0
    return found.flatten(0, 1)


def _scatter(out: Tensor, x: Tensor, spans: tuple[tuple[int, int], ...]) -> None:
    """Copies ``[n·H, rounded, ≥ d]`` back to the sequences' places in ``[T, H, d]``."""
    heads, size = out.shape[1:]
    for sequence, (start, length) in zip(x.unflatten(0, (-1, heads)), spans, strict=True):
        out[start : start + length] = sequence[:, :length, :size].transpose(0, 1)


def _spread(bias: Tensor, group: Group, dtype: torch.dtype) -> Tensor:
    """Spreads ``[H, 2R - 1]`` biases by distance to ``[H, queries, keys]``."""
    missing = max(0, max(group.queries, group.keys) - (bias.shape[1] // 2 + 1))  # padding has no bias
    padded = F.pad(bias, (missing, missing))
    middle = padded.shape[1] // 2
    # window w of the unfolded row starts at distance w − (queries − 1): query i is window queries − 1 − i
    used = padded[:, middle - group.queries + 1 : middle + group.keys]
    return used.to(dtype).unfold(1, group.keys, 1).flip(1)


def _add_by_distance(total: Tensor, grads: Tensor) -> None:
    """Adds gradients ``[n·H, queries, keys]`` of biases to ``[H, 2R - 1]``; those of padding are zeros.

    Rows are written one entry shorter than they are read, so that each begins one place further left than the one
    before: then a column holds one distance.
    """
    (heads, entries), (queries, keys) = total.shape, grads.shape[1:]
    width = queries + keys  # of a row when it is read
    skewed = grads.new_zeros(len(grads), queries * width)
    skewed.as_strided(grads.shape, (queries * width, width - 1, 1), queries - 1).copy_(grads)
    by_distance = skewed.view(-1, heads, queries, width).sum((0, 2), dtype=torch.float32)  # [H, width]
    first = entries // 2 - (queries - 1)  # where distance −(queries − 1) stands in the row
    low, high = max(0, first), min(entries, first + width - 1)
    total[:, low:high] += by_distance[:, low - first : high - first]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Offsets,
    cu_k: Offsets,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention within each packed sequence; see :class:`protloom.ops.Attention`."""
    longest = max(cu_q.longest, cu_k.longest)
    if bias is not None and longest > bias.shape[1] // 2 + 1:
        raise ValueError(f"the bias covers sequences up to {bias.shape[1] // 2 + 1} tokens, not {longest}")
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, bias))
    pairs = zip(cu_q.lengths, cu_k.lengths, strict=True)
    parts = groups(pairs, q.shape[1], STEP if learning else STEP_FORWARD)
    out: Tensor = ExponentialAttention.apply(q, k, v, bias, parts, scale, causal, window)
    return out
