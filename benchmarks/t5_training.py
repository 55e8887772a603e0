"""Ankh3's joint training here and by transformers' T5 with padding: the same network, sequences, targets and optimizer.

    python benchmarks/t5_training.py --data x.fasta.gz [--rounds 7] [--out benchmarks/results/t5_training.md]

A round is one optimizer step of every variant, in turn; each variant has a copy of the weights of its own. Tokens are
those of sources and targets together, padding not counted. transformers gets the token ids that our objectives made
(half of the sequences to denoise, half to complete), padded to the longest of a batch: in the order drawn, as a
shuffled data set gives them, or bucketed: sorted by length and cut into four. Before anything is timed, the losses in
fp32 are compared. For other networks: ``protloom bench --against transformers``, which this is made of.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.bench import against
from protloom.bench.against import Form, Theirs
from protloom.distributed import join
from protloom.mixture import HostBatch
from protloom.phases import Phases
from protloom.plugins import Registry
from protloom.stepper import Stepper

Step = Callable[[Sequence[HostBatch]], object]


def assembled(data: str, size: str, precision: str, tokens: int) -> Assembly:
    """Builds the run of the recipe, weights by its seed."""
    registry = Registry.discover()
    words = [f"architecture.size={size}", f"trainer.precision={precision}", f"trainer.tokens_per_step={tokens}"]
    words += ["data.validation_fraction=0", "optimizer.name=adamw"]
    resolved = config.load("recipe:ankh3-small", [("data.corpus", data), *words], registry)
    return assemble(resolved, registry, join("none", "cpu"), initial=None)


def ours(run: Assembly) -> Step:
    """Returns one optimizer step as the trainer does it: packed, in the order drawn."""
    stepper = Stepper(run)
    return lambda batches: stepper.take(0, batches, Phases())


def theirs(folder: Path, like: Assembly, precision: str, *, bucketed: bool) -> Theirs:
    """Returns transformers' T5, padded, after comparing its loss in fp32 with ours."""
    peer = against.peer_of(like.resolved, "transformers", Registry.discover())
    made = Theirs("transformers", "", peer, Form(precision, "sdpa", bucketed), folder, like, 0)
    if precision == "fp32":
        against.check(like, made, like.host_step(0))
    return made


def stepping(peer: Theirs) -> Step:
    """Returns one optimizer step of transformers."""
    return lambda batches: peer.take(batches, Phases())


def measure(variants: Mapping[str, Step], steps: Sequence[Sequence[HostBatch]]) -> dict[str, float]:
    """Returns median tokens/s of each variant; every round is the next step for all of them."""
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn, batches in enumerate(steps):
        tokens = sum(batch.tokens for batch in batches)
        for name, variant in variants.items():
            start = time.perf_counter()
            variant(batches)
            if turn:  # the first step allocates
                speeds[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    """Builds the variants, measures them in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo:", help="corpus; the table of the results folder is of real UniRef90")
    parser.add_argument("--size", default="small")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = {name: assembled(args.data, args.size, name, args.tokens) for name in ("fp32", "bf16")}
    first = runs["fp32"]
    with tempfile.TemporaryDirectory() as folder:
        first.write_model(Path(folder), first.model.state_dict())
        forms = {"padded as drawn": False, "bucketed": True}
        peers = {  # made, and their losses compared, before anything steps
            f"transformers, {words}, {precision}": theirs(Path(folder), first, precision, bucketed=bucketed)
            for words, bucketed in forms.items()
            for precision in ("fp32", "bf16")
        }
        variants = {f"protloom, packed, {name}": ours(run) for name, run in runs.items()}
        variants |= {name: stepping(peer) for name, peer in peers.items()}
        steps = [first.host_step(step) for step in range(args.rounds + 1)]
        speeds = measure(variants, steps)
    shipped = speeds["transformers, padded as drawn, fp32"]
    best = max(speed for name, speed in speeds.items() if name.startswith("transformers"))
    corpus = first.stores[0].name
    lines = [
        f"`ankh:{args.size}`, {sum(p.numel() for p in first.model.parameters()):,} parameters, {corpus}, "
        f"{args.tokens} tokens a step, {args.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()}; medians of {args.rounds} rounds.",
        "",
        "| variant | source + target tokens/s | × padded fp32 | × transformers' best |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {speed:,.0f} | {speed / shipped:.2f} | {speed / best:.2f} |" for name, speed in speeds.items()
    ]
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(f"# Training an encoder-decoder, tokens a second\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
