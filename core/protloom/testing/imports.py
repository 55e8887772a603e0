"""Whether a plugin is light to import: a check of every kind of component."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from protloom.testing.checks import require

if TYPE_CHECKING:
    from protloom.testing.checks import Request

HEAVY = ("torch", "transformers", "tensorflow", "jax", "sklearn", "matplotlib", "pandas")
"""Packages that take long to import; a plugin imports them where it uses them."""


def imports_no_torch(request: Request) -> None:
    """Raises Violation if the plugin's module, or that of the component's options, imports something heavy."""
    component = request.component
    plugin = next(p for p in request.registry.plugins if component in p.components)
    modules = [plugin.module.partition(":")[0]]
    if isinstance(component.spec.config, str):
        modules.append(component.spec.config.partition(":")[0])
    program = (
        f"import sys\nsys.path[:] = {sys.path!r}\nfor name in {modules!r}:\n __import__(name)\n"
        f" for heavy in {HEAVY!r}:\n  if heavy in sys.modules:\n"
        "   sys.exit(name + ' imports ' + heavy + ': import it inside the functions that need it')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()
    require(done.returncode == 0, said[-1] if said else f"{modules[0]} cannot be imported.")
