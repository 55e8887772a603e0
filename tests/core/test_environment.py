"""The page of environment variables lists those that the code reads, all of them and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("core/protloom", "plugins", "tasks/protloom_tasks")
PAGE = "docs/reference/environment.md"
READERS = {"get", "setdefault", "pop"}


def variables(source: str, where: str) -> set[str]:
    """Returns the names of the environment variables that a module reads.

    Args:
        source: its text. A name may be a constant, a constant of the module, or run through one in a comprehension.
        where: its path, for who reads a name that cannot be told.
    """
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    runs_through = {
        part.target.id: part.iter
        for node in ast.walk(tree)
        for part in getattr(node, "generators", ())
        if isinstance(part.target, ast.Name)
    }

    def names(node: ast.AST | None, depth: int = 0) -> set[str]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return {node.value}
        if isinstance(node, ast.Tuple | ast.List) and node.elts:
            return set().union(*(names(element, depth) for element in node.elts))
        if isinstance(node, ast.Name) and depth < 3:
            return names(runs_through.get(node.id) or constants.get(node.id), depth + 1)
        raise AssertionError(f"{where}: cannot tell which environment variable is read: use a constant")

    return set().union(*(names(key) for key in keys(tree)))


def keys(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the expressions by which a module looks into the environment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            yield node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "getenv" or (node.func.attr in READERS and is_environment(node.func.value)):
                yield node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getenv":
            yield node.args[0]
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield node.left


def is_environment(node: ast.AST) -> bool:
    """Tells whether an expression is the environment, as ``os`` has it or under the name of an argument."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("environ", "environment")


def test_every_variable_that_is_read_is_on_the_page(repository: Path) -> None:
    read: dict[str, str] = {}
    for package in PACKAGES:
        for file in sorted((repository / package).rglob("*.py")):
            where = str(file.relative_to(repository))
            read |= dict.fromkeys(variables(file.read_text(encoding="utf-8"), where), where)
    assert {"PROTLOOM_CACHE", "PROTLOOM_DATA", "PROTLOOM_DISABLE_PLUGINS", "HF_TOKEN", "RANK", "CXX"} <= set(read)
    page = (repository / PAGE).read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([A-Z_0-9]+)` \|", page, re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(read), f"{PAGE}; they are read in {read}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("os.environ.get('A') or os.environ['B']", {"A", "B"}),
        ("'A' in os.environ and 'B' not in environ", {"A", "B"}),
        ("os.getenv('A', 1) + getenv('B')", {"A", "B"}),
        ("os.environ.setdefault('A', '1')", {"A"}),
        ("def of(environment): return environment.get('A', '').strip()", {"A"}),
        ("VARIABLE = 'A'\nos.environ.get(VARIABLE)", {"A"}),
        ("S = ('A', 'B')\n{name: os.environ[name] for name in S if name in os.environ}", {"A", "B"}),
        ("{**os.environ, 'A': '1'}; other.get('B')", set()),
    ],
)
def test_how_a_variable_is_found(source: str, found: set[str]) -> None:
    assert variables(source, "here") == found


@pytest.mark.parametrize("source", ["os.environ[name()]", "os.environ.get(unknown)", "os.getenv(f'A_{x}')"])
def test_a_name_that_cannot_be_told_is_not_passed_over(source: str) -> None:
    with pytest.raises(AssertionError, match="here: cannot tell"):
        variables(source, "here")
