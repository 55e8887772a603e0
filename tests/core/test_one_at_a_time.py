"""One process trains a run, and a comparison that is stopped stops what it has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protloom.errors import UserError
from protloom.run import folder as run_folder


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    with run_folder.held(tmp_path):
        with (
            pytest.raises(UserError, match=rf"being trained by another process \(process {os.getpid()}\)"),
            run_folder.held(tmp_path),
        ):
            pass
        # whoever was refused has not taken the lock away
        with pytest.raises(UserError, match="another process"), run_folder.held(tmp_path):
            pass
    with run_folder.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


PARENT = """
import sys
from protloom.compare.runner import _run
from protloom.stopping import exit_on_sigterm
with exit_on_sigterm():
    _run([sys.executable, "-c", sys.argv[1]])
"""

CHILD = """
import signal, sys, time
def stop(*_):
    open({saved!r}, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({ready!r}, "w").close()
time.sleep(120)
"""


def test_a_comparison_that_is_stopped_leaves_no_training_behind(tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    code = CHILD.format(saved=str(saved), ready=str(ready))
    with subprocess.Popen([sys.executable, "-c", PARENT, code]) as parent:
        try:
            for _ in range(600):
                if ready.exists():
                    break
                time.sleep(0.1)
            parent.terminate()
            assert parent.wait(60) == 143
        finally:
            parent.kill()
    assert saved.exists()
