"""Ankh3's two objectives trained jointly and each alone, on the same sequences for the same number of steps.

    python benchmarks/ankh3_joint.py --data x.fasta.gz [--runs DIR] [--out RESULTS.md] [key=value ...]

Trains ``recipe:ankh3-small`` three times by the command line: with both objectives (each sequence to one, half to
each), with denoising only, with completion only. Then every network is asked both kinds of question on the same
held-out sequences. Losses are nats; those of residues, sentinels and ``</s>`` are told apart.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from protloom import checkpoint, config
from protloom.assembly import assemble
from protloom.distributed import join
from protloom.metrics import clock
from protloom.plugins import Registry

RECIPE = "recipe:ankh3-small"
VARIANTS: Mapping[str, list[str]] = {
    "joint": [],
    "denoise only": ["objectives=[{name: denoise}]"],
    "complete only": ["objectives=[{name: complete}]"],
}


def trained(name: str, folder: Path, data: str, words: list[str]) -> Path:
    """Trains a variant, or takes the run that is there."""
    run_dir = folder / name.replace(" ", "-")
    command = [sys.executable, "-m", "protloom"]
    if (run_dir / "config.yaml").exists():
        command += ["resume", str(run_dir)]
    else:
        command += ["train", RECIPE, f"--data={data}", f"--out={run_dir}", *VARIANTS[name], *words]
    subprocess.run(command, check=True)
    return run_dir


def questioned(run_dir: Path | None, data: str, words: list[str]) -> dict[str, float]:
    """Returns the validation metrics of both objectives for the weights of a run, or for untrained ones."""
    registry = Registry.discover()
    resolved = config.load(RECIPE, [("data.corpus", data), *words], registry)
    latest = None if run_dir is None else checkpoint.latest(run_dir)
    run = assemble(resolved, registry, join("none", "cpu"), initial=None if latest is None else latest / "model")
    assert run.validator is not None
    return run.validator.run(run.module, run.mixture.final_weights())


def row(name: str, run_dir: Path | None, metrics: Mapping[str, float]) -> str:
    """Writes one network's line of the table."""
    cells = [name]
    if run_dir is None:
        cells += ["0", "–"]
    else:
        latest = checkpoint.latest(run_dir)
        assert latest is not None
        state = checkpoint.read_state(latest)
        cells += [f"{state.tokens:,}", clock(state.seconds)]
    for alias in ("denoise", "complete"):
        kinds = ("residue_loss", "sentinel_loss", "end_loss") if alias == "denoise" else ("residue_loss", "end_loss")
        cells += [f"{metrics[f'validation/{kind}/{alias}']:.3f}" for kind in kinds]
        cells.append(f"{100 * metrics[f'validation/accuracy/{alias}']:.1f} %")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, help="keep the run folders here; those that are there are taken")
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        runs: dict[str, Path | None] = {"untrained": None}
        runs |= {name: trained(name, folder, args.data, args.words) for name in VARIANTS}
        found = {name: questioned(run_dir, args.data, args.words) for name, run_dir in runs.items()}
        rows = [row(name, runs[name], metrics) for name, metrics in found.items()]
    entropies = {alias: found["joint"][f"validation/unigram_entropy/{alias}"] for alias in ("denoise", "complete")}
    lines = [
        f"`{RECIPE}`{' with ' + ' '.join(args.words) if args.words else ''} on {Path(args.data).name}, "
        f"{torch.get_num_threads()} threads of a shared {platform.machine()} machine, torch {torch.__version__}. "
        "Every run sees the same sequences; tokens are those that encoders and decoders read. Entropy of the "
        f"frequencies of the very residues asked for: denoise {entropies['denoise']:.3f}, complete "
        f"{entropies['complete']:.3f} nats.",
        "",
        "| training | tokens | time | denoise: residue | sentinel | `</s>` | accuracy | complete: residue | `</s>` "
        "| accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
    ]
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(f"# Two objectives, jointly and apart\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
