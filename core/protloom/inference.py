"""Running a network without training it: its mode and device, letters as ids, batches of so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Tokenizer

Item = TypeVar("Item")


@contextmanager
def frozen(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """No gradients and evaluation mode; every module's own mode comes back afterwards.

    Args:
        model: the network.
        dtype: compute in this precision by autocast; None or float32: the network's own.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    autocast: AbstractContextManager[Any] = nullcontext()
    if dtype is not None and dtype != torch.float32:
        autocast = torch.autocast(device_of(model).type, dtype=dtype)
    try:
        for module in modules:
            module.training = False
        # not inference_mode: tensors that the network caches on the way must stay usable in training
        with torch.no_grad(), autocast:
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Returns where a network lies: its first parameter's device, the CPU where it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def letter_ids(tokenizer: Tokenizer, sequence: str) -> NDArray[np.int64]:
    """Returns the ids ``[L]`` of residues given as ASCII letters, without prefix and suffix."""
    return tokenizer.table[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)].astype(np.int64)


def batch_tokens(device: torch.device, asked: int | None = None) -> int:
    """Returns how many tokens a packed batch should have.

    Args:
        device: of the network.
        asked: what somebody asked for; None: on CPU what its caches can hold, elsewhere twice as many.
    """
    if asked is not None:
        return asked
    return 4096 if device.type == "cpu" else 8192


def batches(items: Iterable[Item], size: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Yields consecutive items as many at a time as fit in a budget, one at least; reads no further than it must.

    Args:
        items: what is batched, in order.
        size: of an item, such as its tokens, special symbols included.
        budget: the most that a batch of several may have together; a larger item gets a batch of its own.
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        more = size(item)
        if batch and total + more > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += more
    if batch:
        yield batch
