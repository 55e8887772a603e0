"""A stand-in for NVIDIA's apex, in torch and on CPU, with the quirks of the real one that an adapter must know.

- Norms want rows and weights of one type. None can be launched over no rows.
- Under autocast its functions would cast their inputs.
- FusedAdam counts steps in the group as an integer, keeps fp32 moments, and its ``zero_grad`` takes no argument.
- FusedLAMB counts so too, always has a limit of the gradients' norm, and leaves its updates in the gradients.
- The norm of many tensors takes lists of one type, fp32 or fp16, and gives a tensor of one number.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

CALLS: list[str] = []
"""Which of its functions were called, in order."""


def _checked(name: str, x: Tensor, *parameters: Tensor) -> Tensor:
    CALLS.append(name)
    if torch.is_autocast_enabled(x.device.type):
        raise RuntimeError("autocast is on: the real one would cast its inputs now")
    if not x.numel():
        raise RuntimeError("CUDA error: invalid configuration argument")
    if any(p.dtype != x.dtype for p in parameters):
        raise RuntimeError("expected scalar type BFloat16 but found Float")
    return x.float()


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _standard(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return _rms(centred, eps)


def fused_rms_norm(x: Tensor, shape: Any, eps: float = 1e-6) -> Tensor:
    return _rms(_checked("fused_rms_norm", x), eps).to(x.dtype)


def fused_rms_norm_affine(x: Tensor, weight: Tensor, shape: Any, eps: float = 1e-6) -> Tensor:
    return (_rms(_checked("fused_rms_norm_affine", x, weight), eps) * weight.float()).to(x.dtype)


def fused_layer_norm(x: Tensor, shape: Any, eps: float = 1e-6) -> Tensor:
    return _standard(_checked("fused_layer_norm", x), eps).to(x.dtype)


def fused_layer_norm_affine(x: Tensor, weight: Tensor, bias: Tensor, shape: Any, eps: float = 1e-6) -> Tensor:
    wide = _checked("fused_layer_norm_affine", x, weight, bias)
    return (_standard(wide, eps) * weight.float() + bias.float()).to(x.dtype)


class FusedAdam(torch.optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})
        self.decoupled = adam_w_mode

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        CALLS.append("FusedAdam.step")
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int, "the kernel takes an int"
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
                state["exp_avg"].lerp_(p.grad.float(), 1 - b1)
                state["exp_avg_sq"].mul_(b2).addcmul_(p.grad.float(), p.grad.float(), value=1 - b2)
                mean = state["exp_avg"] / (1 - b1 ** group["step"] if group["bias_correction"] else 1)
                square = state["exp_avg_sq"] / (1 - b2 ** group["step"] if group["bias_correction"] else 1)
                assert self.decoupled
                update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p
                p.sub_(group["lr"] * update)


class FusedLAMB(torch.optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        grad_averaging: bool = True,
        set_grad_none: bool = True,
        max_grad_norm: float = 1.0,
        use_nvlamb: bool = False,
    ) -> None:
        assert bias_correction
        assert adam_w_mode
        assert grad_averaging
        assert not use_nvlamb
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        more = {"weight_decay": weight_decay, "grad_averaging": grad_averaging, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**defaults, **more})

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        CALLS.append("FusedLAMB.step")
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(p.dtype not in (torch.float32, torch.float16) for p in every):
            raise RuntimeError("FusedLAMB only support fp16 and fp32.")
        largest = self.defaults["max_grad_norm"]
        total = torch.stack([p.grad.norm() for p in every]).norm()
        clip = total / largest if total > largest else 1.0
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int, "the kernel takes an int"
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                g = p.grad / clip
                state["exp_avg"].mul_(b1).add_((1 - b1) * g)
                state["exp_avg_sq"].mul_(b2).add_((1 - b2) * g * g)
                mean, square = (
                    state["exp_avg"] / (1 - b1 ** group["step"]),
                    state["exp_avg_sq"] / (1 - b2 ** group["step"]),
                )
                p.grad.copy_(mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p)
                ratio = group["lr"]
                if group["weight_decay"] != 0 and float(p.grad.norm()) != 0 and float(p.norm()) != 0:
                    ratio = group["lr"] * float(p.norm() / p.grad.norm())
                p.sub_(ratio * p.grad)


def multi_tensor_l2norm(chunk: int, overflow: Tensor, lists: list[list[Tensor]], per_tensor: bool) -> Any:
    CALLS.append("multi_tensor_l2norm")
    (grads,) = lists
    assert overflow.dtype == torch.int32
    assert not per_tensor
    if len({g.dtype for g in grads}) != 1 or grads[0].dtype not in (torch.float32, torch.float16):
        raise RuntimeError("multi_tensor_l2norm not implemented for these types")
    return torch.stack([g.float().norm() for g in grads]).norm().view(1), torch.empty(0)


def multi_tensor_applier(function: Any, overflow: Tensor, lists: list[list[Tensor]], *rest: Any) -> Any:
    return function(2048 * 32, overflow, lists, *rest)


def install(patch: pytest.MonkeyPatch, *, extensions: tuple[str, ...] = ("fused_layer_norm_cuda", "amp_C")) -> None:
    """Puts the stand-in where imports find it, for the time of a test."""
    CALLS.clear()
    tree: dict[str, dict[str, Any]] = {
        "apex": {},
        "apex.normalization": {},
        "apex.normalization.fused_layer_norm": {
            f.__name__: f
            for f in (
                fused_rms_norm,
                fused_rms_norm_affine,
                fused_layer_norm,
                fused_layer_norm_affine,
            )
        },
        "apex.optimizers": {"FusedAdam": FusedAdam, "FusedLAMB": FusedLAMB},
        "apex.multi_tensor_apply": {"multi_tensor_applier": multi_tensor_applier},
        **{name: {"multi_tensor_l2norm": multi_tensor_l2norm} if name == "amp_C" else {} for name in extensions},
    }
    for name, members in tree.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []  # type: ignore[attr-defined]
        for key, value in members.items():
            setattr(module, key, value)
        patch.setitem(sys.modules, name, module)
