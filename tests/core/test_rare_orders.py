"""Kills between two operations, folders that changed meanwhile, and numbers that turn up in odd places."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ALONE, Options, lines, losses, options_in
from torch import nn

from protloom import checkpoint, config, launch, training_state
from protloom.assembly import assemble
from protloom.checkpoint import TrainState, folder_of
from protloom.contracts import Losses
from protloom.distributed import join
from protloom.errors import UserError
from protloom.flops import FlopCounter
from protloom.plugins import Registry
from protloom.trainer import Trainer


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    """Overrides of a run that takes a second."""
    return options_in(tmp_path, small_fasta)


class Killed(BaseException):
    """Stands for ``kill -9``: nothing may handle it."""


def start(registry: Registry, overrides: list[str]) -> launch.Finished:
    return launch.start(config.load(None, overrides, registry), registry)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------------- kills


def test_killed_while_the_first_checkpoint_is_written(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(registry, options("whole"))

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", kill)
        with pytest.raises(Killed):
            start(registry, options())
    run_dir = tmp_path / "run"
    assert checkpoint.latest(run_dir) is None
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [".step-00000002.partial"]
    launch.resume(run_dir, [], registry)
    assert losses(run_dir) == losses(tmp_path / "whole")
    # also the lines before the first step stand there once
    assert [r["step"] for r in lines(run_dir)] == [r["step"] for r in lines(tmp_path / "whole")]
    assert [p.name for p in (run_dir / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_killed_between_the_checkpoint_and_the_note_of_the_best(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "note_best", kill)
        with pytest.raises(Killed):
            start(registry, options(trainer__checkpoint_every=3))
    run_dir = tmp_path / "run"
    assert checkpoint.steps(run_dir) == [3]
    assert checkpoint.best(run_dir) is None
    state = checkpoint.read_state(folder_of(run_dir, 3))
    worse = {**state.validation, "validation/loss": state.validation["validation/loss"] + 1}
    monkeypatch.setattr("protloom.evaluate.Validator.run", lambda *_: worse)
    launch.resume(run_dir, [], registry)
    assert checkpoint.best(run_dir) == folder_of(run_dir, 3)


def test_killed_while_an_old_checkpoint_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        folder_of(tmp_path, step).mkdir(parents=True)
        (folder_of(tmp_path, step) / "state.json").write_text("{}")
        (folder_of(tmp_path, step) / "weights").write_text("…")
    real = shutil.rmtree

    def half(path: Path, **options: Any) -> None:
        if Path(path).exists():
            (Path(path) / "weights").unlink()
            raise Killed
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            checkpoint.prune(tmp_path, 2)
    # what looks like a checkpoint is whole
    assert [len(list(folder_of(tmp_path, s).iterdir())) for s in checkpoint.steps(tmp_path)] == [2, 2]
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_of_the_same_step_is_replaced_only_by_a_whole_one(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(registry, options())
    run_dir = tmp_path / "run"
    before = contents(folder_of(run_dir, 6))
    run = assemble(config.load(None, options("other"), registry), registry, ALONE, initial=None)

    def save() -> None:
        checkpoint.save(
            run_dir,
            replace(checkpoint.read_state(folder_of(run_dir, 6)), tokens=7),
            write_model=run.write_model,
            model=run.model,
            objectives=run.module.objectives,
            optimizer=run.optimizer,
            world=ALONE,
        )

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save_file", full)
        with pytest.raises(UserError, match=r"checkpoint of step 6 cannot be written .*No space left on device"):
            save()
    assert contents(folder_of(run_dir, 6)) == before
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "best.json",
        "step-00000004",
        "step-00000006",
    ]
    save()
    assert checkpoint.read_state(folder_of(run_dir, 6)).tokens == 7


# ------------------------------------------------------------------------------------------------- the best checkpoint


def test_a_metric_of_earlier_weights_makes_no_checkpoint_the_best(
    registry: Registry, options: Options, tmp_path: Path
) -> None:
    start(registry, options(trainer__steps=5, trainer__checkpoint_every=4, trainer__validate_every=3))
    # step 4 was saved but not validated, step 5 (the last) was both
    assert json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())["step"] == 5


def test_a_best_checkpoint_that_was_removed_gives_way(tmp_path: Path) -> None:
    for step in (10, 20):
        folder_of(tmp_path, step).mkdir(parents=True)
    assert checkpoint.note_best(tmp_path, 10, "validation/loss", 1.0)
    folder_of(tmp_path, 10).rmdir()
    assert checkpoint.note_best(tmp_path, 20, "validation/loss", 2.0)
    assert checkpoint.best(tmp_path) == folder_of(tmp_path, 20)


@pytest.mark.parametrize("text", ["", "[]", '{"step": 2}', '{"step": "x", "metric": "m", "value": 1}'])
def test_a_damaged_note_of_the_best_is_told_before_training(
    registry: Registry, options: Options, tmp_path: Path, text: str
) -> None:
    start(registry, options())
    (tmp_path / "run" / "checkpoints" / "best.json").write_text(text)
    before = contents(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"best\.json is damaged: remove it"):
        launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)
    assert contents(tmp_path / "run" / "checkpoints") == before


def test_an_unknown_metric_for_the_best_is_told_at_the_start(registry: Registry, options: Options) -> None:
    with pytest.raises(UserError, match=r"trainer\.best_metric: .*'validation/los'.*Did you mean 'validation/loss'"):
        start(registry, options(trainer__best_metric="validation/los"))


# --------------------------------------------------------------------------------------------------- what is restored


def test_a_state_of_another_step_is_damage(registry: Registry, options: Options, tmp_path: Path) -> None:
    start(registry, options())
    state = folder_of(tmp_path / "run", 6) / "state.json"
    state.write_text(state.read_text().replace('"step": 6', '"step": 5'))
    with pytest.raises(UserError, match=r"state\.json is that of step 5\. Move this folder away"):
        launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)


class Counting(torch.optim.Optimizer):
    """Keeps a Python number for each parameter and one in the group, as some fused optimizers do."""

    def __init__(self, groups: Iterable[Any], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "decay": 0.1, "moved": 0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["moved"] += 1
            group["lazily"] = 0.5 * group["moved"]
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["row"] = torch.full((2,), float(group["moved"]))
                state["nothing"] = None


def counting(decay: float) -> tuple[nn.Module, Counting]:
    network = nn.Linear(2, 3)
    optimizer = Counting(
        [{"params": [network.weight], "names": ["w"]}, {"params": [network.bias], "names": ["b"]}], 0.1
    )
    for group in optimizer.param_groups:
        group["decay"] = decay
    training_state.note_initial(optimizer)
    return network, optimizer


def test_numbers_that_an_optimizer_keeps_outside_tensors_are_restored(tmp_path: Path) -> None:
    network, optimizer = counting(0.1)
    optimizer.step()
    optimizer.step()
    training_state.write_whole(tmp_path, training_state.collect(nn.ModuleDict({"x": network}), optimizer))
    other, fresh = counting(0.7)
    training_state.restore(training_state.read(tmp_path), objectives=nn.ModuleDict({"x": other}), optimizer=fresh)
    for group, before in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert (group["moved"], group["lazily"]) == (2, 1.0)
        # an option that the user changed in between stays changed
        assert group["decay"] == 0.7
        (mine,), (theirs,) = group["params"], before["params"]
        state = fresh.state[mine]
        assert state["count"] == optimizer.state[theirs]["count"] == 2
        assert isinstance(state["count"], int)
        assert torch.equal(state["row"], torch.full((2,), 2.0))
    assert torch.equal(other.weight, network.weight)  # type: ignore[arg-type]


def test_what_is_no_tensor_cannot_be_saved(tmp_path: Path) -> None:
    network, optimizer = counting(0.1)
    optimizer.state[next(iter(network.parameters()))]["history"] = [1, 2]
    with pytest.raises(UserError, match="'history' of w is a list"):
        training_state.collect(nn.ModuleDict(), optimizer)


def test_tied_weights_of_an_objective_are_saved(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    tied["b"].weight = tied["a"].weight
    _, optimizer = counting(0.1)
    training_state.write_whole(tmp_path, training_state.collect(tied, optimizer))
    stored = training_state.read(tmp_path)
    assert torch.equal(stored["objective|a.weight"], stored["objective|b.weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: nn.ModuleDict({"x": nn.Linear(2, 4)}), "'x.weight' of the objectives has shape"),
        (lambda: nn.ModuleDict({"y": nn.Linear(2, 3)}), "of the objectives"),
        (nn.ModuleDict, "has, but the run has not, 'x.bias' of the objectives"),
    ],
)
def test_objectives_that_are_not_those_of_the_checkpoint_are_named(tmp_path: Path, change: Any, says: str) -> None:
    network, optimizer = counting(0.1)
    stored = training_state.collect(nn.ModuleDict({"x": network}), optimizer)
    with pytest.raises(UserError, match=says):
        training_state.restore(stored, objectives=change(), optimizer=optimizer)


# -------------------------------------------------------------------------------------------------------- run folders


def test_a_run_folder_that_cannot_be_made_is_told_before_data_are_read(
    registry: Registry, options: Options, tmp_path: Path, small_fasta: Path
) -> None:
    before = small_fasta.read_bytes()
    with pytest.raises(UserError, match=r"run folder .*small\.fasta/run cannot be made: .*small\.fasta is a file"):
        start(registry, options(out=small_fasta / "run"))
    assert small_fasta.read_bytes() == before
    assert not (tmp_path / "cache").exists()


def test_runs_started_in_the_same_second_have_folders_of_their_own(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    overrides = [o for o in options(trainer__steps=1) if not o.startswith("out=")]
    folders = [start(registry, overrides).run_dir for _ in range(2)]
    assert folders == [Path("runs/esm2-now"), Path("runs/esm2-now-2")]
    assert all((folder / "config.yaml").is_file() for folder in folders)


def test_a_tilde_means_the_home_folder(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert start(registry, [*options(trainer__steps=1), "out=~/run"]).run_dir == tmp_path / "home" / "run"


def test_a_relative_cache_folder_is_found_again_from_elsewhere(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start(registry, options(data__cache_dir="stores", trainer__steps=2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    launch.resume(tmp_path / "run", ["trainer.steps=3"], registry)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_folder_of_a_run_cannot_be_changed_by_resuming(
    registry: Registry, options: Options, tmp_path: Path
) -> None:
    start(registry, options(trainer__steps=2))
    with pytest.raises(UserError, match="out cannot be changed"):
        launch.resume(tmp_path / "run", ["out=elsewhere", "trainer.steps=3"], registry)


# ------------------------------------------------------------------------------------------------------------ numbers


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(
    registry: Registry, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protloom_plugins.objectives.mlm import MaskedLM

    real = MaskedLM.loss

    def infinite(self: MaskedLM, *args: Any) -> Losses:
        found = real(self, *args)
        return Losses({"mlm": found.totals["mlm"] + math.inf}, found.metrics)

    run = assemble(config.load(None, options(trainer__nonfinite_limit=1), registry), registry, ALONE, initial=None)
    before = {name: p.detach().clone() for name, p in run.module.named_parameters()}
    monkeypatch.setattr(MaskedLM, "loss", infinite)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="not finite 1 times in a row"):
        Trainer(run, tmp_path / "run", TrainState(0, 0, 0, 0.0, 0.0, ("x",))).train()
    for name, parameter in run.module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_flops_of_a_network_without_blocks() -> None:
    # 6 FLOPs a weight and token
    assert FlopCounter(nn.Linear(4, 8)).step([3, 2], []) == 6 * 32 * 5


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "xla:0", "cuda:one", ""])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(UserError, match=f"no device {device!r}; use auto, cpu, cuda or cuda:N"):
        join("none", device)


# ---------------------------------------------------------------------------------------------------------- the data


def test_corpora_are_mixed_by_weight_and_validated_on_one_of_their_own(
    registry: Registry, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for letter in "ACD":
        records = "".join(f">{letter}{i}\n{letter * (30 + i % 20)}\n" for i in range(200))
        (tmp_path / f"{letter}.fasta").write_text(records)
    corpus = [{"path": str(tmp_path / "A.fasta"), "weight": 3}, {"path": str(tmp_path / "C.fasta")}]
    changes = {"data__corpus": corpus, "data__validation": tmp_path / "D.fasta", "trainer__tokens_per_step": 4000}
    start(registry, options(**changes))
    assert "C.fasta" in capsys.readouterr().out
    # all targets of the validation corpus are D: their entropy is 0
    assert lines(tmp_path / "run")[0]["validation/unigram_entropy/mlm"] == 0.0
    run = assemble(config.load(None, options(**changes), registry), registry, ALONE, initial=None)
    tokens = [run.maker.make(part, 0).packed.tokens for part in run.sampler.microbatches(0)]
    letters = [run.tokenizer.vocab[i] for part in tokens for i in part.tolist()]
    share = letters.count("A") / (letters.count("A") + letters.count("C"))
    assert share == pytest.approx(0.75, abs=0.03)
    assert set(letters) == {"<cls>", "<eos>", "A", "C"}
    # the second corpus is checked too
    (tmp_path / "C.fasta").write_text(">c\nCCCCCCCC\n")
    with pytest.raises(UserError, match=r"is not the one that the run was trained on"):
        launch.resume(tmp_path / "run", ["trainer.steps=8"], registry)


def test_a_validation_corpus_with_nothing_to_score_is_refused(
    registry: Registry, options: Options, tmp_path: Path
) -> None:
    (tmp_path / "short.fasta").write_text(">s\nMKT\n")
    with pytest.raises(UserError, match=r"data\.validation: .*short\.fasta has no sequence of at least 5 residues"):
        start(registry, options(data__validation=tmp_path / "short.fasta", data__min_length=5))


def test_a_run_without_validation_trains(registry: Registry, options: Options, tmp_path: Path) -> None:
    start(registry, options(data__validation_fraction=0, trainer__steps=2))
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "run" / "checkpoints" / "best.json").exists()
