"""Prints how long the simulated proteome of 20,000 sequences takes on one core.

Usage: ``python benchmarks/simulate.py [N]``
"""

from __future__ import annotations

import sys
import time

from protloom_tasks.simulated.proteome import simulate


def main() -> None:
    """Simulates three times and prints the best and the median time."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    wall, cpu = [], []
    for seed in range(3):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        proteome = simulate(n, seed)
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
        print(f"seed {seed}: {len(proteome)} sequences, {len(proteome.residues)} residues, {wall[-1]:.2f} s")
    print(f"best {min(wall):.2f} s, median {sorted(wall)[1]:.2f} s (processor time {sorted(cpu)[1]:.2f} s)")


if __name__ == "__main__":
    main()
