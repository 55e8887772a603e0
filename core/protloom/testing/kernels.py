"""What every kernel backend promises: the values and gradients of the formulas, checked in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import global_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import Offsets
    from protloom.ops import Backend

RTOL, ATOL = 1e-4, 1e-5
LENGTHS = (9, 1, 30)


def _make(request: Request) -> Backend:
    model = request.component.load_config()
    backend: Backend = request.component.load_factory()(None if model is None else model(**request.options))
    return backend


def _functions(request: Request) -> Mapping[str, Callable[..., Any]]:
    """Returns what the backend offers on the device under test; nothing where it cannot run there."""
    import torch

    device = torch.device(request.extra.get("device", "cpu"))
    backend = _make(request)
    return {} if backend.unavailable(device) else backend.functions(device, torch.float32)


def _inputs(*shapes: tuple[int, ...], device: str) -> list[Tensor]:
    import torch

    with global_seeds(9):
        return [torch.randn(shape, dtype=torch.float64).to(device).requires_grad_() for shape in shapes]


def _agrees(
    request: Request,
    name: str,
    shapes: Sequence[tuple[int, ...]],
    formula: Callable[..., Any],
    call: Callable[..., Any],
) -> None:
    """Compares values and gradients of ``call(function, *inputs)`` in float32 with ``formula(*inputs)`` in float64."""
    import torch

    function = _functions(request).get(name)
    if function is None:
        return
    exact = _inputs(*shapes, device=str(request.extra.get("device", "cpu")))
    narrow = [x.detach().float().requires_grad_() for x in exact]
    wanted, found = formula(*exact), call(function, *narrow)
    require(found.shape == wanted.shape, f"{name} gives {list(found.shape)}, not {list(wanted.shape)}.")
    require(torch.allclose(found.double(), wanted, rtol=RTOL, atol=ATOL), f"{name} differs by {_gap(found, wanted)}.")
    weights = torch.linspace(0.5, 1.5, wanted.numel(), dtype=torch.float64, device=wanted.device).view(wanted.shape)
    one = torch.autograd.grad((wanted * weights).sum(), exact)
    two = torch.autograd.grad((found * weights.float()).sum(), narrow)
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        near = torch.allclose(b.double(), a, rtol=1e-3, atol=1e-4)
        require(near, f"The gradient of {name} by its argument {i} differs by {_gap(b, a)}.")


def _gap(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found.double() - wanted).abs().max().detach()):.2g}"


@promise("kernel")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("kernel")
def it_says_whether_it_runs(request: Request) -> None:
    """``unavailable`` gives None or a reason in one line, and asking changes nothing; it has name and priority."""
    import torch

    backend = _make(request)
    require(isinstance(backend.priority, int), f"priority is {backend.priority!r}.")
    require(backend.name == request.component.name, f"It calls itself {backend.name!r}.")
    for device in ("cpu", "cuda"):
        reason = backend.unavailable(torch.device(device))
        told = reason is None or (isinstance(reason, str) and bool(reason.strip()) and "\n" not in reason)
        require(told, f"On {device} it says {reason!r}.")


@promise("kernel")
def it_offers_functions_that_exist(request: Request) -> None:
    """``functions`` gives functions of :data:`protloom.ops.NAMES` alone, and at least one where it runs."""
    import torch

    from protloom.ops import NAMES

    found = _functions(request)
    unknown = sorted(set(found) - set(NAMES))
    require(not unknown, f"There is no function {unknown[:1]}.")
    device = torch.device(request.extra.get("device", "cpu"))
    require(bool(found) or _make(request).unavailable(device) is not None, "It offers none.")


@promise("kernel")
def norms_are_exact(request: Request) -> None:
    """``layer_norm`` and ``rms_norm`` are their formulas, with and without scale."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias

    _agrees(request, "rms_norm", [(7, 24), (24,)], rms, lambda f, x, w: f(x, w, eps=1e-6))
    _agrees(request, "rms_norm", [(7, 24)], lambda x: rms(x, x.new_ones(24)), lambda f, x: f(x, None, eps=1e-6))
    _agrees(request, "layer_norm", [(7, 24), (24,), (24,)], layer, lambda f, x, w, b: f(x, w, b, eps=1e-5))


@promise("kernel")
def activations_are_exact(request: Request) -> None:
    """``gelu`` is exact, ``gated_mlp`` is down(activation(gate(x)) * up(x)) for each activation."""
    import torch
    from torch.nn import functional as F

    _agrees(
        request,
        "gelu",
        [(5, 11)],
        lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        lambda f, x: f(x),
    )
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": lambda x: x * torch.sigmoid(x),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }
    for name, form in forms.items():

        def formula(
            x: Tensor, gate: Tensor, up: Tensor, down: Tensor, form: Callable[[Tensor], Tensor] = form
        ) -> Tensor:
            return (form(x @ gate.T) * (x @ up.T)) @ down.T

        shapes = [(6, 8), (12, 8), (12, 8), (8, 12)]
        _agrees(request, "gated_mlp", shapes, formula, lambda f, *a, name=name: f(*a, activation=name))


@promise("kernel")
def rotation_is_exact(request: Request) -> None:
    """``rotary`` turns the pair of features i and i + d/2 by the angle of the position."""
    import torch

    angles = torch.arange(10, dtype=torch.float64)[:, None] / torch.tensor([1.0, 7.0, 50.0], dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()

    def formula(x: Tensor) -> Tensor:
        first, second = x[..., :3], x[..., 3:]
        c, s = (a.to(x.device)[:, None] for a in (cos, sin))
        return torch.cat([first * c - second * s, second * c + first * s], dim=-1)

    def call(f: Callable[..., Tensor], x: Tensor) -> Tensor:
        return f(x, cos.float().to(x.device), sin.float().to(x.device))

    _agrees(request, "rotary", [(10, 2, 6)], formula, call)


@promise("kernel")
def attention_stays_within_sequences(request: Request) -> None:
    """``attention`` is softmax(scale q k + bias) v within each sequence: full, causal, windowed, with bias, crossed."""
    import torch

    from protloom.contracts import Offsets

    device = str(request.extra.get("device", "cpu"))
    total, reach = sum(LENGTHS), max(LENGTHS)
    cu = Offsets.of(LENGTHS, device)
    cases: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 3}]
    for options in cases:
        _agrees(
            request,
            "attention",
            [(total, 2, 8)] * 3,
            lambda q, k, v, o=options: _attention(q, k, v, cu, cu, 0.3, **o),
            lambda f, q, k, v, o=options: f(q, k, v, cu, cu, scale=0.3, **o),
        )
    _agrees(
        request,
        "attention",
        [(total, 2, 8), (total, 2, 8), (total, 2, 8), (2, 2 * reach - 1)],
        lambda q, k, v, b: _attention(q, k, v, cu, cu, 1.0, bias=b),
        lambda f, q, k, v, b: f(q, k, v, cu, cu, scale=1.0, bias=b),
    )
    others = Offsets.of((4, 11, 2), device)
    _agrees(
        request,
        "attention",
        [(total, 2, 8), (17, 2, 8), (17, 2, 8)],
        lambda q, k, v: _attention(q, k, v, cu, others, 0.3),
        lambda f, q, k, v: f(q, k, v, cu, others, scale=0.3),
    )
    function = _functions(request).get("attention")
    if function is not None:
        none, nobody = torch.zeros(0, 2, 8, device=device), Offsets.of((), device)
        found = function(none, none, none, nobody, nobody, scale=1.0)
        require(tuple(found.shape) == (0, 2, 8), f"No sequences give {list(found.shape)}.")


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Offsets,
    cu_k: Offsets,
    scale: float,
    *,
    causal: bool = False,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention by its formula, a sequence at a time."""
    import torch

    found = []
    for i in range(cu_q.n):
        queries = q[cu_q.bounds[i] : cu_q.bounds[i + 1]].transpose(0, 1)  # [H, Lq, d]
        keys = k[cu_k.bounds[i] : cu_k.bounds[i + 1]].transpose(0, 1)
        values = v[cu_k.bounds[i] : cu_k.bounds[i + 1]].transpose(0, 1)
        scores = scale * queries @ keys.transpose(1, 2)  # [H, Lq, Lk]
        offset = torch.arange(keys.shape[1], device=q.device) - torch.arange(queries.shape[1], device=q.device)[:, None]
        if bias is not None:
            scores = scores + bias[:, (bias.shape[1] - 1) // 2 + offset]
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if causal:
            hidden |= offset > 0
        if window is not None:
            hidden |= offset.abs() > window
        found.append((scores.masked_fill(hidden, -math.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(found)


@promise("kernel")
def cross_entropy_is_exact(request: Request) -> None:
    """``cross_entropy`` is −log softmax at the target, a value a row; no rows give none."""
    import torch

    targets = torch.tensor([0, 4, 2, 2, 1], device=str(request.extra.get("device", "cpu")))
    _agrees(
        request,
        "cross_entropy",
        [(5, 6)],
        lambda x: x.logsumexp(-1) - x.gather(1, targets[:, None])[:, 0],
        lambda f, x: f(x, targets),
    )
    function = _functions(request).get("cross_entropy")
    if function is not None:
        found = function(torch.zeros(0, 6, device=targets.device), targets[:0])
        require(tuple(found.shape) == (0,), f"No rows give {list(found.shape)}.")


@promise("kernel")
def clipping_scales_all_gradients_alike(request: Request) -> None:
    """``clip_grad_norm`` returns the joint norm and scales all gradients by one factor, only where it is above."""
    import torch

    function = _functions(request).get("clip_grad_norm")
    if function is None:
        return
    device = str(request.extra.get("device", "cpu"))
    for most in (0.5, 1e6):
        parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in ((4, 3), (7,))]
        with global_seeds(2):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape).to(device)
        before = [p.grad.clone() for p in parameters if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in before))
        told = float(function(parameters, most))
        require(math.isclose(told, norm, rel_tol=1e-5), f"The norm is {told:.6g}, not {norm:.6g}.")
        factor = min(1.0, most / norm)
        for parameter, gradient in zip(parameters, before, strict=True):
            near = parameter.grad is not None and torch.allclose(parameter.grad, factor * gradient, rtol=1e-4)
            require(near, f"Gradients were not scaled by {factor:.4g}.")


@promise("kernel")
def optimizers_follow_their_rules(request: Request) -> None:
    """``adamw`` and ``lamb`` move parameters as published, and keep the names and the scales of their groups."""
    import torch

    from protloom.ops import NAMES

    device = str(request.extra.get("device", "cpu"))
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    for name in sorted({"adamw", "lamb"} & set(NAMES)):
        function = _functions(request).get(name)
        if function is None:
            continue
        with global_seeds(6):
            starts = [torch.randn(shape) for shape in ((4, 3), (5,))]
            drawn = [[torch.randn(x.shape) for x in starts] for _ in range(4)]
        parameters = [torch.nn.Parameter(x.clone().to(device)) for x in starts]
        groups = [
            {"params": [p], "names": [str(i)], "lr_scale": 0.5, "weight_decay_scale": 1.0 - i}
            for i, p in enumerate(parameters)
        ]
        optimizer = function(groups, **options, **({"max_grad_norm": None} if name == "lamb" else {}))
        for group in optimizer.param_groups:
            require({"names", "lr_scale"} <= set(group), f"{name} lost names or lr_scale of a group.")
        for gradients in drawn:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone().to(device)
            optimizer.step()
        for i, parameter in enumerate(parameters):
            wanted = _moved(name, starts[i], [gradients[i] for gradients in drawn], decay=0.2 * (1 - i))
            near = torch.allclose(parameter.detach().cpu().double(), wanted, rtol=RTOL, atol=ATOL)
            require(near, f"After 4 steps of {name} a parameter differs by {_gap(parameter.detach().cpu(), wanted)}.")


def _moved(name: str, start: Tensor, gradients: Sequence[Tensor], *, decay: float) -> Tensor:
    """Returns a parameter after steps of a rule with rate 0.05, betas 0.8 and 0.9 and ε 1e-6, in float64."""
    import torch

    x, mean, square = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, gradient in enumerate(gradients, 1):
        g = gradient.double()
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g * g
        update = (mean / (1 - 0.8**t)) / ((square / (1 - 0.9**t)).sqrt() + 1e-6) + decay * x
        relative = name == "lamb" and decay != 0
        x = x - 0.05 * (x.norm() / update.norm() if relative else 1.0) * update
    return x
