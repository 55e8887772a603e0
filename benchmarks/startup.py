"""How long ``protloom --help`` and ``protloom plugins`` take to start, and what 50 installed plugins add to that.

Writes a Markdown table: ``python benchmarks/startup.py [--repeats 15] [--plugins 50] [--out FILE]``. The commands run
in turns, so that other work on the machine hits all of them alike, and medians are reported; what the plugins add is
the median of the differences within a turn. The plugins are distributions as pip leaves them, in a folder that is put
on the path: metadata with an entry point, and a package that offers an objective.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

EMPTY, HELP, PLUGINS = "python -c pass", "protloom --help", "protloom plugins"
COMMANDS: Mapping[str, Sequence[str]] = {
    EMPTY: ("-c", "pass"),
    HELP: ("-m", "protloom", "--help"),
    PLUGINS: ("-m", "protloom", "plugins"),
}
"""What is measured: arguments of Python."""
GOALS = {HELP: 150, PLUGINS: 300}
"""Milliseconds."""
MOST_ADDED = 100
"""Milliseconds that the further plugins may add."""

PACKAGE = """
from protloom import ObjectiveSpec, hookimpl


@hookimpl
def protloom_objectives():
    return [ObjectiveSpec(name="{name}", factory="{module}.loss:Loss", config="{module}.config:Options", summary="-")]
"""


def install(folder: Path, n: int) -> None:
    """Writes ``n`` distributions into a folder, as pip would."""
    for number in range(n):
        module, name = f"acme_{number:03}", f"acme-{number:03}"
        (folder / module).mkdir()
        (folder / module / "__init__.py").write_text(PACKAGE.format(name=name, module=module))
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\nRequires-Dist: protloom\n"
        files = {
            "METADATA": f"{about}\nA plugin of protloom.\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: hatchling\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "INSTALLER": "pip\n",
            "entry_points.txt": f"[protloom]\n{module} = {module}\n",
        }
        for file, text in files.items():
            (info / file).write_text(text)
        listed = [f"{module}/__init__.py", *(f"{info.name}/{file}" for file in (*files, "RECORD"))]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))


def measure(repeats: int, site: Path, n: int) -> dict[str, list[float]]:
    """Returns the milliseconds of every command in each round; a first round only warms caches of files and code.

    Args:
        repeats: how many rounds.
        site: a folder with ``n`` plugins.
        n: of which the name of the last row tells.
    """
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    runs = [(name, command, plain) for name, command in COMMANDS.items()]
    runs.append((more(n), COMMANDS[PLUGINS], {**plain, "PYTHONPATH": str(site)}))
    seen: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    for round_ in range(repeats + 1):
        for name, command, environment in runs if round_ % 2 else reversed(runs):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *command], check=True, capture_output=True, text=True, env=environment
            )
            if round_:
                seen[name].append((time.perf_counter() - start) * 1000)
            found = done.stdout.count("objective acme-")
            if found != (n if name == more(n) else 0):
                raise SystemExit(f"{name}: {found} of the {n} plugins were listed")
    return seen


def more(n: int) -> str:
    """Returns the name of the row with further plugins."""
    return f"{PLUGINS}, {n} more installed"


def table(seen: Mapping[str, Sequence[float]], n: int) -> str:
    """Returns the result as a Markdown table."""
    rounds = len(seen[EMPTY])
    lines = [
        f"Start-up, medians of {rounds} rounds; Python {platform.python_version()}, {platform.machine()}",
        "",
        f"| command | ms | above `{EMPTY}` | goal ms |",
        "|---|---:|---:|---:|",
    ]
    floor = median(seen[EMPTY])
    for name, times in seen.items():
        lines.append(f"| `{name}` | {median(times):.0f} | {median(times) - floor:.0f} | {GOALS.get(name, '')} |")
    added = sorted(b - a for a, b in zip(seen[PLUGINS], seen[more(n)], strict=True))
    lines.append(f"| discovery of {n} plugins adds | {median(added):.0f} | | {MOST_ADDED} |")
    lines += [
        "",
        f"What {n} plugins add is the median of the rounds' differences ({added[0]:.0f} to {added[-1]:.0f} ms).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints; writes a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--plugins", type=int, default=50, help="distributions to install beside protloom's own (50)")
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), args.plugins)
        result = table(measure(args.repeats, Path(folder), args.plugins), args.plugins)
    print(result)
    if args.out is not None:
        args.out.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
