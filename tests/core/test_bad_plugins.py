"""Whoever trains with a plugin that breaks its contract reads in one line whose it is and what it did."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_files import Site
from tiny_run import options_in

from protloom.cli import main

SPECS = """
    from protloom import ArchitectureSpec, CorpusSpec, ObjectiveSpec, TokenizerSpec, hookimpl

    @hookimpl
    def protloom_objectives():
        return [
            ObjectiveSpec(name="raises", factory="acme_bad_code:Raises"),
            ObjectiveSpec(name="other-type", factory="acme_bad_code:linear"),
            ObjectiveSpec(name="dictionary", factory="acme_bad_code:Dictionary"),
            ObjectiveSpec(name="number", factory="acme_bad_code:Number"),
            ObjectiveSpec(name="vector", factory="acme_bad_code:Vector"),
            ObjectiveSpec(name="no-model", factory="acme_bad_code:Plain", config="acme_bad_code:NoModel"),
            ObjectiveSpec(name="missing", factory="acme_bad_code:Nowhere"),
            ObjectiveSpec(name="not-code", factory="acme_bad_code:number"),
        ]

    @hookimpl
    def protloom_architectures():
        return [
            ArchitectureSpec(
                name="list",
                factory="acme_bad_code:a_list",
                defaults={"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"},
            )
        ]

    @hookimpl
    def protloom_tokenizers():
        return [TokenizerSpec(name="letters", factory="acme_bad_code:division")]

    @hookimpl
    def protloom_corpora():
        return [CorpusSpec(name="nothing", factory="acme_bad_code:none")]

"""

CODE = """
    import numpy as np
    from protloom.contracts import Losses, Prepared, Term
    from protloom.objective import Objective
    from torch import nn

    number = 7

    class NoModel:
        rate = 0.5

    class Plain(Objective):
        terms = {"loss": Term()}

        def prepare(self, batch, rng):
            index = np.flatnonzero(batch.residue)
            return Prepared(batch.packed, {"loss": len(index)}, {"index": index})

        def each(self, model, passes, prepared):
            return model.logits(passes.encoded.last[prepared["index"]]).square().mean(-1)

        def loss(self, model, passes, prepared, ctx):
            return Losses({"loss": self.each(model, passes, prepared).sum()})

    class Raises(Plain):
        def __init__(self, config, build):
            raise RuntimeError("no licence server\\nat all")

    class Dictionary(Plain):
        def prepare(self, batch, rng):
            return {"inputs": batch.packed}

    class Number(Plain):
        def loss(self, model, passes, prepared, ctx):
            return self.each(model, passes, prepared).sum()

    class Vector(Plain):
        def loss(self, model, passes, prepared, ctx):
            return Losses({"loss": self.each(model, passes, prepared)})

    def linear(config, build):
        return nn.Linear(2, 2)

    def a_list(config, build):
        return []

    def division(config):
        return 1 / 0

    def none(config, uri):
        return None
"""

ACME = "'acme-bad/{}' (acme-bad 1.0)"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bad plugin, installed; it imports no torch until its components are used, so that it loads."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    site.add("acme-bad", "acme_bad", SPECS)
    (site.folder / "acme_bad_code.py").write_text("".join(line[4:] for line in CODE.splitlines(keepends=True)))
    monkeypatch.syspath_prepend(site.folder)
    yield
    for name in ("acme_bad", "acme_bad_code"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("objective=raises", f"objective {ACME}: its factory failed: RuntimeError: no licence server at all; --debug"),
        ("objective=other-type", f"objective {ACME}: its factory returned a Linear, not an Objective; tell its author"),
        ("objective=dictionary", "objective 'dictionary' prepared a dict, not a protloom.contracts.Prepared"),
        ("objective=number", "objective 'number' returned a Tensor, not protloom.contracts.Losses; tell its author"),
        ("objective=vector", "objective 'vector' returned a total of shape "),
        ("objective=no-model", f"objective {ACME}: its config 'acme_bad_code:NoModel' is not a pydantic model"),
        ("objective=missing", f"objective {ACME}: cannot load 'acme_bad_code:Nowhere': AttributeError"),
        ("objective=not-code", f"objective {ACME}: its factory 'acme_bad_code:number' cannot be called"),
        ("architecture=list", f"architecture {ACME}: its factory returned a list, not a Module; tell its author"),
        ("tokenizer=letters", f"tokenizer {ACME}: its factory failed: ZeroDivisionError: division by zero"),
        ("data.corpus=nothing:", f"corpus {ACME}: its factory returned None, not an Iterable; tell its author"),
    ],
)
def test_training_names_the_plugin_and_what_it_did(
    change: str, says: str, small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options_in(tmp_path, small_fasta)(), change]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ")
    assert says.format(change.partition("=")[2].rstrip(":")) in told[-1]
    assert not any("Traceback" in line for line in told)


@pytest.mark.usefixtures("installed")
def test_the_traceback_is_there_for_who_asks(
    small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--debug", "train", *options_in(tmp_path, small_fasta)(), "objective=raises"]) == 2
    told = capsys.readouterr().err
    assert "acme_bad_code.py" in told
    assert "RuntimeError: no licence server\nat all" in told


@pytest.mark.usefixtures("installed")
def test_the_kit_names_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-plugin", "raises", "other-type", "no-model"]) == 1
    told = capsys.readouterr().out
    for says in (
        "its factory failed: RuntimeError: no licence server",
        "its factory returned a Linear, not an Objective",
        "its config 'acme_bad_code:NoModel' is not a pydantic model",
    ):
        assert told.count(says) == 1, told
    assert told.count("as above") > 30
