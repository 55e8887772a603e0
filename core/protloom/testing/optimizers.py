"""What every optimizer promises."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import global_seeds

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


def _make(request: Request, *, lr: float | None = None) -> tuple[Optimizer, list[Tensor], Tensor]:
    """Returns the optimizer over a matrix and a bias, those, and where the quadratic has its minimum."""
    import torch

    from protloom import config

    options = {**request.options, **({} if lr is None else {"lr": lr})}
    chosen = config.choose("optimizer", request.component.full_name, options, request.registry)
    with global_seeds(4):
        goal = torch.randn(9, 5)
        matrix, bias = torch.nn.Parameter(torch.randn(8, 5)), torch.nn.Parameter(torch.randn(5))
    groups = [
        {"params": [matrix], "names": ["matrix"], "lr_scale": 1.0, "weight_decay_scale": 1.0},
        {"params": [bias], "names": ["bias"], "lr_scale": 1.0, "weight_decay_scale": 0.0},
    ]
    return chosen.component.load_factory()(chosen.config, groups), [matrix, bias], goal


def _step(optimizer: Optimizer, parameters: list[Tensor], goal: Tensor) -> float:
    """Does one step towards the minimum of a quadratic; returns its value before."""
    matrix, bias = parameters
    loss = (matrix - goal[:8]).square().sum() + (bias - goal[8]).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@promise("optimizer")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("optimizer")
def it_is_an_optimizer_with_a_rate(request: Request) -> None:
    """The factory gives a torch optimizer that keeps the groups and their keys; its options have ``lr``."""
    from torch.optim import Optimizer

    model = request.component.load_config()
    fields = {} if model is None else model.model_fields
    require("lr" in fields, "Its options have no 'lr', which schedules multiply.")
    optimizer, _, _ = _make(request)
    require(isinstance(optimizer, Optimizer), f"The factory returned a {type(optimizer).__name__}.")
    require(len(optimizer.param_groups) == 2, f"{len(optimizer.param_groups)} groups of two.")
    for group in optimizer.param_groups:
        lacking = {"names", "lr_scale", "lr"} - set(group)
        require(not lacking, f"A group lost {sorted(lacking)}.")


@promise("optimizer")
def a_quadratic_converges(request: Request) -> None:
    """From a random start, 500 steps bring the distance to the minimum of a quadratic below a tenth."""
    optimizer, parameters, goal = _make(request, lr=0.05)
    losses = [_step(optimizer, parameters, goal) for _ in range(500)]
    require(losses[-1] < 0.1 * losses[0], f"From {losses[0]:.3g} to {losses[-1]:.3g}.")


@promise("optimizer")
def the_rate_of_a_group_counts(request: Request) -> None:
    """A rate of 0 in a group, which a schedule may set, leaves its parameters where they are."""
    import torch

    optimizer, parameters, goal = _make(request)
    optimizer.param_groups[1]["lr"] = 0.0
    before = parameters[1].detach().clone()
    _step(optimizer, parameters, goal)
    require(torch.equal(parameters[1], before), "They moved.")


@promise("optimizer")
def its_state_survives_saving(request: Request) -> None:
    """A fresh optimizer with the saved state goes on bit for bit."""
    import torch

    optimizer, parameters, goal = _make(request)
    for _ in range(3):
        _step(optimizer, parameters, goal)
    other, copies, _ = _make(request)
    with torch.no_grad():
        for parameter, from_ in zip(copies, parameters, strict=True):
            parameter.copy_(from_)
    state: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(state)
    for _ in range(3):
        _step(optimizer, parameters, goal)
        _step(other, copies, goal)
    for one, two in zip(parameters, copies, strict=True):
        require(torch.equal(one, two), "After three further steps the parameters differ.")
