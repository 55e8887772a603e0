"""Runs the steps of one page in order, in the folder where it is started; stops at the first that fails.

Started by test_docs with the Python of the page's own environment: ``python run_page.py STEPS.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType


def main(steps: list[dict[str, str]]) -> None:
    """Does the steps; blocks of Python share a namespace."""
    page = ModuleType("page")
    sys.modules[page.__name__] = page  # where data classes look up the types of their fields
    for step in steps:
        print(f"--- {step['where']}", flush=True)
        if step["do"] == "shell":
            code = subprocess.run(["bash", "-euo", "pipefail", "-c", step["text"]], check=False).returncode
            if code:
                sys.exit(f"{step['where']}: exit code {code}")
        elif step["do"] == "write":
            path = Path(step["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["text"], encoding="utf-8")
        elif step["do"] == "diff":
            change(step["text"], step["where"])
        else:
            exec(compile(step["text"], step["where"], "exec", dont_inherit=True), page.__dict__)


def change(diff: str, where: str) -> None:
    """Changes a file: each part of the diff must stand in it exactly once."""
    head, *hunks = diff.split("@@\n")
    path = Path(head.split()[1])
    text = path.read_text(encoding="utf-8")
    for hunk in hunks:
        lines = hunk.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if (line or " ")[0] in signs) for signs in (" -", " +"))
        if text.count(old) != 1:
            sys.exit(f"{where}: {path} holds this {text.count(old)} times:\n{old}")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
