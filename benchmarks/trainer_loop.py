"""Whole training loops on the same proteins: ours, and transformers' Trainer as it comes and at its best.

    python benchmarks/trainer_loop.py --data x.fasta.gz [--sizes 8M 35M] [--rounds 5]
        [--out benchmarks/results/trainer_loop.md]

Each figure is one process, so that the peak of its memory is its own: ESM-2 with the same weights, masked LM of 15 %,
the same proteins, AdamW, about as many tokens a step (``--batch`` sequences in transformers, which counts those; ours
counts tokens). A process trains for ``--seconds`` after its first steps; rounds go through all variants in turn. Speed
is in real tokens a second of the whole loop, padding not counted.

"As it comes" is what the Trainer does unasked: fp32, random batches, padded to the longest. Then its own options that
are faster: bf16, batches of like lengths, and eager attention, which beats SDPA in bf16 on CPU. Before anything is
timed, the loss and the gradients of both on one batch are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.checkpoint import TrainState
from protloom.contracts import StepContext
from protloom.data.store import open_corpus
from protloom.distributed import join
from protloom.flops import FlopCounter, matmul_peak
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device
from protloom.trainer import Trainer

LONGEST, MASKED = 512, 0.15
WARM_UP = 3  # steps that are not counted: the first allocate, and compile
FIRST, BEST = "transformers, as it comes", "transformers at its best"

VARIANTS: Mapping[str, dict[str, Any]] = {
    FIRST: {"precision": "fp32"},
    "transformers, grouped": {"precision": "fp32", "grouped": True},
    "transformers, bf16": {"precision": "bf16"},
    "transformers, bf16, grouped": {"precision": "bf16", "grouped": True},
    "transformers, bf16, grouped, eager": {"precision": "bf16", "grouped": True, "attention": "eager"},
    "protloom, fp32": {"precision": "fp32"},
    "protloom, bf16": {"precision": "bf16"},
    "protloom, bf16, compiled": {"precision": "bf16", "compile": True},
}


class Enough(Exception):
    """Raised to end a loop whose time is up."""


class Clock:
    """Notes when each step ended and how many real tokens it had."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.ends: list[float] = []
        self.busy: list[float] = []
        self.tokens: list[int] = []

    def step(self, tokens: int) -> None:
        """Notes a step; raises :class:`Enough` when the time after the warm-up is over."""
        self.ends.append(time.perf_counter())
        self.busy.append(time.process_time())
        self.tokens.append(tokens)
        if len(self.ends) > WARM_UP and self.ends[-1] - self.ends[WARM_UP - 1] > self._seconds:
            raise Enough

    def speeds(self) -> tuple[float, float]:
        """Returns real tokens a second after the warm-up, and a second of processor time."""
        tokens = sum(self.tokens[WARM_UP:])
        wall, busy = (of[-1] - of[WARM_UP - 1] for of in (self.ends, self.busy))
        return tokens / wall, tokens / busy


# ------------------------------------------------------------------------------------------------------ the two loops


def assembled(args: argparse.Namespace, variant: Mapping[str, Any]) -> Assembly:
    """Builds our run; its weights depend on the seed alone."""
    registry = Registry.discover()
    base = {
        "data": {"corpus": args.data, "max_length": LONGEST - 2, "validation_fraction": 0},
        "architecture": f"esm2:{args.size}",
        "objective": {"name": "mlm", "mask_rate": MASKED},
        "trainer": {
            "steps": 1_000_000,
            "tokens_per_step": args.tokens,
            "precision": variant["precision"],
            **({"compile": True} if variant.get("compile") else {}),
        },
    }
    return assemble(config.load(None, [], registry, base=base), registry, join("none", "cpu"), initial=None)


def ours(args: argparse.Namespace, variant: Mapping[str, Any], clock: Clock) -> None:
    """Trains with the trainer of ``protloom train``."""

    class Timed(Trainer):
        def advance(self, step: int, batches: Any, *rest: Any) -> None:
            super().advance(step, batches, *rest)
            clock.step(sum(batch.tokens for batch in batches))

    run = assembled(args, variant)
    state = TrainState(0, 0, 0, 0.0, 0.0, tuple(s.content_hash for s in run.stores))
    with tempfile.TemporaryDirectory() as folder:
        Timed(run, Path(folder), state).train()


def theirs(args: argparse.Namespace, variant: Mapping[str, Any], clock: Clock) -> None:
    """Trains with transformers' Trainer, from our weights."""
    import transformers

    tokenizer = transformers.EsmTokenizer(str(Path(args.weights) / "vocab.txt"))
    model = transformers.EsmForMaskedLM.from_pretrained(
        args.weights, attn_implementation=variant.get("attention", "sdpa"), hidden_dropout_prob=0.0
    )
    masks = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    sizes: list[int] = []

    def collate(rows: list[dict[str, list[int]]]) -> Any:
        sizes.append(sum(len(row["input_ids"]) for row in rows))
        return masks(rows)

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(sizes[len(clock.ends)])

    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch,
            bf16=variant["precision"] == "bf16",
            train_sampling_strategy="group_by_length" if variant.get("grouped") else "random",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            max_steps=1_000_000,
            disable_tqdm=True,
        )
        rows = [{"input_ids": ids} for ids in token_ids(args.data)]
        transformers.Trainer(model, options, collate, rows, callbacks=[Watch()]).train()


def token_ids(data: str) -> list[list[int]]:
    """Returns the ids of every protein, tokenised beforehand, which is quicker for transformers than on the fly."""
    registry = Registry.discover()
    resolved = config.load(None, [], registry, base={"architecture": "esm2:8M", "data": {"corpus": data}})
    tokenizer = resolved.tokenizer.component.load_factory()(resolved.tokenizer.config)
    store = open_corpus(data)
    front, back, table = list(tokenizer.prefix), list(tokenizer.suffix), np.asarray(tokenizer.table)
    return [[*front, *table[store.sequence(i)[: LONGEST - 2]].tolist(), *back] for i in range(len(store))]


# -------------------------------------------------------------------------------------------------- what is compared


def check_equal(args: argparse.Namespace, run: Assembly) -> None:
    """Raises ValueError unless loss and gradients of both on one step's batch are the same in fp32."""
    import transformers

    (batch,) = run.host_step(0)
    (share,) = batch.shares
    ctx = StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)
    counts = {key: float(n) for key, n in batch.counts.items()}
    loss = run.wrapped(to_device(batch, run.world.device), dict.fromkeys(counts, 1.0), counts, ctx).loss
    loss.backward()
    model = transformers.EsmForMaskedLM.from_pretrained(args.weights, hidden_dropout_prob=0.0).train()
    (arrays,) = share.arrays.values()
    labels = np.full(len(share.inputs.tokens), -100, dtype=np.int64)
    labels[arrays["index"]] = arrays["targets"]
    ids, wanted = (padded(x, share.inputs.cu, fill) for x, fill in ((share.inputs.tokens, 1), (labels, -100)))
    other = model(input_ids=ids, attention_mask=(ids != 1).long(), labels=wanted).loss
    other.backward()
    mine, hers = run.model.embedding.weight.grad, model.esm.embeddings.word_embeddings.weight.grad  # type: ignore[union-attr]
    apart = float((mine - hers).norm() / hers.norm())
    if abs(float((loss - other).detach())) > 1e-5 * float(other.detach()) or apart > 1e-4:
        raise ValueError(f"not the same: losses {float(loss)} and {float(other)}, embedding's gradients {apart} apart")


def padded(flat: np.ndarray[Any, Any], cu: np.ndarray[Any, Any], fill: int) -> torch.Tensor:
    """Returns ``[n, longest]`` int64 rows of a packed array."""
    out = np.full((len(cu) - 1, int(np.diff(cu).max())), fill, dtype=np.int64)
    for row, first, last in zip(out, cu[:-1], cu[1:], strict=True):
        row[: last - first] = flat[first:last]
    return torch.from_numpy(out)


def flops_per_token(run: Assembly, steps: int = 50) -> float:
    """Returns FLOPs a real token of masked LM, which are those of the proteins whatever program trains on them."""
    counter, flops, tokens = FlopCounter(run.model), 0.0, 0
    for step in range(steps):
        for batch in run.host_step(step):
            lengths = np.diff(batch.shares[0].inputs.cu).tolist()
            (scored,) = batch.counts.values()
            flops += counter.step(lengths, [(run.mixture.members[0].objective, scored)])
            tokens += batch.tokens
    return flops / tokens


# -------------------------------------------------------------------------------------------------------- measurement


def one(args: argparse.Namespace) -> None:
    """Measures one variant in this process and prints it as JSON."""
    if args.threads:
        torch.set_num_threads(args.threads)
    variant, clock = VARIANTS[args.one], Clock(args.seconds)
    dtype = torch.bfloat16 if variant["precision"] == "bf16" else torch.float32
    loop = ours if args.one.startswith("protloom") else theirs
    with contextlib.suppress(Enough):  # the only way that these loops end
        loop(args, variant, clock)
    # not getrusage, whose peak is also that of the process that started this one
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    memory = int(status.split()[0]) / 2**20
    peak = matmul_peak(torch.device("cpu"), dtype)
    speed, busy = clock.speeds()
    print(json.dumps({"speed": speed, "busy": busy, "memory": memory, "peak": peak}))


def measure(args: argparse.Namespace, names: list[str]) -> dict[str, list[dict[str, float]]]:
    """Runs every variant in a process of its own, round by round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            options = ["--one", name, "--size", args.size, "--data", args.data, "--weights", args.weights]
            options += ["--batch", args.batch, "--tokens", args.tokens, "--seconds", args.seconds]
            options += ["--threads", args.threads] if args.threads else []
            command = [sys.executable, __file__, *map(str, options)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(args.size, name, found[name][-1], file=sys.stderr)
    return found


def table(args: argparse.Namespace, found: Mapping[str, list[dict[str, float]]], flops: float) -> str:
    """Writes the Markdown table of one size."""
    rounds = range(args.rounds)
    speed = {name: [r["speed"] for r in runs] for name, runs in found.items()}
    busy = {name: [r["busy"] for r in runs] for name, runs in found.items()}
    others = [name for name in speed if name.startswith("transformers")]
    best = max(others, key=lambda name: statistics.median(speed[name]))
    lines = [
        f"### ESM-2 {args.size}\n",
        f"| loop | real tokens/s | a processor second | × {FIRST} | × {BEST} | MFU | peak memory, GiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in found.items():
        ratios = [statistics.median(busy[name][i] / busy[other][i] for i in rounds) for other in (FIRST, best)]
        mfu = statistics.median(r["busy"] * (args.threads or torch.get_num_threads()) * flops / r["peak"] for r in runs)
        memory = statistics.median(r["memory"] for r in runs)
        low, high = min(speed[name]), max(speed[name])
        label = f"{name} (its best)" if name == best else name
        lines.append(
            f"| {label} | {statistics.median(speed[name]):,.0f} ({low:,.0f} to {high:,.0f}) | "
            f"{statistics.median(busy[name]):,.0f} | {ratios[0]:.2f} | "
            f"{ratios[1]:.2f} | {mfu:.0%} | {memory:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the sizes and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", nargs="+", default=["8M", "35M"])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    for hidden in ("--one", "--size", "--weights"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args)
    lengths = np.minimum(np.diff(open_corpus(args.data).offsets), LONGEST - 2) + 2
    args.tokens = round(args.batch * float(lengths.mean()))
    tables = []
    for size in args.sizes:
        args.size = size
        with tempfile.TemporaryDirectory() as args.weights:
            run = assembled(args, {"precision": "fp32"})
            run.write_model(Path(args.weights), run.model.state_dict())
            check_equal(args, run)
            flops = flops_per_token(run)
            tables.append(table(args, measure(args, args.only), flops))
    import transformers

    page = PAGE.format(
        name=Path(args.data).name,
        n=len(lengths),
        mean=float(lengths.mean()),
        tokens=args.tokens,
        args=args,
        threads=args.threads or torch.get_num_threads(),
        machine=platform.processor() or platform.machine(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tables="\n\n".join(tables),
    )
    print(page)
    if args.out:
        args.out.write_text(page)


PAGE = """# Whole training loops beside transformers' Trainer

{n:,} proteins of {name}, cut to 512 tokens (mean {mean:.0f}), {args.batch} sequences or {tokens:,} tokens a step,
{threads} threads, torch {torch}, transformers {transformers}, {machine}; medians (and range) of {args.rounds} rounds of
{args.seconds:.0f} seconds. Ratios are of tokens a second of processor time, which other programs on the machine disturb
least, paired by round; MFU is what all threads would reach at that rate. Made by
`python benchmarks/trainer_loop.py --data {name}`.

{tables}
"""


if __name__ == "__main__":
    main()
