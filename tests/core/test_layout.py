"""The shape of the project: entry points as installed, and which package may import which."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

PACKAGES = {
    "protloom": "core/protloom",
    "protloom_plugins": "plugins/protloom_plugins",
    "protloom_tasks": "tasks/protloom_tasks",
}
MAY_IMPORT = {
    "protloom": {"protloom"},
    "protloom_plugins": {"protloom", "protloom_plugins"},
    "protloom_tasks": {"protloom", "protloom_tasks"},
}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, module) of every import in a file, also those inside functions and of strings "module:attr"."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; write the whole name"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, attribute = node.value.partition(":")
            if colon and attribute.isidentifier() and all(part.isidentifier() for part in module.split(".")):
                yield node.lineno, module


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_direction_of_imports(package: str, repository: Path) -> None:
    files = sorted((repository / PACKAGES[package]).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(repository)}:{line}: {module}"
        for file in files
        for line, module in imports(file)
        if (top := module.partition(".")[0]) in PACKAGES and top not in MAY_IMPORT[package]
    ]
    assert not wrong


def test_entry_points_are_those_that_are_installed(repository: Path) -> None:
    declared = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = metadata.distribution("protloom").entry_points
    for group, expected in [
        ("protloom", declared["entry-points"]["protloom"]),
        ("console_scripts", declared["scripts"]),
    ]:
        found = {point.name: point.value for point in installed if point.group == group}
        assert found == expected, "pip install -e . again: entry points are written when a distribution is installed"


def test_no_generic_top_level_package_is_installed(repository: Path) -> None:
    wheel = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    packages = wheel["targets"]["wheel"]["packages"]
    assert sorted(Path(p).name for p in packages) == sorted(PACKAGES)


def test_every_command_of_the_table_exists(repository: Path) -> None:
    from protloom.cli import COMMANDS

    for name, command in COMMANDS.items():
        assert (repository / "core" / f"{command.module.replace('.', '/')}.py").is_file(), name
