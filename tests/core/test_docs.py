"""What the README and the pages of the documentation show works as it stands there, and the site builds."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
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
from protloom.config.schema import run_schema
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.specs import KINDS
from protloom.testing import checks
from protloom.testing.materials import proteins

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md") if "_build" not in path.parts)
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "plugins" / "examples").glob("*/README.md"))
SHOWN = ["README.md", *EXAMPLES, *PAGES]
"""Everything whose blocks of code are run."""
DRIVER = Path(__file__).with_name("run_page.py")


def blocks_of(page: str) -> list[Block]:
    return list(blocks((ROOT / page).read_text(encoding="utf-8"), page))


# ------------------------------------------------------------------------------------------------- without running


@pytest.mark.parametrize("page", SHOWN)
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


def test_the_commands_in_the_tables_of_the_readme_are_understood() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    found = [command for row in rows for command in re.findall(r"`(protloom [a-z][^`]*)`", row)]
    assert len(found) > 20
    for command in found:
        if "--help" not in command and len(command.split()) > 2:
            understood(command, "README.md")


def test_every_command_is_used_on_a_page() -> None:
    """Not only listed in the reference: there is a page that shows what it is for, and runs it."""
    pages = [page for page in PAGES if not page.startswith("docs/reference/")]
    lines = [line for page in pages for b in blocks_of(page) if b.language in SHELL for line in b.commands]
    used = {match[1] for line in lines if (match := re.search(r"\bprotloom (?:--no-plugin \S+ )?([a-z][a-z-]*)", line))}
    assert used >= set(COMMANDS)


def test_make_knows_what_the_readme_tells_it_to() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    told = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", (ROOT / "README.md").read_text(), re.M)
    assert told
    assert {one or other for one, other in told} <= targets


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


def copy_of(page: str, folder: Path) -> None:
    """Puts into a page's folder what its reader has there: a checkout, the plugin, or the example plugins.

    And a few proteins under the names of files that it takes for granted.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    if page == "README.md":
        parts = ("core", "plugins", "tasks", "pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt")
        for part in parts:
            copy: Callable[..., object] = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part, **({"ignore": ignored} if (ROOT / part).is_dir() else {}))
    elif page in EXAMPLES:
        shutil.copytree((ROOT / page).parent, folder, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copytree(ROOT / "plugins" / "examples", folder / "plugins" / "examples", ignore=ignored)
    if page in ("README.md", *EXAMPLES):
        sequences = proteins([40 + i % 80 for i in range(200)])
        fasta = "".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences))
        (folder / "proteins.fasta").write_text(fasta)
        (folder / "uniref50.fasta.gz").write_bytes(gzip.compress(fasta.encode()))
        (folder / "my_family.csv").write_text("id,sequence\n" + "".join(f"f{i},{s}\n" for i, s in enumerate(sequences)))
        pairs = zip(sequences[::2], sequences[1::2], strict=True)
        (folder / "pairs.tsv").write_text("".join(f"q{i}\t{a}\t{b}\n" for i, (a, b) in enumerate(pairs)))


Runner = Callable[[Sequence[Block]], subprocess.CompletedProcess[str]]


@pytest.fixture
def run_blocks(tmp_path: Path, cache_folder: Path) -> Runner:
    """Runs blocks in a folder and an environment of their own; ``copy_of`` the page fills the folder first."""
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
    elif need in ("gpu", "gpus"):
        import torch

        wanted = 1 if need == "gpu" else 8
        return "" if torch.cuda.device_count() >= wanted else f"{torch.cuda.device_count()} of {wanted} CUDA devices"
    elif need == "cluster":
        return "several machines or Slurm: no test has them"
    elif need == "minutes":
        return "" if os.environ.get("PROTLOOM_TEST_MINUTES") else "takes minutes: set PROTLOOM_TEST_MINUTES=1"
    elif not os.environ.get("PROTLOOM_TEST_INTERNET"):
        return "no internet: set PROTLOOM_TEST_INTERNET=1 where there is"
    return ""


def to_run(page: str) -> list[object]:
    """Marks a page as slow if it starts programs, or says ``% slow``."""
    slow = "\n% slow\n" in (ROOT / page).read_text() or any(block.language in SHELL for block in blocks_of(page))
    return [pytest.param(page, marks=pytest.mark.slow if slow else ())]


@pytest.mark.parametrize(
    "page", [case for page in SHOWN if any(b.runs for b in blocks_of(page)) for case in to_run(page)]
)
def test_a_page_runs(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = blocks_of(page)
    reasons = {need: missing(need, request) for need in {need for block in found for need in block.needs}}
    left = {block.where: reasons[need] for block in found if block.runs for need in block.needs if reasons[need]}
    kept = [block for block in found if block.where not in left]
    if any(block.runs for block in kept):
        run: Runner = request.getfixturevalue("run_blocks")  # after the variables are set that it hands on
        copy_of(page, tmp_path / "page")
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


def test_what_is_reduced() -> None:
    """The words come behind the command, before a comment or a pipe; other commands stay; one must be there."""
    text = "<!-- reduced: train trainer.steps=2 a=b -->\n```bash\nprotloom train x.yaml --out runs/a   # long\n"
    text += "protloom show run > a.json\n! protloom train y\n```\n```bash\nprotloom train z\n```\n"
    first, second = blocks(text, "page")
    assert first.step()["text"].split("\n") == [
        "protloom train x.yaml --out runs/a trainer.steps=2 a=b # long",
        "protloom show run > a.json",
        "! protloom train y trainer.steps=2 a=b",
    ]
    assert second.step()["text"] == "protloom train z"
    (nothing,) = blocks("% reduced: train x\n```bash\nprotloom show run\n```\n", "page")
    with pytest.raises(ValueError, match="page:2: no line to reduce"):
        nothing.step()


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
