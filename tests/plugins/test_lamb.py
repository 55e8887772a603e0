"""LAMB against its formula, in both forms, whole and sharded, and through a run that stops and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_run import losses, options_in
from torch import Tensor, nn

from protloom import training_state
from protloom.cli import main
from protloom.plugins import Registry
from protloom_plugins.kernels import native, reference
from protloom_plugins.optimizers.lamb import LambConfig, build

SHAPES = {"matrix": (6, 4), "zero": (3, 2), "norm": (5,)}
OPTIONS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    drawn["zero"].zero_()  # has no norm that a step could be relative to
    return {name: nn.Parameter(value) for name, value in drawn.items()}


def groups(own: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "params": [p for p in own.values() if (p.ndim >= 2) == decay],
            "names": [n for n, p in own.items() if (p.ndim >= 2) == decay],
            "lr_scale": 1.0,
            "weight_decay_scale": float(decay),
        }
        for decay in (True, False)
    ]


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def train(own: dict[str, Any], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for name, gradient in gradients(t).items():
            # one parameter takes no part in every third step
            own[name].grad = None if name == "norm" and t % 3 == 0 else gradient.to(own[name].dtype)
        optimizer.step()


def formula(limit: float | None, steps: int) -> dict[str, Tensor]:
    """You et al. 2020, algorithm 2, in float64, parameter by parameter."""
    x = {name: p.detach().double() for name, p in parameters().items()}
    m = {name: torch.zeros_like(value) for name, value in x.items()}
    v = {name: torch.zeros_like(value) for name, value in x.items()}
    counts = dict.fromkeys(x, 0)
    for t in range(1, steps + 1):
        there = {n: g.double() for n, g in gradients(t).items() if not (n == "norm" and t % 3 == 0)}
        total = torch.cat([g.flatten() for g in there.values()]).norm()
        for name, gradient in there.items():
            g = gradient / max(1.0, float(total) / limit) if limit else gradient
            counts[name] += 1
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            decay = 0.0 if name == "norm" else 0.1
            r = (m[name] / (1 - 0.8 ** counts[name])) / ((v[name] / (1 - 0.95 ** counts[name])).sqrt() + 1e-6)
            u = r + decay * x[name]
            ratio = x[name].norm() / u.norm() if decay and x[name].norm() > 0 else 1.0
            x[name] = x[name] - 0.02 * ratio * u
    return x


@pytest.mark.parametrize("limit", [None, 1.3])
@pytest.mark.parametrize("make", [native.lamb, reference.lamb], ids=["torch", "reference"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_the_steps_of_the_paper(make: Any, limit: float | None, dtype: torch.dtype, near: float) -> None:
    own = parameters(dtype)
    train(own, make(groups(own), **OPTIONS, max_grad_norm=limit), range(1, 16))
    for name, wanted in formula(limit, 15).items():
        torch.testing.assert_close(own[name].detach().double(), wanted, rtol=near, atol=near)


def test_a_matrix_moves_by_its_rate_whatever_its_scale() -> None:
    for scale in (1e-3, 1.0, 1e3):
        matrix = nn.Parameter(scale * torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
        before = matrix.detach().clone()
        group = {"params": [matrix], "names": ["m"], "lr_scale": 1.0, "weight_decay_scale": 1.0}
        optimizer = build(LambConfig(lr=0.01), [group])
        matrix.grad = 1e-6 * torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
        optimizer.step()
        assert float((matrix.detach() - before).norm() / before.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("make", [native.lamb, reference.lamb], ids=["torch", "reference"])
def test_no_gradients_at_all(make: Any) -> None:
    own = parameters()
    optimizer = make(groups(own), **OPTIONS, max_grad_norm=1.0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(own.values(), parameters().values(), strict=True))


@pytest.mark.parametrize("make", [native.lamb, reference.lamb], ids=["torch", "reference"])
def test_sharded_parameters_move_as_whole_ones(make: Any) -> None:
    """DTensors on a mesh of one process; two processes are in the slow test below."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = _sharded(init_device_mesh("cpu", (1,)), make)
    finally:
        dist.destroy_process_group()
    for name, wanted in formula(1.3, 6).items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-5)


def _sharded(mesh: Any, make: Any) -> dict[str, Tensor]:
    """Returns the parameters, whole, after six steps of sharded ones."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def spread(x: Tensor) -> Tensor:
        return distribute_tensor(x.detach(), mesh, [Shard(0)])

    own = {name: nn.Parameter(spread(p)) for name, p in parameters().items()}
    optimizer = make(groups(own), **OPTIONS, max_grad_norm=1.3)
    for t in range(1, 7):
        for name, gradient in gradients(t).items():
            own[name].grad = None if name == "norm" and t % 3 == 0 else spread(gradient)
        optimizer.step()
    return {name: p.detach().full_tensor() for name, p in own.items()}  # type: ignore[attr-defined]


def _one_of_two(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = _sharded(init_device_mesh("cpu", (2,)), native.lamb)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_move_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, wanted in formula(1.3, 6).items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [("lamb", "lamb"), ("reference", "lamb"), ("lamb", "reference")])
def test_going_on_is_the_same_as_not_stopping(tmp_path: Path, before: str, after: str) -> None:
    makers = {"lamb": native.lamb, "reference": reference.lamb}
    whole, first, second = parameters(), parameters(), parameters()
    train(whole, native.lamb(groups(whole), **OPTIONS, max_grad_norm=None), range(1, 11))
    one = makers[before](groups(first), **OPTIONS, max_grad_norm=None)
    train(first, one, range(1, 6))
    training_state.write_whole(tmp_path, training_state.collect(nn.Module(), one))
    for name, p in second.items():
        p.data.copy_(first[name].data)
    two = makers[after](groups(second), **OPTIONS, max_grad_norm=None)
    training_state.note_initial(two)
    training_state.restore(training_state.read(tmp_path), objectives=nn.Module(), optimizer=two)
    train(second, two, range(6, 11))
    for name, p in whole.items():
        torch.testing.assert_close(p, second[name], rtol=1e-5, atol=1e-6)
        assert before != after or torch.equal(p, second[name])


def test_a_run_by_lamb(tmp_path: Path, small_fasta: Path) -> None:
    made = options_in(tmp_path, small_fasta)
    optimizer = {"name": "lamb", "lr": 0.02, "max_grad_norm": 5.0}
    assert main(["train", *made(optimizer=optimizer, optimizer__lr=0.02, trainer__steps=20)]) == 0
    found = losses(tmp_path / "run")
    assert found[20] < found[1]


def test_comes_through_its_entry_point(registry: Registry) -> None:
    component = registry.resolve("optimizer", "lamb")
    assert component.load_factory() is build
    assert component.load_config() is LambConfig


@pytest.mark.parametrize(
    "options", [{"lr": 0}, {"eps": -1}, {"max_grad_norm": 0}, {"betas": [0.9, 1]}, {"fused": True}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LambConfig.model_validate(options)
