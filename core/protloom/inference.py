"""Running a network without training it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


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
        autocast = torch.autocast(next(model.parameters()).device.type, dtype=dtype)
    try:
        for module in modules:
            module.training = False
        # not inference_mode: tensors that the network caches on the way must stay usable in training
        with torch.no_grad(), autocast:
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
