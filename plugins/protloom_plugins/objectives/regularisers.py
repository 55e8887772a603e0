"""Losses that keep latent states from collapsing: SIGReg and VISReg, written from their formulas.

Both take rows of states and compare their projections on random directions with a standard normal distribution. With
several processes they are those of all rows together, however many rows each process has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from protloom.device import on_device

KNOTS = 16
"""Steps of the grid on [0, 3]; its first knot, 0, adds nothing."""
STEP = 3.0 / KNOTS

Reduce = Callable[[Tensor], Tensor]


def directions(width: int, count: int, seed: int, like: Tensor) -> Tensor:
    """Returns ``[width, count]`` random unit vectors, a function of ``seed`` alone, on the device of ``like``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, count, generator=generator, dtype=torch.float32)
    return on_device((drawn / drawn.norm(dim=0, keepdim=True)).to(_wide(like).dtype), like.device)


def sigreg(z: Tensor, axes: Tensor, *, scale_by_n: bool = True, all_sum: Reduce = lambda x: x) -> Tensor:
    """Returns the mean over directions of the Epps-Pulley statistic (SIGReg; Balestriero and LeCun 2025, "LeJEPA").

    With u = z·a, C(t) and S(t) the means of cos(t u) and sin(t u), φ(t) = exp(-t²/2) and the trapezoid rule on
    [-3, 3] in steps of 3/16::

        T = N · ∫ φ(t) [(C(t) - φ(t))² + S(t)²] dt

    Its mean over samples of N(0, 1) is 1.0525 for every N: that, not 0, is the floor.

    Args:
        z: ``[N, D]`` states; N may be 0.
        axes: ``[D, K]`` unit directions.
        scale_by_n: keep the factor N.
        all_sum: adds over processes, differentiably.
    """
    rows = _wide(z)
    sums = _characteristic_sums(rows @ axes)  # [2, KNOTS, K]
    n = all_sum(rows.new_full((), float(len(rows))))
    means = all_sum(sums) / n.clamp(min=1.0)
    t = STEP * torch.arange(1, KNOTS + 1, dtype=rows.dtype, device=rows.device)
    phi = torch.exp(-0.5 * t * t)
    # twice the integral over [0, 3], so that the ends weigh one step and what lies between two
    weight = torch.full_like(t, 2.0 * STEP)
    weight[-1] = STEP
    misfit = (means[0] - phi[:, None]).square() + means[1].square()  # [KNOTS, K]
    statistic = ((weight * phi) @ misfit).mean() * (n > 0)
    return statistic * n if scale_by_n else statistic


class _CharacteristicSums(torch.autograd.Function):
    """Σ cos(t u) and Σ sin(t u) at every knot, by angle addition; keeps only ``[N, K]`` for the backward pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        cos, sin = (STEP * u).cos(), (STEP * u).sin()
        ctx.save_for_backward(cos, sin)
        out = u.new_empty(2, KNOTS, u.shape[1])
        c, s = cos.clone(), sin.clone()
        for knot in range(KNOTS):
            out[0, knot], out[1, knot] = c.sum(0), s.sum(0)
            c, s = _turned(c, s, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        cos, sin = ctx.saved_tensors
        c, s = cos.clone(), sin.clone()
        out = torch.zeros_like(cos)
        for knot in range(KNOTS):
            t = STEP * (knot + 1)
            out.addcmul_(c, gradient[1, knot], value=t)
            out.addcmul_(s, gradient[0, knot], value=-t)
            c, s = _turned(c, s, cos, sin)
        return out


def _turned(c: Tensor, s: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Adds one step to angles given by their cosines and sines."""
    return torch.addcmul(c * cos, s, sin, value=-1.0), torch.addcmul(s * cos, c, sin)


def _characteristic_sums(u: Tensor) -> Tensor:
    result: Tensor = _CharacteristicSums.apply(u)
    return result


def visreg(z: Tensor, axes: Tensor, *, all_gather: Reduce = lambda x: x) -> Tensor:
    """Returns VISReg: how far centre, scale and shape of states are from those of N(0, 1).

    With μ and σ the mean and standard deviation of each dimension and z̃ = (z - μ) / σ, σ held constant there::

        mean μ² + mean (σ - 1)² + mean over directions a and ranks i of (sorted_i(z̃·a) - Φ⁻¹(i / (B + 1)))²

    Args:
        z: ``[B, D]`` states; B may be 0.
        axes: ``[D, K]`` unit directions.
        all_gather: concatenates rows over processes, differentiably.
    """
    rows = all_gather(_wide(z))
    b = len(rows)
    if b == 0:
        return rows.sum()
    mean = rows.mean(0)
    centred = rows - mean
    sigma = centred.norm(dim=0) / math.sqrt(b) + 1e-6
    projected = (centred / sigma.detach()) @ axes  # [B, K]
    # in float64 and on the host: the tails of the quantile function lose digits, and not every device has the type
    quantiles = torch.special.ndtri(torch.arange(1, b + 1, dtype=torch.float64) / (b + 1))
    normal = on_device(quantiles.to(rows.dtype), rows.device)
    shape = (projected.sort(dim=0).values - normal[:, None]).square().mean()
    return mean.square().mean() + (sigma - 1.0).square().mean() + shape


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
