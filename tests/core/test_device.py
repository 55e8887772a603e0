"""Devices and precisions as options name them, on machines with and without CUDA."""

from __future__ import annotations

import re

import pytest
import torch

from protloom.device import find_device, use_device
from protloom.errors import UserError
from protloom.precision import compute_dtype

CPU = torch.device("cpu")


def machine(patch: pytest.MonkeyPatch, count: int, current: int = 0) -> None:
    """Lets PyTorch see so many CUDA devices."""
    patch.delenv("LOCAL_RANK", raising=False)
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "current_device", lambda: current)


def refused(name: str, label: str = "--device") -> str:
    with pytest.raises(UserError) as caught:
        find_device(name, label)
    return str(caught.value)


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0)
    assert {find_device(name, "--device") for name in ("auto", "cpu", "cpu:0")} == {CPU}
    says = "PyTorch sees no CUDA device here; use cpu or auto"
    assert refused("cuda") == f"--device: no device 'cuda': {says}"
    assert refused("cuda:1", "trainer.device") == f"trainer.device: no device 'cuda:1': {says}"


def test_cuda_without_a_number_is_the_device_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 3, current=1)
    assert find_device("cpu", "--device") == CPU
    assert [find_device(name, "--device").index for name in ("auto", "cuda", "cuda:0", "cuda:2")] == [1, 1, 0, 2]
    monkeypatch.setenv("LOCAL_RANK", "2")  # as torchrun says
    assert [find_device(name, "--device").index for name in ("auto", "cuda", "cuda:0")] == [2, 2, 0]


def test_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    seen = "PyTorch sees 2 CUDA devices here, numbered from 0"
    # PyTorch itself reads 258 as 2
    for number in (2, 258):
        assert refused(f"cuda:{number}") == f"--device: no device 'cuda:{number}': {seen}; use one of them, cpu or auto"
    monkeypatch.setenv("LOCAL_RANK", "2")
    says = f"trainer.device: no device 'cuda:2': {seen}; start at most 2 processes here"
    assert refused("auto", "trainer.device") == says


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "xla:0", "cuda:one", "cuda:-1", "cuda:", "cpu:1", "CPU", ""])
@pytest.mark.parametrize("count", [0, 2])
def test_no_such_device(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    machine(monkeypatch, count)
    assert refused(name) == f"--device: no device {name!r}; use auto, cpu, cuda or cuda:N"


def test_a_device_in_use_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 3)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert use_device("cuda:2", "--device") == torch.device("cuda", 2)
    assert use_device("cpu", "--device") == CPU
    assert current == [torch.device("cuda", 2)]


@pytest.mark.parametrize("label", ["--precision", "trainer.precision"])
def test_precisions_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    with pytest.raises(UserError, match=re.escape(f"{label}: Old GPU has no bf16; use fp32")):
        compute_dtype("bf16", torch.device("cuda", 0), label)
    with pytest.raises(UserError, match=f"^{label}: found 'bf17': should be auto, fp32 or bf16$"):
        compute_dtype("bf17", CPU, label)
    with pytest.raises(UserError, match=f"^{label}: found 'half': fp16 is not offered"):
        compute_dtype("half", CPU, label)
    assert compute_dtype("fp32", CPU, label) is None
    assert compute_dtype("bf16", CPU, label) == torch.bfloat16
