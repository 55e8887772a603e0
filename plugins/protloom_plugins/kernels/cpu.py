"""Forms of the ``torch`` backend for CPU, where eager PyTorch leaves most on the table.

Two things cost time there that cost nothing on a GPU: passes over memory, and loops whose innermost dimension is short.
So rotary positions work on ``[H, T, d]``, where a head's angles are one long row and which attention wants anyway, and
norms and rotations have their backward passes written out. Measured in ``benchmarks/attention_cpu.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protloom.contracts import Offsets
from protloom_plugins.kernels.reference import visible

SDPA_FROM = 192
"""Keys from which fp32 attention without bias is faster by SDPA than by three plain operations (measured)."""


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Returns Σ a·b over the last dimension; autocast takes it for a matrix product and would run it in bf16."""
    with torch.autocast("cpu", enabled=False):
        return torch.linalg.vecdot(a, b)


class RMSNorm(torch.autograd.Function):
    """x / √(mean(x²) + ε) · w over the last dimension, in at least fp32.

    With n = x / √(…) and g the gradient: ∂w = Σ g·n, ∂x = (g·w − n · mean(g·w·n)) / √(…).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = _row_products(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)  # [..., 1]
        ctx.save_for_backward(x, weight, inverse)
        normed = wide * inverse
        return (normed if weight is None else normed.mul_(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Returns the gradients of ``x`` and ``weight``."""
        x, weight, inverse = ctx.saved_tensors
        grad, normed = grads[0].to(inverse.dtype), x.to(inverse.dtype) * inverse
        weight_grad = None
        if weight is not None:
            weight_grad = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
            grad = grad * weight
        mean = _row_products(grad, normed).div_(x.shape[-1]).unsqueeze(-1)
        return torch.addcmul(grad, normed, mean, value=-1).mul_(inverse).to(x.dtype), weight_grad, None


class Rotary(torch.autograd.Function):
    """The rotation and, since it is orthogonal, the opposite rotation as its backward pass; angles get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps ``[T, H, d]`` to ``[T, H, d]``, which lies in memory as ``[H, T, d]``."""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Turns the gradient back."""
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    # moved first and widened then: a cast with a short innermost dimension runs element by element
    heads = x.transpose(0, 1).contiguous().to(torch.promote_types(x.dtype, torch.float32))  # [H, T, d]
    swapped = torch.empty_like(heads)
    swapped[..., :half] = heads[..., half:]
    swapped[..., half:] = heads[..., :half]
    turned = swapped.mul_(torch.cat((-sin, sin), dim=-1)).addcmul_(heads, torch.cat((cos, cos), dim=-1))
    return turned.to(x.dtype).transpose(0, 1)


def bias_matrix(bias: Tensor, queries: int, keys: int) -> Tensor:
    """Spreads ``[H, 2R - 1]`` biases by distance to ``[H, queries, keys]``, with a gather-free backward pass."""
    middle = bias.shape[1] // 2  # R − 1, the entry of distance 0
    if max(queries, keys) > middle + 1:
        raise ValueError(f"the bias covers sequences up to {middle + 1} tokens, not {max(queries, keys)}")
    # window w of the unfolded row starts at distance w − (queries − 1): query i is window queries − 1 − i
    used = bias[:, middle - queries + 1 : middle + keys]  # [H, queries + keys − 1]
    return used.unfold(1, keys, 1).flip(1)


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None, seen: Tensor | None) -> Tensor:
    """Attends within one sequence by plain operations: ``[H, L, d]`` to ``[H, L, d]``.

    Scores and probabilities keep the type of the inputs: in bf16 on CPU a cast to fp32 costs more than the products,
    and the softmax is fp32 inside anyway.
    """
    if bias is None:
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)  # [H, Lq, Lk]
    else:
        scores = torch.baddbmm(bias.to(q.dtype), q, k.transpose(1, 2), alpha=scale)
    if seen is None:
        return torch.bmm(scores.softmax(-1), v)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return torch.bmm(scores.softmax(-1).masked_fill(~seen, 0.0), v)


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
    """Softmax attention sequence by sequence; see :class:`protloom.ops.Attention`."""
    # splitting, not slicing: the backward pass of a slice would write a whole [T, H, d] for every sequence
    parts = zip(
        *(
            x.transpose(0, 1).contiguous().split(cu.lengths, dim=1)  # [H, L, d] each
            for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        ),
        strict=True,
    )
    fused = q.dtype == torch.float32 and bias is None
    outputs = []
    for left, right, values in parts:
        queries, keys = left.shape[1], right.shape[1]
        if queries == 0:
            outputs.append(left)
            continue
        seen = visible(queries, keys, causal, window, q.device)
        if fused and seen is None and keys >= SDPA_FROM:
            batch = left.unsqueeze(0), right.unsqueeze(0), values.unsqueeze(0)
            outputs.append(F.scaled_dot_product_attention(*batch, scale=scale).squeeze(0))
        else:
            spread = None if bias is None else bias_matrix(bias, queries, keys)
            outputs.append(_one_sequence(left, right, values, scale=scale, bias=spread, seen=seen))
    return torch.cat(outputs, dim=1).transpose(0, 1)  # [Tq, H, d]
