"""Objectives that own parameters, keep a teacher or use a statistic of the batch, through the whole trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from owning_objective import install
from tiny_run import ALONE, Options, environment, losses, options_in

from protloom import checkpoint, config, launch, training_state
from protloom.assembly import Assembly, assemble
from protloom.contracts import StepContext
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device

TWIN = {"name": "twin", "weight": {"spread": 0.5}}
MIXED = [{"name": "mlm"}, {**TWIN, "corruption": "mlm"}]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the third party's distribution, on sys.path."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    for name in ("acme_twin", "acme_twin_loss"):
        sys.modules.pop(name, None)


@pytest.fixture
def known(site: Path) -> Registry:
    """The installed components and those of the third party."""
    return Registry.discover()


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    """Overrides of a run that takes a second."""
    return options_in(tmp_path, small_fasta)


def built(known: Registry, overrides: list[str]) -> Assembly:
    return assemble(config.load(None, overrides, known), known, ALONE, initial=None)


def one_step(run: Assembly, step: int = 1) -> tuple[dict[tuple[str, str], float], dict[str, torch.Tensor]]:
    """Returns the mean of each term and the gradients of one step."""
    batches = run.host_step(step)
    divisors = {key: float(sum(b.counts[key] for b in batches)) for key in batches[0].counts}
    means = dict.fromkeys(divisors, 0.0)
    for batch in batches:
        ctx = StepContext(step, CounterRNG(0), lambda x: x, lambda x: x)
        output = run.wrapped(to_device(batch, run.world.device), run.mixture.weights(step), divisors, ctx)
        output.loss.backward()
        for key, total in output.totals.items():
            means[key] += float(total) / divisors[key]
    return means, {name: p.grad for name, p in run.module.named_parameters() if p.grad is not None}


def test_additive_terms_are_exact_and_statistics_are_count_weighted_means(known: Registry, options: Options) -> None:
    objective = {"name": "twin", "weight": {"spread": 0.0}}
    whole, gradient = one_step(built(known, options(objective=objective)))
    run = built(known, options(objective=objective, trainer__tokens_per_microbatch=130))
    parts, summed = one_step(run)
    assert parts["twin", "predict"] == pytest.approx(whole["twin", "predict"], rel=1e-6)
    for name, value in gradient.items():
        torch.testing.assert_close(summed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert not any("teacher" in name or "target" in name for name in gradient)
    # by hand: the value of each micro-batch on its own, weighted by its number of sequences
    batches = run.host_step(1)
    assert len(batches) >= 4
    expected = 0.0
    for batch in batches:
        (share,) = to_device(batch, run.world.device)
        with torch.no_grad():
            states = run.model.encode(*share.inputs).last  # type: ignore[operator]
        expected += float(states.mean(dim=0).square().sum()) * share.inputs.cu.n
    expected /= sum(batch.counts["twin", "spread"] for batch in batches)
    assert parts["twin", "spread"] == pytest.approx(expected, rel=1e-5)
    assert parts["twin", "spread"] != pytest.approx(whole["twin", "spread"], rel=1e-2)


@pytest.mark.parametrize("objectives", [[TWIN], MIXED, [*MIXED[:1], {**TWIN, "start_step": 3, "keep_rate": 0.7}]])
def test_what_an_objective_owns_is_resumed_bitwise(
    known: Registry, options: Options, tmp_path: Path, objectives: Any
) -> None:
    changes = {"objectives": [o if o["name"] == "mlm" else {**o, "dropout": 0.3} for o in objectives]}
    final = {}
    for out, steps in (("whole", 6), ("cut", 4)):
        launch.start(
            config.load(None, options(out, trainer__steps=steps, schedule__name="constant", **changes), known), known
        )
    # something else draws from the global generator between two sittings
    torch.manual_seed(12345)
    launch.resume(tmp_path / "cut", ["trainer.steps=6"], known)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for out in ("whole", "cut"):
        final[out] = _stored(tmp_path / out)
    assert final["whole"].keys() == final["cut"].keys()
    assert any("objective|twin.teacher" in name for name in final["whole"])
    for name, value in final["whole"].items():
        assert torch.equal(value, final["cut"][name]), name


def _stored(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.latest(run_dir)
    assert folder is not None
    return training_state.read(folder)


def test_an_objective_with_another_shape_or_more_parts_is_refused_at_resume(
    known: Registry, options: Options, tmp_path: Path
) -> None:
    launch.start(config.load(None, options(objective=TWIN, trainer__steps=2), known), known)
    with pytest.raises(UserError, match="not the same run"):
        launch.resume(tmp_path / "run", ["objective=mlm", "trainer.steps=4"], known)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("undeclared", "objective 'liar' returned the term 'made-up', which it does not declare.* declares: real"),
        ("missing", "objective 'liar' returned no total for its term 'real'"),
        ("detached", "liar.*does not depend on any parameter"),
        ("vector", r"objective 'liar' returned a total of shape \[3\] for its term 'real'"),
        ("no-count", "objective 'liar' prepared no count for its term 'real'"),
        ("odd-count", "objective 'liar' counted the term 'made-up', which it does not declare"),
    ],
)
def test_a_broken_contract_names_the_objective_and_the_term(
    known: Registry, options: Options, lie: str, says: str
) -> None:
    overrides = options(objective={"name": "liar", "lie": lie}, data__validation_fraction=0)
    with pytest.raises(UserError, match=says) as caught:
        launch.start(config.load(None, overrides, known), known)
    assert "\n" not in str(caught.value)


def test_an_objective_that_does_not_keep_the_shared_input_is_told(known: Registry, options: Options) -> None:
    objectives = [{"name": "mlm"}, {"name": "liar", "lie": "none", "corruption": "mlm"}]
    with pytest.raises(UserError, match="objective 'liar' must keep the inputs of 'mlm', whose corruption it shares"):
        launch.start(config.load(None, options(objectives=objectives), known), known)


def test_targets_that_are_no_ids_have_no_perplexity(known: Registry, options: Options, tmp_path: Path) -> None:
    launch.start(config.load(None, options(objective={"name": "liar", "lie": "none"}, trainer__steps=1), known), known)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "validation/loss/liar" in text
    assert "perplexity" not in text


# --------------------------------------------------------------------------------------------------- two processes


def command(tmp_path: Path, small_fasta: Path, out: str, *more: str) -> list[str]:
    return [
        "train",
        f"--data={small_fasta}",
        "--arch=esm2:tiny",
        f"--out={tmp_path / out}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "trainer.steps=6",
        "trainer.tokens_per_step=900",
        "trainer.precision=fp32",
        "trainer.log_every=1",
        "trainer.checkpoint_every=3",
        "trainer.validate_every=3",
        "trainer.validation_tokens=1500",
        "trainer.tensorboard=false",
        "optimizer.lr=0.0005",
        "schedule.name=constant",
        *more,
    ]


LIMIT = 60_000
"""Bytes: less than the weights of the tiny network."""


def launched(site: Path, module: str, *words: str, ranks: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *launcher, "-m", module, *words],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": path, **more},
        cwd=site.parent,
        timeout=300,
        check=False,
    )


def process(site: Path, *words: str, ranks: int = 0, **more: str) -> str:
    done = launched(site, "protloom", *words, ranks=ranks, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def terms(run_dir: Path) -> dict[tuple[int, str], float]:
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found |= {(record["step"], k): v for k, v in record.items() if "loss" in k or k in ("error/twin", "grad_norm")}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "objectives"),
    [
        # without mlm nothing uses the network's head; mlm's own start late
        ("ddp", [TWIN]),
        ("fsdp2", [TWIN]),
        ("ddp", [{"name": "mlm", "start_step": 2}, TWIN]),
        ("fsdp2", [{"name": "mlm", "start_step": 2}, TWIN]),
        ("ddp", MIXED),
    ],
)
def test_two_processes_train_what_an_objective_owns_as_one_does(
    site: Path, small_fasta: Path, tmp_path: Path, parallel: str, objectives: Any
) -> None:
    more = f"objectives={json.dumps(objectives)}"
    process(site, *command(tmp_path, small_fasta, "one", more))
    told = process(site, *command(tmp_path, small_fasta, "two", more, f"trainer.parallel={parallel}"), ranks=2)
    # PyTorch is asked to look for unused parameters only where there are some
    assert "unused" not in told or objectives[0].get("start_step")
    one, two = terms(tmp_path / "one"), terms(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-6, rel=1e-6), key
    # saved by two in the middle, taken up by one
    words = command(tmp_path, small_fasta, "half", more, f"trainer.parallel={parallel}", "trainer.steps=3")
    unnamed = [word for word in words if not word.startswith("--out")]
    process(site, *unnamed, ranks=2, ACME_CLOCK_OF_EACH_RANK="1")
    # the clocks of the two processes differ, but the folder is one
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["esm2-second-0"]
    (tmp_path / "runs" / "esm2-second-0").rename(tmp_path / "half")
    process(site, "resume", str(tmp_path / "half"), "trainer.parallel=none", "trainer.steps=6")
    half = terms(tmp_path / "half")
    for key, value in one.items():
        assert half[key] == pytest.approx(value, abs=1e-6, rel=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_full_disk_ends_every_process_with_the_reason(
    site: Path, small_fasta: Path, tmp_path: Path, parallel: str
) -> None:
    # the limit stands for a full disk: the weights do not fit, what is written before them does
    limited = f"import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))"
    (site / "limited.py").write_text(limited + "\nrunpy.run_module('protloom', run_name='__main__', alter_sys=True)\n")
    words = command(tmp_path, small_fasta, "run", "objective=mlm", f"trainer.parallel={parallel}")
    done = launched(site, "limited", *words, ranks=2)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "error: " in line and "torch" not in line]
    assert told  # by rank 0; by the other too, if torchrun is slow to end it
    assert told[0].startswith("error: ")
    assert all("the checkpoint of step 3 cannot be written" in line and "File too large" in line for line in told)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
