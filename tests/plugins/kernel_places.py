"""Every built-in kernel backend wherever tests can run it: on CPU, apex by a stand-in and triton by its interpreter."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import fake_apex
import pytest
import torch

from protloom.ops import Backend
from protloom.plugins import Registry
from protloom_plugins.kernels.apex import ApexBackend
from protloom_plugins.kernels.triton import TritonBackend

CUDA = torch.cuda.is_available()


class Place(NamedTuple):
    """A backend on a kind of device."""

    backend: str
    device: torch.device


def _no_triton() -> str | None:
    """Loads Triton's programs, without a GPU for its interpreter; returns why they cannot be run, None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed: it comes with the CUDA builds of PyTorch"
    if CUDA:
        return None
    if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        return "Triton was imported before it was told to interpret"
    # for good: Triton asks when it is imported, and again later
    os.environ["TRITON_INTERPRET"] = "1"
    from protloom_plugins.kernels import triton_functions

    del triton_functions
    return None


NO_TRITON = _no_triton()
"""Why Triton's programs cannot be run here; None if they can, on CUDA where there is a GPU, else on CPU."""


@cache
def _registry() -> Registry:
    return Registry.discover()


def places() -> list[Any]:
    """Returns every built-in backend on CPU and on CUDA, as parameters of a test."""
    names = [c.name for c in _registry().components("kernel") if c.builtin]
    return [
        pytest.param(Place(name, torch.device(kind)), id=f"{name}-{kind}", marks=[pytest.mark.gpu] * (kind == "cuda"))
        for name in names
        for kind in ("cpu", "cuda")
    ]


def enter(place: Place, patch: pytest.MonkeyPatch) -> Backend:
    """Lets a backend run at a place for the time of a test and returns it, or skips the test with the reason."""
    if place.device.type == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    if place.device.type == "cpu" and place.backend == "apex":
        fake_apex.install(patch)
        patch.setattr(ApexBackend, "devices", ("cpu", "cuda"))
    if place.device.type == "cpu" and place.backend == "triton":
        if CUDA or NO_TRITON:
            pytest.skip(NO_TRITON or "Triton compiles its programs for the GPU of this machine")
        patch.setattr(TritonBackend, "devices", ("cpu", "cuda"))
    component = _registry().resolve("kernel", place.backend)
    model = component.load_config()
    backend: Backend = component.load_factory()(None if model is None else model())
    if reason := backend.unavailable(place.device):
        pytest.skip(reason)
    return backend
