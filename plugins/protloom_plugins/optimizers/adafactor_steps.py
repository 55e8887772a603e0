"""The steps of ``adafactor``, on whole parameters and on those that FSDP2 has sharded by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer

from protloom.errors import UserError


class Adafactor(Optimizer):
    """Adafactor in the form of T5X (Shazeer and Stern 2018, algorithms 4 to 6, without momentum).

    With g the gradient of a matrix and β = 1 − t^-decay, t counted from 1::

        row    ← β row    + (1 − β) mean of g² + ε₁ over columns
        column ← β column + (1 − β) mean of g² + ε₁ over rows
        u = g / √(row · column / mean of row);  u ← u / max(1, RMS(u) / clip)
        x ← x − lr · weight_decay · x − lr · max(ε₂, RMS(x)) · u

    A vector keeps its whole second moment. Everything stays on the device; sums over ranks are two collectives a step.
    State of a parameter: ``step``, and ``row`` ``[N, 1]`` and ``column`` ``[M]``, or ``moment``; fp32.

    Args:
        groups: parameter groups; ``lr`` and ``weight_decay`` may differ between them.
        lr: relative step, as the schedule has it.
        decay: how fast the second moment forgets.
        eps: ε₁ and ε₂.
        clip_update: largest root mean square of u.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        decay: float,
        eps: tuple[float, float],
        clip_update: float,
        weight_decay: float,
    ) -> None:
        options = {"lr": lr, "decay": decay, "eps": eps, "clip_update": clip_update, "weight_decay": weight_decay}
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient; see :meth:`torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [
            _Part(parameter, group, self.state[parameter])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for part, totals in zip(parts, _over_ranks(parts, [part.observe() for part in parts]), strict=True):
            part.take(totals)
        # an update is computed twice: once for its size, once to be applied, so that never all of them are held
        sizes = _over_ranks(parts, [part.update().square().sum().view(1) for part in parts])
        for part, size in zip(parts, sizes, strict=True):
            part.apply(size)
        return loss


class _Part:
    """What this process has of one parameter, for one step."""

    def __init__(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        self.parameter, self.group, self.state = parameter, group, state
        self.factored = parameter.ndim >= 2
        if not state:
            self._begin()
        state["step"] += 1
        self.beta = 1.0 - state["step"] ** -group["decay"]
        self.x = _local(parameter)
        gradient = _local(parameter.grad).float()  # type: ignore[arg-type]
        self.gradient = gradient.flatten(1) if self.factored else gradient  # [n, M] or [n], n of N rows
        if self.factored:
            # a checkpoint gives it back whole
            state["row"] = _sharded_like(state["row"], parameter)

    def _begin(self) -> None:
        self.state["step"] = 0
        like = self.parameter
        if not self.factored:
            self.state["moment"] = torch.zeros_like(like, dtype=torch.float32)
            return
        rows = like.shape[0]
        whole = torch.zeros(rows, 1, dtype=torch.float32, device=_local(like).device)
        self.state["row"] = _sharded_like(whole, like)
        self.state["column"] = torch.zeros(like.numel() // rows, dtype=torch.float32, device=whole.device)

    def observe(self) -> Tensor:
        """Moves the moments that need no other rank, and returns what must be added over ranks.

        Returns:
            Σ x², for a matrix followed by Σ row and by Σ (g² + ε₁) of each column, ``[2 + M]``.
        """
        squared = self.gradient.square().add_(self.group["eps"][0])
        size = self.x.float().square().sum().view(1)
        if not self.factored:
            _local(self.state["moment"]).lerp_(squared, 1.0 - self.beta)
            return size
        row = _local(self.state["row"])
        row.lerp_(squared.mean(1, keepdim=True), 1.0 - self.beta)
        return torch.cat((size, row.sum().view(1), squared.sum(0)))

    def take(self, totals: Tensor) -> None:
        """Receives the sums over ranks."""
        self.size = (totals[0] / self.parameter.numel()).sqrt().clamp(min=self.group["eps"][1])
        if self.factored:
            rows = self.parameter.shape[0]
            self.state["column"].lerp_(totals[2:] / rows, 1.0 - self.beta)
            self.mean = totals[1] / rows

    def update(self) -> Tensor:
        """Returns u before clipping, of this process's rows."""
        if not self.factored:
            return self.gradient / _local(self.state["moment"]).sqrt()
        # two roots, not the root of a product: the product of two small numbers would be zero in fp32
        row = (_local(self.state["row"]) / self.mean).rsqrt()
        return self.gradient * row * self.state["column"].rsqrt()

    def apply(self, size: Tensor) -> None:
        """Moves the parameter; ``size`` is Σ u² over ranks."""
        group = self.group
        norm = (size[0] / self.parameter.numel()).sqrt()
        factor = group["lr"] * self.size / (norm / group["clip_update"]).clamp(min=1.0)
        self.x.mul_(1.0 - group["lr"] * group["weight_decay"])
        self.x.sub_((self.update() * factor).view_as(self.x))


def _local(x: Tensor) -> Tensor:
    """Returns this process's part of a tensor; it shares its memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def _sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Spreads a whole tensor with as many rows as a parameter as that one is spread."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _over_ranks(parts: Sequence[_Part], values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Adds vectors over the ranks that share each part's rows; one collective for all that share a mesh."""
    totals = list(values)
    meshes: dict[Any, list[int]] = {}
    for number, part in enumerate(parts):
        if isinstance(part.parameter, DTensor):
            meshes.setdefault((part.parameter.device_mesh, _sharded_dimension(part.parameter)), []).append(number)
    for (mesh, dimension), numbers in meshes.items():
        if dimension is None:
            continue
        flat = torch.cat([values[number] for number in numbers])
        dist.all_reduce(flat, group=mesh.get_group(dimension))
        pieces = flat.split([len(values[number]) for number in numbers])
        for number, piece in zip(numbers, pieces, strict=True):
            totals[number] = piece
    return totals


def _sharded_dimension(parameter: DTensor) -> int | None:
    """Returns the dimension of the mesh over which rows are spread, None if every rank has them all."""
    spread = [i for i, placement in enumerate(parameter.placements) if not isinstance(placement, Replicate)]
    if any(parameter.placements[i] != Shard(0) for i in spread) or len(spread) > 1:
        raise UserError(
            "optimizer adafactor moves parameters that are sharded by rows (fsdp2), not otherwise: use adamw"
        )
    return spread[0] if spread else None
