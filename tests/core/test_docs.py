"""What the pages of the documentation show works as it stands there, and the site builds."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import protloom_reference as reference
import pytest
import yaml
from doc_blocks import NEEDS, OUTPUT, READ, RUN, SHELL, Block, blocks
from test_plugin_wheel import fresh_environment

from protloom import scaffold
from protloom.cli import COMMANDS
from protloom.config_schema import run_schema
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.specs import KINDS
from protloom.testing import checks

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md") if "_build" not in path.parts)
DRIVER = Path(__file__).with_name("run_page.py")


def blocks_of(page: str) -> list[Block]:
    return list(blocks((ROOT / page).read_text(encoding="utf-8"), page))


# ------------------------------------------------------------------------------------------------- without running


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_sound(page: str) -> None:
    """What each block is can be told, it parses, and its commands are understood: also those that nothing runs here."""
    for block in blocks_of(page):
        known = (*RUN, *READ, OUTPUT)
        assert block.language in known, f"{block.where}: name the language of the block, one of {', '.join(known)}"
        assert set(block.needs) <= set(NEEDS), f"{block.where}: needs {block.needs}, known are {NEEDS}"
        if block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            compile(block.text, block.where, "exec")
        elif block.language in SHELL:
            done = subprocess.run(["bash", "-n", "-c", block.script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block.where}: {done.stderr}"
            for command in block.commands:
                understood(command, block.where)


def understood(command: str, where: str) -> None:
    """Fails if a command line of protloom would not be understood; other programs' are not looked at."""
    words = shlex.split(command, comments=True)
    before = ["|", *words]
    found = [at for at, word in enumerate(words) if word == "protloom" and re.search(r"^(-m|[|!;&]+)$|=", before[at])]
    for at in found:
        end = next((n for n, word in enumerate(words) if n > at and re.fullmatch(r"[|&;]+|\d?>+", word)), len(words))
        call = words[at + 1 : end]
        while call[:1] == ["--no-plugin"] or call[:1] == ["--debug"]:
            call = call[2 if call[0] == "--no-plugin" else 1 :]
        assert call, f"{where}: {command}"
        if call[0].startswith("-"):
            assert call[0] in ("--help", "--version"), f"{where}: {command}"
            continue
        assert call[0] in COMMANDS, f"{where}: no command {call[0]!r}: {command}"
        if "--help" in call:
            continue
        try:
            reference.parser_of(call[0]).parse_strictly(call[1:], argparse.Namespace())
        except UserError as error:
            pytest.fail(f"{where}: {command}\n{error}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_understood(name: str) -> None:
    parsers = list(reference.nested(reference.parser_of(name)))
    for parser in parsers:
        for example in reference.examples(parser):
            understood(example, parser.prog)
    assert any(reference.examples(parser) for parser in parsers)


def test_commands_that_are_wrong_are_found() -> None:
    understood("cat x | protloom data prepare - --out corpus > log", "here")
    for wrong in ("protloom trian x", "protloom train --objective mlm", "zcat x | protloom data prepare", "protloom"):
        with pytest.raises((AssertionError, pytest.fail.Exception), match="here"):
            understood(wrong, "here")


@pytest.mark.parametrize("kind", scaffold.USES)
def test_what_a_new_plugin_says_is_understood(kind: str) -> None:
    understood(scaffold.words_of(kind, "mine")["USE"], kind)


EXAMPLES = sorted((ROOT / "plugins" / "examples").glob("*/README.md"))


@pytest.mark.parametrize("readme", EXAMPLES, ids=lambda path: path.parent.name)
def test_what_the_examples_say_is_understood(readme: Path) -> None:
    commands = [line for block in blocks(readme.read_text(), readme.parent.name) for line in block.text.splitlines()]
    assert any("protloom" in command for command in commands)
    for command in commands:
        understood(command, readme.parent.name)


# ---------------------------------------------------------------------------------------------------- generated parts


def marks() -> set[str]:
    return {mark for page in PAGES for mark in re.findall(r"^% generated: (.+)$", (ROOT / page).read_text(), re.M)}


def test_everything_that_can_be_generated_is_on_a_page(registry: Registry) -> None:
    kinds = {f"components {kind}" for kind in KINDS}
    assert marks() == {*kinds, *(set(reference.PARTS) - {"components"})}
    with pytest.raises(ValueError, match="recipse"):
        reference.part("recipse")


def test_every_key_of_a_run_file_is_told(registry: Registry) -> None:
    shown = reference.part("run-file")
    schema = run_schema(registry)
    for key, section in schema["properties"].items():
        if key == "components":
            continue  # written by runs, not by people
        inner = schema["$defs"].get(section.get("$ref", "").rpartition("/")[2], {}).get("properties", {})
        for name in [f"{key}.{below}" for below in inner] or [key]:
            assert f"| `{name}` |" in shown or f"| `{name}." in shown or f"## {name}" in shown, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_and_option_is_told(kind: str, registry: Registry) -> None:
    shown = reference.part(f"components {kind}")
    for component in registry.components(kind):
        if component.builtin:
            assert reference.text(component.name) in shown or reference.code(component.name) in shown, component.name
            model = component.load_config()
            for option in model.model_fields if model else ():
                assert f"| `{option}" in shown, (component.name, option)


def test_recipes_commands_and_promises_are_told() -> None:
    recipes, commands, promises = (reference.part(what) for what in ("recipes", "commands", "promises"))
    assert "| [demo](#demo) | `esm2:mini` | `mlm` | `demo:` | 500 | 8,192 |" in recipes
    for name in COMMANDS:
        assert f"## protloom {name}\n" in commands
    for kind in checks.KINDS:
        for promise in checks.PROMISES[kind]:
            assert promise.__name__.replace("_", "-") in promises


# ---------------------------------------------------------------------------------------------------------- running


def environment_of(folder: Path, python: Path, cache: Path) -> dict[str, str]:
    """Puts protloom and pip of a page's own environment on the PATH; pip takes nothing from the network.

    What packages depend on is here already, as the tests themselves need it.
    """
    programs = folder / "programs"
    programs.mkdir()
    pip = f"{sys.executable} -m pip --python={python} --disable-pip-version-check"
    scripts = {
        "protloom": f'exec {python} -m protloom "$@"',
        "pytest": f'exec {python} -m pytest "$@"',
        "torchrun": f'exec {python} -m torch.distributed.run "$@"',
        "pip": f'case "$1" in\n  install|wheel) exec {pip} "$@" --no-deps --no-index --no-build-isolation ;;\n'
        f'  *) exec {pip} "$@" ;;\nesac',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join((str(programs), str(python.parent), os.environ["PATH"]))
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "PROTLOOM_CACHE": str(cache), "XDG_CACHE_HOME": str(cache)}
    return {**os.environ, **own, "PIP_ROOT_USER_ACTION": "ignore", "COLUMNS": "100"}


Runner = Callable[[Sequence[Block]], subprocess.CompletedProcess[str]]


@pytest.fixture
def run_blocks(tmp_path: Path, cache_folder: Path) -> Runner:
    """Runs blocks in a folder and an environment of their own."""
    python = fresh_environment(tmp_path / "venv")
    env = environment_of(tmp_path, python, cache_folder)
    folder = tmp_path / "page"
    folder.mkdir()
    if env.get("PROTLOOM_DATA"):
        (folder / "data").mkdir()  # of its own: what a page downloads does not go to what others share
        for path in Path(env["PROTLOOM_DATA"]).iterdir():
            (folder / "data" / path.name).symlink_to(path)

    def run(found: Sequence[Block]) -> subprocess.CompletedProcess[str]:
        steps = tmp_path / "steps.json"
        steps.write_text(json.dumps([block.step() for block in found if block.runs]))
        command = [str(python), str(DRIVER), str(steps)]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=1800)

    return run


def missing(need: str, request: pytest.FixtureRequest) -> str:
    """Tells why what a block needs is not here; empty if it is."""
    if need == "data":
        try:
            data = request.getfixturevalue("shared_data")
        except pytest.skip.Exception as reason:
            return str(reason)
        request.getfixturevalue("monkeypatch").setenv("PROTLOOM_DATA", str(data))
    elif need == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "no CUDA device"
    elif not os.environ.get("PROTLOOM_TEST_INTERNET"):
        return "no internet: set PROTLOOM_TEST_INTERNET=1 where there is"
    return ""


def to_run(page: str) -> list[object]:
    """Marks a page as slow if it starts programs, or says ``% slow``."""
    slow = "\n% slow\n" in (ROOT / page).read_text() or any(block.language in SHELL for block in blocks_of(page))
    return [pytest.param(page, marks=pytest.mark.slow if slow else ())]


@pytest.mark.parametrize(
    "page", [case for page in PAGES if any(b.runs for b in blocks_of(page)) for case in to_run(page)]
)
def test_a_page_runs(page: str, request: pytest.FixtureRequest) -> None:
    found = blocks_of(page)
    reasons = {need: missing(need, request) for need in {need for block in found for need in block.needs}}
    left = {block.where: reasons[need] for block in found if block.runs for need in block.needs if reasons[need]}
    kept = [block for block in found if block.where not in left]
    if any(block.runs for block in kept):
        run: Runner = request.getfixturevalue("run_blocks")  # after the variables are set that it hands on
        done = run(kept)
        assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    if left:
        pytest.skip("all ran but " + "; ".join(f"{where} ({reason})" for where, reason in left.items()))


def test_running_a_page_fails_where_it_should(run_blocks: Runner) -> None:
    def page(text: str) -> subprocess.CompletedProcess[str]:
        return run_blocks(list(blocks(text, "page")))

    good = "```yaml\n# file: a.yaml\nx: 1\n```\n```diff\n--- a.yaml\n@@\n # file: a.yaml\n-x: 1\n+x: 2\n```\n"
    good += "```python\nfrom pathlib import Path\ntext = Path('a.yaml').read_text()\n```\n```text\nnot run(\n```\n"
    good += "```python\nassert text.endswith('x: 2\\n')\n```\n```console\n$ grep -q 'x: 2' \\\n    a.yaml\nshown\n```\n"
    done = page(good)
    assert done.returncode == 0, done.stderr
    for wrong, says in (
        ("```bash\nfalse\ntrue\n```\n", "page:1: exit code 1"),
        ("```bash\nfalse | true\n```\n", "page:1: exit code 1"),
        ("text\n\n```python\nassert 1 == 2\n```\n", "page:3"),
        ("```diff\n--- a.yaml\n@@\n-x: 3\n+x: 4\n```\n", "holds this 0 times"),
    ):
        done = page(wrong)
        assert done.returncode != 0
        assert says in done.stderr


def test_what_a_block_needs() -> None:
    text = "% needs: data, gpu\n\n```bash\na\n```\n\n```bash\nb\n```\n<!-- needs: internet -->\n```bash\nc\n```\n"
    text += "% needs: gpu\n\nwords between\n\n```{toctree}\nx\n```\n```\nplain\n```\n% file: a.csv\n```text\nx\n```\n"
    found = list(blocks(text, "page"))
    assert [block.needs for block in found] == [("data", "gpu"), (), ("internet",), (), ()]
    assert [block.language for block in found] == ["bash", "bash", "bash", "", "text"]
    assert [block.file for block in found] == [None, None, None, None, "a.csv"]
    assert found[1].where == "page:7"


# --------------------------------------------------------------------------------------------------------- the site


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(path.relative_to(site).with_suffix(".md")) for path in site.rglob("*.html")}
    assert {str(Path(page).relative_to("docs")) for page in PAGES} <= made
    commands = (site / "reference" / "commands.html").read_text()
    assert "protloom new-plugin" in commands
    assert "% generated" not in commands
