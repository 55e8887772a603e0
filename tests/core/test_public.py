"""What may be imported from protloom: it is there, it is documented, and protloom's own plugins keep to it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from doc_blocks import blocks

from protloom.public import PUBLIC, names_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("plugins/protloom_plugins", "tasks/protloom_tasks", "plugins/examples")
REFERENCE = ROOT / "docs" / "reference" / "contracts"
OWN = "protloom"

DIRECTIVE = re.compile(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)
REFERRED = re.compile(r"(protloom(?:\.\w+)+):(\w+)")


class Use(NamedTuple):
    """A name that a program takes from protloom; ``name`` is empty where it takes the module as it is."""

    line: int
    module: str
    name: str


@cache
def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def uses(program: str) -> Iterator[Use]:
    """Yields what a program imports from protloom, what it asks an imported module for, and "module:attribute"."""
    tree = ast.parse(program)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Use(node.lineno, a.name, "") for a in node.names if a.name.partition(".")[0] == OWN)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == OWN:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if is_module(whole):
                    modules[alias.asname or alias.name] = whole
                    yield Use(node.lineno, whole, "")
                else:
                    yield Use(node.lineno, str(node.module), alias.name)
        elif isinstance(node, ast.Constant) and (referred := REFERRED.fullmatch(str(node.value))):
            yield Use(node.lineno, referred[1], referred[2])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield Use(node.lineno, modules[node.value.id], node.attr)


def is_public(use: Use) -> bool:
    names = names_of(use.module)
    if names is None:
        return False
    return not use.name or (use.name in names if names else not use.name.startswith("_"))


def private(program: str, where: str, first: int = 0) -> list[str]:
    """Returns what a program takes from protloom that is not public, with its line."""
    found = sorted({use for use in uses(program) if not is_public(use)})
    return [f"{where}:{first + use.line}: {use.module} {use.name}".rstrip() for use in found]


ADVICE = "is not public: use what is, or add it to core/protloom/public.py and to a page of docs/reference/contracts"


@pytest.mark.parametrize("folder", FOLDERS)
def test_protlooms_own_plugins_and_tasks_import_what_is_public(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [line for file in files for line in private(file.read_text("utf-8"), str(file.relative_to(ROOT)))]
    assert not wrong, ADVICE


def test_pages_show_imports_of_what_is_public() -> None:
    """The README, the tutorial, every other page and those of the examples: readers copy them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins" / "examples").glob("*/README.md")]
    seen, wrong = 0, []
    for page in sorted(page for page in pages if "_build" not in page.parts):
        for block in blocks(page.read_text("utf-8"), str(page.relative_to(ROOT))):
            if block.language == "python":
                seen += len(list(uses(block.text)))
                where, _, line = block.where.rpartition(":")
                wrong += private(block.text, where, int(line))
    assert seen > 20
    assert not wrong, ADVICE


def test_what_new_plugin_writes_imports_what_is_public() -> None:
    templates = sorted((ROOT / "core" / "protloom" / "scaffold" / "templates").rglob("*.py.tmpl"))
    lines = [line.strip() for file in templates for line in file.read_text("utf-8").splitlines()]
    imports = [line for line in lines if line.startswith(("from protloom", "import protloom"))]
    assert len(imports) > 10
    assert not private("\n".join(imports), "templates"), ADVICE


def test_private_imports_are_found() -> None:
    wrong = (
        "from protloom import trainer\n",
        "import protloom.step\n",
        "from protloom.contracts import _hidden\n",
        "from protloom.settings import RunConfig\n",
        "def f():\n    from protloom.files import share as s\n",
        "from protloom.config import source\nsource.dump(1)\n",
        "spec(factory='protloom.trainer:Trainer')\n",
    )
    for program in wrong:
        assert private(program, "x"), program
    good = "from protloom import ObjectiveSpec, collapse, hookimpl\ncollapse.measure(1)\nfrom protloom.ops import Ops\n"
    good += "from protloom.config import source as s\ns.parse('', '')\nspec(factory='acme.trainer:Trainer')\n"
    assert not private(good, "x")
    assert len(list(uses(good))) == 7


@pytest.mark.parametrize("module", [name for modules in PUBLIC.values() for name in modules])
def test_what_is_public_is_there_and_described(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__doc__
    for name in names_of(module) or ():
        described = getattr(found, name)
        assert described.__doc__, name


def test_a_module_is_promised_once() -> None:
    everything = [name for modules in PUBLIC.values() for name in modules]
    assert len(everything) == len(set(everything))


def test_the_reference_shows_what_is_public() -> None:
    """Every module has its place on a page, with the names that are promised and no others."""
    shown: dict[str, set[str]] = {}
    for page in REFERENCE.glob("*.md"):
        for module, options in DIRECTIVE.findall(page.read_text("utf-8")):
            members = re.search(r":members: (.+)", options)
            shown[module] = set(members[1].split(", ")) if members else set()
    promised = {module: set(names) for modules in PUBLIC.values() for module, names in modules.items()}
    del promised[OWN]  # what stands there is at home in specs and hookspecs
    assert shown == promised
