"""Ankh3's two objectives trained jointly and each alone, for equal numbers of tokens.

    python benchmarks/ankh3_joint.py --data x.fasta.gz [--runs DIR] [--out RESULTS.md] [key=value ...]

Trains ``recipe:ankh3-small`` three times by the command line: with both objectives (each sequence to one, half to
each); then with denoising only and with completion only, until encoder and decoder together have read as many tokens
as in the joint run. Every network is asked both kinds of question on the same held-out sequences. Losses are nats:
which residue it is; layout: that there is a residue, no sentinel or end; sentinels; ``</s>``.
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


def state_of(run_dir: Path) -> checkpoint.TrainState:
    """Returns the counters of a finished run."""
    latest = checkpoint.latest(run_dir)
    assert latest is not None
    return checkpoint.read_state(latest)


def row(name: str, run_dir: Path | None, metrics: Mapping[str, float]) -> str:
    """Writes one network's line of the table."""
    cells = [name]
    if run_dir is None:
        cells += ["0", "–"]
    else:
        state = state_of(run_dir)
        cells += [f"{state.tokens:,}", clock(state.seconds)]
    for alias in ("denoise", "complete"):
        kinds = ["residue_loss", "layout_loss", "sentinel_loss", "end_loss"]
        if alias == "complete":
            kinds.remove("sentinel_loss")
        cells += [f"{metrics[f'validation/{kind}/{alias}']:.3f}" for kind in kinds]
        cells.append(f"{100 * metrics[f'validation/accuracy/{alias}']:.1f} %")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Trains the variants, asks all of them both questions and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, help="keep the run folders here; those that are there are taken")
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        runs: dict[str, Path | None] = {"untrained": None}
        joint = trained("joint", folder, args.data, args.words)
        equal = [*args.words, "trainer.steps=1000000", f"trainer.max_tokens={state_of(joint).tokens}"]
        runs |= {name: joint if name == "joint" else trained(name, folder, args.data, equal) for name in VARIANTS}
        found = {name: questioned(run_dir, args.data, args.words) for name, run_dir in runs.items()}
        rows = [row(name, runs[name], metrics) for name, metrics in found.items()]
    entropies = {alias: found["joint"][f"validation/unigram_entropy/{alias}"] for alias in ("denoise", "complete")}
    lines = [
        f"`{RECIPE}`{' with ' + ' '.join(args.words) if args.words else ''} on {Path(args.data).name}, "
        f"{torch.get_num_threads()} threads of a shared {platform.machine()} machine, torch {torch.__version__}. "
        "Tokens are those that encoders and decoders read. `residue` is the mean -log p of which residue it is, given "
        "that it is one; that it is one (`layout`), sentinels and ends are told apart. Entropy of the frequencies of "
        f"the very residues asked for: denoise {entropies['denoise']:.3f}, complete {entropies['complete']:.3f} nats.",
        "",
        "| training | tokens | time | denoise: residue | layout | sentinel | `</s>` | accuracy | complete: residue "
        "| layout | `</s>` | accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *rows,
    ]
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(f"# Two objectives, jointly and apart\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
