"""The programs of the backend ``triton``, by Triton's interpreter on CPU where it is installed, compiled on CUDA."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from kernel_places import CUDA, NO_TRITON
from torch import Tensor

from protloom import kernels
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.kernels import reference, triton
from protloom_plugins.kernels.triton import TritonBackend

DEVICE = torch.device("cuda" if CUDA else "cpu")
NEEDS = pytest.mark.skipif(NO_TRITON is not None, reason=NO_TRITON or "")
# numpy's, of numbers that no mask lets out
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
EXACT = {"rtol": 1e-5, "atol": 1e-5}
FORWARD = {torch.float32: EXACT, torch.bfloat16: {"rtol": 1.6e-2, "atol": 3e-4}}
BACKWARD = {torch.float32: EXACT, torch.bfloat16: {"rtol": 1.6e-2, "atol": 3e-3}}


@pytest.fixture(scope="module")
def functions() -> ModuleType:
    """The functions; :mod:`kernel_places` has seen to it that Triton interprets them where there is no GPU."""
    from protloom_plugins.kernels import triton_functions

    return triton_functions


def agree(
    function: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor, **options: Any
) -> list[Tensor]:
    """Compares values and gradients with the reference in float64 on the same numbers; returns the gradients."""
    narrow = [x.detach().to(DEVICE) for x in inputs]
    narrow = [x.requires_grad_() if x.is_floating_point() else x for x in narrow]
    wide = [x.detach().cpu().double().requires_grad_() if x.is_floating_point() else x.cpu() for x in narrow]
    found, wanted = function(*narrow, **options), formula(*wide, **options)
    half = torch.bfloat16 if any(x.dtype == torch.bfloat16 for x in narrow) else torch.float32
    assert found.shape == wanted.shape
    close(found, wanted, FORWARD[half])
    weights = torch.linspace(-1, 1, max(1, found.numel()))[: found.numel()].view(found.shape)
    (found.float() * weights.to(DEVICE)).sum().backward()
    (wanted * weights.double()).sum().backward()
    gradients = []
    for one, two in zip(narrow, wide, strict=True):
        if one.is_floating_point():
            assert one.grad is not None
            assert two.grad is not None
            assert one.grad.dtype == one.dtype
            # a gradient that is a sum over rows has the rounding of each of them
            summed = found.shape[0] if one.ndim == 1 and found.ndim > 1 else 1
            near = BACKWARD[half]
            close(one.grad, two.grad, {**near, "atol": near["atol"] * max(1.0, summed**0.5)})
            gradients.append(one.grad)
    return gradients


def close(found: Tensor, wanted: Tensor, tolerance: dict[str, float]) -> None:
    """Asserts agreement; the absolute tolerance is for numbers up to 1 and grows with the largest."""
    largest = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    atol = tolerance["atol"] * max(1.0, largest)
    torch.testing.assert_close(found.detach().cpu().double(), wanted.detach(), rtol=tolerance["rtol"], atol=atol)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@NEEDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (150, 1), (70, 31), (9, 320), (3, 1280), (2, 2500)])
def test_norms(functions: ModuleType, rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = drawn((rows, width), (width,), (width,))
    x = (3 * x + 1).to(dtype)
    # of one number nothing is left but rounding, which ε divides
    eps = 1e-5 if width > 1 else 1e-1
    agree(functions.rms_norm, reference.rms_norm, x, weight, eps=eps)
    agree(functions.rms_norm, reference.rms_norm, x, weight.to(dtype), eps=eps)
    agree(
        lambda x, eps: functions.rms_norm(x, None, eps=eps),
        lambda x, eps: reference.rms_norm(x, None, eps=eps),
        x,
        eps=eps,
    )
    agree(functions.layer_norm, reference.layer_norm, x, weight, bias, eps=eps)
    for given in ((weight, None), (None, bias), (None, None)):
        there = [p for p in given if p is not None]

        def call(f: Callable[..., Tensor], x: Tensor, *p: Tensor, given: Any = given, eps: float = 0.0) -> Tensor:
            parameters = iter(p)
            return f(x, *(None if g is None else next(parameters) for g in given), eps=eps)

        agree(
            lambda *a, call=call, **o: call(functions.layer_norm, *a, **o),
            lambda *a, call=call, **o: call(reference.layer_norm, *a, **o),
            x,
            *there,
            eps=eps,
        )


@NEEDS
def test_norms_of_other_shapes_and_sizes(functions: ModuleType) -> None:
    weight, bias = drawn((24,), (24,))
    strided = drawn((24, 2, 5))[0].permute(2, 1, 0)  # [5, 2, 24]
    # numbers near 1000 are 6e-5 apart in fp32, and so are their means
    for x, tolerance in ((strided, 1e-5), (1e4 * strided, 1e-5), (strided + 1e3, 1e-3)):
        found = functions.layer_norm(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), eps=1e-5)
        wanted = reference.layer_norm(x.double(), weight.double(), bias.double(), eps=1e-5)
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=tolerance, atol=tolerance)
    agree(functions.rms_norm, reference.rms_norm, 1e15 * strided, weight, eps=1e-6)


@NEEDS
def test_sums_over_rows_are_the_same_bits_every_time(functions: ModuleType) -> None:
    x, weight, bias = drawn((400, 31), (31,), (31,))
    first = agree(functions.layer_norm, reference.layer_norm, x, weight, bias, eps=1e-5)
    for one, two in zip(
        first, agree(functions.layer_norm, reference.layer_norm, x, weight, bias, eps=1e-5), strict=True
    ):
        assert torch.equal(one, two)


@NEEDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_activation(functions: ModuleType, activation: str, dtype: torch.dtype) -> None:
    def product(left: Tensor, right: Tensor) -> Tensor:
        one = torch.ones(1, 1, dtype=left.dtype)
        columns = [reference.gated_mlp(x, one, y, one, activation=activation) for x, y in _pairs(left, right)]
        return torch.cat(columns).view(left.shape)

    def _pairs(left: Tensor, right: Tensor) -> Any:
        # up is a factor where x is one number, so the formula needs x·up = right
        return ((a.view(1, 1), (b / a).view(1, 1)) for a, b in zip(left.flatten(), right.flatten(), strict=True))

    left, right = drawn((3, 7), (3, 7), dtype=dtype)
    agree(lambda a, b: functions._Gated.apply(a, b, activation), product, 3 * left, right)
    big = torch.tensor([[-1e4, -30.0, -5.0, 5.0, 30.0, 1e4]], dtype=dtype)
    agree(lambda a, b: functions._Gated.apply(a, b, activation), product, big, torch.ones_like(big))


@NEEDS
@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_mlp(functions: ModuleType, rows: int, activation: str) -> None:
    x, gate, up, down = drawn((rows, 12), (45, 12), (45, 12), (12, 45))
    shapes = [x, gate / math.sqrt(12), up / math.sqrt(12), down / math.sqrt(45)]
    agree(functions.gated_mlp, reference.gated_mlp, *shapes, activation=activation)


@NEEDS
def test_gated_mlp_under_autocast_and_with_a_wrong_name(functions: ModuleType) -> None:
    x, gate, up, down = (a.to(DEVICE) for a in drawn((6, 12), (20, 12), (20, 12), (12, 20)))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        found = functions.gated_mlp(x, gate, up, down, activation="silu")
    assert found.dtype == torch.bfloat16
    wanted = reference.gated_mlp(*(a.double() for a in (x, gate, up, down)), activation="silu")
    torch.testing.assert_close(found.double(), wanted, rtol=5e-2, atol=5e-1)
    with pytest.raises(ValueError, match="not 'relu'"):
        functions.gated_mlp(x, gate, up, down, activation="relu")


@NEEDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(0, 33), (1, 1), (70, 33), (9, 256), (2, 3000)])
def test_cross_entropy(functions: ModuleType, rows: int, classes: int, dtype: torch.dtype) -> None:
    logits = 5 * drawn((rows, classes))[0]
    targets = torch.arange(rows) * 7 % classes
    assert functions.cross_entropy(logits.to(DEVICE, dtype), targets.to(DEVICE)).dtype == torch.float32
    agree(functions.cross_entropy, reference.cross_entropy, logits.to(dtype), targets)


@NEEDS
def test_cross_entropy_of_large_and_of_excluded_logits(functions: ModuleType) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-math.inf, 2.0, 1.0]], device=DEVICE, requires_grad=True)
    found = functions.cross_entropy(logits, torch.tensor([2, 1], device=DEVICE))
    torch.testing.assert_close(found.detach().cpu(), torch.tensor([1e4, math.log(1 + math.exp(-1))]))
    found.sum().backward()
    assert bool(logits.grad.isfinite().all())  # type: ignore[union-attr]


@NEEDS
@pytest.mark.parametrize("target", [-100, 3])
def test_an_id_outside_the_vocabulary_is_not_ignored(functions: ModuleType, target: int) -> None:
    found = functions.cross_entropy(torch.zeros(2, 3, device=DEVICE), torch.tensor([1, target], device=DEVICE))
    assert found.isnan().tolist() == [False, True]


@NEEDS
def test_float64_is_refused(functions: ModuleType) -> None:
    with pytest.raises(TypeError, match="float64 is for the backends torch and reference"):
        functions.rms_norm(torch.ones(1, 4, device=DEVICE, dtype=torch.float64), None, eps=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA or NO_TRITON is not None, reason=NO_TRITON or "needs a CUDA device")
@pytest.mark.parametrize("name", triton.FUNCTIONS)
def test_compiled_by_torch_they_give_the_same(functions: ModuleType, name: str) -> None:
    """As ``trainer.compile`` has them, within a block."""
    shapes = {"gated_mlp": ((40, 32), (64, 32), (64, 32), (32, 64)), "cross_entropy": ((40, 33),)}
    inputs = [x.to(DEVICE) for x in drawn(*shapes.get(name, ((40, 32), (32,), (32,))[: 2 + (name == "layer_norm")]))]
    options: dict[str, Any] = {"activation": "silu"} if name == "gated_mlp" else {"eps": 1e-5}
    if name == "cross_entropy":
        options = {"targets": torch.arange(40, device=DEVICE) % 33}
    found = []
    for function in (getattr(functions, name), torch.compile(getattr(functions, name), fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, **options)
        found.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


PROGRAMS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from protloom_plugins.kernels import triton_kernels as k

def build(program, types, constants):
    pairs = dict(zip((n for n in program.arg_names if n not in constants), types.split()), strict=True)
    signature = {n: pairs.get(n, "constexpr") for n in program.arg_names}
    places = {(program.arg_names.index(n),): value for n, value in constants.items()}
    compile(ASTSource(program, signature, places), target=GPUTarget("cuda", 90, 32))

for centred in (True, False):
    flags = {"CENTRED": centred, "SCALED": True, "SHIFTED": centred, "ROWS": 2, "COLUMNS": 512}
    build(k.norm_forward, "*bf16 *fp32 *fp32 *bf16 *fp32 *fp32 i32 i32 fp32", flags)
    build(k.norm_backward, "*bf16 *bf16 *fp32 *fp32 *fp32 *bf16 *fp32 *fp32 i32 i32 i32", flags)
for name in ("silu", "gelu", "gelu_tanh"):
    build(k.gated_forward, "*bf16 *bf16 *bf16 i32", {"ACTIVATION": name, "BLOCK": 1024})
    build(k.gated_backward, "*bf16 *bf16 *bf16 *bf16 *bf16 i32", {"ACTIVATION": name, "BLOCK": 1024})
build(k.entropy_forward, "*bf16 *i64 *fp32 *fp32 i32 i32", {"ROWS": 16, "COLUMNS": 64})
build(k.entropy_backward, "*fp32 *bf16 *i64 *fp32 *bf16 i32 i32", {"ROWS": 16, "COLUMNS": 64})
"""


@NEEDS
@pytest.mark.skipif(CUDA, reason="the other tests compile the programs on this machine")
def test_the_programs_compile_for_a_gpu() -> None:
    """What the interpreter runs need not compile; Triton brings the compiler, and needs no GPU for it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# -------------------------------------------------------------------------------------------------------- being there


class OnCpu(TritonBackend):
    """The backend where the interpreter may run its programs."""

    devices = ("cpu",)


CPU = torch.device("cpu")


@NEEDS
def test_it_offers_its_functions_after_trying_one(functions: ModuleType) -> None:
    backend = TritonBackend() if CUDA else OnCpu()
    assert backend.unavailable(DEVICE) is None
    assert set(backend.functions(DEVICE, torch.bfloat16)) == set(triton.FUNCTIONS)
    assert backend.functions(DEVICE, torch.float64) == {}


def test_why_it_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TritonBackend().unavailable(CPU) == "triton runs on cuda, not on cpu"
    if not CUDA:
        assert TritonBackend().unavailable(torch.device("cuda")) == "no CUDA device is found"
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert "triton is not installed: it comes with the CUDA builds" in (OnCpu().unavailable(CPU) or "")
    with pytest.raises(UserError, match="backend 'triton' cannot run on cpu: triton runs on cuda, not on cpu"):
        kernels.choose("triton", Registry.discover(), CPU, torch.float32)


@pytest.mark.parametrize(
    "failure",
    [ImportError("libtriton.so: undefined symbol"), RuntimeError("Failed to find C compiler"), OSError("gone")],
)
def test_a_program_that_fails_is_found_out_once(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    tried = []

    def attempt(device: torch.device) -> None:
        tried.append(device)
        raise failure

    monkeypatch.setattr(triton, "find_spec", lambda name: object())
    monkeypatch.setattr(triton, "_try", attempt)
    backend = OnCpu()
    reason = backend.unavailable(CPU)
    assert reason == f"triton does not work here ({type(failure).__name__}: {failure})"
    assert backend.functions(CPU, torch.float32) == {}
    assert tried == [CPU]
