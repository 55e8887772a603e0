"""The kernel backend ``reference``: every function as its formula says, on any device and in any precision.

It is what other backends are compared with, so it prefers what can be checked by eye to what is fast. Arithmetic runs
in at least fp32 and in float64 where the inputs are float64; results come back in the type of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from protloom.contracts import Offsets
from protloom.ops import Timing
from protloom_plugins.kernels import measured


def _wide(x: Tensor) -> Tensor:
    """Returns ``x`` in at least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """(x − mean) / √(variance + eps) · weight + bias over the last dimension (Ba et al. 2016)."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019)."""
    wide = _wide(x)
    y = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """x · ½ · (1 + erf(x / √2)) (Hendrycks and Gimpel 2016)."""
    wide = _wide(x)
    return (wide * 0.5 * (1.0 + torch.erf(wide / math.sqrt(2.0)))).to(x.dtype)


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str) -> Tensor:
    """down(activation(gate(x)) ⊙ up(x)) (Shazeer 2020)."""
    wide = _wide(x)
    left = wide @ _wide(gate).T
    if activation == "silu":
        left = left * torch.sigmoid(left)
    elif activation == "gelu":
        left = gelu(left)
    elif activation == "gelu_tanh":
        left = left * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (left + 0.044715 * left**3)))
    else:
        raise ValueError(f"activation must be 'silu', 'gelu' or 'gelu_tanh', not {activation!r}")
    return ((left * (wide @ _wide(up).T)) @ _wide(down).T).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pair (i, i + d/2) of each head by its angle (Su et al. 2021, rotate-half pairing)."""
    first, second = _wide(x).chunk(2, dim=-1)  # [T, H, d/2] each
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [T, 1, d/2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Returns ``[queries, keys]`` bool, True where a query sees a key; None if it sees all."""
    if not causal and window is None:
        return None
    distance = torch.arange(keys, device=device) - torch.arange(queries, device=device).unsqueeze(1)  # j − i
    seen = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        seen &= distance <= 0
    if window is not None:
        seen &= distance.abs() <= window
    return seen


def bias_matrix(bias: Tensor, queries: int, keys: int) -> Tensor:
    """Spreads ``[H, 2R - 1]`` biases by distance to ``[H, queries, keys]``: entry ``R - 1 + (j - i)`` at (i, j)."""
    middle = bias.shape[1] // 2  # R − 1
    if max(queries, keys) > middle + 1:
        raise ValueError(f"the bias covers sequences up to {middle + 1} tokens, not {max(queries, keys)}")
    distance = torch.arange(keys, device=bias.device) - torch.arange(queries, device=bias.device).unsqueeze(1)
    return bias[:, middle + distance]


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
    """softmax(scale · q kᵀ + bias) v, sequence by sequence (Vaswani et al. 2017).

    A query that sees no key gets zeros.
    """
    # an empty sum with the right dependencies, so that gradients exist without any sequence
    parts = [q[:0] + (k[:0].sum() + v[:0].sum() + (0 if bias is None else bias[:, :0].sum()))]
    for i in range(cu_q.n):
        rows, columns = slice(*cu_q.bounds[i : i + 2]), slice(*cu_k.bounds[i : i + 2])
        left, right, values = (_wide(x).transpose(0, 1) for x in (q[rows], k[columns], v[columns]))  # [H, L, d]
        scores = scale * (left @ right.transpose(1, 2))  # [H, Lq, Lk]
        if bias is not None:
            scores = scores + bias_matrix(bias, left.shape[1], right.shape[1])
        seen = visible(left.shape[1], right.shape[1], causal, window, q.device)
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if seen is not None:
            weights = weights.masked_fill(~seen, 0.0)
        parts.append((weights @ values).transpose(0, 1).to(q.dtype))
    return torch.cat(parts)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """log Σ exp(logits) − logit of the target, a row each."""
    wide = _wide(logits)
    return torch.logsumexp(wide, -1) - wide.gather(1, targets.unsqueeze(1)).squeeze(1)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """g ← g · min(1, max_norm / (‖g‖ + 1e-6)) with the joint 2-norm (Pascanu et al. 2013)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [_wide(g).norm() for g in gradients]
    whole = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]  # a sharded norm is summed over ranks
    total = torch.stack([n.square() for n in whole]).sum().sqrt() if whole else torch.zeros(())
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return total


def torch_groups(groups: Sequence[Mapping[str, Any]], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Turns protloom's parameter groups into those of ``torch.optim``; names and scales stay in them."""
    return [
        {
            **group,
            "params": list(group["params"]),
            "lr": lr * group.get("lr_scale", 1.0),
            "weight_decay": weight_decay * group.get("weight_decay_scale", 1.0),
        }
        for group in groups
    ]


def adamw(
    groups: Sequence[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """PyTorch's AdamW, one tensor after the other (Loshchilov and Hutter 2019)."""
    ready = torch_groups(groups, lr, weight_decay)
    return torch.optim.AdamW(ready, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False, fused=False)


class Lamb(torch.optim.Optimizer):
    """LAMB, one tensor after the other (You et al. 2020, algorithm 2, with corrected moments)."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, max_grad_norm: float | None, **options: Any) -> None:
        super().__init__(groups, options)
        self._max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient; see :meth:`torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        excess = 1.0
        if self._max_grad_norm is not None:
            total = math.sqrt(sum(_norm(gradient) ** 2 for _, gradient, _ in moved))
            excess = max(1.0, total / self._max_grad_norm)
        for parameter, gradient, group in moved:
            self._move(parameter, gradient / excess, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        (b1, b2), decay, mean, square = group["betas"], group["weight_decay"], state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        t = float(state["step"])
        mean.mul_(b1).add_(gradient, alpha=1 - b1)
        square.mul_(b2).add_(gradient.square(), alpha=1 - b2)
        update = (mean / (1 - b1**t)) / ((square / (1 - b2**t)).sqrt() + group["eps"]) + decay * parameter
        length, own = _norm(update), _norm(parameter)
        ratio = own / length if decay != 0 and length > 0 and own > 0 else 1.0
        parameter.sub_(group["lr"] * ratio * update)


def _norm(x: Tensor) -> float:
    norm = _wide(x).norm()
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def lamb(
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float | None,
) -> Lamb:
    """LAMB in plain tensor operations; a norm is read by the host."""
    ready = torch_groups(groups, lr, weight_decay)
    return Lamb(ready, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)


class ReferenceBackend:
    """Offers every function, on every device and in every precision.

    Args:
        config: has no options.
    """

    name = "reference"
    priority = 0

    def __init__(self, config: Any = None) -> None:
        del config

    def unavailable(self, device: torch.device) -> str | None:
        """Returns None: what PyTorch alone computes runs everywhere."""
        del device
        return None

    def measured(self, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
        """Returns what was measured of a function on this kind of device."""
        return measured.timing(self.name, function, device, dtype)

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
