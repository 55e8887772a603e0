"""How OpenMP's threads should wait: training steps with spinning and with sleeping threads, idle and beside a load.

Each figure is one process (OpenMP reads its settings once); settings are interleaved, medians of several rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

SETTINGS: dict[str, dict[str, str]] = {
    "spins (OpenMP's default)": {},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}

STEPS = """
import time, torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(*[nn.TransformerEncoderLayer(128, 8, 512, batch_first=True, dropout=0.0) for _ in range(4)])
x = torch.randn(32, 128, 128)
def step():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x).float().square().mean().backward()
step()
begin = time.perf_counter()
for _ in range(4):
    step()
print(4 * x.shape[0] * x.shape[1] / (time.perf_counter() - begin))
"""


def tokens_per_second(extra: dict[str, str]) -> float:
    """Runs the steps in a process with these settings."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", STEPS], env=clean | extra, capture_output=True, text=True, check=True)
    return float(done.stdout)


def table(rounds: int) -> str:
    """Measures everything and returns a Markdown table."""
    lines = ["| threads wait by | idle machine, tokens/s | beside one busy process |", "|---|--:|--:|"]
    found: dict[str, list[list[float]]] = {name: [[], []] for name in SETTINGS}
    for busy in (0, 1):
        load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for _ in range(rounds):
                for name, extra in SETTINGS.items():
                    found[name][busy].append(tokens_per_second(extra))
        finally:
            for process in load:
                process.kill()
    for name, (idle, loaded) in found.items():
        lines.append(f"| {name} | {statistics.median(idle):,.0f} | {statistics.median(loaded):,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    print(table(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
