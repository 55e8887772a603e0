"""What latent prediction costs beside masked LM alone: time of a training step, and where the time goes.

    python benchmarks/jepa_cost.py [--sizes 8M 35M] [--rounds 5] [--out benchmarks/results/jepa_cost.md]

All variants of a size take the same steps of the simulated proteome in turn, each with weights of its own; figures are
medians of rounds. The goal is v1 <= 1.45 and v2 <= 1.30 times a step of masked LM (the paper needed about 1.8); by
FLOPs of the passes alone, 1.33 and 1.17 are the least. The parts of a profiled step lie within one another: the forward
pass holds the clean pass, the predictor and the regulariser.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from protloom import config
from protloom.assembly import Assembly, assemble
from protloom.contracts import StepContext
from protloom.distributed import join
from protloom.flops import FlopCounter
from protloom.mixture import HostBatch
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.step import to_device

VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "masked LM alone": [],
    "v1": [{"name": "jepa", "preset": "proteinjepa-v1", "corruption": "mlm"}],
    "v2": [{"name": "jepa", "preset": "proteinjepa-v2", "corruption": "mlm"}],
    "all-position": [{"name": "jepa", "preset": "all-position", "corruption": "mlm"}],
}
GOALS = {"v1": 1.45, "v2": 1.30}


def assembled(size: str, more: list[dict[str, Any]], tokens: int, precision: str) -> Assembly:
    """Builds a run; every variant has the same weights and sees the same batches."""
    registry = Registry.discover()
    base = {
        "architecture": f"esm2:{size}",
        "data": {"corpus": "demo:?n=2000", "max_length": 512, "validation_fraction": 0},
        "objectives": [{"name": "mlm", "mask_rate": 0.2}, *more],
        "trainer": {"tokens_per_step": tokens, "precision": precision},
    }
    return assemble(config.load(None, [], registry, base=base), registry, join("none", "auto"), initial=None)


def stepper(run: Assembly) -> Callable[[int, Sequence[HostBatch]], None]:
    """Returns one optimizer step as the trainer does it."""
    rng = CounterRNG(0, "step")

    def step(number: int, batches: Sequence[HostBatch]) -> None:
        divisors = {key: float(sum(b.counts[key] for b in batches)) for key in batches[0].counts}
        run.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            ctx = StepContext(number, rng, _same, _same, logging=False)
            with record_function("forward"):
                output = run.wrapped(to_device(batch, run.world.device), run.mixture.weights(number), divisors, ctx)
            with record_function("backward"):
                output.loss.backward()
        with record_function("optimizer"):
            run.ops.clip_grad_norm(run.trainable(), 1.0)
            run.optimizer.step()
            run.module.after_step(number)
        if run.world.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def measure(runs: Mapping[str, Assembly], rounds: int) -> dict[str, float]:
    """Returns median seconds of a step; every round is the next step for all variants."""
    steppers = {name: stepper(run) for name, run in runs.items()}
    batches = {name: [run.host_step(i) for i in range(rounds + 1)] for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, step in steppers.items():
            start = time.perf_counter()
            step(turn, batches[name][turn])
            if turn:  # the first step allocates
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(run: Assembly) -> float:
    """Returns the estimated FLOPs of a step."""
    (batch, *_) = run.host_step(0)
    lengths = [n for share in batch.shares for n in (share.inputs.cu[1:] - share.inputs.cu[:-1]).tolist()]
    scored = [
        (m.objective, sum(batch.counts[m.alias, t] for t, term in m.objective.terms.items() if term.additive))
        for m in run.mixture.members
    ]
    return FlopCounter(run.model).step(lengths, scored)


NAMED = ("forward", "clean pass", "predictor", "regulariser", "backward", "optimizer")


def parts(run: Assembly) -> str:
    """Returns the share of the step's time in its parts, and in the costliest operations, from a profile."""
    for objective in run.module.objectives.values():
        for method, name in (("_target", "clean pass"), ("predictor", "predictor"), ("_regulariser", "regulariser")):
            if hasattr(objective, method):
                setattr(objective, method, recorded(name, getattr(objective, method)))
    step = stepper(run)
    step(0, run.host_step(0))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(1, run.host_step(1))
    events = profiled.key_averages()
    whole = sum(e.self_cpu_time_total for e in events)
    shares = {e.key: e.cpu_time_total / whole for e in events if e.key in NAMED}
    costly = sorted((e for e in events if e.key not in NAMED), key=lambda e: -e.self_cpu_time_total)[:4]
    shown = [f"{name} {100 * shares[name]:.0f} %" for name in NAMED if name in shares]
    most = [f"{e.key.removeprefix('aten::')} {100 * e.self_cpu_time_total / whole:.0f} %" for e in costly]
    return f"{', '.join(shown)}; costliest operations: {', '.join(most)}"


def recorded(name: str, function: Callable[..., Any]) -> Any:
    """Returns a function, or a module around one, whose calls the profile names."""

    def call(*args: Any) -> Any:
        with record_function(name):
            return function(*args)

    if not isinstance(function, torch.nn.Module):
        return call
    module = torch.nn.Identity()
    module.forward = call  # type: ignore[method-assign]
    module.inside = function
    return module


def main() -> None:
    """Measures every size and writes the table and the profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["8M", "35M"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        f"{args.tokens:,} tokens a step, precision {args.precision}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {platform.machine()}; medians of {args.rounds} interleaved rounds.",
        "",
        "| size | training | seconds a step | × masked LM | by FLOPs | goal |",
        "|---|---|--:|--:|--:|---|",
    ]
    profiles = []
    for size in args.sizes:
        runs = {name: assembled(size, more, args.tokens, args.precision) for name, more in VARIANTS.items()}
        seconds = measure(runs, args.rounds)
        base = "masked LM alone"
        for name, took in seconds.items():
            ratio = took / seconds[base]
            goal = "" if name not in GOALS else f"≤ {GOALS[name]}: {'met' if ratio <= GOALS[name] else 'missed'}"
            least = flops(runs[name]) / flops(runs[base])
            lines.append(f"| {size} | {name} | {took:.2f} | {ratio:.2f} | {least:.2f} | {goal} |")
        profiles += [f"- {size}, {name}: {parts(run)}" for name, run in runs.items()]
    text = "\n".join([*lines, "", "Where the time goes (a profiled step):", "", *profiles])
    print(text)
    if args.out is not None:
        args.out.write_text(f"# What latent prediction costs\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
