"""The suites that are shipped: every name in them is a task, and the caps are those that are promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from protloom.config.source import shipped
from protloom.plugins import Registry
from protloom.task import suite as task_suite

PROTEINJEPA = (
    *("remote-homology", "solubility", "signal-peptide", "neuropeptide", "beta-lactamase", "peptide-hla"),
    *("metal-ion-binding", "localization:test", "ec-deepfri", "gb1:sampled", "fluorescence", "stability", "kcat"),
    *("ppi", "chezod-disorder", "scope-retrieval"),
)


def names(suite: str, registry: Registry) -> list[str]:
    found = task_suite.select([f"suite:{suite}"], registry)
    assert found.unable == {}
    return [choice.name for choice in found.choices]


def test_every_suite_is_complete(registry: Registry) -> None:
    suites = task_suite.suites(registry)
    assert {"proteinjepa16", "ankh3", "quick", "demo"} <= set(suites)
    for suite in suites:
        assert names(suite, registry)


def test_what_belongs_to_them(registry: Registry) -> None:
    assert names("proteinjepa16", registry) == list(PROTEINJEPA)
    ankh = set(names("ankh3", registry))
    assert {f"{task}:{test}" for task in ("ss3", "ss8") for test in ("casp12", "casp14", "ts115", "cb513")} <= ankh
    assert {name for name in ankh if name.startswith("gb1:")} == {
        f"gb1:{split}" for split in ("sampled", "one-vs-rest", "two-vs-rest", "three-vs-rest", "low-vs-high")
    }
    assert {"contact", "fluorescence", "solubility", "localization:test", "remote-homology"} <= ankh
    assert all(name.startswith("sim-") for name in names("demo", registry))


@pytest.mark.parametrize("full", [False, True])
def test_caps(registry: Registry, full: bool) -> None:
    for choice in task_suite.select(["suite:proteinjepa16"], registry, split="valid", full=full).choices:
        task, options = task_suite.build_with_options(choice.component, registry, options=choice.options)
        assert task.card()
        if "train_rows" in options:
            assert (options["train_rows"], options["rows"]) == ((None, None) if full else (5000, 2000))
            assert options["split"] == "valid"
        else:
            assert choice.name == "scope-retrieval"


def test_no_suite_that_is_not_shipped(repository: Path, registry: Registry) -> None:
    files = {path.stem for path in (repository / "tasks" / "protloom_tasks" / "suites").glob("*.yaml")}
    known = {name.removeprefix("protloom/") for name in shipped(registry, "suites") if name.startswith("protloom/")}
    assert files == known
