"""How long the sampler takes to start at any step of a corpus of 70 million sequences (a simulated index).

    python benchmarks/sampler.py [--sequences 70000000] [--out benchmarks/results/sampler.md]

Only lengths and hashes are made (about 16 bytes a sequence, on disk); no residue is ever read. "First time" counts the
tokens of every block; every later run, of any seed, finds them beside the store.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protloom.data.sampler import Sampler

CHUNK = 1 << 22


@dataclass(frozen=True)
class Index:
    """What the sampler reads of a store."""

    path: Path
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    residues: NDArray[np.uint8]
    content_hash: str = "simulated"
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.hashes)


def make(folder: Path, n: int) -> None:
    """Writes offsets and hashes of ``n`` sequences with log-normal lengths (mean about 290)."""
    generator = np.random.default_rng(0)
    offsets = np.lib.format.open_memmap(folder / "offsets.npy", "w+", np.int64, (n + 1,))
    hashes = np.lib.format.open_memmap(folder / "hashes.npy", "w+", np.uint64, (n,))
    offsets[0] = 0
    for first in range(0, n, CHUNK):
        last = min(first + CHUNK, n)
        lengths = np.clip(generator.lognormal(5.5, 0.6, last - first), 30, 3000).astype(np.int64)
        offsets[first + 1 : last + 1] = offsets[first] + np.cumsum(lengths)
        hashes[first:last] = generator.integers(0, 2**64, last - first, dtype=np.uint64)


def open_index(folder: Path) -> Index:
    """Maps the arrays."""
    offsets, hashes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "hashes"))
    return Index(folder, offsets, hashes, np.zeros(0, dtype=np.uint8))


def start(folder: Path, step: int, tokens: int, seed: int) -> float:
    """Returns the seconds from an unopened index to the members of one step."""
    begin = time.perf_counter()
    sampler = Sampler(
        [open_index(folder)],
        [1.0],
        tokens_per_step=tokens,
        specials=2,
        max_length=1022,
        min_length=1,
        validation_fraction=0.02,
        seed=seed,
    )
    assert sampler.step(step).n
    return time.perf_counter() - begin


def in_new_process(folder: Path, step: int, tokens: int, seed: int) -> float:
    """Times a start in a fresh process, without its imports."""
    command = [sys.executable, __file__, "--child", str(folder), str(step), str(tokens), str(seed)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def following(folder: Path, tokens: int) -> float:
    """Returns the median seconds of later steps of one sampler."""
    sampler = Sampler(
        [open_index(folder)],
        [1.0],
        tokens_per_step=tokens,
        specials=2,
        max_length=1022,
        min_length=1,
        validation_fraction=0.02,
        seed=0,
    )
    times = []
    for step in range(1000, 1200):
        begin = time.perf_counter()
        sampler.step(step)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main() -> None:
    """Runs the measurement and writes its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=70_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sampler.md")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, *numbers = arguments.child
        print(start(Path(folder), *map(int, numbers)))
        return
    small, large = 16_384, 2_097_152
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, arguments.sequences)
        rows = [("first time: counting the tokens of every block", start(folder, 0, small, 0))]
        generator = np.random.default_rng(1)
        for tokens in (small, large):
            steps = generator.integers(0, 3 * arguments.sequences * 290 // tokens, 7).tolist()
            later = [in_new_process(folder, step, tokens, seed) for seed, step in enumerate(steps)]
            label = f"resume at a random step of three epochs, new process, {tokens:,} tokens a step"
            rows += [(f"{label}: median", statistics.median(later)), (f"{label}: slowest of 7", max(later))]
            rows.append((f"each following step of {tokens:,} tokens", following(folder, tokens)))
    text = "\n".join(
        [
            "# Starting at any step",
            "",
            f"{arguments.sequences:,} sequences (simulated index), one thread. {platform.machine()}, "
            f"Python {platform.python_version()}, numpy {np.__version__}. Made by `benchmarks/sampler.py`.",
            "",
            "| what | ms |",
            "|---|--:|",
            *(f"| {label} | {seconds * 1e3:,.2f} |" for label, seconds in rows),
            "",
        ]
    )
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
