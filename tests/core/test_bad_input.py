"""What users get wrong, from the command line to the message: one line, no success, and nothing that existed damaged.

Readers, policies, stores and plugins have tests of their own; here the whole path through ``protloom`` is walked.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from owning_objective import install
from plugin_files import Site
from tiny_run import environment

from protloom import checkpoint
from protloom.cli import main
from protloom.data.build import build_store
from protloom.metrics import MetricLog

Capture = pytest.CaptureFixture[str]

TINY = (
    "--arch=esm2:tiny",
    "trainer.steps=2",
    "trainer.tokens_per_step=1200",
    "trainer.validation_tokens=500",
    "trainer.precision=fp32",
    "trainer.checkpoint_every=1",
    "trainer.tensorboard=false",
    "trainer.log_every=1",
)


def proteins(n: int) -> str:
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    rng = np.random.default_rng(1)
    return "".join(f">p{i}\n{''.join(rng.choice(letters, size=rng.integers(20, 100)))}\n" for i in range(n))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a finished run on it, and its weights as transformers and fair-esm write them."""
    import torch

    folder = tmp_path_factory.mktemp("made")
    (folder / "ok.fasta").write_text(proteins(200))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "--data=ok.fasta", "--out=run", "data.cache_dir=cache", *TINY]) == 0
        assert main(["convert", "run", "--to", "hf", "--out", "hf"]) == 0
    finally:
        os.chdir(before)
    import esm

    network = esm.ESM2(num_layers=3, embed_dim=32, attention_heads=4)
    # as Meta's own files are written: names with the prefix of the training program
    options = {"encoder_layers": 3, "encoder_embed_dim": 32, "encoder_attention_heads": 4, "token_dropout": True}
    state = {
        f"encoder.sentence_encoder.{k}" if "lm_head" not in k else f"encoder.{k}": v
        for k, v in network.state_dict().items()
    }
    import argparse

    torch.save({"cfg": {"model": argparse.Namespace(**options)}, "model": state}, folder / "esm2_t3.pt")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(made, folder)
    # the run's configuration names its corpus by an absolute path
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns every file and folder, but for the stores that protloom keeps for itself."""
    found = ((p.relative_to(folder), p) for p in sorted(folder.rglob("*")))
    return {str(name): p.read_bytes() if p.is_file() else None for name, p in found if name.parts[0] != "cache"}


def refused(capsys: Capture, work: Path, *argv: str) -> str:
    """Runs a command that must fail; returns its one line after checking that the folder is as it was."""
    before = contents(work)
    capsys.readouterr()
    assert main(list(argv)) not in (0, 70)  # 70: an internal error
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (line,) = told.splitlines()
    assert line.startswith("error: ")
    assert contents(work) == before
    return line


def train(*words: str, data: str = "ok.fasta", out: str = "new") -> list[str]:
    return ["train", f"--data={data}", f"--out={out}", "data.cache_dir=cache", *TINY, *words]


# --------------------------------------------------------------------------------------------------------- the corpus

FILES: dict[str, tuple[str, bytes, str]] = {
    "truncated gzip": ("x.fasta.gz", gzip.compress(proteins(200).encode())[:-50], "is truncated"),
    "truncated gzip header": ("x.fasta.gz", gzip.compress(b">a\nMKT\n")[:7], "is truncated"),
    "empty": ("x.fasta", b"", "x.fasta is empty"),
    "only blank lines": ("x.fasta", b"\n\n \n", "x.fasta"),
    "headerless": ("x.fasta", b"MKTAYI\n", "line 1: expected a FASTA header"),
    "no residues": ("x.fasta", b">a\n>b\n", "2 no residues: dropped"),
    "digits": ("x.fasta", b">a\nMK7T\n", "a character outside A-Z: dropped"),
    "utf-8": ("x.fasta", ">a\nMKÉT\n".encode(), "a character outside A-Z: dropped"),
    "latin-1": ("x.fasta", b">a\nMK\xe9T\n", "a character outside A-Z: dropped"),
    "binary": ("x.fasta", bytes(range(256)), "x.fasta"),
    "csv without the column": ("x.csv", b"name,letters\na,MKT\n", "column"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_a_corpus_that_cannot_be_trained_on(case: str, work: Path, capsys: Capture) -> None:
    name, data, says = FILES[case]
    (work / name).write_bytes(data)
    line = refused(capsys, work, *train(data=name))
    assert says in line
    assert name in line


def test_a_corpus_that_is_not_there(work: Path, capsys: Capture) -> None:
    assert "no such file: okk.fasta. Did you mean 'ok.fasta'?" in refused(capsys, work, *train(data="okk.fasta"))
    (work / "folder").mkdir()
    assert "folder is not a store" in refused(capsys, work, *train(data="folder"))
    assert "data.corpus" in refused(capsys, work, "train", "--out=new", *TINY)


def test_what_is_changed_or_dropped_is_counted_and_printed(work: Path, capsys: Capture) -> None:
    odd = f">long\n{'MKTAYI' * 10000}\n>p1\nMKTAYIA\n>digit\nMK1\n>é\nMKTAYIAKQR\n>none\n>low\nmktayiakqr\n"
    (work / "odd.fasta").write_text(proteins(200) + odd, encoding="utf-8")
    capsys.readouterr()
    assert main(train("trainer.tokens_per_step=2000", "data.max_length=500", data="odd.fasta")) == 0
    out = capsys.readouterr().out
    for counted in (
        "1 × lower-case letters become upper case",
        "1 × a character outside A-Z: dropped",
        "1 × no residues: dropped",
        "1 × same id, other sequence",
    ):
        assert f"cleaned: {counted}" in out
    # 60,000 residues are cropped to data.max_length; uncropped they would not fit into a step
    line = refused(capsys, work, *train("data.max_length=100000", data="odd.fasta", out="newer"))
    assert "the longest sequence or group has 60002 tokens" in line
    strict = refused(capsys, work, *train("data.strict=true", data="odd.fasta", out="newer"))
    assert "odd.fasta, record 203 (line 405) 'digit' ('1')" in strict


# ----------------------------------------------------------------------------------------------- the configuration

TRAIN: dict[str, tuple[list[str], str]] = {
    "unknown key": (["trainer.stepz=3"], "trainer.stepz: unknown key. Did you mean 'trainer.steps'?"),
    "unknown key of a component": (["objective.mask_rat=0.1"], "objective.mask_rat: unknown key. Did you mean"),
    "unknown section": (["trainr.steps=3"], "trainr: unknown key. Did you mean 'trainer'?"),
    "wrong type": (["trainer.steps=many"], "trainer.steps: found 'many', should be a valid integer"),
    "out of range": (["objective.mask_rate=1.5"], "objective.mask_rate: found 1.5, should be less than or equal to 1"),
    "no value": (["trainer.steps"], "'trainer.steps' is not of the form key=value"),
    "broken yaml": (["objectives=[mlm"], "objectives=[mlm: line 1"),
    "unknown objective": (["objective=mml"], "objective: no objective 'mml'. Did you mean 'mlm'?"),
    "unknown optimizer": (["optimizer=adam"], "optimizer: no optimizer 'adam'. Did you mean 'adamw'?"),
    "unknown tokenizer": (["tokenizer=esn"], "tokenizer: no tokenizer 'esn'. Did you mean 'esm'?"),
    "unknown kernels": (["kernels=torhc"], "kernels: no kernel 'torhc'. Did you mean 'torch'?"),
    "unknown function": (["kernels={rms_nrm: torch}"], "kernels: no function 'rms_nrm'. Did you mean 'rms_norm'?"),
    "kernels that cannot run": (
        ["kernels={adamw: apex}", "trainer.device=cpu"],
        "backend 'apex' cannot run on cpu: apex runs on cuda, not on cpu; kernels: auto takes what runs here",
    ),
    "half precision": (["--arch=ankh:tiny", "trainer.precision=fp16"], "fp16 is not offered: states of T5 networks"),
    "unknown callback": (["callbacks=[logger]"], "callbacks.0: no callback 'logger'"),
    "unknown size": (["--arch=esm2:tinny"], "architecture.size: esm2 has no size 'tinny'. Did you mean 'tiny'?"),
    "unknown schedule": (["schedule=cosinus"], "schedule.name: found 'cosinus'"),
    "warm-up as long as the run": (["schedule.warmup_steps=2"], "warm-up takes 2 of trainer.steps=2"),
    "decay longer than the run": (["schedule={name: wsd, decay_steps: 3}"], "warm-up and decay take 3 of"),
    "step below the longest sequence": (["trainer.tokens_per_step=50"], "set trainer.tokens_per_step to at least 101"),
    "micro-batch above the step": (["trainer.tokens_per_microbatch=5000"], "(5000) is above tokens_per_step (1200)"),
    "unknown device": (["trainer.device=gpu"], "trainer.device: no device 'gpu'; use auto, cpu, cuda or cuda:N"),
    "parallel without torchrun": (["trainer.parallel=fsdp2"], "trainer.parallel=fsdp2 needs torchrun"),
    "nothing left": (["data.min_length=500"], "nothing is left to train on in ok.fasta: of 200 sequences 200 are"),
    "nothing counts at first": (["objective.start_step=1"], "at least one objective must count at every step, but mlm"),
    "alias with a dot": (["objectives=[{name: mlm, alias: a.b}]"], "an alias is made of letters, digits"),
    "alias of pytorch": (["objectives=[{name: mlm, alias: keys}]"], "objective 'keys': PyTorch keeps this name"),
    "alias twice": (["objectives=[mlm, mlm]"], "the alias 'mlm' is taken"),
    "unknown corruption": (
        ["objectives=[mlm, {name: mlm, alias: b, corruption: mml}]"],
        "corruption: no earlier objective is called 'mml'. Did you mean 'mlm'?",
    ),
    "unknown term": (["objective.weight={mml: 2}"], "weight names the unknown term 'mml'. Did you mean 'mlm'?"),
    "one and several": (["objective=mlm", "objectives=[mlm]"], "give 'objective' (one) or 'objectives' (several)"),
    "no objective": (["objectives=[]"], "a run needs at least one objective"),
    "best by nothing": (["trainer.best_metric=validation/los"], "Did you mean 'validation/loss'?"),
    "weights of another size": (["--arch=esm2:8M", "--init=run"], "has another size: layers 2 (run: 6), width 32"),
    "hf weights of another size": (["--arch=esm2:8M", "--init=hf"], "the network of hf has another size: layers 2"),
    "fair-esm weights of another size": (["--init=esm2_t3.pt"], "the network of esm2_t3.pt has another size: layers 3"),
    "weights of another architecture": (["--arch=other", "--init=run"], "holds 'esm2', but the run trains 'other'"),
    "weights that are not there": (["--init=nowhere"], "nowhere: no such file or folder"),
    "weights that are none": (["--init=ok.fasta"], "ok.fasta: neither a run, a checkpoint nor a model folder"),
    "needs not met": (["objective=needy"], "objective 'needy' needs levitate, which architecture 'esm2' cannot do"),
    "broken plugin": (["objective=acme-broken/thing"], "no_such_package_at_all"),
    "clashing plugins": (["objective=same"], "'acme-one/same'"),
    "broken contract": (["objective={name: liar, lie: undeclared}"], "returned the term 'made-up'"),
    "unknown plugin to block": (["--no-plugin=objectivs"], "there is no plugin 'objectivs'"),
}

LATE = {"best by nothing", "broken contract"}
"""Seen only when the first numbers are there: the run folder exists by then."""


@pytest.fixture
def third_parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Distributions of others: objectives that break contracts, a module that cannot be imported, two with one name."""
    folder = tmp_path / "site"
    install(folder)
    site = Site(folder)
    site.add("acme-broken", "acme_broken", "import no_such_package_at_all")
    site.good("acme-one", "acme_one", "same")
    site.good("acme-two", "acme_two", "same")
    monkeypatch.syspath_prepend(folder)
    yield
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("third_parties")
@pytest.mark.parametrize("case", sorted(TRAIN))
def test_a_run_that_cannot_be_started(case: str, work: Path, capsys: Capture) -> None:
    words, says = TRAIN[case]
    if case in LATE:
        before = contents(work)
        assert main(train(*words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert before.items() <= contents(work).items()
    else:
        line = refused(capsys, work, *train(*words))
        assert not (work / "new").exists()
    assert says in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {steps: 3\narchitecture: [", "run.yaml: line 2"),
        ("- esm2", "run.yaml: a run file is a mapping"),
        ("architecture: esm2:tiny\ntrainer: {stepz: 3}\n", "run.yaml: trainer.stepz: unknown key. Did you mean"),
        ("architecture: esm2:tiny\ntrainer: {steps: 3}\ntrainer: {steps: 4}\n", "run.yaml: line 3"),
        ("architecture: esm3\n", "run.yaml: architecture: no architecture 'esm3'. Did you mean 'esm2'?"),
        ("trainer: {steps: 3}\n", "run.yaml: architecture: a run needs one"),
        ("\x00\x01", "run.yaml"),
    ],
)
def test_a_bad_run_file(text: str, says: str, work: Path, capsys: Capture) -> None:
    (work / "run.yaml").write_text(text)
    assert says in refused(capsys, work, "train", "run.yaml", "--data=ok.fasta", "--out=new")
    assert "Did you mean 'run.yaml'?" in refused(capsys, work, "train", "rum.yaml", "--out=new")


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("run", "run holds a run already: go on with  protloom resume run"),
        ("hf", "hf is not an empty folder"),
        ("ok.fasta", "ok.fasta is not an empty folder"),
        ("ok.fasta/below/it", "ok.fasta is a file; choose another --out"),
    ],
)
def test_a_run_folder_that_is_taken_or_cannot_be_made(out: str, says: str, work: Path, capsys: Capture) -> None:
    assert says in refused(capsys, work, *train(out=out))


def test_a_cache_that_cannot_be_written(work: Path, capsys: Capture) -> None:
    line = refused(capsys, work, *train("data.cache_dir=ok.fasta/cache"))
    assert "data.cache_dir" in line


# ------------------------------------------------------------------------------------------------------------- resuming


def newest(work: Path) -> Path:
    folder = checkpoint.latest(work / "run")
    assert folder is not None
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


RESUME: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights missing": (lambda w: (newest(w) / "model" / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights changed": (lambda w: flip(newest(w) / "model" / "model.safetensors"), "model.safetensors is damaged"),
    "optimizer missing": (lambda w: (newest(w) / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "optimizer cut": (lambda w: cut(newest(w) / "optimizer.safetensors"), "optimizer.safetensors is damaged"),
    "state missing": (lambda w: (newest(w) / "state.json").unlink(), "state.json is missing"),
    "state cut": (lambda w: cut(newest(w) / "state.json"), "state.json is damaged"),
    "best note changed": (lambda w: (w / "run/checkpoints/best.json").write_text("{"), "best.json is damaged"),
    "config missing": (lambda w: (w / "run/config.yaml").unlink(), "copy run/checkpoints/step-00000002/config.yaml"),
    "config cut": (lambda w: (w / "run/config.yaml").write_text("trainer: {steps"), "run/config.yaml: line 1"),
    "corpus changed": (lambda w: (w / "ok.fasta").write_text(proteins(150)), "corpus ok.fasta is not the one"),
    "corpus gone": (lambda w: (w / "ok.fasta").rename(w / "okk.fasta"), "ok.fasta. Did you mean 'okk.fasta'?"),
}


@pytest.mark.parametrize("case", sorted(RESUME))
def test_a_run_that_cannot_be_resumed(case: str, work: Path, capsys: Capture) -> None:
    damage, says = RESUME[case]
    damage(work)
    assert says in refused(capsys, work, "resume", "run", "trainer.steps=3")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere holds no run (config.yaml is missing)"),
        (["hf"], "hf holds no run"),
        (["run/config.yaml"], "run/config.yaml holds no run"),
        (["run", "trainer.steps=3", "seed=4"], "another seed is another run"),
        (
            ["run", "trainer.steps=3", "architecture=esm2:8M"],
            "architecture.layers was 2 until step 2",
        ),
        (["run", "trainer.steps=3", "trainer.tokens_per_step=900"], "another trainer.tokens_per_step is another run"),
        (["run", "trainer.steps=3", "data.validation=other.fasta"], "data.validation was None"),
        (["run", "trainer.steps=3", "trainer.parallel=ddp"], "or trainer.parallel=none for one process"),
        (["run", "trainer.stepz=3"], "Did you mean 'trainer.steps'?"),
        (["run", "out=elsewhere"], "out cannot be changed"),
    ],
)
def test_a_resume_that_makes_no_sense(words: list[str], says: str, work: Path, capsys: Capture) -> None:
    assert says in refused(capsys, work, "resume", *words)


def test_the_older_checkpoint_takes_over_as_the_message_says(work: Path, capsys: Capture) -> None:
    flip(newest(work) / "optimizer.safetensors")
    assert "Move this folder away and resume again: step 1 is the next one" in refused(
        capsys, work, "resume", "run", "trainer.steps=3"
    )
    newest(work).rename(work / "aside")
    assert main(["resume", "run", "trainer.steps=3"]) == 0
    assert checkpoint.steps(work / "run")[-1] == 3


# -------------------------------------------------------------------------------------------------------------- preview


@pytest.mark.usefixtures("third_parties")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["mlm", "mask_rat=0.3", "--sequence=MKT"],
            "unknown key. Did you mean 'objective.mask_rate'?",
        ),
        (["mlm", "mask_rate=2", "--sequence=MKT"], "objective.mask_rate: found 2, should be less than or equal to 1"),
        (["mlm", "mask_rate", "--sequence=MKT"], "'mask_rate' is not key=value"),
        (["mlm", "split=[", "--sequence=MKT"], "objective.split=[: line 1"),
        (["mml", "--sequence=MKT"], "no objective 'mml'. Did you mean 'mlm'?"),
        (["mlm"], "required: --sequence"),
        (["mlm", "--sequence="], "sequence 1 is empty"),
        (["mlm", "--sequence=MKT", "--sequence=MK7T"], "sequence 2 has '7' at position 3"),
        (["mlm", "--sequence=MKÉT"], "sequence 1 has 'É' at position 3"),
        (["mlm", "--sequence=MKT", "--arch=esm2:tinny"], "Did you mean 'tiny'?"),
        (["mlm", "--sequence=MKT", "--epoch=x"], "--epoch: invalid int value: 'x'"),
        (["needy", "--sequence=MKT"], "needs levitate"),
        (["needy", "--sequence=MKT", "--arch=esm2:tiny"], "needs levitate, which esm2:tiny cannot do"),
    ],
)
def test_a_preview_that_cannot_be_shown(words: list[str], says: str, work: Path, capsys: Capture) -> None:
    assert says in refused(capsys, work, "preview", *words)


def test_preview_finds_an_architecture_that_serves_the_objective(capsys: Capture) -> None:
    assert main(["preview", "mlm", "mask_rate=0.5", "--sequence", "mktayiakqr"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["sequence", "input", "target"]
    assert rows[0][2:-1] == list("MKTAYIAKQR")


# ---------------------------------------------------------------------------------------------------------- a full disk


def limited(*argv: str, limit: int) -> subprocess.CompletedProcess[str]:
    """Runs protloom where no file may grow beyond ``limit`` bytes, as on a disk that is full."""

    def before() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "protloom", *argv],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=before,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_disk_that_fills_up_during_a_checkpoint(work: Path) -> None:
    before = contents(work / "run" / "checkpoints")
    weights = max(p.stat().st_size for p in newest(work).rglob("*") if p.is_file())
    done = limited("resume", "run", "trainer.steps=4", limit=weights // 2)
    assert done.returncode == 74
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the checkpoint of step 3 cannot be written to run/checkpoints (")
    assert "File too large" in line
    assert line.endswith("protloom resume run")
    assert contents(work / "run" / "checkpoints") == before
    # with room again it goes on as the message says
    assert main(["resume", "run"]) == 0
    assert checkpoint.steps(work / "run")[-1] == 4


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_disk_that_fills_up_while_a_store_is_built_for_a_run(work: Path) -> None:
    (work / "large.fasta").write_text(proteins(3000))
    old = build_store(work / "ok.fasta", work / "store").content_hash
    before = contents(work)
    done = limited(*train("data.cache_dir=other", data="large.fasta"), limit=50_000)
    assert done.returncode not in (0, 70)
    (line,) = done.stderr.splitlines()
    assert "no space left to write" in line
    assert "data.cache_dir" in line
    after = contents(work)
    assert {name: data for name, data in after.items() if not name.startswith("other")} == before
    assert not [name for name in after if name.endswith(".npy") and name.startswith("other")]
    assert json.loads((work / "store" / "manifest.json").read_text())["content_hash"] == old


def test_a_disk_that_fills_up_while_numbers_are_logged(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = MetricLog.__init__

    def onto_a_full_disk(self: MetricLog, *args: Any, **options: Any) -> None:
        opened(self, *args, **options)
        self._file.close()
        self._file = Path("/dev/full").open("w")  # noqa: SIM115

    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    before = contents(work / "run" / "checkpoints")
    monkeypatch.setattr(MetricLog, "__init__", onto_a_full_disk)
    assert main(["resume", "run", "trainer.steps=3"]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: run/metrics.jsonl: No space left on device; free space there, or choose another folder"
    assert contents(work / "run" / "checkpoints") == before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_disk_that_fills_up_while_tensorboard_writes(work: Path) -> None:
    done = limited(*train("trainer.tensorboard=true", "trainer.steps=400", "trainer.validate_every=400"), limit=20_000)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
