from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_files import Site

from protloom.cli import doctor


def examined(folder: Path, *, code: int, **environment: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "protloom", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["topic"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_third_party_that_is_broken_is_a_note(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add("acme-bad", "acme_bad_for_doctor", "import no_such_package_at_all")
    kernel = """
        from protloom import KernelSpec, hookimpl

        @hookimpl
        def protloom_kernels():
            return [KernelSpec(name=name, factory=f"acme_kernels:{name}") for name in ("absent", "crashing")]

        class absent:
            name, priority = "absent", 99
            def __init__(self, config): pass
            def unavailable(self, device): return "needs a quantum computer"

        def crashing(config):
            raise OSError("libquantum.so: cannot open shared object file")
    """
    site.add("acme-kernels", "acme_kernels", kernel)
    findings = examined(tmp_path, code=0)
    assert "no_such_package_at_all" in findings["plugin acme-bad:main"]["text"]
    assert "needs a quantum computer" in findings["kernels acme-kernels/absent"]["text"]
    assert "libquantum.so" in findings["kernels acme-kernels/crashing"]["text"]
    assert findings["kernels reference"]["state"] == "ok"
    # whatever its priority, auto does not take a third party's backend
    choices = findings["kernels auto"]["facts"]
    ours = {"torch", "reference", "apex", "triton", "flex"}
    assert {choice["backend"] for choice in choices.values()} <= ours
    # why not the others stands beside each function, and for people beside each backend
    assert all({c["backend"], *c["not"]} == ours for c in choices.values())
    assert "first by priority" in findings["kernels auto"]["text"]
    assert "auto takes none: after torch by priority" in findings["kernels reference"]["text"]
    assert findings["bf16"]["facts"]["speedup"] > 0
    assert findings["cpu threads"]["facts"]["threads"] >= 1


def test_a_built_in_that_is_broken_is_an_error(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add("protloom", "our_broken_tokenizers", "1 / 0", points={"tokenizers": "our_broken_tokenizers"})
    findings = examined(tmp_path, code=1)
    assert findings["plugin protloom:tokenizers"]["state"] == "broken"


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = examined(tmp_path, code=0, PROTLOOM_CACHE=str(tmp_path / "file"))
    assert findings["cache"]["state"] == "note"
    assert "set PROTLOOM_CACHE, or data.cache_dir" in findings["cache"]["text"]


def test_the_wrong_apex_is_told_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('detection must not import it')")
    found = examined(tmp_path, code=0)["apex"]
    assert found["state"] == "note"
    assert "PyPI's unrelated web toolkit" in found["text"]
    assert "https://github.com/NVIDIA/apex" in found["text"]


def test_extras_are_those_of_the_metadata() -> None:
    found = {finding.topic: finding for finding in doctor._extras()}
    assert {"extra tasks", "extra parquet"} <= set(found)
    assert not {"extra test", "extra dev", "extra all"} & set(found)


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    found = {finding.topic: finding for finding in doctor._extras()}
    assert found["extra tasks"].state == "note"
    assert "pip install 'protloom[tasks]'" in found["extra tasks"].text
