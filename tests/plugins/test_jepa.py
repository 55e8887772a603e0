"""Latent prediction: what is predicted, from which pass, with which gradient; teacher; presets; resumed runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protloom import collapse, config
from protloom.assembly import Assembly, assemble
from protloom.cli import main
from protloom.contracts import StepContext
from protloom.distributed import World
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device
from protloom_plugins.objectives.jepa import Jepa, decay_at
from protloom_plugins.objectives.jepa_config import JepaConfig, TeacherConfig

ALONE = World(0, 1, torch.device("cpu"), "none")
SHARED = {"name": "jepa", "corruption": "mlm"}


def words(fasta: Path, folder: Path, objectives: list[dict[str, Any]], *more: str) -> list[str]:
    return [
        "architecture=esm2:tiny",
        f"data.corpus={fasta}",
        f"data.cache_dir={folder / 'cache'}",
        "data.validation_fraction=0.1",
        f"objectives={json.dumps(objectives)}",
        "trainer.steps=6",
        "trainer.tokens_per_step=900",
        "trainer.precision=fp32",
        "trainer.log_every=1",
        "trainer.tensorboard=false",
        "trainer.validation_tokens=1000",
        "trainer.checkpoint_every=3",
        "optimizer.lr=0.003",
        *more,
    ]


def built(fasta: Path, folder: Path, registry: Registry, jepa: dict[str, Any], *more: str) -> Assembly:
    resolved = config.load(None, words(fasta, folder, [{"name": "mlm"}, {**SHARED, **jepa}], *more), registry)
    return assemble(resolved, registry, ALONE, initial=None)


def scored(run: Assembly, step: int = 0) -> Any:
    (batch,) = run.host_step(step)
    ctx = StepContext(step, CounterRNG(0), lambda x: x, lambda x: x)
    divisors = {key: float(n) for key, n in batch.counts.items()}
    return batch, run.module(to_device(batch, run.world.device), run.mixture.weights(step), divisors, ctx)


class Passes:
    """Counts the network's passes, and how many blocks each ran with or without gradient."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.blocks: list[bool] = []
        self.heads = 0
        for block in cast(Any, network).blocks:
            block.register_forward_hook(lambda *_: self.blocks.append(torch.is_grad_enabled()))


@pytest.mark.parametrize(("layer", "clean"), [("last", 2), ("half", 1), (0, 0)])
def test_one_student_pass_and_a_clean_pass_that_stops(
    small_fasta: Path, tmp_path: Path, registry: Registry, layer: str | int, clean: int
) -> None:
    run = built(small_fasta, tmp_path, registry, {"target": {"layer": layer}})
    passes = Passes(run.model)
    scored(run)
    assert passes.blocks == [True] * 2 + [False] * clean  # the tiny network has two blocks


def test_the_head_sees_chosen_positions_of_the_student_alone(
    small_fasta: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = built(small_fasta, tmp_path, registry, {})
    rows: list[int] = []
    head = cast(Any, run.model).logits
    monkeypatch.setattr(run.model, "logits", lambda hidden: (rows.append(len(hidden)), head(hidden))[1])
    batch, _ = scored(run)
    assert rows == [batch.counts["mlm", "mlm"]]


@pytest.mark.parametrize("loss", ["cosine", "mse"])
@pytest.mark.parametrize("layer", ["last", "half"])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_the_loss_is_its_definition(
    small_fasta: Path, tmp_path: Path, registry: Registry, loss: str, layer: str, positions: str
) -> None:
    run = built(small_fasta, tmp_path, registry, {"loss": loss, "target": {"layer": layer}, "positions": positions})
    batch, output = scored(run)
    (share,) = to_device(batch, ALONE.device)
    jepa = cast(Jepa, run.module.objectives["jepa"])
    network = cast(Any, run.model)
    with torch.no_grad():
        assert share.clean is not None
        clean = network.encode(share.clean.tokens, share.clean.cu, layers=(0, 1, 2)).layers
        student = network.encode(share.inputs.tokens, share.inputs.cu).last
        expected = 0.0
        index = share.arrays["mlm"]["index"] if positions == "masked" else torch.arange(len(student))
        for i in index.tolist():
            x, gate, up, down = student[i], jepa.predictor.gate[0], jepa.predictor.up[0], jepa.predictor.down[0]
            p = standard(down @ (F.silu(gate @ x) * (up @ x)))
            t = standard(clean[2 if layer == "last" else 1][i])
            expected += float(((p - t) ** 2).mean() if loss == "mse" else 1 - p @ t / p.norm() / t.norm())
    assert float(output.totals["jepa", "jepa"]) == pytest.approx(expected, rel=1e-4)
    # the clean sequence differs from the input where the corruption put something else
    assert not torch.equal(share.clean.tokens, share.inputs.tokens)
    different = (share.clean.tokens != share.inputs.tokens).nonzero().flatten()
    assert np.isin(different.numpy(), share.arrays["mlm"]["index"].numpy()).all()


def standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


def test_no_gradient_reaches_the_target(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    # the student's states are cut off, so whatever gradient the network gets could only come through the target
    run = built(small_fasta, tmp_path, registry, {"regulariser": {"name": "none"}})
    (batch,) = run.host_step(0)
    (share,) = to_device(batch, ALONE.device)
    jepa, network = cast(Jepa, run.module.objectives["jepa"]), cast(Any, run.model)

    class Cut:
        encoded = network.encode(share.inputs.tokens, share.inputs.cu, layers=(2,))
        encoded = encoded._replace(layers={2: encoded.layers[2].detach()})
        clean = (share.clean.tokens, share.clean.cu)  # type: ignore[union-attr]

    ctx = StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)
    jepa.loss(network, cast(Any, Cut()), share.arrays["jepa"], ctx).totals["jepa"].backward()
    assert all(p.grad is None for p in run.model.parameters())
    assert all(p.grad is not None for p in jepa.predictor.parameters())


def test_the_teacher_is_frozen_copied_after_loading_and_moves_by_its_decay(
    small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    assert main(["train", *words(small_fasta, tmp_path, [{"name": "mlm"}]), f"out={tmp_path / 'start'}"]) == 0
    objectives = [{"name": "mlm"}, {**SHARED, "preset": "proteinjepa-v2"}]
    resolved = config.load(None, words(small_fasta, tmp_path, objectives), registry)
    run = assemble(resolved, registry, ALONE, initial=tmp_path / "start")
    jepa = cast(Jepa, run.module.objectives["jepa"])
    assert jepa.teacher is not None
    pairs = list(zip(jepa.teacher.parameters(), run.model.parameters(), strict=True))
    assert all(torch.equal(t, s) and t is not s and not t.requires_grad for t, s in pairs)
    assert all(p is not t for p in run.trainable() for t, _ in pairs)
    before = [t.clone() for t, _ in pairs]
    with torch.no_grad():
        for _, student in pairs:
            student.add_(torch.randn(student.shape, generator=torch.Generator().manual_seed(1)))
    jepa.after_step(cast(Any, run.model), 500)
    keep = 0.99 + 0.009 * 500 / 2000
    for (teacher, student), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(teacher, keep * old + (1 - keep) * student)


def test_the_decay_rises_from_start_to_end() -> None:
    linear = TeacherConfig()
    assert [decay_at(linear, s) for s in (0, 1000, 2000, 9999)] == pytest.approx([0.99, 0.9945, 0.999, 0.999])
    cosine = TeacherConfig(start=0.996, decay=1.0, ramp_steps=100, ramp="cosine")
    assert [decay_at(cosine, s) for s in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])
    assert decay_at(TeacherConfig(ramp_steps=0), 0) == 0.999


def test_presets_are_the_published_recipes_and_can_be_changed() -> None:
    v1, v2 = JepaConfig(preset="proteinjepa-v1"), JepaConfig(preset="proteinjepa-v2")
    assert (v1.weight_jepa, v1.loss, v1.positions, v1.target.network, v1.target.layer) == (
        0.45,
        "cosine",
        "masked",
        "same",
        "last",
    )
    assert (v1.regulariser.name, v1.regulariser.weight, v1.regulariser.directions) == ("sigreg", 1.0, 256)
    assert (v2.weight_jepa, v2.target.network, v2.target.layer) == (1.0, "ema", "half")
    assert (v2.regulariser.name, v2.regulariser.weight) == ("visreg", 0.008)
    assert (JepaConfig(preset="all-position").positions, JepaConfig(preset="all-position").loss) == ("all", "mse")
    changed = JepaConfig.model_validate({"preset": "proteinjepa-v2", "target": {"layer": "last"}})
    assert (changed.target.network, changed.target.layer) == ("ema", "last")
    assert JepaConfig.model_validate(changed.model_dump()) == changed


@pytest.mark.parametrize(
    ("width", "depth", "millions"), [(480, 1, 1.84), (480, 2, 3.69), (640, 1, 3.28), (640, 2, 6.55)]
)
def test_predictors_have_the_sizes_of_the_paper(width: int, depth: int, millions: float) -> None:
    from protloom_plugins.kernels.reference import gated_mlp
    from protloom_plugins.objectives.jepa import Predictor
    from protloom_plugins.objectives.jepa_config import PredictorConfig

    with torch.device("meta"):
        predictor = Predictor(width, PredictorConfig(depth=depth), gated_mlp)
    assert sum(p.numel() for p in predictor.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_the_regulariser_takes_at_most_so_many_rows(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    few = built(small_fasta, tmp_path, registry, {"regulariser": {"rows": 5}})
    per_row = built(small_fasta, tmp_path, registry, {"regulariser": {"rows": 5, "scale_by_n": False}})
    batch, output = scored(few)
    _, divided = scored(per_row)
    count = batch.counts["jepa", "sigreg"]
    assert count == batch.counts["jepa", "jepa"] > 5
    ratio = float(output.totals["jepa", "sigreg"]) / float(divided.totals["jepa", "sigreg"])
    assert ratio == pytest.approx(5)


@pytest.mark.parametrize("place", ["pred", "pred_ln", "student"])
@pytest.mark.parametrize("name", ["sigreg", "visreg"])
def test_every_place_of_the_regulariser_has_a_gradient(
    small_fasta: Path, tmp_path: Path, registry: Registry, place: str, name: str
) -> None:
    run = built(small_fasta, tmp_path, registry, {"regulariser": {"name": name, "place": place}, "weight_jepa": 0.0})
    _, output = scored(run)
    output.loss.backward()
    gate = cast(Jepa, run.module.objectives["jepa"]).predictor.gate[0].grad
    assert gate is not None
    assert bool(gate.abs().sum() > 0) == (place != "student")


@pytest.mark.parametrize(
    ("architecture", "objectives", "says"),
    [
        (
            "esm2:tiny",
            [{"name": "mlm"}, {**SHARED, "target": {"layer": 7}}],
            "layer 7 is beyond the network's 2 blocks",
        ),
        ("esm2:tiny", [{"name": "mlm"}, {**SHARED, "student_layer": 3}], "student_layer: layer 3 is beyond"),
        ("ankh:tiny", [{"name": "denoise"}, {**SHARED, "corruption": "denoise"}], "merged sentinels"),
        ("ankh:tiny", [{"name": "jepa"}], "has no mask symbol"),
    ],
)
def test_what_cannot_be_is_explained(
    small_fasta: Path, tmp_path: Path, registry: Registry, architecture: str, objectives: Any, says: str
) -> None:
    resolved = config.load(None, [*words(small_fasta, tmp_path, objectives), f"architecture={architecture}"], registry)
    with pytest.raises(UserError, match=says):
        assemble(resolved, registry, ALONE, initial=None).host_step(0)


def test_unmerged_sentinels_have_places(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    objectives = [{"name": "denoise", "sentinels": "unmerged"}, {**SHARED, "corruption": "denoise"}]
    resolved = config.load(None, [*words(small_fasta, tmp_path, objectives), "architecture=ankh:tiny"], registry)
    run = assemble(resolved, registry, ALONE, initial=None)
    (batch,) = run.host_step(0)
    (share,) = batch.shares
    assert share.clean is not None
    index = share.arrays["jepa"]["index"]
    sentinels = np.isin(share.inputs.tokens, run.tokenizer.sentinels)
    assert np.array_equal(np.flatnonzero(sentinels), index)
    assert not np.isin(share.clean.tokens, run.tokenizer.sentinels).any()
    assert np.array_equal(np.delete(share.clean.tokens, index), np.delete(share.inputs.tokens, index))


@pytest.mark.parametrize("preset", ["proteinjepa-v1", "proteinjepa-v2", "all-position"])
def test_a_resumed_run_is_bitwise_the_same(small_fasta: Path, tmp_path: Path, preset: str) -> None:
    arguments = words(small_fasta, tmp_path, [{"name": "mlm"}, {**SHARED, "preset": preset}])
    assert main(["train", *arguments, f"out={tmp_path / 'whole'}"]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    (tmp_path / "cut" / "checkpoints" / "best.json").unlink()
    assert main(["resume", str(tmp_path / "cut")]) == 0
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    times = {"tokens_per_second", "flops_per_second", "mfu", "memory_mib", "seconds"}
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in times} for r in records]


def test_what_is_said_of_states_does_not_depend_on_autocast() -> None:
    """Half Gram matrices are coarse, and CUDA has no eigenvalues of them."""
    states = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) + 3.0
    expected = {name: float(metric.total) for name, metric in collapse.measure(states, "x").items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = {name: float(metric.total) for name, metric in collapse.measure(states, "x").items()}
    assert found == expected


def test_jepa_alone_collapses_and_the_run_says_so(
    small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"name": "jepa", "preset": "jepa-only", "regulariser": {"name": "none"}}
    more = ("trainer.steps=60", "optimizer.lr=0.01", "trainer.log_every=10")
    assert main(["train", *words(small_fasta, tmp_path, [alone], *more), f"out={tmp_path / 'run'}"]) == 0
    assert "states have collapsed" in capsys.readouterr().out
    last = lines(tmp_path / "run")[-1]
    assert last["validation/target_cosine/jepa"] > 0.9


def test_preview_shows_what_is_predicted_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "jepa", "preset=proteinjepa-v2", "--sequence", "MKTAYIAKQRQISFVKSHFSRQ"]) == 0
    rows = {line[:10].strip(): line[10:] for line in capsys.readouterr().out.splitlines() if line}
    assert set(rows) == {"sequence", "input", "layer 1"}
    assert rows["layer 1"].count("^") >= 1
