"""What a run logs: the line of a step, the sentence of a validation, the summary of a sitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from protloom.evaluate import perplexity, term_name
from protloom.metrics import clock, peak_memory

if TYPE_CHECKING:
    from protloom.assembly import Assembly
    from protloom.checkpoint import TrainState
    from protloom.mixture import TermKey


class Stepped(NamedTuple):
    """What one optimizer step did."""

    totals: Mapping[TermKey, Tensor]
    metrics: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    norm: Tensor
    finite: bool


@dataclass
class Window:
    """Counters since the last logged line."""

    tokens: int = 0
    real: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def step_line(
    run: Assembly,
    state: TrainState,
    stepped: Stepped,
    weights: Mapping[TermKey, float],
    divisors: Mapping[TermKey, float],
    window: Window,
) -> dict[str, float | int]:
    """Returns the line of ``metrics.jsonl`` for the step just done; every rank must call it.

    Args:
        run: the run.
        state: its counters after the step.
        stepped: what the step did on this rank.
        weights: what the mean of each term counts in the loss.
        divisors: count of every term, on all ranks together.
        window: counters since the last line; ``flops_per_second`` is their rate.
    """
    keys, names = list(stepped.totals), list(stepped.metrics)
    numbers = [*stepped.totals.values(), *(x for pair in stepped.metrics.values() for x in pair)]
    # stacked, so that the host waits for the device once and not for every number
    sums = run.world.sum_numbers(torch.stack([x.double() for x in numbers]).tolist())
    means = {key: total / max(1.0, divisors[key]) for key, total in zip(keys, sums, strict=False)}
    line: dict[str, float | int] = {
        "step": state.step,
        "loss": sum(weights[key] * mean for key, mean in means.items()),
    }
    known = {m.alias: m.objective.terms for m in run.mixture.members}
    for (alias, term), mean in means.items():
        terms = known[alias]
        name = term_name(alias, term, terms)
        line[f"loss/{name}"] = mean
        line[f"scored/{name}"] = int(divisors[alias, term])
        if terms[term].nats:
            line[f"perplexity/{name}"] = perplexity(mean)
    pairs = sums[len(keys) :]
    for i, (alias, name) in enumerate(names):
        line[f"{name}/{alias}"] = pairs[2 * i] / max(1.0, pairs[2 * i + 1])
    seconds = max(window.seconds, 1e-9)
    return line | {
        "grad_norm": float(stepped.norm),
        "tokens": state.tokens,
        "tokens_per_second": window.real / seconds,
        "flops_per_second": window.flops / seconds,
        "padding_share": 1.0 - window.real / max(1, window.tokens),
        "memory_mib": _device_memory(run.world.device),
        "seconds": state.seconds,
        "epoch": run.sampler.epoch_at(state.step),
        "skipped": state.skipped,
    }


def describe(results: Mapping[str, float]) -> str:
    """Writes validation metrics as a line for a person."""
    parts = []
    for name, unigram in results.items():
        if not name.startswith("validation/unigram_entropy/"):
            continue
        alias = name.rpartition("/")[2]
        # an objective that also scores other symbols tells its loss over residues apart
        apart = results.get(f"validation/residue_loss/{alias}")
        loss = results.get(f"validation/loss/{alias}") if apart is None else apart
        if loss is None:
            continue
        unit = "scored token" if apart is None else "scored residue"
        parts.append(
            f"{alias} {loss:.4f} nats per {unit} (perplexity {perplexity(loss):.2f}; residue frequencies alone "
            f"{unigram:.4f}; {results[f'validation/scored_residues/{alias}']:,.0f} residues scored)"
        )
    told = {name.rpartition("/")[2] for name in results if name.startswith("validation/unigram_entropy/")}
    for name, value in results.items():
        if name.startswith("validation/loss/") and name.removeprefix("validation/loss/").partition(".")[0] not in told:
            parts.append(f"{name.removeprefix('validation/loss/')} {value:.4f}")
    return "; ".join(parts)


def summary(state: TrainState) -> str:
    """Writes what a run did as a line for a person."""
    speed = state.tokens / max(state.seconds, 1e-9)
    return f"{state.step:,} steps, {state.tokens:,} tokens in {clock(state.seconds)} ({speed:,.0f} tokens/s)"


def _device_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory()
