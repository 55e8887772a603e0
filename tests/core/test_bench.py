"""``protloom bench``: what it measures, that its numbers agree with each other, and what it refuses; never how fast."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from owning_objective import install
from ticking import Ticking

from protloom.bench import against, chart, corpus, document, figures, rounds, run, tables, variants
from protloom.bench.clock import HostClock, Timed
from protloom.bench.variants import Asked
from protloom.cli import main
from protloom.errors import UserError
from protloom.phases import PARTS, Phases
from protloom.plugins import Registry
from protloom.stepper import Work

Capture = pytest.CaptureFixture[str]
TINY = ("data.max_length=100", "trainer.precision=fp32")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in a round, however fast it is, and no time for the peak of the machine."""
    monkeypatch.setattr(rounds, "SAMPLE", 1e-9)
    monkeypatch.setattr(run, "matmul_peak", lambda device, dtype: 1e12)


def measured(registry: Registry, *, clock: Any = None, **asked: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"architecture": "esm2:tiny", "tokens": 400, "rounds": 2, "overrides": TINY}
    return run.bench(Asked(**{**plain, **asked}), registry, with_clock=clock or Ticking())


# ----------------------------------------------------------------------------------------------------------- the result


@pytest.mark.usefixtures("quick")
def test_variants_that_are_alike_are_alike(registry: Registry) -> None:
    found = measured(registry, kernels=["auto", "torch"], rounds=6)
    first, second = found["variants"]
    assert (first["name"], second["name"]) == ("auto", "torch")
    for one in (first, second):
        assert one["times_the_first"] == {"median": 1.0, "low": 1.0, "high": 1.0, "confidence": 0.96875}
        assert one["program"] == "protloom"
        assert one["padding_share"] == 0.0
    # the same sequences in the same rounds, and what is computed with them
    assert [r["tokens"] for r in first["rounds"]] == [r["tokens"] for r in second["rounds"]]
    for same in ("memory", "mfu", "tokens_per_second", "breakdown"):
        assert first[same] == second[same]
    assert found["settings"]["rounds"] == len(first["rounds"]) == 6


@pytest.mark.usefixtures("quick")
def test_numbers_of_a_variant_agree_with_each_other(registry: Registry) -> None:
    found = measured(registry, precisions=["fp32", "bf16"], rounds=3, clock=HostClock())
    for one in found["variants"]:
        seconds = [r["seconds"] for r in one["rounds"]]
        speeds = [r["tokens"] / r["seconds"] for r in one["rounds"]]
        assert one["tokens_per_second"]["median"] == sorted(speeds)[1]
        assert [one["tokens_per_second"][end] for end in ("least", "most")] == [min(speeds), max(speeds)]
        assert list(one["breakdown"]) == [*PARTS, "other"]
        assert sum(one["breakdown"].values()) == pytest.approx(sum(seconds) / 3)
        assert all(share >= 0 for share in one["breakdown"].values())
        assert one["tokens_per_step"] == pytest.approx(sum(r["tokens"] for r in one["rounds"]) / 3)
    first, second = found["variants"]
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(first["rounds"], second["rounds"], strict=True)]
    assert second["times_the_first"]["median"] == sorted(pairs)[1]
    assert (second["times_the_first"]["low"], second["times_the_first"]["high"]) == (min(pairs), max(pairs))
    assert first["precision"] == "fp32"
    assert second["precision"] == "bf16"
    assert second["memory"]["activations_bytes"] < first["memory"]["activations_bytes"]
    assert set(found["matmul_flops_per_second"]) == {"fp32", "bf16"}


@pytest.mark.usefixtures("quick")
def test_what_is_said_of_the_machine_is_not_whose_it_is(registry: Registry, small_fasta: Path) -> None:
    found = measured(registry, data=str(small_fasta))
    assert found["settings"]["corpus"] == small_fasta.name
    assert not found["settings"]["simulated"]
    text = json.dumps(found)
    assert str(small_fasta.parent) not in text
    assert str(Path.home()) not in text
    values = [value for value in json.dumps(found["machine"]).split('"') if value]
    assert platform.node() not in values
    assert {"cpu", "cores", "threads", "torch", "settings", "preloaded"} <= set(found["machine"])


@pytest.mark.usefixtures("quick")
def test_drawn_sequences_are_told(registry: Registry) -> None:
    found = measured(registry, rounds=1)
    assert "drawn sequences of 30 to 512 residues" in found["settings"]["corpus"]
    assert any("sequences are simulated: drawn" in note for note in found["notes"])
    fixed = measured(registry, rounds=1, lengths="fixed:38")
    assert fixed["settings"]["corpus"] == "drawn sequences of 38 residues"
    assert fixed["variants"][0]["tokens_per_step"] == 400  # ten sequences with two symbols each


@pytest.mark.usefixtures("quick")
def test_fixed_lengths_of_a_corpus_are_windows(registry: Registry, small_fasta: Path) -> None:
    found = measured(registry, rounds=1, lengths="fixed:48", data=str(small_fasta), overrides=TINY[1:])
    assert found["variants"][0]["tokens_per_step"] == 400
    with pytest.raises(UserError, match=r"nothing is left to train on in small.fasta: of 300 sequences 300 are short"):
        measured(registry, lengths="fixed:200", data=str(small_fasta), overrides=TINY[1:])


@pytest.mark.usefixtures("quick")
def test_a_sweep_over_lengths(registry: Registry) -> None:
    found = measured(registry, rounds=1, sweep=True, overrides=("data.max_length=260", TINY[1]))
    rows = found["sweep"]["mlm"]
    assert [row["length"] for row in rows] == [64, 128, 256]
    assert rows[0]["times_the_shortest"] == rows[0]["times_by_flops"] == 1.0
    flops = [row["flops_per_token"] for row in rows]
    assert flops == sorted(flops)
    assert flops[1] - flops[0] == pytest.approx((flops[2] - flops[1]) / 2, rel=0.1)  # attention: linear in the length


@pytest.mark.usefixtures("quick")
def test_files_and_tables(tmp_path: Path, capsys: Capture) -> None:
    numbers, drawing = tmp_path / "bench.json", tmp_path / "bench.svg"
    words = ["bench", "--arch=esm2:tiny", "--tokens=400", "--rounds=1", "--objective=mlm,{name: mlm, mask_rate: 0.5}"]
    assert main([*words, *TINY, f"--json={numbers}", f"--chart={drawing}"]) == 0
    printed = capsys.readouterr().out
    found = document.read(numbers)
    assert [one["objective"] for one in found["variants"]] == ["mlm", "mlm (mask_rate=0.5)"]
    for words_of_it in ("mlm (mask_rate=0.5) (fp32)", "% forward", "tokens/s", "esm2:tiny, 0.03 M parameters, 400 tok"):
        assert words_of_it in printed
    assert drawing.read_text().startswith("<?xml")
    assert "mlm (mask_rate=0.5) · fp32" in drawing.read_text()

    before = numbers.read_bytes()
    assert main(["bench", "--arch=esm2:tiny", f"--json={numbers}"]) == 2
    assert f"--json: {numbers} exists: choose another name, or give --overwrite" in capsys.readouterr().err
    assert numbers.read_bytes() == before
    numbers.write_text('{"format": "protloom-bench", "version": 99}')
    with pytest.raises(UserError, match="version 99 is not 1"):
        document.read(numbers)
    numbers.write_text("[]")
    with pytest.raises(UserError, match="not written by protloom bench"):
        document.read(numbers)


@pytest.mark.usefixtures("quick")
def test_numbers_alone_on_stdout(capsys: Capture) -> None:
    assert main(["bench", "--arch=esm2:tiny", "--tokens=400", "--rounds=1", "--json=-", *TINY]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "protloom-bench"


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("quick", "third_party")
def test_objectives_of_third_parties_stand_beside_ours() -> None:
    found = measured(Registry.discover(), objectives=variants.parse_list("", "mlm,acme-twin/twin,[mlm, twin]"))
    assert [one["objective"] for one in found["variants"]] == ["mlm", "acme-twin/twin", "mlm + twin"]
    mlm, twin, both = (one["memory"] for one in found["variants"])
    assert twin["weights_bytes"] > mlm["weights_bytes"]  # it keeps a teacher
    assert both["activations_bytes"] > mlm["activations_bytes"]


@pytest.mark.slow  # compiles
@pytest.mark.usefixtures("quick")
def test_compiled_beside_eager(registry: Registry) -> None:
    found = measured(registry, compiled=True)
    assert [(one["name"], one["compiled"]) for one in found["variants"]] == [("eager", False), ("compiled", True)]


# ------------------------------------------------------------------------------------------------------------- refused

REFUSED: dict[str, tuple[list[str], str]] = {
    "fp16": (["--precision=fp16"], "fp16 is not offered"),
    "unknown precision": (["--precision=bf17"], "trainer.precision: found 'bf17'"),
    "unknown architecture": (["--arch=esn2"], "no architecture 'esn2'. Did you mean 'esm2'?"),
    "no architecture": ([], "architecture: a run needs one"),
    "unknown objective": (["--objective=mlm,mln"], "no objective 'mln'. Did you mean 'mlm'?"),
    "an objective twice": (["--objective=mlm,mlm"], "'mlm' is asked for twice"),
    "no objective": (["--objective=,"], "--objective ,: write names with commas between them"),
    "needs not met": (["--objective=denoise"], "needs decode, which architecture 'esm2' cannot do"),
    "unknown backend": (["--kernels=auto,torhc"], "no kernel 'torhc'. Did you mean 'torch'?"),
    "unknown key": (["trainer.stepz=3"], "trainer.stepz: unknown key"),
    "unknown run file": (["nowhere.yaml"], "nowhere.yaml"),
    "no rounds": (["--rounds=0"], "argument --rounds: found '0', should be a whole number above 0"),
    "no seconds": (["--seconds=-1"], "argument --seconds: found '-1', should be a whole number above 0"),
    "no tokens": (["--tokens=0"], "argument --tokens: found '0', should be a whole number above 0"),
    "tokens below a sequence": (["--tokens=200"], "set trainer.tokens_per_step to at least"),
    "unknown lengths": (["--lengths=long"], "--lengths long: write real, or fixed:N"),
    "no length": (["--lengths=fixed:0"], "--lengths fixed:0: write real, or fixed:N"),
    "no corpus there": (["--data=nowhere.fasta"], "no such file: nowhere.fasta"),
    "a corpus without a sequence": (["--data=empty.fasta"], "empty.fasta"),
    "no comparison": (
        ["--arch=amplify:tiny", "--against=transformers"],
        "'amplify' offers no comparison with it; arch",
    ),
    "unknown program": (["--against=fairseq"], "'esm2' offers no comparison with it but one with transformers"),
    "a chart that is none": (["--chart=x.png"], "--chart x.png: a chart is SVG"),
    "no folder": (["--json=nowhere/x.json"], "--json nowhere/x.json: there is no folder nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line(case: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.fasta").write_text(">a\n>b\n")
    words, says = REFUSED[case]
    arch = [] if case == "no architecture" or any(word.startswith("--arch") for word in words) else ["--arch=esm2:tiny"]
    assert main(["bench", *arch, *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("quick")
def test_a_batch_that_is_too_large(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from protloom import stepper

    monkeypatch.setattr(stepper, "available", lambda device: 3_000_000)
    assert main(["bench", "--arch=esm2:tiny", "--tokens=2000", *TINY]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: a micro-batch of 2,1" in line
    assert "trainer.tokens_per_microbatch=" in line


def test_a_chart_needs_matplotlib(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert main(["bench", "--arch=esm2:tiny", "--chart=x.svg"]) == 2
    assert "--chart needs matplotlib: pip install 'protloom[report]'" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", ["--arch=esn2", "--arch=esm2:tiny --objective=mln", "--arch=esm2 --lengths=x"])
def test_a_mistake_is_told_before_torch_is_loaded(mistake: str) -> None:
    code = (
        "import sys; from protloom.cli import main; assert main(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "bench", *mistake.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------------- its parts


def test_spread() -> None:
    assert figures.spread([3.0]) == (3.0, 3.0, 3.0, 3.0, 3.0)
    assert figures.spread([1.0, 2.0, 3.0, 4.0, 9.0]) == (3.0, 2.0, 4.0, 1.0, 9.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8, 9, 11, 15, 25])
def test_the_interval_of_a_median_holds_as_often_as_it_says(n: int) -> None:
    from scipy.stats import binom

    values = list(range(n))
    low, high, confidence = figures.median_interval(values)
    assert low == n - 1 - high
    # the median is outside where too few values lie on one side of it
    assert confidence == pytest.approx(max(0.0, 1 - 2 * binom.cdf(low, n, 0.5)))
    assert confidence >= figures.CONFIDENCE or low == 0
    assert 1 - 2 * binom.cdf(low + 1, n, 0.5) < figures.CONFIDENCE  # the narrowest that does


def test_a_ratio_is_that_of_pairs() -> None:
    found = figures.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert found == (3.0, 2.0, 4.0, 0.75)


class Steady:
    """A variant whose steps take as long as they are told to."""

    def __init__(self, name: str, clock: Ticking, seconds: float, log: list[str]) -> None:
        self.name, self.clock, self.seconds, self.log = name, clock, seconds, log

    def next(self, phases: Phases) -> Work:
        self.log.append(self.name)
        with phases("forward"):
            self.clock.time += self.seconds
        return Work(10, 20, 30.0)


def test_rounds_take_turns() -> None:
    log: list[str] = []
    clock = Ticking(0.0)
    runners = [Steady(name, clock, 1.0, log) for name in "abc"]
    found = rounds.measure(runners, clock, steps=2, rounds=4, until=0.0)
    assert "".join(log) == "aabbccbbccaaccaabbaabbcc"
    assert {name: len(samples) for name, samples in found.items()} == {"a": 4, "b": 4, "c": 4}
    for sample in found["b"]:
        assert sample.seconds == 2.0
        assert sample.parts == {"data": 0, "forward": 2.0, "backward": 0, "optimizer": 0, "other": 0}
        assert sample.work == Work(20, 40, 60.0)


@pytest.mark.parametrize(("until", "count"), [(0.0, 3), (7.9, 3), (8.0, 4), (11.0, 5), (1e9, rounds.MOST)])
def test_rounds_end_when_the_time_is_over(until: float, count: int) -> None:
    clock = Ticking(0.0)
    runners = [Steady(name, clock, 1.0, []) for name in "ab"]
    found = rounds.measure(runners, clock, steps=1, rounds=None, until=until)
    assert len(found["a"]) == count


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 1), (0.2, 2), (0.1, 3), (1e-9, rounds.STEPS)])
def test_fast_steps_are_timed_together(seconds: float, steps: int) -> None:
    clock = Ticking(0.0)
    log: list[str] = []
    found, first = rounds.warm_up([Steady("a", clock, seconds, log), Steady("b", clock, 50.0, log)], clock)
    assert found == steps
    assert first == {"a": pytest.approx(seconds), "b": 50.0}
    assert log == ["a", "b"] * rounds.WARM_UP


def test_the_rest_of_a_step_is_other() -> None:
    clock = Ticking(1.0)
    found = rounds.sample(Steady("a", clock, 3.0, []), 1, clock)
    # begin, mark, +3, mark, end
    assert found.seconds == 6.0
    assert found.parts["forward"] == 4.0
    assert found.parts["other"] == 2.0


def test_timed_parts_add_up() -> None:
    timed = Timed(Ticking())
    for name in ("forward", "backward", "forward"):
        with timed(name):
            pass
    assert timed.taken() == {"forward": 2.0, "backward": 1.0}


def test_drawn_lengths_are_those_of_proteins(tmp_path: Path) -> None:
    store = corpus.draw(tmp_path / "store", 2000)
    lengths = np.diff(store.offsets)
    assert (lengths.min(), lengths.max()) >= (corpus.SHORTEST, corpus.LONGEST)
    assert lengths.mean() == pytest.approx(292, rel=0.03)
    assert store.manifest["simulated"]
    assert corpus.draw(tmp_path / "again", 2000).content_hash == store.content_hash
    assert set(np.diff(corpus.draw(tmp_path / "fixed", 20, 77).offsets)) == {77}


def test_a_list_of_objectives_is_read() -> None:
    parsed = variants.parse_list("--objective", "mlm,acme/span-mlm,{name: jepa, preset: v1},[mlm, {name: jepa}]")
    assert parsed == ["mlm", "acme/span-mlm", {"name": "jepa", "preset": "v1"}, ["mlm", {"name": "jepa"}]]
    for wrong in ("", "a,,b", "{a", "[", "a,null"):
        with pytest.raises(UserError, match="--objective"):
            variants.parse_list("--objective", wrong)


def names(registry: Registry, **asked: Any) -> list[str]:
    return [one.name for one in variants.plan(Asked(architecture="esm2:tiny", data="x.fasta", **asked), registry)]


def test_names_tell_what_differs(registry: Registry) -> None:
    assert names(registry) == ["mlm"]
    assert names(registry, precisions=["bf16"]) == ["mlm"]
    assert names(registry, precisions=["fp32", "bf16"], kernels=["auto", {"attention": "reference"}]) == [
        "fp32 · auto",
        "fp32 · attention=reference",
        "bf16 · auto",
        "bf16 · attention=reference",
    ]
    assert names(registry, compiled=True) == ["eager", "compiled"]


def test_a_run_file_is_what_variants_are_made_of(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "architecture: esm2:tiny\nobjectives: [{name: mlm, mask_rate: 0.3}]\n"
        "data: {corpus: x.fasta, validation: y.fa}\ntrainer: {tokens_per_step: 777, parallel: ddp}\n"
    )
    plain, other = variants.plan(Asked(run_file=str(path), precisions=["fp32", "bf16"]), registry)
    settings = plain.resolved.settings
    assert settings.trainer.tokens_per_step == 777
    assert (settings.data.corpus, settings.data.validation, settings.data.validation_fraction) == ("x.fasta", None, 0.0)
    assert (settings.trainer.parallel, settings.trainer.precision) == ("none", "fp32")
    assert other.resolved.settings.trainer.precision == "bf16"
    assert plain.resolved.objectives[0].chosen.config.mask_rate == 0.3  # type: ignore[union-attr]
    (one,) = variants.plan(Asked(run_file=str(path), objectives=["jepa"], tokens=888), registry)
    assert [objective.alias for objective in one.resolved.objectives] == ["jepa"]
    assert one.resolved.settings.trainer.tokens_per_step == 888
    (nothing,) = variants.plan(Asked(architecture="esm2:tiny"), registry, corpus=tmp_path, tokens=99)
    assert (nothing.resolved.settings.data.corpus, nothing.resolved.settings.trainer.tokens_per_step) == (
        str(tmp_path),
        99,
    )


def test_rows_are_cut_and_padded() -> None:
    found = [against.Row(np.full(n, n), np.full(n, n)) for n in (5, 1, 4, 2, 3, 6)]
    drawn = against.parts(found, 2, bucketed=False)
    assert sorted(len(row.inputs) for part in drawn for row in part) == [1, 2, 3, 4, 5, 6]
    assert [len(part) for part in drawn] == [3, 3]
    assert against.parts(found, 2, bucketed=False)[0][0] is drawn[0][0]
    sorted_parts = against.parts(found, 1, bucketed=True)
    assert [[len(row.inputs) for row in part] for part in sorted_parts] == [[1, 2], [3, 4], [5, 6]]
    assert against.padded([np.array([7, 8]), np.array([9])], -1).tolist() == [[7, 8], [9, -1]]


def test_tables_say_what_was_measured(registry: Registry) -> None:
    one = {
        "name": "bf16",
        "precision": "bf16",
        "tokens_per_second": {"median": 1234.5, "lower": 1200.0, "upper": 1300.0},
        "times_the_first": {"median": 1.5, "low": 1.4, "high": 1.6},
        "mfu": 0.583,
        "padding_share": 0.25,
        "memory": {"peak_bytes": 2**30},
        "breakdown": {"data": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1, "other": 0.0},
    }
    header, rows = tables.variants([one])
    assert dict(zip(header, rows[0], strict=True)) == {
        "variant": "bf16",
        "tokens/s": "1,234 [1,200–1,300]",
        "× first": "1.50 [1.40–1.60]",
        "MFU": "58 %",
        "padding": "25 %",
        "memory": "1.0 GiB",
    }
    header, rows = tables.parts([{**one, "name": "other", "form": "fp32, sdpa, as drawn"}])
    assert rows[0] == ["other (fp32, sdpa, as drawn)", "1,000.0", "10.0", "30.0", "50.0", "10.0", "0.0"]


@pytest.mark.parametrize(("foreign", "says"), [(None, "is not known"), (0.8, "CAUTION: other programs kept 0.8 of 2")])
def test_load_of_others_is_told(foreign: float | None, says: str) -> None:
    result = {
        "settings": {"rounds": 9, "simulated": False},
        "foreign_cores": foreign,
        "machine": {"cores": 2},
        "variants": [{}],
    }
    assert says in document.notes(result)[-1]
    assert len(document.notes({**result, "foreign_cores": 0.01})) == len(document.notes(result)) - 1
