"""What starting a command imports: plugins and numerical libraries only where they are needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

REPORT = """
import sys
from protloom.cli import main
code = main(sys.argv[1:])
print("\\n=== " + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
ours = sorted(name for name in sys.modules if name.startswith("protloom"))
print("=== " + " ".join(ours))
sys.exit(code)
"""

HEAVY = {"torch", "numpy", "pydantic", "pydantic_core", "yaml", "pluggy", "rich", "safetensors", "sklearn", "scipy"}


def imported(*arguments: str) -> tuple[set[str], set[str]]:
    """Returns (top-level modules, modules of protloom's packages) after a command line has run."""
    command = [sys.executable, "-c", REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    everything, ours = done.stdout.rsplit("=== ", 2)[1:]
    return set(everything.split()), set(ours.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_plugin_and_no_library(arguments: list[str]) -> None:
    everything, ours = imported(*arguments)
    assert everything & HEAVY == set()
    # exact, so that a new import has to be a decision
    assert ours == {"protloom", "protloom.cli", "protloom.errors"}


def test_plugins_imports_no_numerical_library() -> None:
    everything, ours = imported("plugins")
    assert everything & HEAVY == {"pluggy"}
    assert {name for name in ours if name.startswith("protloom.")} == {
        "protloom.cli",
        "protloom.cli.common",
        "protloom.cli.plugins",
        "protloom.errors",
        "protloom.hookspecs",
        "protloom.plugins.checks",
        "protloom.plugins.loader",
        "protloom.plugins",
        "protloom.plugins.registry",
        "protloom.specs",
    }
    # of the built-in plugins only the modules that name components, none that holds one
    light = {name for name in ours if name.startswith(("protloom_plugins", "protloom_tasks"))}
    assert light == {
        "protloom_plugins",
        "protloom_plugins.architectures",
        "protloom_plugins.kernels",
        "protloom_plugins.objectives",
        "protloom_plugins.optimizers",
        "protloom_plugins.tokenizers",
        "protloom_tasks",
        "protloom_tasks.listing",
        "protloom_tasks.simulated",
    }


def test_the_contracts_of_a_plugin_import_no_torch() -> None:
    code = "import sys, protloom.contracts, protloom.settings, protloom.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("arguments", [["show", "objective"], ["show", "run"]])
def test_lists_and_run_keys_need_no_torch(arguments: list[str]) -> None:
    everything, _ = imported(*arguments)
    assert "torch" not in everything


@pytest.mark.parametrize(
    "mistake", ["data.corpus=nowhere.fasta", "trainer.stepz=5", "architecture=esn2", "objective=mln"]
)
def test_a_mistake_is_told_before_torch_is_loaded(mistake: str) -> None:
    code = (
        "import sys; from protloom.cli import main; assert main(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "train", "--data", "demo:", "--arch", "esm2:tiny", mistake]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error:") == 1
