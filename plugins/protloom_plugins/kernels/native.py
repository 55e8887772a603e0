"""The kernel backend ``torch``: for each function the fastest form that PyTorch itself offers on the device.

On CPU attention runs sequence by sequence, so nothing is padded and a sequence's result does not depend on its
neighbours. Which form is faster depends on precision and length (``benchmarks/attention_cpu.py``). On CUDA it is
PyTorch's variable-length flash attention where that is legal, else padded scaled-dot-product attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from protloom.contracts import Offsets
from protloom_plugins.kernels import cpu, cpu_attention
from protloom_plugins.kernels.reference import ReferenceBackend, torch_groups, visible
from protloom_plugins.optimizers.lamb_steps import Lamb


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """PyTorch's fused layer norm; its statistics are fp32 for half inputs."""
    if x.device.type == "cuda" and not torch.is_autocast_enabled("cuda"):
        # its CUDA kernel reads all three as one type; autocast widens them
        weight, bias = (None if of is None else of.to(x.dtype) for of in (weight, bias))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """PyTorch's fused RMS norm, or its formula with a backward pass by hand on CPU, where nothing fuses it."""
    if x.device.type == "cpu":
        return cpu.RMSNorm.apply(x, weight, eps)
    scale = None if weight is None else weight.to(x.dtype)  # the fused kernel wants one type
    return F.rms_norm(x, (x.shape[-1],), scale, eps)


def gelu(x: Tensor) -> Tensor:
    """PyTorch's exact GELU."""
    return F.gelu(x)


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str) -> Tensor:
    """Three linear layers and one product; under autocast they run in its type."""
    if activation not in ("silu", "gelu", "gelu_tanh"):
        raise ValueError(f"activation must be 'silu', 'gelu' or 'gelu_tanh', not {activation!r}")
    left = F.linear(x, gate)
    if activation == "silu":
        left = F.silu(left)
    else:
        left = F.gelu(left, approximate="tanh" if activation == "gelu_tanh" else "none")
    return F.linear(left * F.linear(x, up), down)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula; half inputs meet fp32 angles and are rounded once, at the end."""
    if x.device.type == "cpu":
        return cpu.Rotary.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)  # [T, H, d/2] each
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [T, 1, d/2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _padded_attention(
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
    """Pads to the longest sequence and calls SDPA with a mask; see :class:`protloom.ops.Attention`."""
    # a length that is no multiple of 16 makes SDPA copy the mask to one that is
    longest_q, longest_k = (-(-cu.longest // 16) * 16 for cu in (cu_q, cu_k))
    (rows, queries), (columns, keys) = _padding(cu_q, longest_q), _padding(cu_k, longest_k)
    left, right, values = (
        # writing rows to their places has a cheap backward pass, gathering them would scatter gradients
        x.new_zeros(cu.n * longest, *x.shape[1:])
        .index_copy(0, where, x)
        .view(cu.n, longest, *x.shape[1:])
        .transpose(1, 2)  # [n, H, L, d]
        for x, cu, longest, where in (
            (q, cu_q, longest_q, rows),
            (k, cu_k, longest_k, columns),
            (v, cu_k, longest_k, columns),
        )
    )
    seen = keys[:, None, None, :] & queries[:, None, :, None]  # [n, 1, Lq, Lk]
    limited = visible(longest_q, longest_k, causal, window, q.device)
    if limited is not None:
        seen = seen & limited
    mask = seen
    if bias is not None:
        missing = max(0, max(longest_q, longest_k) - (bias.shape[1] // 2 + 1))  # padding has no bias
        spread = cpu.bias_matrix(F.pad(bias, (missing, missing)), longest_q, longest_k).to(q.dtype)
        # not −inf: a padded query sees nothing, and its row must stay a number
        mask = spread.unsqueeze(0).masked_fill(~seen, torch.finfo(q.dtype).min)
    # not cuDNN's attention, which PyTorch prefers on Hopper: it spends a second on a plan for every new shape
    allowed = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if q.is_cuda else nullcontext()
    with allowed:
        out = F.scaled_dot_product_attention(left, right, values, attn_mask=mask, scale=scale)
    out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)  # queries that see no key
    return out.transpose(1, 2).flatten(0, 1).index_select(0, rows)


def _padding(cu: Offsets, longest: int) -> tuple[Tensor, Tensor]:
    """Returns each token's row ``[T]`` in an ``[n · longest]`` padded batch, and ``[n, longest]`` where tokens are."""
    starts, lengths = cu.cu[:-1].long(), cu.cu.diff().long()
    column = torch.arange(longest, device=cu.cu.device)
    present = column < lengths.unsqueeze(1)
    sequence = torch.repeat_interleave(torch.arange(cu.n, device=cu.cu.device), lengths, output_size=cu.total)
    within = torch.arange(cu.total, device=cu.cu.device) - starts[sequence]
    return sequence * longest + within, present


@cache
def varlen_options() -> frozenset[str]:
    """Returns the keyword options of this PyTorch's ``varlen_attn``; empty where it has none (before 2.10)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def varlen_refusal(
    q: Tensor, cu_q: Offsets, cu_k: Offsets, *, scale: float, causal: bool, window: int | None, bias: Tensor | None
) -> str | None:
    """Returns why variable-length flash attention cannot serve a call, or None if it can."""
    if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) < (8, 0):
        return "flash attention needs a CUDA device of compute capability 8.0 or more"
    options, size = varlen_options(), q.shape[-1]
    limited = causal or window is not None
    checks = (
        (not options, "this PyTorch has no torch.nn.attention.varlen"),
        (q.dtype not in (torch.float16, torch.bfloat16), f"flash attention is for half precision, not {q.dtype}"),
        (size % 8 != 0 or size > 256, f"flash attention wants head sizes in multiples of 8 up to 256, not {size}"),
        (bias is not None, "flash attention has no bias"),
        ("scale" not in options and abs(scale * size**0.5 - 1) > 1e-6, "this varlen_attn has a fixed scale"),
        (limited and cu_q.bounds != cu_k.bounds, "flash attention aligns masks of unequal lengths to the last token"),
        (window is not None and "window_size" not in options, "this varlen_attn has no window"),
        (causal and not {"is_causal", "window_size"} & options, "this varlen_attn has no causal form"),
    )
    return next((reason for applies, reason in checks if applies), None)


def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Offsets, cu_k: Offsets, *, scale: float, causal: bool, window: int | None
) -> Tensor:
    """Calls variable-length flash attention; :func:`varlen_refusal` has said that it can serve."""
    from torch.nn.attention.varlen import varlen_attn

    options = varlen_options()
    chosen: dict[str, Any] = {}
    if "scale" in options:
        chosen["scale"] = scale
    if "window_size" in options:
        reach = -1 if window is None else window
        chosen["window_size"] = (reach, 0 if causal else reach)
    elif causal:
        chosen["is_causal"] = True
    out = varlen_attn(q, k, v, cu_q.cu, cu_k.cu, cu_q.longest, cu_k.longest, **chosen)
    return cast("Tensor", out)  # a tuple only where auxiliary outputs are asked for


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
    """Softmax attention within each packed sequence; see :class:`protloom.ops.Attention`.

    A query that sees no key gets zeros.
    """
    if cu_q.total == 0 or cu_k.total == 0:
        # nothing to attend to; the sums keep gradients defined
        nothing = k.sum() + v.sum() if bias is None else k.sum() + v.sum() + bias.sum()
        return q * 0 + nothing * 0
    if q.device.type == "cpu":
        # measured: in bf16 exponentials win, in fp32 SDPA or plain operations
        form = cpu_attention.attention if q.dtype == torch.bfloat16 else cpu.attention
        return form(q, k, v, cu_q, cu_k, scale=scale, causal=causal, window=window, bias=bias)
    if varlen_refusal(q, cu_q, cu_k, scale=scale, causal=causal, window=window, bias=bias) is None:
        return _varlen_attention(q, k, v, cu_q, cu_k, scale=scale, causal=causal, window=window)
    return _padded_attention(q, k, v, cu_q, cu_k, scale=scale, causal=causal, window=window, bias=bias)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's cross entropy in at least fp32; an id outside the vocabulary is an error, never ignored."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, reduction="none", ignore_index=-(2**31))


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """PyTorch's own clipping, for plain and for sharded (DTensor) gradients."""
    kept = [p for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm([p.grad for p in kept if p.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()  # adds the shards of all ranks
    torch.nn.utils.clip_grads_with_norm_(kept, max_norm, total)
    return total


def adamw(
    groups: Sequence[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """PyTorch's AdamW, fused where every parameter allows it."""
    ready = torch_groups(groups, lr, weight_decay)
    parameters = [p for group in ready for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(
        ready, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True if fused else None
    )


def lamb(
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float | None,
) -> Lamb:
    """LAMB by PyTorch's operations on many tensors at once; nothing waits for the device."""
    ready = torch_groups(groups, lr, weight_decay)
    return Lamb(ready, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)


class TorchBackend(ReferenceBackend):
    """Offers every function in PyTorch's fastest form, on every device and in every precision."""

    name = "torch"
    priority = 10

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """Returns the functions by name."""
        del device, dtype
        return {
            "layer_norm": layer_norm,
            "rms_norm": rms_norm,
            "gelu": gelu,
            "gated_mlp": gated_mlp,
            "rotary": rotary,
            "attention": attention,
            "cross_entropy": cross_entropy,
            "clip_grad_norm": clip_grad_norm,
            "adamw": adamw,
            "lamb": lamb,
        }
