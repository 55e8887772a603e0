"""A third party's objective as its author ships it: built as a wheel, installed by pip, used, uninstalled."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-span"
version = "1.2.3"
license = "BSD-3-Clause"
dependencies = ["protloom"]

[project.entry-points.protloom]
objectives = "acme_span.plugin"

[tool.hatch.build.targets.wheel]
packages = ["acme_span"]
"""

PLUGIN = """
from protloom import ObjectiveSpec, hookimpl

@hookimpl
def protloom_objectives():
    return [
        ObjectiveSpec(name=name, factory="acme_span.loss:SpanLoss", config="acme_span.loss:SpanOptions")
        for name in ("span", "mlm")
    ]
"""

LOSS = """
from pydantic import BaseModel, ConfigDict, Field

class SpanOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    length: int = Field(default=3, ge=1, description="Residues of a span")

class SpanLoss:
    pass
"""

RUN = "architecture: esm2:tiny\nobjective: {name: span, length: 5}\n"


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder: Path) -> Path:
    """Builds the wheel from its source, without a network."""
    source = folder / "source"
    (source / "acme_span").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "acme_span" / "__init__.py").touch()
    (source / "acme_span" / "plugin.py").write_text(textwrap.dedent(PLUGIN))
    (source / "acme_span" / "loss.py").write_text(textwrap.dedent(LOSS))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def fresh_environment(folder: Path) -> Path:
    """Makes a virtual environment that also sees what is installed here, and returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # addsitedir also follows the .pth file of an editable installation
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(here)]
    (Path(own) / "outer.pth").write_text("\n".join(lines) + "\n")
    return python


@pytest.mark.slow
def test_a_wheel_adds_names_and_its_removal_takes_them_away(tmp_path: Path) -> None:
    for package in ("build", "hatchling", "pip"):
        pytest.importorskip(package)
    wheel = build(tmp_path)
    python = fresh_environment(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    before = run(python, "-m", "protloom", "show", "objective", "mlm", "--json")

    run(*pip, "install", "--no-deps", "--no-index", wheel)
    plugins = json.loads(run(python, "-m", "protloom", "plugins", "--json"))["plugins"]
    (ours,) = [plugin for plugin in plugins if plugin["distribution"] == "acme-span"]
    assert (ours["version"], ours["licence"], ours["state"]) == ("1.2.3", "BSD-3-Clause", "clashing")
    assert [c["full_name"] for c in ours["components"]] == ["acme-span/span", "acme-span/mlm"]

    shown = run(python, "-m", "protloom", "show", "objective", "span")
    assert "from acme-span 1.2.3 (licence BSD-3-Clause)" in shown
    assert "Residues of a span" in shown
    # a run that does not name it stays what it was
    assert run(python, "-m", "protloom", "show", "objective", "mlm", "--json") == before

    (tmp_path / "run.yaml").write_text(RUN)
    code = (
        "from protloom import config; from protloom.plugins import Registry;"
        f"r = config.load({str(tmp_path / 'run.yaml')!r}, [], Registry.discover());"
        "print(r.objectives[0].chosen.section())"
    )
    assert run(python, "-c", code).strip() == "{'name': 'acme-span/span', 'length': 5}"

    run(*pip, "uninstall", "--yes", "acme-span")
    assert "acme-span" not in run(python, "-m", "protloom", "plugins")
    gone = run(python, "-m", "protloom", "show", "objective", "acme-span/span", code=2)
    assert gone.strip().endswith("install it with pip install acme-span")
