"""The kernel backend ``triton``: norms, the gated activation and cross entropy as programs of this project, on CUDA.

Each reads its input once and writes its output once, where a chain of PyTorch's functions would go through memory
several times; what PyTorch fuses itself it may well do as fast. So ``auto`` takes this backend only for functions that
were measured to be faster on the kind of device at hand; a run can name it (``kernels: triton``, or
``kernels: {rms_norm: triton}``). Triton comes with the CUDA builds of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from protloom.ops import Timing
from protloom_plugins.kernels import measured

FUNCTIONS = ("layer_norm", "rms_norm", "gated_mlp", "cross_entropy")


class TritonBackend:
    """Offers its functions on CUDA, in fp32 and in half precision.

    Attributes:
        name: of the component.
        priority: below that of ``torch``: ``auto`` takes it only by a measurement.
    """

    name = "triton"
    priority = -20
    devices = ("cuda",)

    def __init__(self, config: Any = None) -> None:
        del config
        self._found: dict[str, str | None] = {}

    def unavailable(self, device: torch.device) -> str | None:
        """Returns None if a program runs on the device, else why not, in one line; it is tried once."""
        key = str(device)
        if key not in self._found:
            self._found[key] = self._reason(device)
        return self._found[key]

    def measured(self, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
        """Returns what was measured of a function on this kind of device."""
        return measured.timing(self.name, function, device, dtype)

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """Returns the functions by name; none in float64, which its programs do not compute in."""
        if self.unavailable(device) is not None or dtype == torch.float64:
            return {}
        module = import_module("protloom_plugins.kernels.triton_functions")
        return {name: getattr(module, name) for name in FUNCTIONS}

    def _reason(self, device: torch.device) -> str | None:
        if device.type not in self.devices:
            return f"triton runs on {' and '.join(self.devices)}, not on {device.type}"
        if device.type == "cuda" and not torch.cuda.is_available():
            return "no CUDA device is found"
        if find_spec("triton") is None:
            return "triton is not installed: it comes with the CUDA builds of PyTorch (pip install triton)"
        try:
            _try(device)
        except Exception as error:
            # its compiler, the C compiler that it calls and the driver each fail in classes of their own
            text = " ".join(str(error).split())[:200]
            return f"triton does not work here ({type(error).__name__}: {text})"
        return None


def _try(device: torch.device) -> None:
    """Runs one program forward and backward, and looks at what it gives."""
    module = import_module("protloom_plugins.kernels.triton_functions")
    x = torch.ones(2, 8, device=device, requires_grad=True)
    weight = torch.full((8,), 2.0, device=device, requires_grad=True)
    found = module.rms_norm(x, weight, eps=1e-8)
    (by_weight,) = torch.autograd.grad(found.sum(), weight)
    if not torch.allclose(found, 2 * x) or not torch.allclose(by_weight, weight.detach()):
        raise RuntimeError("its RMS norm of ones is not the weight")
