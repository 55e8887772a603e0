"""Functions of :mod:`protloom.ops` over the programs of :mod:`protloom_plugins.kernels.triton_kernels`.

Importing this module needs Triton; :mod:`protloom_plugins.kernels.triton` tells where that is so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protloom_plugins.kernels import triton_kernels

TILE = 1024
"""Numbers that a program works on at once, unless one row has more: eight a thread, so that nothing spills."""


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """The RMS norm in one pass over memory each way; see :class:`protloom.ops.RMSNorm`."""
    if not x.numel():
        return x if weight is None else x * weight.to(x.dtype)  # nothing can be launched over no rows
    normed: Tensor = _Norm.apply(x, weight, None, eps, False)
    return normed


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """The layer norm in one pass over memory each way; see :class:`protloom.ops.LayerNorm`."""
    if not x.numel():
        scaled = x if weight is None else x * weight.to(x.dtype)
        return scaled if bias is None else scaled + bias.to(x.dtype)
    normed: Tensor = _Norm.apply(x, weight, bias, eps, True)
    return normed


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str) -> Tensor:
    """Three linear layers of PyTorch's, and the activation and the product in one; see :class:`protloom.ops.GatedMLP`.

    The activated gate is rounded only after the product, and not kept for the backward pass.
    """
    if activation not in ("silu", "gelu", "gelu_tanh"):
        raise ValueError(f"activation must be 'silu', 'gelu' or 'gelu_tanh', not {activation!r}")
    left, right = F.linear(x, gate), F.linear(x, up)
    product = _Gated.apply(left, right, activation) if left.numel() else left * right
    return F.linear(product, down)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in fp32 that keeps no probabilities; see :class:`protloom.ops.CrossEntropy`.

    An id outside the vocabulary makes its loss NaN, which stops a run: the device cannot raise an error.
    """
    if not logits.numel():
        return logits.float().sum(-1)
    losses: Tensor = _CrossEntropy.apply(logits, targets)
    return losses


class _Norm(torch.autograd.Function):
    """Layer norm (``centred``) and RMS norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        width = x.shape[-1]
        flat = _narrow(x).reshape(-1, width).contiguous()
        rows = len(flat)
        out = torch.empty_like(flat)
        means = torch.empty(rows if centred else 0, dtype=torch.float32, device=x.device)
        inverses = torch.empty(rows, dtype=torch.float32, device=x.device)
        kept = [None if p is None else p.contiguous() for p in (weight, bias)]
        height, columns, warps = _tile(width)
        with _on(x):
            triton_kernels.norm_forward[(_parts(rows, height),)](
                flat,
                flat if kept[0] is None else kept[0],
                flat if kept[1] is None else kept[1],
                out,
                means,
                inverses,
                rows,
                width,
                eps,
                CENTRED=centred,
                SCALED=weight is not None,
                SHIFTED=bias is not None,
                ROWS=height,
                COLUMNS=columns,
                num_warps=warps,
            )
        ctx.save_for_backward(flat, kept[0], means, inverses)
        ctx.centred, ctx.bias = centred, None if bias is None else bias.dtype
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Returns the gradients of ``x`` and of the parameters."""
        flat, weight, means, inverses = ctx.saved_tensors
        rows, width = flat.shape
        above = grads[0].reshape(rows, width).contiguous()
        height, columns, warps = _tile(width)
        tiles = _parts(_parts(rows, height), _programs(flat.device))
        programs = _parts(_parts(rows, height), tiles)
        x_grad = torch.empty_like(flat)
        parts = [
            torch.empty(programs if there else 0, width, dtype=torch.float32, device=flat.device)
            for there in (weight is not None, ctx.bias is not None)
        ]
        with _on(flat):
            triton_kernels.norm_backward[(programs,)](
                above,
                flat,
                flat if weight is None else weight,
                means,
                inverses,
                x_grad,
                *parts,
                rows,
                width,
                tiles,
                CENTRED=ctx.centred,
                SCALED=weight is not None,
                SHIFTED=ctx.bias is not None,
                ROWS=height,
                COLUMNS=columns,
                num_warps=warps,
            )
        weight_grad = None if weight is None else parts[0].sum(0).to(weight.dtype)
        bias_grad = None if ctx.bias is None else parts[1].sum(0).to(ctx.bias)
        return x_grad.view(grads[0].shape), weight_grad, bias_grad, None, None


class _Gated(torch.autograd.Function):
    """activation(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """Maps two tensors of one shape to a third."""
        gate, up = _narrow(gate).contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        with _on(gate):
            triton_kernels.gated_forward[(_parts(gate.numel(), TILE),)](
                gate, up, out, gate.numel(), ACTIVATION=activation, BLOCK=TILE
            )
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Returns the gradients of both."""
        gate, up = ctx.saved_tensors
        gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
        with _on(gate):
            triton_kernels.gated_backward[(_parts(gate.numel(), TILE),)](
                grads[0].contiguous(),
                gate,
                up,
                gate_grad,
                up_grad,
                gate.numel(),
                ACTIVATION=ctx.activation,
                BLOCK=TILE,
            )
        return gate_grad, up_grad, None


class _CrossEntropy(torch.autograd.Function):
    """−log softmax at the target, a row each."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Maps ``[M, V]`` and ``[M]`` to fp32 ``[M]``."""
        logits, targets = _narrow(logits).contiguous(), targets.contiguous()
        rows, width = logits.shape
        losses, sums = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
        height, columns, warps = _tile(width)
        with _on(logits):
            triton_kernels.entropy_forward[(_parts(rows, height),)](
                logits, targets, losses, sums, rows, width, ROWS=height, COLUMNS=columns, num_warps=warps
            )
        ctx.save_for_backward(logits, targets, sums)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of the logits."""
        logits, targets, sums = ctx.saved_tensors
        rows, width = logits.shape
        logits_grad = torch.empty_like(logits)
        height, columns, warps = _tile(width)
        with _on(logits):
            triton_kernels.entropy_backward[(_parts(rows, height),)](
                grads[0].contiguous(),
                logits,
                targets,
                sums,
                logits_grad,
                rows,
                width,
                ROWS=height,
                COLUMNS=columns,
                num_warps=warps,
            )
        return logits_grad, None


def _narrow(x: Tensor) -> Tensor:
    """Refuses what the programs would silently compute in fp32."""
    if x.dtype == torch.float64:
        raise TypeError("the triton backend computes in fp32: float64 is for the backends torch and reference")
    return x


def _tile(width: int) -> tuple[int, int, int]:
    """Returns how many whole rows a tile has, its columns, and the warps that work on it."""
    columns = max(16, 1 << (width - 1).bit_length())
    return max(1, TILE // columns), columns, min(32, max(4, columns // 256))


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)


def _programs(device: torch.device) -> int:
    """Returns over how many programs the sums of a backward pass are spread: enough for every processor."""
    return 2 * _processors(device) if device.type == "cuda" else 4


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Launches where the tensor is: Triton launches on the current device."""
    # what is compiled is launched by the compiler, which sees to it
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(x)
