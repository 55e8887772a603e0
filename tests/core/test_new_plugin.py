"""What 'new-plugin' writes works as it is written, and keeps the contract of its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from test_plugin_wheel import fresh_environment
from tiny_run import losses

from protloom import scaffold
from protloom.cli import check_plugin, main
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.testing import conformance

INSTALLED = list(metadata.entry_points(group="protloom"))


@pytest.fixture
def forget_modules() -> Iterator[None]:
    """Forgets what a test imports from its own folder, and the folder."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("protloom_my"):
            del sys.modules[name]


def registry_with(folder: Path, package: str) -> Registry:
    """What is installed, and the plugin in a folder."""
    sys.path.insert(0, str(folder))
    return Registry.discover(entry_points=[*INSTALLED, metadata.EntryPoint("mine", package, "protloom")])


@pytest.mark.parametrize("kind", scaffold.KINDS)
@pytest.mark.usefixtures("forget_modules")
def test_a_new_plugin_keeps_the_contract(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = f"my-{kind}-one", tmp_path / "new"
    assert main(["new-plugin", kind, name, "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"pip install -e {folder}" in said
    assert all(path.is_file() for path in map(Path, said.split("next")[0].split()))
    package = scaffold.words_of(kind, name)["PACKAGE"]
    checks = conformance(kind, f"unknown/{name}", registry=registry_with(folder, package))
    assert len(checks) > 4
    for check in checks:
        check()
    left = [path for path in folder.rglob("*") if path.is_file() and "@" in path.name]
    assert left == []
    assert "@NAME@" not in (folder / "README.md").read_text()


def test_names_and_folders_that_cannot_be(tmp_path: Path) -> None:
    for kind, name, says in (
        ("objectiv", "mine", "Did you mean 'objective'"),
        ("objective", "My_Loss", "lower-case letters"),
        ("objective", "class", "cannot be a name"),
    ):
        with pytest.raises(UserError, match=says):
            scaffold.write(kind, name, tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.py").touch()
    with pytest.raises(UserError, match="not empty"):
        scaffold.write("objective", "mine", tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["mine.py"]


def test_check_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-plugin", "esm", "--kind", "tokenizer"]) == 0
    said = capsys.readouterr().out
    assert "tokenizer 'protloom/esm' (protloom" in said
    assert "8 of 8 promises hold" in said
    assert main(["check-plugin", "esm", "--kind", "tokenizer", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["checks"][0]
    assert record["found"] is None
    assert main(["check-plugin", "esmm"]) == 2
    assert "there is no plugin or component 'esmm'. Did you mean 'esm" in capsys.readouterr().err


def test_an_option_that_nothing_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-plugin", "mlm", "--kind", "objective", "--set", "mask_rat=0.3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--set mask_rat=0.3: mlm: no such option. Did you mean 'mask_rate'?" in line


def test_a_name_of_our_own_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "objective", "mlm", "--out", str(tmp_path / "one")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "objective 'mlm' means protloom's own wherever it is named so; yours is protloom-mlm/mlm" in said
    assert main(["new-plugin", "objective", "mine", "--out", str(tmp_path / "two")]) == 0
    assert capsys.readouterr().err == ""


def test_check_plugin_finds_components_of_every_kind() -> None:
    """By name, by distribution and by plugin; each once, also where several names mean it."""
    registry = Registry.discover(entry_points=INSTALLED)
    for kind in scaffold.KINDS:
        one = next(c for c in registry.components(kind) if c.builtin)
        assert [c.full_name for c in check_plugin._components([one.full_name], kind, registry)] == [one.full_name]
    everything = check_plugin._components(["protloom", "esm2"], None, registry)
    assert {c.kind for c in everything} == set(scaffold.KINDS)
    assert len({(c.kind, c.full_name) for c in everything}) == len(everything)


def test_check_plugin_runs_on_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-plugin", "proteinbert2", "--kind", "architecture"]) == 0
    assert "promises hold" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- from nothing to nothing


def run(*command: str | Path, cwd: Path, env: dict[str, str], code: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


COMPARE = """
recipes:
  plain: {set: ["objective=mlm"]}
  rare: {set: ["objective=my-rare"]}
shared: [%s]
budget: {steps: 4}
tasks: [sim-retrieval]
task_options: [proteome_size=400]
limit: 40
"""


@pytest.mark.slow
def test_from_an_idea_to_a_comparison_and_back(tmp_path: Path, small_fasta: Path, repository: Path) -> None:
    """The life of a plugin: written, installed, tested, trained, compared, uninstalled; nothing else changed by it.

    In an environment into which protloom itself was installed, as users do; only what it depends on is there before.
    """
    python = fresh_environment(tmp_path / "venv")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PROTLOOM_CACHE": str(tmp_path / "cache")}
    program = [python, "-m", "protloom"]
    options = [
        "architecture=esm2:tiny",
        f"data.corpus={small_fasta}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "trainer.tokens_per_step=600",
        "trainer.validation_tokens=600",
        "trainer.precision=fp32",
        "trainer.tensorboard=false",
    ]

    def train(out: str, *more: str) -> tuple[bytes, dict[int, float]]:
        """Trains, and returns the weights and the losses: equal only if the runs are, bit for bit."""
        every = ["trainer.steps=4", "trainer.log_every=1", *more]
        run(*program, "train", *options, *every, "--out", out, cwd=tmp_path, env=env)
        (weights,) = (tmp_path / out / "checkpoints").glob("*4/model/model.safetensors")
        return weights.read_bytes(), losses(tmp_path / out)

    pip = [sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-build-isolation", repository, cwd=tmp_path, env=env)
    where = run(python, "-c", "import protloom, protloom_plugins; print(protloom.__file__)", cwd=tmp_path, env=env)
    assert where.startswith(str(tmp_path / "venv"))

    before = train("before")
    assert list(before[1]) == [1, 2, 3, 4]
    run(*program, "new-plugin", "objective", "my-rare", "--out", "mine", cwd=tmp_path, env=env)
    run(*pip, "install", "--no-deps", "--no-build-isolation", "./mine", cwd=tmp_path, env=env)
    assert "my-rare" in run(*program, "plugins", cwd=tmp_path, env=env)
    run(python, "-m", "pytest", "-q", "mine", cwd=tmp_path, env=env)
    run(*program, "check-plugin", "protloom-my-rare", cwd=tmp_path, env=env)
    assert train("mine-run", "objective=my-rare") != before
    assert train("between") == before
    quoted = ", ".join(json.dumps(option) for option in options)
    (tmp_path / "compare.yaml").write_text(COMPARE % quoted)
    said = run(*program, "compare", "compare.yaml", "--out", "compared", cwd=tmp_path, env=env)
    assert "rare against plain, 1 task" in said
    run(*pip, "uninstall", "-y", "protloom-my-rare", cwd=tmp_path, env=env)
    assert "my-rare" not in run(*program, "plugins", cwd=tmp_path, env=env)
    assert train("after") == before
    gone = run(*program, "resume", "mine-run", cwd=tmp_path, env=env, code=2)
    assert "protloom-my-rare" in gone
    assert "install" in gone
    # what it has trained needs its objective no more
    run(*program, "embed", small_fasta, "--model", "mine-run", "--out", "features.npz", cwd=tmp_path, env=env)
    assert (tmp_path / "features.npz").stat().st_size > 0
