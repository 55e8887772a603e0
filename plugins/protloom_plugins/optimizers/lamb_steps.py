"""The steps of ``lamb`` on many tensors at once, whole or sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer


class Lamb(Optimizer):
    """LAMB as in You et al. 2020, algorithm 2, with corrected moments and the identity as φ.

    With g the gradient of a parameter x, after ``max_grad_norm``, and m and v its running moments::

        u = (m / (1 − β₁^t)) / (√(v / (1 − β₂^t)) + ε) + weight_decay · x
        x ← x − lr · ‖x‖ / ‖u‖ · u

    The ratio is 1 where either norm is 0, and for what is not decayed (norms, biases), as in NVIDIA's FusedLAMB.
    State of a parameter: ``step``, ``exp_avg`` and ``exp_avg_sq``, as ``torch.optim.AdamW`` names them.

    Args:
        groups: parameter groups; ``lr`` and ``weight_decay`` may differ between them.
        lr: length of a step relative to the weights.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled.
        max_grad_norm: largest joint norm of all gradients, None for no limit.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float | None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, options)
        self._max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient; see :meth:`torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        excess = self._excess([p for parameters in moved for p in parameters])
        for group, parameters in zip(self.param_groups, moved, strict=True):
            if parameters:
                self._move(group, parameters, excess)
        return loss

    def _excess(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Returns by what gradients are divided, None for nothing."""
        if self._max_grad_norm is None or not parameters:
            return None
        norms = _norms([_local(p.grad) for p in parameters], parameters)  # type: ignore[arg-type]
        return (norms.square().sum().sqrt() / self._max_grad_norm).clamp(min=1.0)

    def _move(self, group: dict[str, Any], parameters: Sequence[Tensor], excess: Tensor | None) -> None:
        for parameter in parameters:
            self._begin(parameter)
        states = [self.state[parameter] for parameter in parameters]
        torch._foreach_add_([state["step"] for state in states], 1)
        counts = [float(state["step"]) for state in states]
        x = [_local(parameter) for parameter in parameters]
        gradients = [_local(parameter.grad) for parameter in parameters]  # type: ignore[arg-type]
        if excess is not None:
            gradients = [gradient / excess for gradient in gradients]
        updates = _adam(
            gradients,
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            counts,
            group["betas"],
            group["eps"],
        )
        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, x, alpha=group["weight_decay"])
            length, own = _norms(updates, parameters), _norms(x, parameters)
            ratio = torch.where((length > 0) & (own > 0), own / length, torch.ones_like(own))
            torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_add_(x, updates, alpha=-group["lr"])

    def _begin(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the host, where it is read
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))


def _adam(
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    counts: Sequence[float],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Moves the moments and returns the corrected mean over the root of the corrected mean square."""
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - betas[1])
    below = torch._foreach_div(squares, [1 - betas[1] ** count for count in counts])
    torch._foreach_sqrt_(below)
    torch._foreach_add_(below, eps)
    updates: list[Tensor] = list(torch._foreach_div(means, [1 - betas[0] ** count for count in counts]))
    torch._foreach_div_(updates, below)
    return updates


def _local(x: Tensor) -> Tensor:
    """Returns this process's part of a tensor; it shares its memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def _norms(values: list[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Returns the norm of each tensor, ``[n]``, over all ranks that hold a part of its parameter.

    One collective serves all parameters that are spread alike.
    """
    squares = torch.stack(torch._foreach_norm(values)).square()
    spread: dict[Any, list[int]] = {}
    for number, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            for dimension, placement in enumerate(parameter.placements):
                if not isinstance(placement, Replicate):
                    spread.setdefault((parameter.device_mesh, dimension), []).append(number)
    for (mesh, dimension), numbers in spread.items():
        part = squares[numbers]
        dist.all_reduce(part, group=mesh.get_group(dimension))
        squares[numbers] = part
    return squares.sqrt()
