"""Every built-in backend, wherever it runs, against the reference in float64: random shapes, values and gradients.

A backend that is registered later is covered without a change here. What needs a GPU is skipped without one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_places import Place, enter, places
from tiny_run import Options, options_in
from torch import Tensor

from protloom import config, ops
from protloom.assembly import assemble
from protloom.contracts import Offsets, StepContext
from protloom.distributed import World
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device
from protloom_plugins.kernels import reference

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, behind masks

FP32, BF16 = torch.float32, torch.bfloat16
MODES = {"fp32": (FP32, False), "bf16": (BF16, False), "autocast": (FP32, True)}
"""Name -> type of the inputs, and whether autocast to bf16 is on."""
NEAR = {FP32: (1e-5, 1e-5), BF16: (1.6e-2, 3e-3)}
# products of rounded intermediates cancel, so small sums carry the rounding of large terms
COMPOSED = {FP32: (1e-5, 2e-5), BF16: (5e-2, 4e-2)}
Inputs = Mapping[str, Tensor]


@pytest.fixture(params=places())
def place(request: pytest.FixtureRequest) -> Place:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def backend(place: Place, monkeypatch: pytest.MonkeyPatch) -> ops.Backend:
    return enter(place, monkeypatch)


def function_of(backend: ops.Backend, place: Place, name: str) -> Callable[..., Tensor]:
    found = backend.functions(place.device, FP32).get(name)
    if found is None:
        pytest.skip(f"{backend.name} leaves {name} to others")
    return found


def gradients(function: Callable[..., Tensor], inputs: Inputs, leave: AbstractContextManager[Any]) -> Inputs:
    """Returns the output, and the gradient of a weighted sum of it by every floating input."""
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    with leave:
        out = function(**leaves)
    weights = torch.linspace(-1, 1, max(out.numel(), 1), dtype=torch.float64)[: out.numel()].view(out.shape)
    (out.double() * weights.to(out.device)).sum().backward()
    found = {f"gradient by {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {"output": out.detach(), **found}


def agree(
    place: Place,
    mode: str,
    function: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    inputs: Inputs,
    *,
    composed: bool = False,
    halved: bool = False,
) -> None:
    """Compares with the formula in float64 on the same rounded numbers.

    ``composed`` allows for rounding between steps, ``halved`` for inputs that autocast rounds to bf16.
    """
    dtype, autocast = MODES[mode]
    rounded = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    exact = {k: x.double() if x.is_floating_point() else x for k, x in rounded.items()}
    placed = {k: x.to(place.device) for k, x in rounded.items()}
    assert all(placed[k].stride() == x.stride() for k, x in inputs.items()), "the layout is part of the case"
    off = torch.autocast("cpu", enabled=False)
    found = gradients(function, placed, torch.autocast(place.device.type, dtype=BF16, enabled=autocast))
    wanted = gradients(formula, exact, off)
    assert found.keys() == wanted.keys()
    precision = BF16 if dtype == BF16 or (autocast and halved) else FP32
    rtol, atol = (COMPOSED if composed else NEAR)[precision]
    for name, value in found.items():
        want = wanted[name]
        assert value.shape == want.shape, name
        assert name == "output" or value.dtype == dtype, name
        # meant for numbers up to 1; what is summed over rows has the rounding of each
        scale = max(1.0, float(want.abs().max()) if want.numel() else 0.0)
        rows = want.numel() and max(1, wanted["output"].numel() // want.numel())
        bound = atol * scale * math.sqrt(max(1, rows))
        torch.testing.assert_close(value.cpu().double(), want, rtol=rtol, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def draw(rng: random.Random, *shape: int, scale: float = 1.0, strided: bool = False) -> Tensor:
    """Returns normal numbers; ``strided`` ones lie in memory with another dimension innermost."""
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    if strided:
        return scale * torch.randn(*reversed(shape), generator=generator).permute(*reversed(range(len(shape))))
    return scale * torch.randn(*shape, generator=generator)


def rows_of(rng: random.Random) -> tuple[int, ...]:
    """Returns leading dimensions: none or many rows, one or two dimensions."""
    return rng.choice([(0,), (1,), (rng.randint(2, 70),), (rng.randint(1, 4), rng.randint(1, 9)), (0, 3)])


WIDTHS = (1, 2, 7, 31, 64, 320, 333)
SEEDS = range(6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norms(place: Place, backend: ops.Backend, name: str, seed: int, mode: str) -> None:
    rng = random.Random(f"{name} {seed}")
    width = rng.choice(WIDTHS)
    # large values as in the last blocks of T5; in fp32 a mean far above the spread would cost digits in any form
    x = draw(rng, *rows_of(rng), width, scale=rng.choice([1.0, 3e3]), strided=rng.random() < 0.3) + rng.choice([0, 1])
    names = ["weight", "bias"][: 1 if name == "rms_norm" else 2]
    given = {p: draw(rng, width) for p in names if rng.random() < 0.7}
    # of one number nothing is left but rounding, which ε divides
    eps = 1e-6 if width > 2 else 0.3
    absent = dict.fromkeys(set(names) - set(given))
    function, formula = function_of(backend, place, name), getattr(reference, name)
    agree(
        place,
        mode,
        lambda **a: function(**a, **absent, eps=eps),
        lambda **a: formula(**a, **absent, eps=eps),
        {"x": x, **given},
        composed=mode == "bf16",  # PyTorch's own layer norm adds up gradients of bf16 parameters in bf16
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_gelu(place: Place, backend: ops.Backend, seed: int, mode: str) -> None:
    rng = random.Random(f"gelu {seed}")
    x = draw(rng, *rows_of(rng), rng.choice(WIDTHS), scale=rng.choice([1.0, 50.0]), strided=rng.random() < 0.3)
    agree(place, mode, function_of(backend, place, "gelu"), reference.gelu, {"x": x})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_mlp(place: Place, backend: ops.Backend, activation: str, seed: int, mode: str) -> None:
    rng = random.Random(f"gated {activation} {seed}")
    width, inner = rng.choice(WIDTHS), rng.choice(WIDTHS)
    inputs = {
        "x": draw(rng, *rows_of(rng), width, strided=rng.random() < 0.3),
        "gate": draw(rng, inner, width, scale=width**-0.5),
        "up": draw(rng, inner, width, scale=width**-0.5),
        "down": draw(rng, width, inner, scale=inner**-0.5),
    }
    function = function_of(backend, place, "gated_mlp")
    agree(
        place,
        mode,
        lambda **a: function(**a, activation=activation),
        lambda **a: reference.gated_mlp(**a, activation=activation),
        inputs,
        composed=True,
        halved=True,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_rotary(place: Place, backend: ops.Backend, seed: int, mode: str) -> None:
    rng = random.Random(f"rotary {seed}")
    tokens, heads, size = rng.choice([0, 1, 40]), rng.randint(1, 5), 2 * rng.randint(1, 12)
    angles = draw(rng, tokens, size // 2, scale=100.0)
    function = function_of(backend, place, "rotary")
    cos, sin = angles.cos().to(place.device), angles.sin().to(place.device)
    agree(
        place,
        mode,
        lambda x: function(x, cos, sin),
        lambda x: reference.rotary(x, angles.cos().double(), angles.sin().double()),
        {"x": draw(rng, tokens, heads, size, scale=rng.choice([1.0, 30.0]), strided=rng.random() < 0.5)},
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_cross_entropy(place: Place, backend: ops.Backend, seed: int, mode: str) -> None:
    rng = random.Random(f"entropy {seed}")
    rows, classes = rng.choice([0, 1, 50, 129]), rng.choice([1, 2, 27, 33, 256])
    logits = draw(rng, rows, classes, scale=rng.choice([1.0, 30.0]), strided=rng.random() < 0.3)
    targets = torch.tensor([rng.randrange(classes) for _ in range(rows)], dtype=torch.int64)
    function = function_of(backend, place, "cross_entropy")
    agree(place, mode, function, reference.cross_entropy, {"logits": logits, "targets": targets})


def lengths_of(rng: random.Random) -> list[int]:
    """Returns lengths of sequences: of one token, of none, some short, at times a long one."""
    found = [rng.choice([0, 1, 1, 2, 8, rng.randint(3, 60)]) for _ in range(rng.randint(1, 6))]
    return [*found, 600] if rng.random() < 0.3 else found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(14))
def test_attention(place: Place, backend: ops.Backend, seed: int, mode: str) -> None:
    rng = random.Random(f"attention {seed}")
    heads, size = rng.randint(1, 4), rng.choice([1, 8, 16, 24])
    lengths = lengths_of(rng)
    options: dict[str, Any] = {
        "causal": rng.random() < 0.4,
        "window": rng.choice([None, None, 0, 5]),
        "scale": rng.choice([1.0, size**-0.5]),
    }
    crossed = rng.random() < 0.3
    others = [rng.choice([0, 1, n, 30]) for n in lengths] if crossed else lengths
    cus = {name: (Offsets.of(lengths, name), Offsets.of(others, name)) for name in {"cpu", place.device.type}}
    inputs = {
        name: draw(rng, sum(n), heads, size, strided=rng.random() < 0.3)
        for name, n in (("q", lengths), ("k", others), ("v", others))
    }
    if rng.random() < 0.6:
        # R may be larger than the longest sequence
        reach = max([*lengths, *others, 1]) + rng.choice([0, 3, 40])
        inputs["bias"] = draw(rng, heads, 2 * reach - 1)
    function = function_of(backend, place, "attention")

    def call(f: Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
        return lambda **a: f(cu_q=cus[kind][0], cu_k=cus[kind][1], **a, **options)

    agree(
        place,
        mode,
        call(function, place.device.type),
        call(reference.attention, "cpu"),
        inputs,
        composed=True,
        halved=True,
    )


@pytest.mark.parametrize("largest", [0.5, 1e6, math.inf])
def test_clip_grad_norm(place: Place, backend: ops.Backend, largest: float) -> None:
    function, rng = function_of(backend, place, "clip_grad_norm"), random.Random(1)
    drawn = [draw(rng, *shape, scale=10.0) for shape in ((3, 4), (1,), (5,))]
    parameters = [torch.nn.Parameter(torch.zeros_like(g, device=place.device)) for g in (*drawn, torch.ones(2))]
    for parameter, gradient in zip(parameters, drawn, strict=False):
        parameter.grad = gradient.clone().to(place.device)
    norm = torch.cat([g.double().flatten() for g in drawn]).norm()
    found = function(iter(parameters), largest)
    assert float(found) == pytest.approx(float(norm), rel=1e-6)
    for parameter, gradient in zip(parameters, drawn, strict=False):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.cpu(), gradient * min(1.0, largest / float(norm)))
    assert parameters[-1].grad is None
    assert float(function([], 1.0)) == 0


OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1},
    "lamb": {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1, "max_grad_norm": 1.5},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_of_optimizers(place: Place, backend: ops.Backend, name: str) -> None:
    def steps(make: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        rng = random.Random(name)
        shapes = ((40, 3), (7,), (1, 1), (300,))
        parameters = [torch.nn.Parameter(draw(rng, *s).to(device, dtype)) for s in shapes]
        groups = [
            {"params": parameters[::2], "names": ["a", "c"], "lr_scale": 0.5, "weight_decay_scale": 1.0},
            {"params": parameters[1::2], "names": ["b", "d"], "lr_scale": 1.0, "weight_decay_scale": 0.0},
        ]
        optimizer = make(groups, **OPTIMIZERS[name])
        for _ in range(20):
            for parameter in parameters:
                parameter.grad = draw(rng, *parameter.shape, scale=0.1).to(device, dtype)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return [p.detach().cpu().double() for p in parameters]

    found = steps(function_of(backend, place, name), FP32, place.device)
    for one, two in zip(found, steps(getattr(reference, name), torch.float64, torch.device("cpu")), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the whole model


@pytest.fixture
def options(tmp_path: Path, small_fasta: Path) -> Options:
    return options_in(tmp_path, small_fasta)


def loss_of(overrides: list[str], registry: Registry, device: torch.device, *, exact: bool) -> dict[str, Tensor]:
    """Returns the loss of the first step of a run, and its gradients; ``exact``: in float64."""
    resolved = config.load(None, overrides, registry)
    run = assemble(resolved, registry, World(0, 1, device, "none"), initial=None)
    if exact:
        run.module.double()
    batches = run.host_step(0)
    divisors: dict[Any, float] = {}
    for key in {key for batch in batches for key in batch.counts}:
        divisors[key] = float(sum(batch.counts.get(key, 0) for batch in batches))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        ctx = StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)
        loss = run.module(to_device(batch, device), run.mixture.weights(0), divisors, ctx).loss
        loss.backward()
        total = total + loss.detach().double()
    found = {"loss": total}
    found |= {name: p.grad.double() for name, p in run.module.named_parameters() if p.grad is not None}
    return {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "extra"),
    [("esm2:tiny", {}), ("amplify:tiny", {}), ("ankh:tiny", {"architecture.activation": "gelu_tanh"})],
    ids=["esm2", "amplify", "ankh"],
)
def test_the_loss_is_the_same_with_every_backend(
    place: Place,
    backend: ops.Backend,
    architecture: str,
    extra: Mapping[str, Any],
    precision: str,
    options: Options,
    registry: Registry,
) -> None:
    named = architecture if not extra else {"name": architecture, "activation": "gelu_tanh"}

    def made(kernels: str, **changes: Any) -> list[str]:
        return options(architecture=named, kernels=kernels, seed=3, **changes)

    found = loss_of(made(place.backend, trainer__precision=precision), registry, place.device, exact=False)
    wanted = loss_of(made("reference"), registry, torch.device("cpu"), exact=True)
    assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5 if precision == "fp32" else 2e-2)
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for name, value in wanted.items() if name != "loss")
    for name, value in found.items():
        # of gradients in bf16 the size is compared, which eight bits leave
        bound = 1e-4 if precision == "fp32" else 5e-2
        torch.testing.assert_close(
            value, wanted[name], rtol=bound, atol=bound * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
