"""Every function of every backend that runs here, forward and backward, in fp32 and bf16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protloom.contracts import Offsets
from protloom.ops import Backend
from protloom.plugins import Registry

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, WIDTH, HEADS = 2048, 320, 20
LENGTHS = np.clip(np.random.default_rng(0).lognormal(5.5, 0.6, 7), 30, 512).astype(int).tolist()


def backends() -> list[Backend]:
    """Returns the backends that run here."""
    found: list[Backend] = []
    for component in Registry.discover().components("kernel"):
        model = component.load_config()
        backend = component.load_factory()(None if model is None else model())
        if backend.unavailable(DEVICE) is None:
            found.append(backend)
    return found


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def calls(dtype: torch.dtype) -> Mapping[str, Callable[[Callable[..., Tensor]], Tensor]]:
    """Returns for each function one call of it on inputs of an 8M network."""
    x, weight, bias = drawn(TOKENS, WIDTH, dtype=dtype), drawn(WIDTH), drawn(WIDTH)
    wide = drawn(TOKENS, 4 * WIDTH, dtype=dtype)
    gate, up, down = (drawn(*shape, dtype=dtype) for shape in ((2 * WIDTH, WIDTH),) * 2 + ((WIDTH, 2 * WIDTH),))
    cu = Offsets.of(LENGTHS, DEVICE)
    q, k, v = (drawn(cu.total, HEADS, WIDTH // HEADS, dtype=dtype) for _ in range(3))
    angles = torch.rand(cu.total, WIDTH // HEADS // 2, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    by_distance = drawn(HEADS, 2 * cu.longest - 1)
    logits, targets = drawn(TOKENS // 5, 33, dtype=dtype), torch.randint(33, (TOKENS // 5,), device=DEVICE)
    return {
        "layer_norm": lambda f: f(x, weight, bias, eps=1e-5),
        "rms_norm": lambda f: f(x, weight, eps=1e-6),
        "gelu": lambda f: f(wide),
        "gated_mlp": lambda f: f(x, gate, up, down, activation="silu"),
        "rotary": lambda f: f(q, cos, sin),
        "attention": lambda f: f(q, k, v, cu, cu, scale=0.25),
        "attention with bias": lambda f: f(q, k, v, cu, cu, scale=1.0, bias=by_distance),
        "cross_entropy": lambda f: f(logits, targets),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", list(calls(torch.float32)))
def test_function_forward_and_backward(benchmark: Any, name: str, backend: Backend, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    function = backend.functions(DEVICE, dtype).get(name.split(maxsplit=1)[0])
    if function is None:
        pytest.skip(f"{backend.name} does not offer {name.split(maxsplit=1)[0]}")
    call = calls(dtype)[name]

    def both() -> Tensor:
        out = call(function)
        out.float().sum().backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return out

    benchmark.group = f"{name}, {dtype}"
    assert bool(both().isfinite().all())
    benchmark(both)
