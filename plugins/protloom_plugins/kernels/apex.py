"""The kernel backend ``apex``: what NVIDIA's apex still fuses and this project uses: norms, AdamW, LAMB, clipping.

apex is built from NVIDIA's source and has no wheels; the ``apex`` on PyPI is another project. Its Python part imports
without its CUDA extensions and then falls back to plain PyTorch without a word, so this backend looks for the extension
modules themselves and runs each of them once before it offers them. PyTorch's own fused kernels have caught up with
most of it, so ``auto`` takes it only for functions that were measured to be faster on the kind of device at hand; a run
can name it (``kernels: apex``, or ``kernels: {rms_norm: apex}``).

Parameters keep PyTorch's layout, and so does the state of the optimizer: checkpoints move freely between backends.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from protloom.errors import UserError
from protloom.ops import Timing
from protloom_plugins.kernels import measured
from protloom_plugins.kernels.reference import torch_groups

WHERE = "build it from https://github.com/NVIDIA/apex as its README says (never from PyPI)"
NORMS, TENSORS = "fused_layer_norm_cuda", "amp_C"
"""The extension modules that hold the norms, and what works on many tensors at once."""


def norms() -> Any:
    """Returns apex's module of norm functions."""
    return importlib.import_module("apex.normalization.fused_layer_norm")


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """apex's fused RMS norm; statistics in fp32, the result in the type of ``x``."""
    if not x.numel():
        return x if weight is None else x * weight.to(x.dtype)  # its kernels cannot be launched over no rows
    shape = (x.shape[-1],)
    with _as_they_come(x):
        if weight is None:
            return _typed(norms().fused_rms_norm(x, shape, eps), x)
        return _typed(norms().fused_rms_norm_affine(*_alike(x, weight), shape, eps), x)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """apex's fused layer norm; statistics in fp32, the result in the type of ``x``."""
    if weight is not None and bias is None:
        bias = torch.zeros_like(weight)  # its affine form has both or none
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    if not x.numel():
        return x if weight is None or bias is None else x * weight.to(x.dtype) + bias.to(x.dtype)
    shape = (x.shape[-1],)
    with _as_they_come(x):
        if weight is None or bias is None:
            return _typed(norms().fused_layer_norm(x, shape, eps), x)
        return _typed(norms().fused_layer_norm_affine(*_alike(x, weight, bias), shape, eps), x)


def _as_they_come(x: Tensor) -> torch.autocast:
    """Keeps apex from casting its inputs to autocast's type: the residual stream stays in fp32."""
    return torch.autocast(x.device.type, enabled=False)


def _alike(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Returns all in the widest of their types.

    apex's forms of mixed types take fp32 rows with half weights and nothing else: for half rows their kernels write
    half numbers into a result that was made in the type of the weights (type_shim.h, ``INOUT_TYPES``).
    """
    wide = x.dtype
    for parameter in parameters:
        wide = torch.promote_types(wide, parameter.dtype)
    return [tensor.to(wide) for tensor in (x, *parameters)]


def _typed(found: Tensor, like: Tensor) -> Tensor:
    return found.to(like.dtype)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """apex's norm over many tensors at once, then PyTorch's scaling.

    apex's own clipping hands the factor to its kernel as a number, for which the host waits. Its norm takes gradients
    of fp32 and fp16; where there are others, the whole is PyTorch's.
    """
    ready = [p for p in parameters if p.grad is not None]
    _refuse_shards(ready)
    if not ready:
        return torch.zeros(())
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in ready:
        assert parameter.grad is not None
        by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad.detach())
    if not by_type.keys() <= {torch.float32, torch.float16}:
        return torch.nn.utils.clip_grad_norm_(ready, max_norm, foreach=True).detach()
    apply = importlib.import_module("apex.multi_tensor_apply").multi_tensor_applier
    norm_of = importlib.import_module(TENSORS).multi_tensor_l2norm
    overflow = torch.zeros(1, dtype=torch.int32, device=ready[0].device)
    norms_of = [apply(norm_of, overflow, [grads], False)[0].float() for grads in by_type.values()]
    norm = torch.linalg.vector_norm(torch.cat(norms_of))
    torch.nn.utils.clip_grads_with_norm_(ready, max_norm, norm)
    return norm


def adamw(
    groups: Sequence[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """apex's FusedAdam as AdamW, with the state of ``torch.optim.AdamW``: a step count for every parameter."""
    ready = torch_groups(groups, lr, weight_decay)
    _refuse_shards([p for group in ready for p in group["params"]])
    made: torch.optim.Optimizer = _counting("FusedAdam")(ready, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    return made


def lamb(
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float | None,
) -> torch.optim.Optimizer:
    """apex's FusedLAMB, with the state of ``torch.optim.AdamW``; a step leaves its updates in the gradients."""
    ready = torch_groups(groups, lr, weight_decay)
    _refuse_shards([p for group in ready for p in group["params"]])
    made: torch.optim.Optimizer = _counting("FusedLAMB")(
        ready,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        # it has no way to say that there is no limit
        max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm,
    )
    return made


def _refuse_shards(parameters: Sequence[Tensor]) -> None:
    if any(isinstance(p, DTensor) for p in parameters):
        raise UserError(
            "kernels: apex cannot work on sharded parameters (fsdp2): use trainer.parallel=ddp, or "
            "kernels: {adamw: torch, lamb: torch, clip_grad_norm: torch}"
        )


def _counting(name: str) -> Any:
    """Returns a subclass of one of apex's optimizers, which is there only where apex is."""
    base: Any = getattr(importlib.import_module("apex.optimizers"), name)

    class Counting(base):
        """The optimizer, with its counts kept as PyTorch keeps them.

        apex counts steps in a group, an integer there; PyTorch in the state of each parameter. Between two steps this
        one has no count in its groups: those of its parameters, one tensor a group, are all there is to save.
        """

        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, adam_w_mode=True, **options)
            self._counts = [torch.zeros(()) for _ in self.param_groups]

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Frees gradients; apex's own takes no argument."""
            for group in self.param_groups:
                for parameter in group["params"]:
                    if set_to_none or parameter.grad is None:
                        parameter.grad = None
                    else:
                        parameter.grad.zero_()

        def step(self, closure: Any = None) -> Any:
            """Does one step."""
            for group, count in zip(self.param_groups, self._counts, strict=True):
                group["step"] = int(count)
            loss = super().step(closure)
            for group, count in zip(self.param_groups, self._counts, strict=True):
                count.fill_(group.pop("step"))
                for parameter in group["params"]:
                    if parameter in self.state:
                        self.state[parameter]["step"] = count
            return loss

        def load_state_dict(self, state_dict: Any) -> None:
            """Takes the state of this class or of ``torch.optim.AdamW``."""
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
            super().load_state_dict(state_dict)
            for number, (group, before) in enumerate(zip(self.param_groups, own, strict=True)):
                for key, value in before.items():
                    group.setdefault(key, value)  # options that PyTorch's has no name for
                group.pop("step", None)
                states = [self.state[p] for p in group["params"] if p in self.state]
                steps = {float(state["step"]) for state in states if "step" in state}
                if len(steps) > 1:
                    raise UserError(
                        "kernels: apex counts the steps of a group of parameters together, but this checkpoint has "
                        f"{len(steps)} counts in one: go on with kernels: {{adamw: torch, lamb: torch}}"
                    )
                self._counts[number] = torch.tensor(steps.pop() if steps else 0.0)
                for state in states:
                    state["step"] = self._counts[number]

    return Counting


class ApexBackend:
    """Offers what apex was built with, on CUDA.

    Attributes:
        name: of the component.
        priority: below that of ``torch``: ``auto`` takes it only by a measurement.
    """

    name = "apex"
    priority = -10
    devices = ("cuda",)

    def __init__(self, config: Any = None) -> None:
        del config
        self._found: dict[str, tuple[dict[str, Callable[..., Any]], str]] = {}

    def unavailable(self, device: torch.device) -> str | None:
        """Returns None if an extension works on the device, else what is missing, in one line."""
        functions, reason = self._probe(device)
        return None if functions else reason

    def measured(self, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
        """Returns what was measured of a function on this kind of device."""
        return measured.timing(self.name, function, device, dtype)

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """Returns the functions of those extensions that work."""
        del dtype
        return self._probe(device)[0]

    def installation(self) -> tuple[bool, str]:
        """Tells NVIDIA's apex from the unrelated package of that name on PyPI; imports neither."""
        wrong = _wrong_package()
        if wrong is not None:
            return False, wrong
        if find_spec("apex") is None:
            return True, "not installed (optional: NVIDIA's fused kernels; never from PyPI)"
        built = [name for name in (NORMS, TENSORS) if find_spec(name) is not None]
        if not built:
            return False, f"NVIDIA's apex without its CUDA extensions, so nothing is fused: {WHERE}"
        return True, f"NVIDIA's, with {', '.join(built)}"

    def _probe(self, device: torch.device) -> tuple[dict[str, Callable[..., Any]], str]:
        """Returns what works on a device, and why the rest does not; each extension is run once."""
        key = str(device)
        if key not in self._found:
            offered: dict[str, Callable[..., Any]] = {}
            reasons: list[str] = []
            parts: list[tuple[str, Callable[[torch.device], None], dict[str, Callable[..., Any]]]] = [
                (NORMS, _try_norms, {"rms_norm": rms_norm, "layer_norm": layer_norm}),
                (TENSORS, _try_tensors, {"adamw": adamw, "lamb": lamb, "clip_grad_norm": clip_grad_norm}),
            ]
            for extension, attempt, functions in parts:
                reason = self._reason(device, extension, attempt)
                if reason is None:
                    offered |= functions
                else:
                    reasons.append(reason)
            self._found[key] = offered, "; ".join(dict.fromkeys(reasons))
        return self._found[key]

    def _reason(self, device: torch.device, extension: str, attempt: Callable[[torch.device], None]) -> str | None:
        if device.type not in self.devices:
            return f"apex runs on {' and '.join(self.devices)}, not on {device.type}"
        if find_spec("apex") is None:
            return f"apex is not installed: {WHERE}"
        wrong = _wrong_package()
        if wrong is not None:
            return wrong
        if find_spec(extension) is None:
            return f"apex was built without {extension}: {WHERE}"
        try:
            attempt(device)
        except Exception as error:
            # an extension of another PyTorch or CUDA shows only when it is loaded or run, by whatever error
            return f"apex's {extension} does not work here ({' '.join(str(error).split())[:200]}): {WHERE}"
        return None


def _wrong_package() -> str | None:
    """Returns what to do if the installed ``apex`` is not NVIDIA's, None if it is, or if there is none."""
    spec = find_spec("apex")
    if spec is None or "apex.normalization" in sys.modules:
        return None
    if any((Path(place) / "normalization").is_dir() for place in spec.submodule_search_locations or ()):
        return None
    return (
        f"the installed 'apex' is PyPI's unrelated web toolkit, not NVIDIA's kernels: pip uninstall apex, and {WHERE}"
    )


def _try_norms(device: torch.device) -> None:
    x = torch.ones(2, 8, device=device)
    found = rms_norm(x, torch.full((8,), 2.0, device=device), eps=0.0)
    if not torch.allclose(found, 2 * x):
        raise RuntimeError("its RMS norm of ones is not the weight")


def _try_tensors(device: torch.device) -> None:
    makers: tuple[Callable[..., torch.optim.Optimizer], ...] = (adamw, partial(lamb, max_grad_norm=None))
    for make in makers:
        parameter = torch.nn.Parameter(torch.zeros(4, device=device))
        parameter.grad = torch.ones_like(parameter)
        groups = [{"params": [parameter], "names": ["probe"], "lr_scale": 1.0, "weight_decay_scale": 0.0}]
        make(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.0).step()
        # the first step of both is lr in the direction of the sign
        if not torch.allclose(parameter.detach(), torch.full_like(parameter, -1.0), atol=1e-3):
            raise RuntimeError("its first step of Adam or LAMB is wrong")
    parameter = torch.nn.Parameter(torch.zeros(4, device=device))
    parameter.grad = torch.ones_like(parameter)
    if not torch.allclose(clip_grad_norm([parameter], 1.0), parameter.new_full((), 2.0)):
        raise RuntimeError("its norm of four ones is not 2")
