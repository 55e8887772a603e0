"""Small random networks on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from protloom import config, kernels, weights
from protloom.contracts import BuildContext
from protloom.plugins import Registry


def save(folder: Path, registry: Registry, *, architecture: str = "esm2:tiny", tokenizer: str = "esm") -> Path:
    """Writes a model folder with random weights, always the same ones."""
    network = config.choose("architecture", architecture, {}, registry)
    chosen = config.choose("tokenizer", tokenizer, {}, registry)
    made = chosen.component.load_factory()(chosen.config)
    ops = kernels.choose("auto", registry, torch.device("cpu"), torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = network.component.load_factory()(network.config, BuildContext(made, ops))
    weights.save_pretrained(
        folder,
        component=network.component,
        config=network.config,
        state=model.state_dict(),
        tokenizer=made,
        tokenizer_component=chosen.component,
        tokenizer_config=chosen.config,
    )
    return folder
