"""Keeping freed memory: fewer page faults, the same numbers, and a reason where it is not offered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import Options, losses, options_in

from protloom import allocator, config
from protloom.launch import start
from protloom.plugins import Registry

FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from protloom.allocator import keep_freed_memory
    assert keep_freed_memory() is None
for _ in range(2):
    np.ones(1 << 26, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 26, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def glibc() -> bool:
    return sys.platform.startswith("linux") and allocator.is_glibc()


@pytest.mark.skipif(not glibc(), reason="the settings are glibc's")
def test_blocks_that_come_back_cost_no_page_faults() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("usual", "keep")
    }
    assert faults["usual"] > 20 * 32  # each block of 64 MiB is new: in pages of 2 MiB or smaller
    assert faults["keep"] < faults["usual"] / 20


def test_it_says_why_it_leaves_another_allocator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4")
    assert allocator.keep_freed_memory() == "another allocator is preloaded"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator.keep_freed_memory() == "not offered on darwin"


def test_a_run_has_the_same_losses_with_it_and_says_where_it_cannot(
    registry: Registry,
    small_fasta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: "not glibc")
    options: Options = options_in(tmp_path, small_fasta)
    for out, keep in (("usual", False), ("kept", True)):
        start(config.load(None, options(out, trainer__keep_freed_memory=keep, trainer__steps=2), registry), registry)
    assert losses(tmp_path / "usual") == losses(tmp_path / "kept")
    assert capsys.readouterr().out.count("trainer.keep_freed_memory: not glibc") == 1
