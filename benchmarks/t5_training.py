"""Ankh3's joint training here and by transformers' T5 with padding: the same network, sequences, targets and optimizer.

    python benchmarks/t5_training.py --data x.fasta.gz [--rounds 7] [--out benchmarks/results/t5_training.md]

A round is one optimizer step of every variant, in turn; each variant has a copy of the weights of its own. Tokens are
those of sources and targets together, padding not counted. transformers gets the token ids that our objectives made
(half of the sequences to denoise, half to complete), padded to the longest of a batch: in the order drawn, as a
shuffled data set gives them, or bucketed: sorted by length and cut into four. Before anything is timed, the losses of
all variants on the first step are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.contracts import StepContext
from protloom.distributed import join
from protloom.mixture import HostBatch
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device

Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # ids of source and target
Step = Callable[[Sequence[HostBatch]], float]
BUCKETS = 4
IGNORED = -100


def assembled(data: str, size: str, precision: str, tokens: int) -> Assembly:
    """Builds the run of the recipe, weights by its seed."""
    registry = Registry.discover()
    words = [f"architecture.size={size}", f"trainer.precision={precision}", f"trainer.tokens_per_step={tokens}"]
    words += ["data.validation_fraction=0", "optimizer.name=adamw"]
    resolved = config.load("recipe:ankh3-small", [("data.corpus", data), *words], registry)
    return assemble(resolved, registry, join("none", "cpu"), initial=None)


def ours(run: Assembly) -> Step:
    """Returns one optimizer step as the trainer does it: packed, in the order drawn."""
    rng = CounterRNG(0, "step")

    def step(batches: Sequence[HostBatch]) -> float:
        keys = batches[0].counts.keys()
        divisors = {key: float(sum(batch.counts[key] for batch in batches)) for key in keys}
        # one mean over all targets of both tasks, which is what transformers' loss is
        weights = {key: count / sum(divisors.values()) for key, count in divisors.items()}
        run.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            ctx = StepContext(0, rng, _same, _same)
            output = run.wrapped(to_device(batch, run.world.device), weights, divisors, ctx)
            output.loss.backward()
            total += output.loss.item()
        run.ops.clip_grad_norm(run.trainable(), 1.0)
        run.optimizer.step()
        return total

    return step


def theirs(folder: Path, like: Assembly, dtype: torch.dtype, *, bucketed: bool) -> Step:
    """Returns one optimizer step of transformers' T5, padded."""
    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder, dropout_rate=0.0)
    model.train()
    group = like.optimizer.param_groups[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=group["lr"], betas=group["betas"], fused=True)
    pad = like.tokenizer.pad_id

    def step(batches: Sequence[HostBatch]) -> float:
        optimizer.zero_grad(set_to_none=True)
        targets = sum(len(target) for batch in batches for _, target in pairs(batch))
        loss = 0.0
        for batch in batches:
            for part in parts(pairs(batch), bucketed=bucketed):
                source, labels = padded([s for s, _ in part], pad), padded([t for _, t in part], IGNORED)
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    mean = model(input_ids=source, attention_mask=(source != pad).long(), labels=labels).loss
                share = mean * (int((labels != IGNORED).sum()) / targets)
                share.backward()
                loss += float(share.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def pairs(batch: HostBatch) -> list[Pair]:
    """Returns source and target of every sequence, as they were drawn: no task before the other."""
    found = []
    for share in batch.shares:
        assert share.decoder is not None
        (arrays,) = share.arrays.values()
        source, target = share.inputs, share.decoder.cu
        for i in range(source.n):
            ids = source.tokens[source.cu[i] : source.cu[i + 1]]
            found.append((ids, arrays["targets"][target[i] : target[i + 1]]))
    order = np.random.default_rng(len(found)).permutation(len(found))
    return [found[i] for i in order]


def parts(sequences: list[Pair], *, bucketed: bool) -> list[list[Pair]]:
    """Returns the sequences as one batch, or as buckets of like lengths."""
    if not bucketed:
        return [sequences]
    ordered = sorted(sequences, key=lambda pair: len(pair[0]) + len(pair[1]))
    edges = np.linspace(0, len(ordered), BUCKETS + 1).astype(int)
    return [ordered[a:b] for a, b in pairwise(edges) if b > a]


def padded(rows: Sequence[np.ndarray[Any, Any]], fill: int) -> Tensor:
    """Returns ``[n, longest]`` int64."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


def _same(x: Tensor) -> Tensor:
    return x


def measure(variants: Mapping[str, Step], steps: Sequence[Sequence[HostBatch]]) -> dict[str, float]:
    """Returns median tokens/s of each variant; every round is the next step for all of them."""
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn, batches in enumerate(steps):
        tokens = sum(batch.tokens for batch in batches)
        losses = {}
        for name, variant in variants.items():
            start = time.perf_counter()
            losses[name] = variant(batches)
            if turn:  # the first step allocates
                speeds[name].append(tokens / (time.perf_counter() - start))
        if turn == 0:
            check(losses)
    return {name: statistics.median(values) for name, values in speeds.items()}


def check(losses: Mapping[str, float]) -> None:
    """Ends the benchmark if two variants do not compute the same loss from the same weights."""
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        if abs(loss - first) > 0.02 * abs(first):
            raise SystemExit(f"{name}: loss {loss:.4f} on the first step, not {first:.4f}")


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
    transformers.logging.set_verbosity_error()
    runs = {name: assembled(args.data, args.size, name, args.tokens) for name in ("fp32", "bf16")}
    first = runs["fp32"]
    with tempfile.TemporaryDirectory() as folder:
        first.write_model(Path(folder), first.model.state_dict())
        float32, bfloat16, at = torch.float32, torch.bfloat16, Path(folder)
        variants = {
            "protloom, packed, fp32": ours(first),
            "protloom, packed, bf16": ours(runs["bf16"]),
            "transformers, padded as drawn, fp32": theirs(at, first, float32, bucketed=False),
            "transformers, padded as drawn, bf16": theirs(at, first, bfloat16, bucketed=False),
            "transformers, bucketed, fp32": theirs(at, first, float32, bucketed=True),
            "transformers, bucketed, bf16": theirs(at, first, bfloat16, bucketed=True),
        }
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
