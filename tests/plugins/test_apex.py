"""The adapter to NVIDIA's apex, wired to a stand-in on CPU; on a GPU where apex is built, to apex itself."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import fake_apex
import pytest
import torch
from tiny_run import losses, options_in
from torch import Tensor

from protloom import kernels, training_state
from protloom.cli import main
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.kernels import native, reference
from protloom_plugins.kernels.apex import ApexBackend

CPU = torch.device("cpu")


class OnCpu(ApexBackend):
    """The backend, let loose on a CPU where the stand-in works."""

    devices = ("cpu",)


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of the backend over the stand-in."""
    fake_apex.install(monkeypatch)
    functions = dict(OnCpu().functions(CPU, torch.float32))
    fake_apex.CALLS.clear()
    return functions


def near(function: Any, formula: Any, *inputs: Tensor | None, eps: float = 1e-5, **tolerance: float) -> None:
    """Compares values and gradients with the reference in float64."""
    narrow = [None if x is None else x.clone().requires_grad_() for x in inputs]
    wide = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    found, wanted = function(*narrow, eps=eps), formula(*wide, eps=eps)
    assert found.dtype == inputs[0].dtype  # type: ignore[union-attr]
    torch.testing.assert_close(found.double(), wanted, **tolerance)
    weights = torch.linspace(-1, 1, max(1, found.numel()))[: found.numel()].view(found.shape)
    (found.float() * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    for one, two in zip(narrow, wide, strict=True):
        if one is not None and two is not None and one.numel():
            assert one.grad is not None
            assert two.grad is not None
            torch.testing.assert_close(one.grad.double(), two.grad, **tolerance)


EXACT = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 3e-2, "atol": 3e-2}


@pytest.mark.parametrize("width", [1, 31, 320, 1280])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_norms(apex: dict[str, Any], width: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(width + rows)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((rows, width), (width,), (width,)))
    near(apex["rms_norm"], reference.rms_norm, x, weight, **EXACT)
    near(apex["rms_norm"], reference.rms_norm, x, None, **EXACT)
    near(apex["layer_norm"], reference.layer_norm, x, weight, bias, **EXACT)
    near(apex["layer_norm"], reference.layer_norm, x, weight, None, **EXACT)
    near(apex["layer_norm"], reference.layer_norm, x, None, None, **EXACT)
    strided = torch.randn(rows, width, 2, generator=generator)[..., 0]
    near(apex["rms_norm"], reference.rms_norm, strided, weight, **EXACT)


def test_which_form_is_called(apex: dict[str, Any]) -> None:
    x, weight = torch.randn(4, 8), torch.ones(8)
    apex["rms_norm"](x, weight, eps=1e-6)
    apex["rms_norm"](x, None, eps=1e-6)
    apex["rms_norm"](x.bfloat16(), weight, eps=1e-6)
    apex["layer_norm"](x.bfloat16(), weight, torch.zeros(8), eps=1e-6)
    apex["rms_norm"](x[:0], weight, eps=1e-6)
    assert fake_apex.CALLS == [
        "fused_rms_norm_affine",
        "fused_rms_norm",
        "fused_rms_norm_affine",
        "fused_layer_norm_affine",
    ]


def test_half_inputs_and_autocast(apex: dict[str, Any]) -> None:
    x, weight = torch.randn(6, 32).bfloat16(), torch.randn(32)
    near(apex["rms_norm"], reference.rms_norm, x, weight, **HALF)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = apex["rms_norm"](x.float(), weight, eps=1e-6)
    assert found.dtype == torch.float32  # the residual stream keeps its precision


def groups_of(seed: int = 0) -> tuple[list[dict[str, Any]], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    matrix, bias = (torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((6, 4), (4,)))
    groups = [
        {"params": [matrix], "names": ["matrix"], "lr_scale": 1.0, "weight_decay_scale": 1.0},
        {"params": [bias], "names": ["bias"], "lr_scale": 0.5, "weight_decay_scale": 0.0},
    ]
    return groups, [matrix, bias]


def make(function: Any, seed: int = 0, **options: Any) -> tuple[Any, list[Tensor]]:
    groups, parameters = groups_of(seed)
    optimizer = function(groups, lr=0.02, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, **options)
    training_state.note_initial(optimizer)
    return optimizer, parameters


def steps(optimizer: Any, parameters: list[Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in parameters)


def test_twenty_steps_are_those_of_adamw(apex: dict[str, Any]) -> None:
    ours, mine = make(apex["adamw"])
    theirs, yours = make(native.adamw)
    steps(ours, mine, 0, 20)
    steps(theirs, yours, 0, 20)
    for one, two in zip(mine, yours, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert fake_apex.CALLS.count("FusedAdam.step") == 20


@pytest.mark.parametrize("limit", [None, 0.7])
def test_twenty_steps_are_those_of_lamb(apex: dict[str, Any], limit: float | None) -> None:
    ours, mine = make(apex["lamb"], max_grad_norm=limit)
    theirs, yours = make(native.lamb, max_grad_norm=limit)
    steps(ours, mine, 0, 20)
    steps(theirs, yours, 0, 20)
    for one, two in zip(mine, yours, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert fake_apex.CALLS.count("FusedLAMB.step") == 20


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize(("before", "after"), [("apex", "torch"), ("torch", "apex"), ("apex", "apex")])
def test_a_checkpoint_moves_between_backends(apex: dict[str, Any], before: str, after: str, name: str) -> None:
    more = {"max_grad_norm": None} if name == "lamb" else {}
    functions = {"apex": partial(apex[name], **more), "torch": partial(getattr(native, name), **more)}
    straight, expected = make(functions["torch"])
    steps(straight, expected, 0, 12)
    first, parameters = make(functions[before])
    steps(first, parameters, 0, 7)
    nothing = torch.nn.Module()
    saved = {name: value.clone() for name, value in training_state.collect(nothing, first).items()}
    assert not any("group" in name for name in saved), "the count of steps belongs to the parameters"
    assert float(saved["optimizer|matrix|step"]) == 7
    second, copies = make(functions[after], seed=9)
    with torch.no_grad():
        for copied, parameter in zip(copies, parameters, strict=True):
            copied.copy_(parameter)
    training_state.restore(saved, objectives=nothing, optimizer=second)
    steps(second, copies, 7, 12)
    for one, two in zip(copies, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_the_state_dict_of_adamw_is_understood(apex: dict[str, Any]) -> None:
    theirs, yours = make(native.adamw)
    steps(theirs, yours, 0, 3)
    ours, mine = make(apex["adamw"])
    with torch.no_grad():
        for one, two in zip(mine, yours, strict=True):
            one.copy_(two)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    steps(theirs, yours, 3, 6)
    steps(ours, mine, 3, 6)
    for one, two in zip(mine, yours, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    # parameters of one group that were trained for different numbers of steps cannot be counted together
    state = copy.deepcopy(theirs.state_dict())
    state["param_groups"] = [{**state["param_groups"][0], "params": [0, 1]}]
    state["state"][1]["step"] = torch.tensor(99.0)
    both, _ = groups_of()
    one_group = [{**both[0], "params": [*both[0]["params"], *both[1]["params"]], "names": ["matrix", "bias"]}]
    joined = apex["adamw"](one_group, lr=0.02, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    with pytest.raises(UserError, match="2 counts in one"):
        joined.load_state_dict(state)


def test_clipping(apex: dict[str, Any]) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    unused = torch.nn.Parameter(torch.zeros(2))
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    total = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    norm = apex["clip_grad_norm"](iter([*parameters, unused]), 0.5)
    torch.testing.assert_close(norm, total)
    after = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    assert float(after) == pytest.approx(0.5, rel=1e-4)
    assert float(apex["clip_grad_norm"]([unused], 1.0)) == 0
    assert fake_apex.CALLS == ["multi_tensor_l2norm"]


@pytest.mark.parametrize(
    ("dtypes", "calls"), [((torch.float32, torch.float16), 2), ((torch.float32, torch.bfloat16), 0)]
)
def test_clipping_gradients_of_several_types(apex: dict[str, Any], dtypes: tuple[torch.dtype, ...], calls: int) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(6, dtype=dtype)) for dtype in dtypes]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 3.0 + number)
    norm = apex["clip_grad_norm"](parameters, 1.0)
    assert float(norm) == pytest.approx((6 * (9 + 16)) ** 0.5, rel=1e-2)
    assert fake_apex.CALLS.count("multi_tensor_l2norm") == calls  # apex's norm knows no bf16
    after = torch.cat([p.grad.float() for p in parameters if p.grad is not None]).norm()
    assert float(after) == pytest.approx(1.0, rel=1e-2)


# -------------------------------------------------------------------------------------------------------- being there


def test_without_apex_the_reason_says_where_it_comes_from() -> None:
    assert ApexBackend().unavailable(CPU) == "apex runs on cuda, not on cpu"
    reason = OnCpu().unavailable(CPU)
    assert reason is not None
    assert "apex is not installed: build it from https://github.com/NVIDIA/apex" in reason
    with pytest.raises(UserError, match="backend 'apex' cannot run on cpu: apex runs on cuda"):
        kernels.choose("apex", Registry.discover(), CPU, torch.float32)


@pytest.mark.parametrize(
    ("files", "fine", "text"),
    [
        ([], True, "not installed (optional"),
        (["apex/__init__.py"], False, "PyPI's unrelated web toolkit, not NVIDIA's kernels: pip uninstall apex"),
        (["apex/__init__.py", "apex/normalization/__init__.py"], False, "without its CUDA extensions"),
        (["apex/__init__.py", "apex/normalization/__init__.py", "amp_C.py"], True, "NVIDIA's, with amp_C"),
    ],
)
def test_which_apex_is_installed(
    files: list[str], fine: bool, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('detection must not import it')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("apex", "apex.normalization", "amp_C", "fused_layer_norm_cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = ApexBackend().installation()
    assert (found[0], text in found[1]) == (fine, True), found


# --------------------------------------------------------------------- what a user sees who asks for what is not there


def refusal(kernels: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, fasta: Path) -> str:
    """Returns the one line that a run with these kernels ends with; nothing was begun."""
    assert main(["train", *options_in(tmp_path, fasta)(), f"kernels={kernels}"]) == 2
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


def test_asked_for_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_fasta: Path
) -> None:
    error = refusal("apex", capsys, tmp_path, small_fasta)
    assert (
        "backend 'apex' cannot run on cpu: apex runs on cuda, not on cpu; kernels: auto takes what runs here" in error
    )
    assert "backend 'triton' cannot run on cpu" in refusal("{rms_norm: triton}", capsys, tmp_path, small_fasta)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))
    error = refusal("apex", capsys, tmp_path, small_fasta)
    assert "apex is not installed: build it from https://github.com/NVIDIA/apex" in error


def test_asked_for_where_the_wrong_one_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_fasta: Path
) -> None:
    site = tmp_path / "site"
    (site / "apex").mkdir(parents=True)
    (site / "apex" / "__init__.py").write_text("from pyramid.session import none")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))
    error = refusal("{adamw: apex}", capsys, tmp_path, small_fasta)
    assert "PyPI's unrelated web toolkit, not NVIDIA's kernels: pip uninstall apex" in error


def test_asked_for_where_it_was_built_for_another_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_fasta: Path
) -> None:
    fake_apex.install(monkeypatch)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))

    def undefined(*_: Any, **__: Any) -> Tensor:
        raise ImportError("amp_C.so: undefined symbol: _ZN3c105ErrorC2E")

    monkeypatch.setattr(sys.modules["apex.normalization.fused_layer_norm"], "fused_rms_norm_affine", undefined)
    monkeypatch.setattr(fake_apex.FusedAdam, "__init__", undefined)
    error = refusal("apex", capsys, tmp_path, small_fasta)
    assert "does not work here (amp_C.so: undefined symbol" in error
    assert "https://github.com/NVIDIA/apex" in error


def test_asked_for_a_function_that_it_has_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_fasta: Path
) -> None:
    fake_apex.install(monkeypatch)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))
    error = refusal("{attention: apex}", capsys, tmp_path, small_fasta)
    assert "backend 'apex' does not offer 'attention' on cpu; reference and torch offer it" in error
    error = refusal("{atention: apex}", capsys, tmp_path, small_fasta)
    assert "no function 'atention'. Did you mean 'attention'?" in error


def test_auto_does_not_take_it_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex.install(monkeypatch)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))
    registry = Registry.discover()
    assert set(kernels.choose("auto", registry, CPU, torch.float32).chosen.values()) == {"torch"}
    named = kernels.choose("apex", registry, CPU, torch.float32)
    assert {op for op, backend in named.chosen.items() if backend == "apex"} == {
        "rms_norm",
        "layer_norm",
        "adamw",
        "lamb",
        "clip_grad_norm",
    }
    assert kernels.choose({"rms_norm": "apex"}, registry, CPU, torch.float32).chosen["adamw"] == "torch"


def test_an_extension_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex.install(monkeypatch, extensions=("amp_C",))
    assert set(OnCpu().functions(CPU, torch.float32)) == {"adamw", "lamb", "clip_grad_norm"}
    fake_apex.install(monkeypatch, extensions=())
    # what an earlier install has put there is taken out again
    for name in ("amp_C", "fused_layer_norm_cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    reason = OnCpu().unavailable(CPU)
    assert reason is not None
    assert "apex was built without fused_layer_norm_cuda" in reason
    assert "apex was built without amp_C" in reason


def test_an_extension_of_another_pytorch_is_found_out_by_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apex.install(monkeypatch)

    def undefined(*_: Any) -> Tensor:
        raise ImportError("undefined symbol: _ZN3c104cuda9SetDeviceEa")

    norms = sys.modules["apex.normalization.fused_layer_norm"]
    monkeypatch.setattr(norms, "fused_rms_norm_affine", undefined)
    backend = OnCpu()
    assert set(backend.functions(CPU, torch.float32)) == {"adamw", "lamb", "clip_grad_norm"}
    monkeypatch.setattr(norms, "fused_rms_norm_affine", lambda x, *_: x)  # a wrong result is found out too
    assert "rms_norm" not in OnCpu().functions(CPU, torch.float32)


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", "FusedAdam.step"), ("lamb", "FusedLAMB.step")])
def test_a_run_that_names_it_moves_its_parameters_by_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_fasta: Path, optimizer: str, step: str
) -> None:
    fake_apex.install(monkeypatch)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu",))
    made = options_in(tmp_path, small_fasta)
    for changes in ({"out": "one", "kernels": {optimizer: "apex"}}, {"out": "two"}):
        fake_apex.CALLS.clear()
        assert main(["train", *made(optimizer={"name": optimizer, "lr": 0.003}, trainer__steps=3, **changes)]) == 0
        # once when it is asked whether it works here, which auto does too
        assert fake_apex.CALLS.count(step) == (4 if "kernels" in changes else 1)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_one() -> None:
    device = torch.device("cuda")
    backend = ApexBackend()
    if reason := backend.unavailable(device):
        pytest.skip(reason)
    functions = backend.functions(device, torch.float32)
    for width in (31, 320, 1280):
        x, weight = torch.randn(9, width, device=device), torch.randn(width, device=device)
        if "rms_norm" in functions:
            near(functions["rms_norm"], reference.rms_norm, x, weight, **EXACT)
            near(functions["layer_norm"], reference.layer_norm, x, weight, weight.clone(), **EXACT)
            near(functions["rms_norm"], reference.rms_norm, x.bfloat16(), weight, **HALF)
