"""The kernel backend ``flex``: attention with a learned bias over packed sequences by PyTorch's FlexAttention, on CUDA.

Flash attention has no bias, so ``torch`` pads such sequences and gives every pair of tokens of a padded batch a number
of bias. Here the sequences stay packed, pairs of different sequences are skipped a block at a time, and the bias is
looked up within the program that multiplies. The gradient of the bias is added up by atomics, so its last bits may
differ between two runs. Without a bias ``torch`` is as good, and serves.

``auto`` takes it where it was measured to be faster; a run can name it, ``kernels: {attention: flex}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from protloom.contracts import Offsets
from protloom.device import on_device
from protloom.ops import Timing
from protloom_plugins.kernels import measured, native

BLOCK = 128
"""Queries, and keys, of a block that is computed or skipped as a whole."""


class Layout(NamedTuple):
    """To which sequence each token belongs, and where in it: ``[Tq]`` and ``[Tk]``, int32."""

    query_sequence: Tensor
    query_place: Tensor
    key_sequence: Tensor
    key_place: Tensor


def layout(bounds_q: tuple[int, ...], bounds_k: tuple[int, ...], device: torch.device) -> Layout:
    """Returns the layout of packed queries and keys from where their sequences begin and end."""
    parts = []
    for bounds in (bounds_q, bounds_k):
        lengths = np.diff(bounds)
        sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        place = np.arange(bounds[-1], dtype=np.int32) - np.repeat(np.asarray(bounds[:-1], dtype=np.int32), lengths)
        parts += [on_device(torch.from_numpy(values), device) for values in (sequence, place)]
    return Layout(*parts)


def mask_of(where: Layout, causal: bool, window: int | None) -> Callable[..., Tensor]:
    """Returns which key a query sees, as FlexAttention asks for it."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        seen = where.query_sequence[query] == where.key_sequence[key]
        distance = where.key_place[key] - where.query_place[query]  # j − i
        if causal:
            seen = seen & (distance <= 0)
        if window is not None:
            seen = seen & (distance.abs() <= window)
        return seen

    return mask


def score_of(where: Layout, bias: Tensor) -> Callable[..., Tensor]:
    """Returns what a score becomes, as FlexAttention asks: its sum with the bias ``[H, 2R - 1]`` of the distance."""
    middle = bias.shape[1] // 2  # R − 1

    def score(value: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch
        distance = where.key_place[key] - where.query_place[query]
        # of pairs that the mask leaves out the distance may be any
        return value + bias[head, (middle + distance).clamp(0, 2 * middle)]

    return score


def blocks(bounds_q: tuple[int, ...], bounds_k: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns of each block of queries how many blocks of keys it may see, ``[nq]``, and which, ``[nq, nk]``.

    Sequences lie one after the other, so what a block of queries sees is one run of keys: nothing dense is computed.
    Behind the blocks that are seen stand those that are not, as FlexAttention wants them.
    """
    queries, keys = bounds_q[-1], bounds_k[-1]
    many, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    first = np.arange(many) * BLOCK
    last = np.minimum(first + BLOCK, queries) - 1
    starts, ends = np.asarray(bounds_k[:-1]), np.asarray(bounds_k[1:])
    low = starts[np.searchsorted(bounds_q, first, side="right") - 1]
    high = ends[np.searchsorted(bounds_q, last, side="right") - 1]
    begin = low // BLOCK
    counts = np.where(high > low, -(-high // BLOCK) - begin, 0)
    indices = (begin[:, None] + np.arange(columns)) % columns
    return counts.astype(np.int32), indices.astype(np.int32)


class _Plan(NamedTuple):
    """What all layers of a batch share."""

    where: Layout
    mask: Any


@lru_cache(maxsize=16)
def _plan(
    bounds_q: tuple[int, ...],
    bounds_k: tuple[int, ...],
    causal: bool,
    window: int | None,
    device: torch.device,
    inference: bool,
) -> _Plan:
    """Returns layout and block mask; those made under inference mode cannot serve training, so they are kept apart."""
    from torch.nn.attention.flex_attention import BlockMask

    del inference
    where = layout(bounds_q, bounds_k, device)
    counts, indices = (on_device(torch.from_numpy(x), device)[None, None] for x in blocks(bounds_q, bounds_k))
    mask = BlockMask.from_kv_blocks(
        counts,
        indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_of(where, causal, window),
        seq_lengths=(bounds_q[-1], bounds_k[-1]),
    )
    return _Plan(where, mask)


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Offsets,
    cu_k: Offsets,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    bias: Tensor,
    run: Callable[..., Any],
) -> Tensor:
    """Calls FlexAttention (``run``, compiled or not) on packed sequences; there must be queries and keys."""
    middle = bias.shape[1] // 2
    longest = max(cu_q.longest, cu_k.longest)
    if longest > middle + 1:
        raise ValueError(f"the bias covers sequences up to {middle + 1} tokens, not {longest}")
    plan = _plan(cu_q.bounds, cu_k.bounds, causal, window, q.device, torch.is_inference_mode_enabled())
    left, right, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, T, d]
    out = run(left, right, values, score_mod=score_of(plan.where, bias), block_mask=plan.mask, scale=scale)
    return cast("Tensor", out).squeeze(0).transpose(0, 1)


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
    size = q.shape[-1]
    if bias is None or cu_q.total == 0 or cu_k.total == 0 or size < 16 or size & (size - 1):
        # FlexAttention multiplies heads whose size is a power of two
        return native.attention(q, k, v, cu_q, cu_k, scale=scale, causal=causal, window=window, bias=bias)
    return packed(q, k, v, cu_q, cu_k, scale=scale, causal=causal, window=window, bias=bias, run=_compiled())


class FlexBackend:
    """Offers attention on CUDA.

    Attributes:
        name: of the component.
        priority: below that of ``torch``: ``auto`` takes it only by a measurement.
    """

    name = "flex"
    priority = -30

    def __init__(self, config: Any = None) -> None:
        del config

    def unavailable(self, device: torch.device) -> str | None:
        """Returns None if FlexAttention can be compiled for the device, else why not."""
        if device.type != "cuda":
            return f"FlexAttention has no backward pass on {device.type}: it runs on cuda"
        if not torch.cuda.is_available():
            return "no CUDA device is found"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "FlexAttention needs a CUDA device of compute capability 8.0 or more"
        return None

    def measured(self, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
        """Returns what was measured of a function on this kind of device."""
        return measured.timing(self.name, function, device, dtype)

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """Returns the functions by name."""
        del device
        return {} if dtype == torch.float64 else {"attention": attention}
