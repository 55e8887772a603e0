"""``protloom task`` from the command line, with a small random network on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protloom import config, kernels, weights
from protloom.cli import main
from protloom.contracts import BuildContext
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.scoring import verdict
from protloom.subjects import open_subjects, random_twin
from protloom.task.suite import expand

QUICK = ("--limit", "12", "--set", "proteome_size=400")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """An esm2:tiny model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    architecture = config.choose("architecture", "esm2:tiny", {}, registry)
    chosen = config.choose("tokenizer", "esm", {}, registry)
    tokenizer = chosen.component.load_factory()(chosen.config)
    ops = kernels.choose("auto", registry, torch.device("cpu"), torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = architecture.component.load_factory()(architecture.config, BuildContext(tokenizer, ops))
    weights.save_pretrained(
        folder,
        component=architecture.component,
        config=architecture.config,
        state=network.state_dict(),
        tokenizer=tokenizer,
        tokenizer_component=chosen.component,
        tokenizer_config=chosen.config,
    )
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main(["task", *arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    code, found, _ = run_json(capsys, "list")
    assert code == 0
    tasks = {task["name"]: task for task in found["tasks"]}
    assert {"ss3:casp12", "ss3:ts115", "ss3:cb513", "ss3:new364", "scope-retrieval"} <= set(tasks)
    assert {"sim-ss3", "sim-retrieval", "sim-contact"} <= set(tasks)
    assert tasks["sim-ss3"]["data"] == "simulated"
    assert tasks["ss3:casp12"]["metric"] == "Q3"
    assert tasks["ss3:casp12"]["data"].startswith("missing secondary_structure/")
    assert main(["task", "list"]) == 0
    assert "SIMULATED" in capsys.readouterr().out


def test_list_knows_the_data(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    _, found, _ = run_json(capsys, "list", "--data-dir", str(shared_data))
    states: dict[str, set[str]] = {}
    for task in found["tasks"]:
        states.setdefault(task["data"], set()).add(task["name"])
    # nobody offers CASP14's file beside the others
    assert states.pop("missing secondary_structure/CASP14.csv") == {"ss3:casp14", "ss8:casp14"}
    assert set(states) == {"ready", "simulated"}


def test_list_loads_no_torch() -> None:
    script = (
        "import sys; from protloom.cli import main; code = main(['task', 'list']);"
        " assert code == 0; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "show", "ss3:cb513"]) == 0
    out = capsys.readouterr().out
    for word in (
        "definition",
        "511 rows",
        "licence: none stated",
        "one-hot letters, window ±7",
        "train_proteins: 1000",
    ):
        assert word in out
    code, cards, _ = run_json(capsys, "show", "ss3")
    assert code == 0
    assert sorted(cards) == ["ss3:casp12", "ss3:casp14", "ss3:cb513", "ss3:new364", "ss3:ts115"]


def test_names() -> None:
    known = ["a:x", "a:y", "sim-b", "sim-c"]
    assert expand(["a"], known) == ["a:x", "a:y"]
    assert expand(["sim-*", "a:y", "sim-b"], known) == ["sim-b", "sim-c", "a:y"]
    with pytest.raises(UserError, match=r"no task 'sim-d'\. Did you mean 'sim-"):
        expand(["sim-d"], known)


def test_run_prints_model_random_init_and_floors(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["task", "run", "sim-ss3", "sim-contact", "--model", str(model), *QUICK]) == 0
    out = capsys.readouterr().out
    for word in ("random init", "floor:onehot", "floor:separation", "model minus this", "P@L:medium", "chance:short"):
        assert word in out
    assert out.count("SIMULATED") >= 2
    assert "Brackets are 95 % intervals" in out


def test_run_json_and_file_agree(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    code, found, _ = run_json(capsys, "run", "sim-ss3", "--model", str(model), *QUICK, "--out", str(file))
    assert code == 0
    written = json.loads(file.read_text())
    entries = found["tasks"][0]["results"]
    assert [entry["role"] for entry in entries] == ["model", "random init", "floor"]
    assert entries[0]["model_minus_this"] is None
    for entry, stored in zip(entries, written["tasks"][0]["results"], strict=True):
        per_item = np.array(stored.pop("per_item"), dtype=float)
        assert len(per_item) == entry["n"]
        assert [len(column) for column in stored.pop("predictions").values()] == [12] * 4  # of each protein
        assert stored == entry
        assert entry["details"]["limit"] == 12
    gap = entries[2]["model_minus_this"]
    assert gap["value"] == pytest.approx(entries[0]["value"] - entries[2]["value"])
    assert gap["interval95"][0] <= gap["value"] <= gap["interval95"][1]
    assert gap["model_is"] == verdict(tuple(gap["interval95"]), entries[0]["n"])
    assert found["subjects"][str(model)]["weights"]
    # the same again, and another seed
    _, again, _ = run_json(capsys, "run", "sim-ss3", "--model", str(model), *QUICK)
    values = [[e["value"] for e in doc["tasks"][0]["results"]] for doc in (found, again)]
    assert values[0] == values[1]


def test_floor_as_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = run_json(capsys, "run", "sim-ss3", "--model", "floor:onehot", *QUICK)
    assert code == 0
    assert [entry["role"] for entry in found["tasks"][0]["results"]] == ["floor"]
    code, found, err = run_json(capsys, "run", "sim-ss3", "--model", "floor:onehit", *QUICK)
    assert code == 1
    assert "Did you mean 'floor:onehot'" in err


def test_what_may_be_left_out(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    _, found, _ = run_json(capsys, "run", "sim-ss3", "--model", str(model), "--no-floors", "--no-random-init", *QUICK)
    assert [entry["role"] for entry in found["tasks"][0]["results"]] == ["model"]


def test_layer_is_used(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    alone = ("--no-floors", "--no-random-init", *QUICK)
    values = set()
    for layer in ("0", "1", "2", "-1"):
        _, found, _ = run_json(capsys, "run", "sim-ss3", "--model", str(model), "--layer", layer, *alone)
        values.add(found["tasks"][0]["results"][0]["value"])
    assert len(values) == 3
    assert main(["task", "run", "sim-ss3", "--model", str(model), "--layer", "9"]) == 2
    assert "hidden states 0 (embedding) to 2 (final)" in capsys.readouterr().err


def test_one_failure_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    names = ("ss3:casp12", "sim-ss3", "scope-retrieval")
    code, found, err = run_json(capsys, "run", *names, "--model", str(model), *QUICK)
    assert code == 1
    assert [task["error"] is None for task in found["tasks"]] == [False, True, False]
    assert "it comes from github.com/J-SNACKKB/FLIP" in found["tasks"][0]["error"]
    assert "2 of 3 tasks failed: ss3:casp12, scope-retrieval" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "sim-s3", "--model", "x"), "Did you mean 'sim-ss3'"),
        (("run", "sim-ss3", "--model", "floor:onehot", "--set", "c"), "write key=value"),
        (("run", "sim-ss3", "--model", "floor:onehot", "--set", "widow=3"), "Did you mean 'window'"),
        (("run", "sim-ss3", "--model", "floor:onehot", "--out", "nowhere/x.json"), "there is no folder nowhere"),
        (("run", "sim-ss3", "--model", "floor:onehot", "--limit", "0"), "must be at least 1"),
        (("run", "sim-ss3", "--model", "./nowhere"), "no such file or folder"),
        (("run", "sim-ss3", "--model", "m", "--device", "gpu"), "use auto, cpu"),
        (("show", "sim-s3"), "Did you mean 'sim-ss3'"),
    ],
)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert main(["task", *arguments]) != 0
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_wrong_option_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "run", "sim-ss3", "--model", "floor:onehot", "--set", "window=-1"]) == 1
    assert "window" in capsys.readouterr().err


def test_twin_is_fresh_and_the_same_for_a_seed(model: Path, registry: Registry) -> None:
    pretrained = weights.load_pretrained(model, registry)
    state = torch.random.get_rng_state()
    one, same, other = (random_twin(pretrained, registry, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    own = pretrained.model.state_dict()
    assert {name: value.shape for name, value in one.state_dict().items()} == {n: v.shape for n, v in own.items()}
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
        if value.ndim > 1:
            assert not torch.equal(value, own[name])
            assert not torch.equal(value, other.state_dict()[name])


def test_esm2_packed_features_equal_single_ones(model: Path, registry: Registry, random_proteins: Any) -> None:
    embedder, twin, _ = open_subjects(str(model), registry)
    assert twin is not None
    sequences = random_proteins(12, low=1, high=80)
    packed = list(embedder.residues(sequences))
    for sequence, states in zip(sequences, packed, strict=True):
        np.testing.assert_allclose(next(embedder.residues([sequence])), states, atol=1e-5)
    np.testing.assert_allclose(embedder.pooled(sequences), [states.mean(0) for states in packed], atol=1e-5)
    assert embedder.contact_features(sequences[0]).shape == (len(sequences[0]), len(sequences[0]), 8)
