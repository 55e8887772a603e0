"""Writes third-party distributions into a folder, as pip would install them: a module beside its ``.dist-info``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

GOOD = """
    from protloom import ObjectiveSpec, hookimpl

    @hookimpl
    def protloom_objectives():
        return [ObjectiveSpec(name="{name}", factory="{module}:Made", config="{module}:Options", summary="a test")]

    def __getattr__(name):
        from pydantic import BaseModel, ConfigDict

        if name == "Options":
            class Options(BaseModel):
                model_config = ConfigDict(extra="forbid", frozen=True)
                rate: float = 0.5
            return Options
        if name == "Made":
            return dict
        raise AttributeError(name)
"""


class Site:
    """A folder that stands for ``site-packages``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        module: str,
        source: str,
        *,
        version: str = "1.0",
        points: Mapping[str, str] | None = None,
        entry_points: str | None = None,
        extra_metadata: str = "License-Expression: BSD-3-Clause\n",
    ) -> None:
        """Adds a distribution with one module; its entry point is called ``main`` unless ``points`` say otherwise."""
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n{extra_metadata}"
        (info / "METADATA").write_text(about, encoding="utf-8")
        if entry_points is None:
            lines = [f"{name} = {value}" for name, value in (points or {"main": module}).items()]
            entry_points = "[protloom]\n" + "\n".join(lines) + "\n"
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")

    def good(self, distribution: str, module: str, name: str, *, version: str = "1.0") -> None:
        """Adds a working distribution with one objective."""
        self.add(distribution, module, GOOD.replace("{name}", name).replace("{module}", module), version=version)
