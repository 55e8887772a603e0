"""Adafactor against its formula, and through a run that stops and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from protloom import training_state
from protloom_plugins.optimizers.adafactor import AdafactorConfig, build


def groups(parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {
            "params": [p for p in parameters.values() if (p.ndim >= 2) == decay],
            "names": [n for n, p in parameters.items() if (p.ndim >= 2) == decay],
            "lr_scale": 1.0,
            "weight_decay_scale": float(decay),
        }
        for decay in (True, False)
    ]


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (6, 4), "tall": (9, 1), "norm": (5,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients(step: int, scale: float = 1e-5) -> dict[str, Tensor]:
    """Gradients as small as those of a mean over many tokens; a row of zeros is a token that did not occur."""
    generator = torch.Generator().manual_seed(100 + step)
    drawn = {name: torch.randn(p.shape, generator=generator) * scale for name, p in parameters().items()}
    drawn["matrix"][2] = 0.0
    return drawn


class Formula:
    """Shazeer and Stern 2018, algorithms 4 and 5 in T5X's form, in float64, for one tensor."""

    def __init__(self, start: Tensor) -> None:
        self.x = start.detach().double().clone()
        self.row = self.column = self.full = 0.0  # type: Any

    def step(self, gradient: Tensor, t: int, lr: float) -> None:
        g = gradient.double()
        keep = 1 - t**-0.8
        squared = g * g + 1e-30
        if g.ndim == 2:
            self.row = keep * self.row + (1 - keep) * squared.mean(1, keepdim=True)
            self.column = keep * self.column + (1 - keep) * squared.mean(0, keepdim=True)
            second = self.row * self.column / self.row.mean()
        else:
            self.full = keep * self.full + (1 - keep) * squared
            second = self.full
        update = g / second.sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        size = max(1e-3, float(self.x.square().mean().sqrt()))
        self.x = self.x - lr * size * update


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_the_steps_of_the_paper(scale: float) -> None:
    own = parameters()
    referees = {name: Formula(p) for name, p in own.items()}
    optimizer = build(AdafactorConfig(lr=0.01), groups(own))
    for t in range(1, 30):
        for name, gradient in gradients(t, scale).items():
            own[name].grad = gradient
            referees[name].step(gradient, t, 0.01)
        optimizer.step()
    for name, p in own.items():
        assert torch.isfinite(p).all(), name
        torch.testing.assert_close(p.detach().double(), referees[name].x, rtol=1e-4, atol=1e-6)


def test_the_steps_of_transformers() -> None:
    own, others = parameters(), parameters()
    ours = build(AdafactorConfig(lr=0.01), groups(own))
    theirs = Adafactor(list(others.values()), lr=0.01, scale_parameter=True, relative_step=False, warmup_init=False)
    for t in range(1, 20):
        for name, gradient in gradients(t).items():
            own[name].grad, others[name].grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    for name, p in own.items():
        torch.testing.assert_close(p, others[name], rtol=1e-5, atol=1e-6)


def test_what_did_not_occur_does_not_move() -> None:
    own = parameters()
    before = own["matrix"].detach().clone()
    optimizer = build(AdafactorConfig(), groups(own))
    for name, gradient in gradients(1).items():
        own[name].grad = gradient
    optimizer.step()
    assert torch.equal(own["matrix"][2], before[2])
    assert not torch.equal(own["matrix"][3], before[3])


def test_memory_is_that_of_rows_and_columns() -> None:
    own = {"matrix": nn.Parameter(torch.ones(100, 50))}
    optimizer = build(AdafactorConfig(), [g for g in groups(own) if g["params"]])
    own["matrix"].grad = torch.ones(100, 50)
    optimizer.step()
    kept = sum(v.numel() for v in optimizer.state[own["matrix"]].values() if isinstance(v, Tensor))
    assert kept == 100 + 50


def test_weight_decay_spares_norms() -> None:
    moved = {}
    for decay in (0.0, 0.5):
        own = parameters()
        optimizer = build(AdafactorConfig(weight_decay=decay), groups(own))
        for name, gradient in gradients(1).items():
            own[name].grad = gradient
        optimizer.step()
        moved[decay] = own
    assert torch.equal(moved[0.0]["norm"], moved[0.5]["norm"])
    assert not torch.equal(moved[0.0]["matrix"], moved[0.5]["matrix"])


def test_going_on_is_bitwise_the_same_as_not_stopping(tmp_path: Path) -> None:
    def train(own: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for t in steps:
            for name, gradient in gradients(t).items():
                own[name].grad = gradient
            optimizer.step()

    whole, first, second = parameters(), parameters(), parameters(1)
    one = build(AdafactorConfig(), groups(whole))
    train(whole, one, range(1, 11))
    two = build(AdafactorConfig(), groups(first))
    train(first, two, range(1, 6))
    training_state.write_whole(tmp_path, training_state.collect(nn.Module(), two))
    for name, p in second.items():
        p.data.copy_(first[name].data)
    three = build(AdafactorConfig(), groups(second))
    training_state.restore(training_state.read(tmp_path), objectives=nn.Module(), optimizer=three)
    train(second, three, range(6, 11))
    for name, p in whole.items():
        assert torch.equal(p, second[name]), name
