"""What a run knows of the other processes: ranks, devices, collectives, and the wrapping in DDP or FSDP2.

Nothing here is hand-written communication: processes are started by ``torchrun``, gradients are averaged by PyTorch's
own DDP or FSDP2, and the two collectives that objectives may use are those of ``torch.distributed``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from protloom.device import use_device
from protloom.errors import UserError

Parallel = Literal["none", "ddp", "fsdp2"]


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's place among them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: where this process computes.
        parallel: how parameters are spread.
    """

    rank: int
    size: int
    device: torch.device
    parallel: Parallel

    @property
    def main(self) -> bool:
        """True on the one process that prints and writes."""
        return self.rank == 0

    def all_sum(self, x: Tensor) -> Tensor:
        """Adds ``x`` over processes; gradients flow back to every process's part."""
        if self.size == 1:
            return x
        total: Tensor = _Sum.apply(x)
        return total

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenates ``x`` over processes along dimension 0, in the order of ranks; gradients flow back.

        Each process may have another number of rows, none included.
        """
        if self.size == 1:
            return x
        rows = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(self.size)]
        dist.all_gather(rows, torch.tensor(len(x), device=x.device))
        counts = [int(n) for n in rows]
        # the collective moves equal shapes
        padded = torch.cat((x, x.new_zeros(max(counts) - len(x), *x.shape[1:])))
        gathered: Tensor = _Gather.apply(padded)
        return torch.cat([part[:n] for part, n in zip(gathered, counts, strict=True)])

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Adds a list of numbers over processes, in float64; on the host, so that no device is waited for."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(x) for x in tensor.tolist()]

    def everywhere(self, flag: Tensor) -> Tensor:
        """Returns a boolean scalar that is True if ``flag`` is True on every process."""
        if self.size == 1:
            return flag
        number = flag.to(torch.int32)
        dist.all_reduce(number, op=dist.ReduceOp.MIN)
        return number > 0

    def from_main(self, text: str) -> str:
        """Returns the main process's text on every process."""
        if self.size == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, src=0, device=torch.device("cpu"))
        return texts[0]

    def barrier(self) -> None:
        """Waits for every process."""
        self.sum_numbers([0.0])

    def close(self) -> None:
        """Leaves the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(parallel: Parallel, device: str) -> World:
    """Joins the process group that ``torchrun`` describes in the environment; alone without one.

    Raises:
        UserError: if the device is unknown or missing, or torchrun and ``trainer.parallel`` do not go together.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel == "none" and size > 1:
        raise UserError(f"torchrun started {size} processes but trainer.parallel is none: set it to ddp or fsdp2")
    if parallel != "none" and "RANK" not in os.environ:
        raise UserError(
            f"trainer.parallel={parallel} needs torchrun: torchrun --nproc-per-node N -m protloom train …, "
            "or trainer.parallel=none for one process"
        )
    chosen = use_device(device, "trainer.device")
    if size > 1 and ":" in device and chosen.type == "cuda":
        raise UserError(f"trainer.device={device} is one device for {size} processes: with cuda each takes its own")
    if parallel == "none":
        return World(0, 1, chosen, parallel)
    if not dist.is_initialized():
        # numbers of the host are added by gloo also where NCCL moves the tensors
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), chosen, parallel)


def wrap(module: nn.Module, world: World, *, blocks: Sequence[nn.Module], unused: bool) -> nn.Module:
    """Spreads a module over the processes.

    Args:
        module: everything trainable, with one ``forward``.
        world: the processes.
        blocks: the repeated parts that FSDP2 gathers one at a time.
        unused: some parameters get no gradient in some steps; DDP then looks for them, and warns if there are none.

    Returns:
        The module to call; parameters stay reachable through ``module``.
    """
    if world.parallel == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        ids = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=unused)
    if world.parallel == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def full(tensor: Tensor) -> Tensor:
    """Returns a tensor whole and detached: a sharded one is gathered (every process must take part)."""
    from torch.distributed.tensor import DTensor

    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def full_state(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gathers every tensor of a state dict onto the host of the processes that ``keep`` it; all must take part."""
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        gathered = full(tensor)
        if keep:
            whole[name] = gathered.cpu()
    return whole


def like(value: Tensor, template: Tensor) -> Tensor:
    """Returns ``value`` on the device of ``template`` and sharded as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(template, DTensor):
        return distribute_tensor(value.to(template.device), template.device_mesh, template.placements)
    return value.to(template.device)


class _Sum(torch.autograd.Function):
    """Adds over processes; PyTorch's own differentiable collectives are being replaced from version to version."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _added(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _added(gradients[0])


class _Gather(torch.autograd.Function):
    """Stacks equal shapes of all processes; the gradient of a part is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _added(gradients[0])[dist.get_rank()]


def _added(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
