"""What a run writes of its options is read again when it is resumed: every form of every component's options."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from protloom import config
from protloom.config.source import recipes
from protloom.plugins import Registry

REGISTRY = Registry.discover()

FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("objective", "mlm", {"mask_rates": [0.15, 0.2, 0.3]}),
    ("objective", "mlm", {"mask_rate_schedule": [[0, 0.3], [100, 0.15]]}),
    ("objective", "mlm", {"mask_rate": 0.4, "span": {"kind": "fixed", "mean": 3}}),
    ("objective", "denoise", {"mask_rates": [0.1, 0.2], "sentinels": "unmerged", "head": "both"}),
    ("objective", "denoise", {"mixture": "ul2"}),
    ("objective", "denoise", {"mixture": [{"suffix": [0.2, 0.5]}, {"mask_rates": [0.5], "span": {"mean": 8}}]}),
    ("objective", "complete", {}),
    ("objective", "jepa", {"preset": "proteinjepa-v1"}),
    ("objective", "jepa", {"preset": "proteinjepa-v2"}),
    ("objective", "jepa", {"preset": "jepa-only"}),
    ("tokenizer", "esm", {"rare": "x", "gap": "unknown"}),
    ("tokenizer", "ankh3", {}),
    ("optimizer", "adafactor", {}),
]


@pytest.mark.parametrize(("kind", "name", "options"), FORMS, ids=lambda part: str(part)[:40])
def test_a_section_chooses_the_same_again(kind: str, name: str, options: dict[str, Any]) -> None:
    chosen = config.choose(kind, name, options, REGISTRY)
    section = yaml.safe_load(config.dump(chosen.section()))
    again = config.choose(kind, section.pop("name"), section, REGISTRY)
    assert again == chosen


@pytest.mark.parametrize("name", sorted(recipes(REGISTRY)))
def test_the_file_of_a_run_means_the_same_run(name: str, tmp_path: Any) -> None:
    resolved = config.load(f"recipe:{name}", ["data.corpus=demo:"], REGISTRY)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(resolved.as_dict()))
    again = config.load(path, [], REGISTRY)
    assert again.as_dict() == resolved.as_dict()
    assert again.chosen == resolved.chosen


def test_every_form_of_an_architecture_is_read_again() -> None:
    for component in REGISTRY.components("architecture"):
        for size in getattr(component.spec, "sizes", {}):
            chosen = config.choose("architecture", f"{component.name}:{size}", {}, REGISTRY)
            section = yaml.safe_load(config.dump(chosen.section()))
            assert config.choose("architecture", section.pop("name"), section, REGISTRY) == chosen
