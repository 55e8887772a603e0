"""What newcomers stumbled over: kept from coming back."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plugin_files import Site
from tiny_run import Options, environment, lines, options_in

from protloom.cli import main


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    return options_in(tmp_path, small_fasta)


def test_the_training_curve_has_one_value_a_step(options: Options, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", *options(trainer__tensorboard=True)]) == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Scalars("validation/loss")] == [0, 3, 6]
    assert all("loss" in record for record in lines(tmp_path / "run"))


def test_files_have_the_permissions_that_others_have(options: Options, tmp_path: Path) -> None:
    assert main(["train", *options()]) == 0
    usual = tmp_path / "usual"
    usual.touch()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {stat.S_IMODE(usual.stat().st_mode)}


def test_a_reader_that_goes_away_stops_no_training(options: Options, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "protloom", "train", *options(trainer__steps=12)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # as '| head -1' does
        assert process.stderr is not None
        told = process.stderr.read().decode()
    done = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert "step-00000012" in done, (process.returncode, done, told)


def heard_again() -> None:
    """What the tests were started with may ignore SIGHUP (nohup), and a child inherits that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_closed_terminal_saves(options: Options, tmp_path: Path, name: str) -> None:
    long = options(trainer__steps=20000, trainer__checkpoint_every=20000, trainer__validate_every=20000)
    process = subprocess.Popen(
        [sys.executable, "-m", "protloom", "train", *long],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=heard_again,  # noqa: PLW1509 - no threads are started between fork and exec
    )
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 100
        while not (log.is_file() and '"step": 3' in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.Signals[name])
        _, told = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"{name}: finishing the step, then saving".encode() in told
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_checkpoints_are_written_without_being_asked_for(options: Options, tmp_path: Path) -> None:
    words = [word for word in options(trainer__steps=120) if not word.startswith("trainer.checkpoint_every")]
    assert main(["train", *words, "trainer.keep_last=9"]) == 0
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")) == [
        "step-00000050",
        "step-00000100",
        "step-00000120",
    ]


def test_a_budget_within_the_warm_up_is_told(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options(trainer__steps=900, trainer__max_tokens=1500, schedule__warmup_steps=50)]) == 0
    assert "the run ended within its warm-up (3 of 50 steps)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["proteins.fasta", "--arch", "esm2:tiny"], "to train on it write --data proteins.fasta"),
        (["trainer.steps", "5"], "To set an option write trainer.steps=VALUE"),
    ],
)
def test_messages(
    words: list[str],
    says: str,
    small_fasta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proteins.fasta").write_bytes(small_fasta.read_bytes())
    assert main(["train", *words]) == 2
    assert says in capsys.readouterr().err


def test_recipes_can_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "recipe"]) == 0
    listed = capsys.readouterr().out
    assert "ankh3-small " in listed
    assert "proteinjepa-v1-small " in listed
    assert main(["show", "recipe", "demo"]) == 0
    assert "esm2:mini" in capsys.readouterr().out
    assert main(["show", "recipe", "dmo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err


def test_what_cleaning_dropped_is_told(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options(trainer__steps=1)]) == 0
    odd = tmp_path / "odd.fasta"
    odd.write_text(">a\nMKTAYIAK\n>b\nMK*TAY\n")
    capsys.readouterr()
    assert main(["score", str(odd), "--model", str(tmp_path / "run")]) == 0
    assert "warning: 1 record of 2: '*' inside: dropped" in capsys.readouterr().err


WEIGHTED = """
from protloom.contracts import Term
from protloom_plugins.objectives.mlm import MaskedLM

class Weighted(MaskedLM):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.terms = {name: Term() for name in self.terms}
"""


def test_a_loss_that_is_not_in_nats_is_not_called_so(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor held against residue frequencies, nor in the report: its level means something else."""
    spec = 'ObjectiveSpec(name="own", factory="acme_nats_code:Weighted", config="{}.mlm_config:MaskedLMConfig")'
    source = "from protloom import ObjectiveSpec, hookimpl\n@hookimpl\ndef protloom_objectives():\n    return [{}]\n"
    site = Site(tmp_path)
    site.add("acme", "acme_nats", source.format(spec.format("protloom_plugins.objectives")))
    (tmp_path / "acme_nats_code.py").write_text(WEIGHTED)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["train", *options(), "objective=own"]) == 0
    said = capsys.readouterr().out
    assert "validation after step 6: own " in said
    assert "nats" not in said
    last = [line for line in lines(tmp_path / "run") if "validation/loss/own" in line][-1]
    assert last["validation/scored/own"] > 0
    assert not any("unigram" in key or "perplexity" in key for key in last)
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    assert "residue frequencies" not in capsys.readouterr().out
    assert main(["train", *options("plain")]) == 0
    assert "nats per scored token (perplexity" in capsys.readouterr().out
    for name in ("acme_nats", "acme_nats_code"):
        sys.modules.pop(name)
