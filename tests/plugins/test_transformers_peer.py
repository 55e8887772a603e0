"""``protloom bench --against transformers``: the same loss from the same weights, batch and targets, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ticking import Ticking

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.bench import against, rounds, run
from protloom.bench.against import Form, Theirs
from protloom.bench.variants import Asked
from protloom.cli import main
from protloom.distributed import World
from protloom.errors import UserError
from protloom.phases import Phases
from protloom.plugins import Registry
from protloom_plugins.architectures import transformers_peer

ALONE = World(0, 1, torch.device("cpu"), "none")
CASES = {
    "mlm": ["architecture=esm2:tiny", "objective={name: mlm, mask_rate: 0.3}"],
    "denoise": ["architecture=ankh:tiny", "objective=denoise"],
    "complete": ["architecture=ankh:tiny", "objective=complete"],
}


def assembled(case: str, fasta: Path, folder: Path, registry: Registry, *more: str) -> Assembly:
    words = [*CASES[case], f"data.corpus={fasta}", f"data.cache_dir={folder / 'cache'}", "data.validation_fraction=0"]
    words += ["trainer.tokens_per_step=1500", "trainer.precision=fp32", "data.threads=0", *more]
    return assemble(config.load(None, words, registry), registry, ALONE, initial=None)


def theirs(run_: Assembly, folder: Path, registry: Registry, form: Form) -> Theirs:
    if not (folder / "weights").exists():
        run_.write_model(folder / "weights", run_.model.state_dict())
    peer = against.peer_of(run_.resolved, "transformers", registry)
    return Theirs("transformers", "", peer, form, folder / "weights", run_, 0)


@pytest.mark.parametrize("case", CASES)
def test_both_compute_the_same_loss(case: str, small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    ours = assembled(case, small_fasta, tmp_path, registry)
    batches = ours.host_step(0)
    for attention in ("sdpa", "eager"):
        for bucketed in (False, True):
            other = theirs(ours, tmp_path, registry, Form("fp32", attention, bucketed))
            gate = against.check(ours, other, batches)
            assert gate.difference <= against.TOLERANCE
            assert gate.ours == pytest.approx(gate.theirs, rel=1e-5)
            assert gate.ours > 1.0  # a random network's


@pytest.mark.parametrize("case", ["mlm", "denoise"])
def test_a_step_of_theirs(case: str, small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    ours = assembled(case, small_fasta, tmp_path, registry)
    batches = ours.host_step(0)
    drawn, bucketed = (theirs(ours, tmp_path, registry, Form("fp32", "sdpa", by)) for by in (False, True))
    before = drawn.loss(batches)
    works = [one.take(batches, Phases()) for one in (drawn, bucketed)]
    assert works[0].tokens == works[1].tokens == sum(batch.tokens for batch in batches)
    assert works[0].positions > works[1].positions > works[0].tokens
    assert works[0].flops == works[1].flops > 0
    # one step from the same weights on the same sequences, in whatever batches
    assert drawn.loss(batches) == pytest.approx(bucketed.loss(batches), rel=1e-4)
    assert drawn.loss(batches) != before
    assert drawn.memory(batches).activations > bucketed.memory(batches).activations


def test_rows_are_what_the_objective_made(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    ours = assembled("mlm", small_fasta, tmp_path, registry)
    (batch,) = ours.host_step(0)
    found = against.rows(batch)
    (share,) = batch.shares
    assert np.array_equal(np.concatenate([row.inputs for row in found]), share.inputs.tokens)
    labels = np.concatenate([row.labels for row in found])
    assert np.array_equal(np.flatnonzero(labels != against.IGNORED), np.sort(share.arrays["mlm"]["index"]))
    assert all(len(row.inputs) == len(row.labels) for row in found)

    ours = assembled("denoise", small_fasta, tmp_path, registry)
    (batch,) = ours.host_step(0)
    (share,) = batch.shares
    found = against.rows(batch)
    assert len(found) == share.inputs.n
    assert np.array_equal(np.concatenate([row.labels for row in found]), share.arrays["denoise"]["targets"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SAMPLE", 1e-9)
    monkeypatch.setattr(run, "matmul_peak", lambda device, dtype: 1e12)


@pytest.mark.usefixtures("quick")
def test_the_whole_comparison(registry: Registry, small_fasta: Path) -> None:
    asked = Asked(
        architecture="esm2:tiny",
        data=str(small_fasta),
        tokens=800,
        objectives=["mlm"],
        precisions=["bf16", "fp32"],
        against="transformers",
        rounds=2,
    )
    found = run.bench(asked, registry, with_clock=Ticking())
    names = [one["name"] for one in found["variants"]]
    assert names == ["protloom, bf16", "protloom, fp32", "transformers, as shipped", "transformers at its best"]
    shipped, best = found["variants"][2:]
    assert shipped["form"] == "fp32, sdpa, as drawn"
    assert shipped["program"].startswith("transformers 4") or shipped["program"].startswith("transformers 5")
    assert shipped["padding_share"] > 0.1
    assert shipped["tokens_per_step"] == found["variants"][0]["tokens_per_step"]
    tried = found["against"]["seconds_of_forms_tried"]
    assert {"fp32, sdpa, bucketed", "fp32, eager, bucketed"} <= set(tried)
    assert best["form"] == min(tried, key=lambda form: tried[form])
    assert found["against"]["relative_difference"] <= against.TOLERANCE
    assert any("its loss in fp32 differs from ours by" in note for note in found["notes"])
    text = str(found)
    assert "protloom-bench-" not in text  # the folder of the weights


def test_the_fastest_form_is_the_best() -> None:
    clock = Ticking(0.0)
    cost = {("fp32", "sdpa", True): 4.0, ("fp32", "eager", True): 2.0, ("fp32", "eager", False): 3.0}
    closed = []

    class Pretended:
        def __init__(self, form: Form) -> None:
            self.form = form

        def take(self, batches: Any, phases: Phases) -> None:
            clock.time += cost.get(tuple(self.form), 9.0)

        def close(self) -> None:
            closed.append(tuple(self.form))

    peer = transformers_peer.esm2()
    best, tried = against.best_of(peer, torch.device("meta"), Pretended, [], clock)  # type: ignore[arg-type]
    assert tuple(best.form) == ("fp32", "eager", True)
    assert tried == {"fp32, sdpa, bucketed": 4.0, "fp32, eager, bucketed": 2.0, "fp32, eager, as drawn": 3.0}
    assert closed == [("fp32", "sdpa", True), ("fp32", "eager", False)]


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.usefixtures("quick")
def test_another_loss_ends_the_comparison(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transformers_peer.TransformersPeer.loss
    monkeypatch.setattr(transformers_peer.TransformersPeer, "loss", lambda *rest: plain(*rest) * 1.0001)
    words = ["--arch=esm2:tiny", "--tokens=600", "--rounds=1", "--against=transformers", "data.max_length=100"]
    assert main(["bench", *words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --against: transformers, as shipped computes another loss, ")
    assert line.endswith("from the same weights and batch: nothing is compared")


def test_without_transformers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_peer, "find_spec", lambda name: None)
    assert main(["bench", "--arch=esm2:tiny", "--against=transformers"]) == 2
    told = capsys.readouterr().err
    assert told == "error: --against transformers: transformers is not installed: pip install 'transformers>=4.57,<6'\n"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--objective=jepa"], "jepa is not a loss over symbols at given places"),
        (["--objective=[mlm, {name: jepa, corruption: mlm}]"], "mlm + jepa is not a loss over symbols at given places"),
        (["architecture.train_mask_ratio=0.2"], "train_mask_ratio"),
    ],
)
def test_what_transformers_cannot_express(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--arch=esm2:tiny", "--tokens=600", "--rounds=1", "--against=transformers", "data.max_length=100"]
    assert main(["bench", *asked, *words]) != 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line


def test_a_program_that_no_architecture_offers(registry: Registry) -> None:
    resolved = config.load(None, ["architecture=proteinbert2:tiny"], registry)
    with pytest.raises(UserError, match=r"'proteinbert2' offers no comparison with it; architectures that do: .*esm2"):
        against.peer_of(resolved, "transformers", registry)
