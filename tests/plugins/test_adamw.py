"""The optimizer ``adamw`` as the trainer builds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from protloom.plugins import Registry
from protloom_plugins.optimizers.adamw import AdamWConfig, build


def groups(decayed: torch.Tensor, plain: torch.Tensor) -> list[dict[str, Any]]:
    return [
        {"params": [decayed], "names": ["w"], "lr_scale": 0.5, "weight_decay_scale": 1.0},
        {"params": [plain], "names": ["b"], "lr_scale": 1.0, "weight_decay_scale": 0.0},
    ]


def test_defaults_are_those_of_esm2() -> None:
    config = AdamWConfig()
    assert (config.lr, config.betas, config.eps, config.weight_decay) == (4e-4, (0.9, 0.98), 1e-8, 0.01)


def test_scales_apply_to_rate_and_decay() -> None:
    config = AdamWConfig(lr=0.1, weight_decay=0.2)
    decayed, plain = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = build(config, groups(decayed, plain))
    assert [(g["lr"], g["weight_decay"], g["names"]) for g in optimizer.param_groups] == [
        (0.05, 0.2, ["w"]),
        (0.1, 0.0, ["b"]),
    ]
    for parameter in (decayed, plain):
        parameter.grad = torch.zeros(3)
    optimizer.step()
    # without a gradient only the decay moves a parameter: 1 − 0.05 · 0.2
    torch.testing.assert_close(decayed.detach(), torch.full((3,), 0.99))
    torch.testing.assert_close(plain.detach(), torch.ones(3))


def test_comes_through_its_entry_point(registry: Registry) -> None:
    component = registry.resolve("optimizer", "adamw")
    assert component.builtin
    assert component.load_factory() is build
    assert component.load_config() is AdamWConfig


@pytest.mark.parametrize(
    "options",
    [{"lr": 0}, {"eps": -1}, {"weight_decay": -0.1}, {"momentum": 0.9}, {"betas": [0.9]}, {"betas": [0.9, 1]}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AdamWConfig.model_validate(options)
