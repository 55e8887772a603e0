"""torch.compile of blocks: the same training, and a clear line where it cannot work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import ALONE, Options, losses, options_in
from torch import nn

from protloom import compiling, config
from protloom.assembly import assemble
from protloom.budget import Amount
from protloom.errors import UserError
from protloom.launch import resume, start
from protloom.plugins import Registry

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    """Overrides of a run that takes a second."""
    return options_in(tmp_path, small_fasta)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer__activation_checkpointing": True},
        {"objectives": ["mlm", {"name": "jepa", "preset": "proteinjepa-v1", "corruption": "mlm"}]},
        {"architecture": "ankh:tiny", "objective": "denoise"},
        {"architecture": "amplify:tiny"},
    ],
    ids=["esm2", "recomputed", "jepa", "ankh", "amplify"],
)
def test_compiled_training_has_the_losses_of_eager_training(
    registry: Registry, options: Options, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = []
    for compiled in (False, True):
        out = f"compiled-{compiled}"
        start(config.load(None, options(out, trainer__compile=compiled, **changes), registry), registry)
        found.append(losses(tmp_path / out))
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_checkpoint_goes_on_without_compiling(registry: Registry, options: Options, tmp_path: Path) -> None:
    start(config.load(None, options("whole"), registry), registry)
    resolved = config.load(None, options("parts", trainer__compile=True), registry)
    start(resolved, registry, pause=Amount.parse("steps=4"))
    resume(tmp_path / "parts", ["trainer.compile=false"], registry)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert parts[6] == pytest.approx(whole[6], rel=1e-3)


def test_names_of_parameters_do_not_tell_whether_blocks_are_compiled(registry: Registry, options: Options) -> None:
    names = []
    for compiled in (False, True):
        resolved = config.load(None, options(trainer__compile=compiled), registry)
        run = assemble(resolved, registry, ALONE, initial=None)
        names.append(list(run.module.state_dict()))
    assert names[0] == names[1]


def test_without_a_compiler_the_line_says_what_to_do(
    registry: Registry, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"trainer\.compile: no C\+\+ compiler .*no-such-compiler.*compile=false"):
        assemble(config.load(None, options(trainer__compile=True), registry), registry, ALONE, initial=None)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no 'blocks'"):
        compiling.compile_blocks(nn.Linear(2, 2))


def test_every_block_is_compiled_once() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    holder = nn.ModuleDict({"student": Network(), "teacher": Network()})
    assert compiling.compile_blocks(holder) == 6
    assert all(m._compiled_call_impl is not None for m in holder.modules() if isinstance(m, nn.Linear))
