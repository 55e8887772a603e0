"""``protloom plan``: what a run will take, by a clock of its own; and what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ticking import Ticking
from tiny_run import Options, options_in

from protloom import checkpoint, config, planning, stepper
from protloom.cli import main
from protloom.cli.plan import hours
from protloom.plugins import Registry

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    return options_in(tmp_path, small_fasta)


def planned(
    options: Options, registry: Registry, *, steps: int = 5, seconds: float = 1e9, tick: float = 1.0, **changes: Any
) -> dict[str, Any]:
    resolved = config.load(None, options(**changes), registry)
    return planning.plan(resolved, registry, steps=steps, seconds=seconds, with_clock=Ticking(tick))


def test_a_run_to_its_last_step(options: Options, registry: Registry, tmp_path: Path) -> None:
    found = planned(options, registry, trainer__steps=200, trainer__validate_every=50)
    probe, whole = found["probe"], found["run"]
    # a probe looks at the clock at its ends and at those of its four parts
    assert probe["step_seconds"] == 9.0
    assert probe["step_seconds_range"] == [9.0, 9.0]
    assert probe["steps"] == 5
    assert whole["ends_by"] == "steps"
    assert whole["steps"] == 200
    assert whole["seconds"] == 1800.0
    assert whole["tokens"] == pytest.approx(200 * probe["tokens_per_step"])
    assert probe["tokens_per_step"] == pytest.approx(600, rel=0.2)
    assert whole["flops"] == pytest.approx(200 * probe["flops_per_step"])
    assert 0 < whole["epochs"] < 200
    assert whole["validations"] == 5  # one before the first step
    # a forward pass takes a second of the clock for a step's tokens
    assert whole["validation_seconds"] == pytest.approx(5 * 1000 / probe["tokens_per_step"], rel=0.05)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("cache", "small.fasta")] == []


def test_validations_where_the_run_file_does_not_say(options: Options, registry: Registry) -> None:
    found = planned(options, registry, trainer__steps=2000, trainer__validate_every=None)
    assert found["run"]["validations"] == 11  # one before the first step, ten a tenth of the run apart


def test_the_limit_that_comes_first_ends_it(options: Options, registry: Registry) -> None:
    seconds = planned(options, registry, trainer__steps=200, trainer__max_seconds=95, trainer__max_tokens=10**9)["run"]
    assert (seconds["ends_by"], seconds["steps"]) == ("seconds", 11)
    tokens = planned(options, registry, trainer__steps=10**9, trainer__max_tokens=60_000)
    assert tokens["run"]["ends_by"] == "tokens"
    assert tokens["run"]["steps"] == -(-60_000 // tokens["probe"]["tokens_per_step"])


def test_probes_end_when_the_time_is_over(options: Options, registry: Registry) -> None:
    assert planned(options, registry, steps=50, seconds=100)["probe"]["steps"] == 10
    assert planned(options, registry, steps=50, seconds=20)["probe"]["steps"] == planning.LEAST


def test_steps_of_many_micro_batches_are_reckoned_from_some(
    options: Options, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "MICROBATCHES", 2)
    few = {"data__max_length": 50, "data__min_length": 50, "trainer__tokens_per_microbatch": 104}
    found = planned(options, registry, trainer__tokens_per_step=1040, **few)
    # two of ten micro-batches are read: 2 + 2·(3 parts + 2 looks between them) + the optimizer's and what lies between
    assert found["probe"]["tokens_per_step"] == 1040
    assert found["probe"]["step_seconds"] == 15 + 6 * (10 / 2 - 1)


def test_slow_networks_are_probed_with_less(options: Options, registry: Registry) -> None:
    few = {"data__max_length": 50, "data__min_length": 50, "trainer__tokens_per_step": 2080}
    whole = planned(options, registry, **few)
    part = planned(options, registry, seconds=10.0, **few)  # at a second a look, a micro-batch takes longer than 2.5
    assert (whole["memory"]["estimated"], part["memory"]["estimated"]) == (False, True)
    assert part["memory"]["peak_bytes"] == pytest.approx(whole["memory"]["peak_bytes"], rel=0.1)
    assert part["memory"]["activations_bytes"] == pytest.approx(whole["memory"]["activations_bytes"], rel=0.15)
    assert part["probe"]["tokens_per_step"] == 2080
    assert part["probe"]["step_seconds"] > whole["probe"]["step_seconds"]


def test_checkpoints_are_as_large_as_it_says(options: Options, registry: Registry, tmp_path: Path) -> None:
    found = planned(options, registry, trainer__keep_last=3)["disk"]
    assert found["checkpoints"] == 3 + planning.BESIDE
    assert found["bytes"] == found["checkpoints"] * found["checkpoint_bytes"]
    assert main(["train", *options()]) == 0
    folder = checkpoint.latest(tmp_path / "run")
    assert folder is not None
    tensors = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert found["checkpoint_bytes"] == pytest.approx(tensors, rel=0.1)


def test_objectives_that_start_late_are_probed_too(options: Options, registry: Registry) -> None:
    late = [{"name": "mlm"}, {"name": "mlm", "alias": "late", "start_step": 4}]
    one = planned(options, registry)["memory"]
    both = planned(options, registry, objectives=late)
    assert both["network"]["objectives"] == ["mlm", "late"]
    assert both["memory"]["activations_bytes"] > 1.5 * one["activations_bytes"]


def test_lines_for_a_person(options: Options, tmp_path: Path, capsys: Capture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", *options(), "--steps=3"]) == 0
    printed = capsys.readouterr().out
    for start in ("network", "speed", "run", "validation", "memory", "disk"):
        assert any(line.startswith(f"{start} ") for line in printed.splitlines()), start
    assert "to its last step: 6 steps" in printed
    assert "weights 108.2 KiB" in printed
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert all("cache" in path.parts for path in left)  # the corpus' store, which the run will find

    assert main(["plan", *options(), "--steps=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("protloom-plan", 1)
    assert str(tmp_path) not in json.dumps(found)


def test_what_may_go_wrong_is_told(options: Options, registry: Registry) -> None:
    found = planned(options, registry, steps=3)
    found["foreign_cores"] = 0.0
    assert planning.cautions(found) == []
    found["disk"]["free_bytes"] = 10
    found["memory"]["free_bytes"] = found["memory"]["peak_bytes"]
    found["run"]["epochs"] = 99.0
    found["foreign_cores"] = 0.5
    found["parallel"] = "fsdp2"
    told = "\n".join(planning.cautions(found))
    for words in ("more room than there is", "nearly full", "more than 50 times", "kept 0.5 of", "parallel=fsdp2"):
        assert words in told


def test_a_run_of_many_processes_is_probed_on_one(options: Options, registry: Registry) -> None:
    assert planned(options, registry, steps=3, trainer__parallel="ddp")["parallel"] == "ddp"


@pytest.mark.parametrize("cuda", [False, True])
def test_a_batch_that_does_not_fit_says_what_would(
    cuda: bool, options: Options, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda:  # found out by trying
        advance = stepper.Trainer.advance

        def exhausted(self: Any, step: int, batches: Any, *rest: Any) -> None:
            if max(batch.tokens for batch in batches) > 1000:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            advance(self, step, batches, *rest)

        monkeypatch.setattr(stepper.Trainer, "advance", exhausted)
        monkeypatch.setattr(stepper.Stepper, "refuse_too_large", lambda self, batches: None)
    monkeypatch.setattr(stepper, "available", lambda device: 3_000_000)
    assert main(["plan", *options(trainer__tokens_per_step=4000)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "error: a micro-batch of 4,0" in printed.err
    assert "trainer.tokens_per_microbatch=" in printed.err
    assert " would fit" in printed.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seconds=0"], "argument --seconds: found '0'"),
        (["trainer.precision=fp16"], "fp16 is not offered"),
        (["architecture=esn2:tiny"], "no architecture 'esn2'"),
        (["objective=mln"], "no objective 'mln'"),
        (["data.corpus=nowhere.fasta"], "no such file: nowhere.fasta"),
        (["data.min_length=5000"], "nothing is left to train on"),
        (["trainer.max_tokens=-1"], "trainer.max_tokens"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, options: Options, capsys: Capture) -> None:
    assert main(["plan", *options(), *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_a_mistake_is_told_before_torch_is_loaded() -> None:
    code = (
        "import sys; from protloom.cli import main; assert main(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "plan", "--arch=esm2:tiny", "--data=nowhere.fasta"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 seconds"), (90, "1.5 minutes"), (5400, "1.5 hours"), (86400, "24.0 hours"), (259200, "3.0 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert hours(seconds) == text
