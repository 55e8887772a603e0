"""``task run --layers --pool``: one pass for all, the same numbers as each alone, a choice made by validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import toy_tasks

from protloom.cli import main
from protloom.embedding.cache import EmbeddingCache
from protloom.embedding.layers import Sweep
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects

Capture = pytest.CaptureFixture[str]
POOLS = ("mean", "max", "cls")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "tiny", registry)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("specials", [False, True])
def test_one_pass_gives_what_each_layer_gives_alone(
    model: Path,
    registry: Registry,
    random_proteins: Callable[..., list[str]],
    tmp_path: Path,
    cached: bool,
    specials: bool,
) -> None:
    sequences = random_proteins(30)
    cache = EmbeddingCache(tmp_path) if cached else None
    base = open_subjects(str(model), registry, twin=None, cache=cache)[0]
    sweep = Sweep(base, [0, 1, -1], POOLS)
    assert list(sweep.views) == [0, 1, 2]
    for layer, view in sweep.views.items():
        alone = open_subjects(str(model), registry, twin=None, layer=layer)[0]
        assert view.provenance == alone.provenance
        for pool in POOLS:
            np.testing.assert_array_equal(
                view.pooled(sequences, pool, specials), alone.pooled(sequences, pool, specials)
            )
        np.testing.assert_array_equal(next(view.residues(sequences)), next(alone.residues(sequences)))
    seen = [view.counts["tokens"] for view in sweep.views.values()]
    once, residues = sum(len(s) + 2 for s in sequences), sum(len(s) + 2 for s in sequences)
    assert seen == [once + residues, residues, residues]
    sweep.forget()
    other = sweep.views[1].counts["tokens"]
    sweep.views[1].pooled(sequences, "mean", specials)
    assert sweep.views[1].counts["tokens"] - other == (0 if cached else once)


def test_layers_and_poolings_that_are_not_there(model: Path, registry: Registry) -> None:
    base = open_subjects(str(model), registry, twin=None)[0]
    with pytest.raises(UserError, match=r"hidden states 0 \(embedding\) to 2"):
        Sweep(base, [3], ["mean"])
    with pytest.raises(UserError, match=r"--pool maen: no such pooling\. Did you mean 'mean'"):
        Sweep(base, [0], ["maen"])
    base.prefix = ()
    with pytest.raises(UserError, match="puts no symbol in front"):
        Sweep(base, [0], ["cls"])


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_tasks.enter(tmp_path, monkeypatch)


def run(model: Path, *arguments: str) -> int:
    return main(["task", "run", *arguments, "--model", str(model)])


def shown(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_table(model: Path, tmp_path: Path, toys: None, capsys: Capture) -> None:
    sweep = ("toy:plain", "toy:lower", "--layers", "all", "--pool", "mean,max,cls")
    assert run(model, *sweep, "--json", "--out", str(tmp_path / "out")) == 0
    plain, lower = shown(capsys)["sweeps"]
    values = {(v["layer"], v["pool"]): v["value"] for v in plain["values"]}
    assert set(values) == {(layer, pool) for layer in range(3) for pool in POOLS}
    for layer, pool in ((0, "max"), (2, "mean"), (1, "cls")):
        run(model, "toy:plain", "--json", "--layer", str(layer), "--pool", pool, "--no-cache")
        assert values[layer, pool] == shown(capsys)["tasks"][0]["results"][0]["value"]
    assert plain["split"] == "valid"
    assert values[plain["best"]["layer"], plain["best"]["pool"]] == max(values.values())
    of_lower = {(v["layer"], v["pool"]): v["value"] for v in lower["values"]}
    assert of_lower[lower["best"]["layer"], lower["best"]["pool"]] == min(of_lower.values())
    kept = [json.loads(path.read_text()) for path in (tmp_path / "out" / "results").glob("*/*.json")]
    assert {r["subject"] for r in kept} == {f"{model} (layer {k}, {p})" for k in range(3) for p in POOLS}
    assert run(model, *sweep) == 0
    text = capsys.readouterr().out
    best = plain["best"]
    assert f"to score it on the test split: --layer {best['layer']} --pool {best['pool']} --test" in text
    assert text.count("*") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "all", "--test"), "nothing is chosen by a test set"),
        (("--pool", "mean,max", "--test"), "nothing is chosen by a test set"),
        (("--layers", "1,x"), "--layers 1,x: write numbers with commas"),
        (("--layers", "0,7"), "hidden states 0 (embedding) to 2"),
        (("--layers", "0", "--layer", "1"), "--layers and --layer say the same"),
        (("--pool", "mean,median"), "no such pooling"),
        (("--layers", "all", "--out", "x.json"), "a sweep keeps its results in a folder"),
    ],
)
def test_mistakes(model: Path, toys: None, capsys: Capture, arguments: tuple[str, ...], message: str) -> None:
    assert run(model, "toy:plain", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_floor_has_no_layers(toys: None, capsys: Capture) -> None:
    assert run(Path("floor:length"), "toy:plain", "--layers", "all") == 2
    assert "a floor has no layers" in capsys.readouterr().err
    assert run(Path("random-init(esm2:tiny)"), "toy:plain", "toy:missing", "--layers", "0,1") == 1
    assert "error: toy:missing: no file toy.txt" in capsys.readouterr().err
