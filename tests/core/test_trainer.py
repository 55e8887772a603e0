"""The training loop on a tiny network: exactness, resuming, guards, and what a run folder holds."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ALONE, Options, lines, losses, options_in

from protloom import checkpoint, config, launch
from protloom.assembly import Assembly, assemble
from protloom.contracts import StepContext
from protloom.errors import UserError
from protloom.metrics import MetricLog
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device
from protloom.trainer import Trainer


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    """Overrides of a run that takes a second."""
    return options_in(tmp_path, small_fasta)


def built(registry: Registry, overrides: list[str]) -> Assembly:
    return assemble(config.load(None, overrides, registry), registry, ALONE, initial=None)


def gradients(run: Assembly, step: int) -> tuple[dict[str, torch.Tensor], float]:
    """Returns the gradient and the loss of one step, in whatever micro-batches the run makes."""
    batches = run.host_step(step)
    keys = {key for batch in batches for key in batch.counts}
    divisors = {key: float(sum(batch.counts[key] for batch in batches)) for key in keys}
    weights = run.mixture.weights(step)
    total = 0.0
    for batch in batches:
        ctx = StepContext(step, CounterRNG(0), lambda x: x, lambda x: x)
        output = run.wrapped(to_device(batch, run.world.device), weights, divisors, ctx)
        output.loss.backward()
        total += float(output.loss.detach())
    return {name: p.grad for name, p in run.module.named_parameters() if p.grad is not None}, total


TWO = [{"name": "mlm", "mask_rate": 0.3}, {"name": "mlm", "alias": "low", "mask_rate": 0.1, "weight": 0.5}]


@pytest.mark.parametrize("changes", [{}, {"objectives": TWO}, {"objectives": TWO, "combine": "dealt"}])
def test_micro_batches_give_the_gradient_of_one_batch(registry: Registry, options: Options, changes: Any) -> None:
    whole, whole_loss = gradients(built(registry, options(**changes)), 1)
    run = built(registry, options(trainer__tokens_per_microbatch=130, **changes))
    assert len(run.host_step(1)) >= 4
    parts, parts_loss = gradients(run, 1)
    assert parts_loss == pytest.approx(whole_loss, abs=1e-6)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_a_run_logs_validates_and_saves(registry: Registry, options: Options, tmp_path: Path) -> None:
    done = launch.start(config.load(None, options(), registry), registry)
    assert done.complete
    records = lines(tmp_path / "run")
    steps = [r for r in records if "learning_rate" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    for r in steps:
        assert r["loss"] == pytest.approx(r["loss/mlm"])
        assert r["padding_share"] == 0.0
        assert r["scored/mlm"] > 0
        assert 0 < r["mfu"] < 1.5
    assert steps[-1]["tokens"] == pytest.approx(6 * 600, abs=150)
    validations = [r for r in records if "validation/loss" in r]
    assert [r["step"] for r in validations] == [0, 3, 6]
    last = validations[-1]
    assert last["validation/perplexity/mlm"] == pytest.approx(math.exp(last["validation/loss/mlm"]))
    # random sequences of 20 letters: their entropy is ln 20, less what few samples leave unseen
    assert math.log(20) - 0.3 < last["validation/unigram_entropy/mlm"] <= math.log(20)
    assert checkpoint.steps(tmp_path / "run") == [4, 6]


def test_validation_is_the_same_whenever_it_is_asked_for(registry: Registry, options: Options) -> None:
    run = built(registry, options())
    assert run.validator is not None
    first = run.validator.run(run.wrapped, run.mixture.final_weights())
    assert first == run.validator.run(run.wrapped, run.mixture.final_weights())
    assert run.module.training
    smaller = built(registry, options(trainer__tokens_per_microbatch=130))
    assert smaller.validator is not None
    second = smaller.validator.run(smaller.wrapped, smaller.mixture.final_weights())
    assert second == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("threads", [0, 3])
def test_a_resumed_run_has_bitwise_the_losses_of_one_that_never_stopped(
    registry: Registry, options: Options, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.start(config.load(None, options("whole"), registry), registry)
    write = MetricLog.write

    def stop_in_step_three(self: MetricLog, record: Any) -> None:
        write(self, record)
        if record["step"] == 3 and "learning_rate" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "write", stop_in_step_three)
        stopped = launch.start(config.load(None, options("cut"), registry), registry)
    # the signal arrives in step 3, after the ranks agreed for that step: it ends with the next one
    assert stopped.state.step in (3, 4)
    assert not stopped.complete
    resumed = launch.resume(tmp_path / "cut", [f"data.threads={threads}"], registry)
    assert resumed.complete
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [r["step"] for r in lines(tmp_path / "cut")] == [r["step"] for r in lines(tmp_path / "whole")]


def test_resuming_drops_lines_after_the_checkpoint_and_a_torn_one(
    registry: Registry, options: Options, tmp_path: Path
) -> None:
    launch.start(config.load(None, options("whole"), registry), registry)
    launch.start(config.load(None, options(), registry), registry)
    run_dir = tmp_path / "run"
    # as a kill after step 5 would leave it: the newest checkpoint is that of step 4
    for path in checkpoint.folder_of(run_dir, 6).rglob("*"):
        if path.is_file():
            path.unlink()

    shutil.rmtree(checkpoint.folder_of(run_dir, 6))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    launch.resume(run_dir, [], registry)
    assert losses(run_dir) == losses(tmp_path / "whole")


def test_a_finished_run_is_left_alone_and_can_be_lengthened(
    registry: Registry, options: Options, tmp_path: Path
) -> None:
    launch.start(config.load(None, options(), registry), registry)
    again = launch.resume(tmp_path / "run", [], registry)
    assert again.complete
    assert again.state.step == 6
    longer = launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)
    assert longer.state.step == 8
    assert "steps: 8" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_changed_corpus_or_seed_is_refused(
    registry: Registry, options: Options, tmp_path: Path, small_fasta: Path
) -> None:
    launch.start(config.load(None, options(), registry), registry)
    with pytest.raises(UserError, match="another seed"):
        launch.resume(tmp_path / "run", ["seed=5", "trainer.steps=8"], registry)
    small_fasta.write_text(small_fasta.read_text().replace("A", "C", 1))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="not the one that the run was trained on"):
        launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", ["model/model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["missing", "corrupted"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    registry: Registry, options: Options, tmp_path: Path, name: str, how: str
) -> None:
    launch.start(config.load(None, options(), registry), registry)
    file = checkpoint.folder_of(tmp_path / "run", 6) / name
    if how == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(UserError, match="step 4 is the next one") as caught:
        launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)
    assert Path(name).name in str(caught.value)


def test_a_checkpoint_holds_no_pickle(registry: Registry, options: Options, tmp_path: Path) -> None:
    launch.start(config.load(None, options(), registry), registry)
    kinds = {p.suffix for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()}
    assert kinds <= {".safetensors", ".json", ".txt", ".yaml"}


def test_an_existing_run_or_folder_is_never_overwritten(registry: Registry, options: Options, tmp_path: Path) -> None:
    launch.start(config.load(None, options(), registry), registry)
    with pytest.raises(UserError, match="protloom resume"):
        launch.start(config.load(None, options(), registry), registry)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        launch.start(config.load(None, options("other"), registry), registry)
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


def test_non_finite_steps_are_skipped_counted_and_end_the_run(
    registry: Registry, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = options(trainer__nonfinite_limit=2, trainer__steps=5)
    run = built(registry, overrides)
    name, poisoned = next((n, p) for n, p in run.module.named_parameters() if "blocks.1" in n)
    before = {n: p.detach().clone() for n, p in run.module.named_parameters() if n != name}
    with torch.no_grad():
        poisoned.view(-1)[0] = math.nan
    (tmp_path / "run").mkdir()
    state = checkpoint.TrainState(0, 0, 0, 0.0, 0.0, ("x",))
    with pytest.raises(UserError, match="not finite 2 times in a row") as caught:
        Trainer(run, tmp_path / "run", state).train()
    assert name in str(caught.value)
    assert "skipped: not finite" in capsys.readouterr().out
    for n, p in run.module.named_parameters():
        if n != name:
            torch.testing.assert_close(p.detach(), before[n], rtol=0, atol=0)


def test_a_non_finite_activation_names_the_first_module(registry: Registry, options: Options) -> None:
    from protloom.step import first_bad_module

    run = built(registry, options())
    batch = run.host_step(0)[0]
    divisors = {key: float(n) for key, n in batch.counts.items()}
    ctx = StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)
    module: Any = run.model
    module.blocks[1].register_forward_hook(lambda _m, _i, output: (output[0] * math.inf, output[1]))
    shares = to_device(batch, torch.device("cpu"))
    where = first_bad_module(run.module, shares, run.mixture.weights(0), divisors, ctx)
    assert where == "output of model.blocks.1"


def test_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoint.folder_of(tmp_path, step).mkdir(parents=True)
    assert checkpoint.note_best(tmp_path, 10, "validation/loss", 2.0)
    assert not checkpoint.note_best(tmp_path, 20, "validation/loss", 2.5)
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [10, 30, 40]
    assert checkpoint.best(tmp_path) == checkpoint.folder_of(tmp_path, 10)


def test_tensorboard_reads_its_events(registry: Registry, options: Options, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    launch.start(config.load(None, options(trainer__tensorboard=True), registry), registry)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss/mlm")}
    assert logged == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert "validation/perplexity/mlm" in events.Tags()["scalars"]


def test_an_objective_that_the_network_cannot_serve_is_refused(
    registry: Registry, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = registry.resolve("objective", "mlm")
    factory: Any = component.load_factory()
    monkeypatch.setattr(factory, "needs", frozenset({"encode", "decode"}))
    with pytest.raises(UserError, match="needs decode"):
        built(registry, options())
