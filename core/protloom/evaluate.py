"""Validation: each objective's loss on held-out sequences with masks that never change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from protloom.contracts import SequenceBatch, StepContext
from protloom.rng import CounterRNG
from protloom.step import StepModule, to_device

if TYPE_CHECKING:
    from protloom.distributed import World
    from protloom.mixture import HostBatch, Mixture


class Validator:
    """Scores held-out micro-batches.

    Args:
        batches: this process's share of the held-out sequences, as many micro-batches on every process.
        mixture: the objectives.
        world: the processes; sums are taken over all.
        seed: of the random numbers that a loss may draw.
        vocabulary: number of symbols; ``targets`` below it are counted.
    """

    def __init__(
        self, batches: Sequence[SequenceBatch], mixture: Mixture, world: World, seed: int, *, vocabulary: int
    ) -> None:
        self._world = world
        self._mixture = mixture
        self._rng = CounterRNG(seed, "validation-loss")
        self._vocabulary = vocabulary
        # corrupted once: the masks are the same at every validation
        self._prepared = {
            m.alias: [mixture.prepare_validation(batch, m.alias) for batch in batches] for m in mixture.members
        }

    @torch.no_grad()
    def run(self, module: torch.nn.Module, weights: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """Returns the metrics, named ``validation/…``.

        ``loss`` is the weighted sum of all terms' means. For each objective there is the mean of every term, and of
        every metric that it gives. Where
        ``targets`` tell which tokens are asked for and one term counts just them, there are also the number of scored
        positions, perplexity = exp(mean nats per scored token) and the entropy of the targets' own frequencies: what
        a model that knows nothing but how common each residue is would score at best.
        """
        was_training = module.training
        module.eval()
        results: dict[str, float] = {}
        loss = 0.0
        for alias, batches in self._prepared.items():
            means, counts, targets, metrics = self._objective(module, alias, batches)
            results |= {f"validation/{name}/{alias}": value for name, value in metrics.items()}
            for term, mean in means.items():
                name = alias if len(means) == 1 else f"{alias}.{term}"
                results[f"validation/loss/{name}"] = mean
                loss += weights.get((alias, term), 0.0) * mean
            # with several terms, the one that scores each target once is the cross entropy
            scored = [term for term in means if targets is not None and counts[term] == targets.sum()]
            if targets is not None and len(scored) == 1:
                results[f"validation/scored/{alias}"] = float(targets.sum())
                results[f"validation/perplexity/{alias}"] = math.exp(min(700.0, means[scored[0]]))
                results[f"validation/unigram_entropy/{alias}"] = entropy(targets)
        module.train(was_training)
        return {"validation/loss": loss, **results}

    def _objective(
        self, module: torch.nn.Module, alias: str, batches: Sequence[HostBatch]
    ) -> tuple[dict[str, float], dict[str, float], np.ndarray[Any, Any] | None, dict[str, float]]:
        """Returns mean and count of every term, how often each symbol is a target (None without targets), metrics."""
        terms = list(next(m for m in self._mixture.members if m.alias == alias).objective.terms)
        ctx = StepContext(0, self._rng, self._world.all_sum, self._world.all_gather)
        sums = dict.fromkeys(terms, 0.0)
        counts = dict.fromkeys(terms, 0)
        targets: list[np.ndarray[Any, Any]] = []
        pairs: dict[str, tuple[float, float]] = {}  # total and count of each metric
        for batch in batches:
            shares = to_device(batch, self._world.device)
            ones = {(alias, term): 1.0 for term in terms}
            output = module(shares, ones, ones, ctx)
            for term in terms:
                sums[term] += float(output.totals[alias, term])
                counts[term] += batch.counts[alias, term]
            for (_, name), metric in output.metrics.items():
                total, count = pairs.get(name, (0.0, 0.0))
                pairs[name] = (total + float(metric.total), count + float(metric.count))
            targets += [s.arrays[alias]["targets"] for s in batch.shares if "targets" in s.arrays.get(alias, {})]
        # every rank has metrics and arrays of the same names and types, so all take the same branch
        ids = bool(targets) and all(t.ndim == 1 and np.issubdtype(t.dtype, np.integer) for t in targets)
        histogram = _histogram(targets, self._vocabulary) if ids else None
        flat = [number for pair in pairs.values() for number in pair]
        numbers = [*sums.values(), *counts.values(), *flat, *(histogram.tolist() if histogram is not None else [])]
        numbers = self._world.sum_numbers(numbers)
        n, end = len(terms), 2 * len(terms) + len(flat)
        means = {term: numbers[i] / max(1.0, numbers[n + i]) for i, term in enumerate(terms)}
        metrics = {name: numbers[2 * n + 2 * i] / max(1.0, numbers[2 * n + 2 * i + 1]) for i, name in enumerate(pairs)}
        asked = None if histogram is None else np.asarray(numbers[end:])
        return means, dict(zip(terms, numbers[n : 2 * n], strict=True)), asked, metrics


def _histogram(targets: Sequence[np.ndarray[Any, Any]], vocabulary: int) -> np.ndarray[Any, Any]:
    """Counts symbols; what is no symbol (an ignored position) is not counted."""
    ids = np.concatenate(targets)
    return np.bincount(ids[(ids >= 0) & (ids < vocabulary)], minlength=vocabulary)


def entropy(counts: np.ndarray[Any, Any]) -> float:
    """Returns the entropy, in nats, of a distribution given by counts; 0 for no counts."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts[counts > 0] / total
    return float(-(p * np.log(p)).sum())


__all__ = ["StepModule", "Validator", "entropy"]
