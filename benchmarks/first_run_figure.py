"""Draws the picture of the README from a finished run and its task results.

::

    protloom train --data uniref90.fasta.gz --arch esm2:8M --out runs/real …
    protloom task run ss3:cb513 --model runs/real --data-dir data --out runs/real/ss3.json
    python benchmarks/first_run_figure.py runs/real runs/real/ss3.json docs/images/first-run.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

INK, ACCENT, MUTED = "#1b1f24", "#0b6e99", "#b0b7bf"


def loss_panel(axes: Any, run_dir: Path) -> None:
    """Draws training and validation loss against tokens, with the entropy of the residue frequencies."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "learning_rate" in r]
    tokens_at = {r["step"]: r["tokens"] / 1e6 for r in steps}
    axes.plot(
        [r["tokens"] / 1e6 for r in steps],
        [r["loss/mlm"] for r in steps],
        color=MUTED,
        lw=1,
        label="training (some scored residues are left in place)",
    )
    validated = [r for r in records if "validation/loss/mlm" in r and r["step"] in tokens_at]
    axes.plot(
        [tokens_at[r["step"]] for r in validated],
        [r["validation/loss/mlm"] for r in validated],
        color=ACCENT,
        lw=2,
        marker="o",
        ms=4,
        label="held out, every scored residue masked",
    )
    unigram = validated[-1]["validation/unigram_entropy/mlm"]
    axes.axhline(unigram, color=INK, lw=1, ls="--", label=f"residue frequencies alone: {unigram:.3f}")
    title = "Masked language modelling, UniRef90 sample"
    axes.set(xlabel="million tokens", ylabel="nats a masked residue", title=title)
    axes.set_ylim(min(r["loss/mlm"] for r in steps) - 0.05, unigram + 0.35)
    axes.legend(frameon=False, fontsize=8)


def task_panel(axes: Any, results: Path) -> None:
    """Draws the main metric of every subject of the first task, with its 95 % interval."""
    document = json.loads(results.read_text())
    task = document["tasks"][0]
    names = {"model": "trained network"}  # the name of a run folder says nothing to a reader
    rows = [(names.get(r["role"], r["subject"]), r["value"], r["interval95"]) for r in task["results"]][::-1]
    for y, (name, value, (low, high)) in enumerate(rows):
        colour = ACCENT if y == len(rows) - 1 else MUTED
        axes.barh(y, value, color=colour, height=0.6)
        axes.plot([low, high], [y, y], color=INK, lw=1.5)
        axes.text(0.01, y, f" {name}  {value:.3f}", va="center", fontsize=8, color="white" if colour == ACCENT else INK)
    axes.set_yticks([])
    title = f"{task['task']}, frozen probe" + (" (SIMULATED proteins)" if task["simulated"] else "")
    axes.set(xlabel=f"{task['results'][0]['metric']}, 95 % interval", title=title, xlim=(0, None))


def main() -> None:
    """Reads the arguments and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "protloom", "axes.spines.top": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    loss_panel(left, arguments.run)
    task_panel(right, arguments.results)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
