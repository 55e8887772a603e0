"""Every recipe that is shipped resolves, and says in its first line what it is."""

from __future__ import annotations

import importlib.resources

import pytest

from protloom import config
from protloom.plugins import Registry

FOLDER = importlib.resources.files("protloom_plugins") / "recipes"
NAMES = sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves(name: str, registry: Registry) -> None:
    resolved = config.load(f"recipe:{name}", ["data.corpus=x.fasta"], registry)
    assert resolved.settings.schedule.warmup_steps < resolved.settings.trainer.steps
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    if name.startswith("proteinjepa"):
        _, jepa = resolved.objectives
        assert jepa.mix.corruption == "mlm"
        assert jepa.chosen.config is not None
        assert jepa.chosen.config.model_dump()["preset"] == "-".join(name.split("-")[:2])
