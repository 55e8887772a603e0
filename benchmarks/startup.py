"""How long ``protloom --help`` and ``protloom plugins`` take to start, beside an empty interpreter.

Writes a Markdown table: ``python benchmarks/startup.py [--repeats 15] [--out FILE]``. The commands run in turns, so
that other work on the machine hits all of them alike, and medians are reported.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "protloom --help": ([sys.executable, "-m", "protloom", "--help"], 150),
    "protloom plugins": ([sys.executable, "-m", "protloom", "plugins"], 300),
}
"""What is measured, and the goal in milliseconds."""


def measure(repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of every command; the first round only warms the file cache."""
    seen: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(repeats + 1):
        for name, (command, _) in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_:
                seen[name].append((time.perf_counter() - start) * 1000)
    return {name: median(times) for name, times in seen.items()}


def table(times: dict[str, float]) -> str:
    """Returns the result as a Markdown table."""
    lines = [
        f"Start-up, medians; Python {platform.python_version()}, {platform.machine()}",
        "",
        "| command | ms | above `python -c pass` | goal ms |",
        "|---|---:|---:|---:|",
    ]
    floor = times["python -c pass"]
    for name, (_, goal) in COMMANDS.items():
        lines.append(f"| `{name}` | {times[name]:.0f} | {times[name] - floor:.0f} | {goal or ''} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints; writes a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    result = table(measure(args.repeats))
    print(result)
    if args.out is not None:
        args.out.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
