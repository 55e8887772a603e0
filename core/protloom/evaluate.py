"""Validation: each objective's loss on held-out sequences with masks that never change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from protloom.contracts import SequenceBatch, StepContext
from protloom.rng import CounterRNG
from protloom.step import to_device

if TYPE_CHECKING:
    from protloom.contracts import Term, Tokenizer
    from protloom.distributed import World
    from protloom.mixture import Mixture


class Validator:
    """Scores held-out micro-batches.

    Args:
        batches: this process's share of the held-out sequences, as many micro-batches on every process.
        mixture: the objectives.
        world: the processes; sums are taken over all.
        seed: of the random numbers that a loss may draw.
        tokenizer: tells residues from other symbols.
    """

    def __init__(
        self, batches: Sequence[SequenceBatch], mixture: Mixture, world: World, seed: int, *, tokenizer: Tokenizer
    ) -> None:
        self._world = world
        self._mixture = mixture
        self._rng = CounterRNG(seed, "validation-loss")
        self._vocabulary = len(tokenizer.vocab)
        self._residues = residue_ids(tokenizer)
        self._terms = {m.alias: m.objective.terms for m in mixture.members}
        # corrupted once: the masks are the same at every validation
        self._prepared = {
            m.alias: [mixture.prepare_validation(batch, m.alias) for batch in batches] for m in mixture.members
        }

    @torch.no_grad()
    def run(self, module: torch.nn.Module, weights: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """Returns the metrics, named ``validation/NAME`` or ``validation/NAME/ALIAS``.

        ``loss`` is what training minimises: the weighted sum of all terms' means, or one mean (``reduction``). Each
        objective has the mean of every term (``loss/ALIAS``, or ``loss/ALIAS.TERM`` for several) and of every metric
        that it gives. A term in nats has ``perplexity`` = exp(mean nats per scored item). Where its array ``targets``
        tells which tokens are asked for there are ``scored``, their number, ``scored_residues``, and, beside a loss in
        nats, ``unigram_entropy`` of the residues among them: what a model that knows nothing but how common each
        residue is would score at best.
        """
        was_training = module.training
        module.eval()
        results: dict[str, float] = {}
        scores = {alias: self._score(module, alias) for alias in self._prepared}
        counts = {(alias, term): n for alias, sums in scores.items() for term, n in sums.counts.items()}
        shares = self._mixture.of_means({key: weights.get(key, 0.0) for key in counts}, counts)
        loss = 0.0
        for alias, sums in scores.items():
            results |= {f"validation/{name}/{alias}": value for name, value in sums.metrics.items()}
            terms = self._terms[alias]
            for term, mean in sums.means.items():
                name = term_name(alias, term, terms)
                results[f"validation/loss/{name}"] = mean
                if terms[term].nats:
                    results[f"validation/perplexity/{name}"] = perplexity(mean)
                loss += shares[alias, term] * mean
            if sums.targets is None:
                continue
            results[f"validation/scored/{alias}"] = float(sums.targets.sum())
            results[f"validation/scored_residues/{alias}"] = float(sums.targets[self._residues].sum())
            if any(term.nats for term in terms.values()) or "residue_loss" in sums.metrics:
                results[f"validation/unigram_entropy/{alias}"] = entropy(sums.targets[self._residues])
        module.train(was_training)
        return {"validation/loss": loss, **results}

    def _score(self, module: torch.nn.Module, alias: str) -> _Sums:
        """Scores all micro-batches with one objective, on all ranks together."""
        terms = list(self._terms[alias])
        ctx = StepContext(0, self._rng, self._world.all_sum, self._world.all_gather)
        ones = {(alias, term): 1.0 for term in terms}
        totals: dict[tuple[str, str], list[float]] = {("term", term): [0.0, 0.0] for term in terms}
        targets: list[np.ndarray[Any, Any]] = []
        for batch in self._prepared[alias]:
            output = module(to_device(batch, self._world.device), ones, ones, ctx)
            pairs = {("term", term): (output.totals[alias, term], batch.counts[alias, term]) for term in terms}
            pairs |= {("metric", name): (metric.total, metric.count) for (_, name), metric in output.metrics.items()}
            for key, (total, count) in pairs.items():
                before = totals.setdefault(key, [0.0, 0.0])
                totals[key] = [before[0] + float(total), before[1] + float(count)]
            targets += [s.arrays[alias]["targets"] for s in batch.shares if "targets" in s.arrays.get(alias, {})]
        # every rank has metrics and arrays of the same names and types, so all take the same branch
        ids = bool(targets) and all(t.ndim == 1 and np.issubdtype(t.dtype, np.integer) for t in targets)
        histogram = _histogram(targets, self._vocabulary).tolist() if ids else []
        flat = self._world.sum_numbers([*(x for key in sorted(totals) for x in totals[key]), *histogram])
        sums = {key: (flat[2 * i], flat[2 * i + 1]) for i, key in enumerate(sorted(totals))}
        means = {key: total / max(1.0, count) for key, (total, count) in sums.items()}
        return _Sums(
            means={term: means["term", term] for term in terms},
            counts={term: sums["term", term][1] for term in terms},
            metrics={name: mean for (kind, name), mean in means.items() if kind == "metric"},
            targets=np.asarray(flat[2 * len(totals) :]) if ids else None,
        )


@dataclass(frozen=True)
class _Sums:
    """What one objective's held-out batches gave: means and counts of terms, means of metrics, a target histogram."""

    means: Mapping[str, float]
    counts: Mapping[str, float]
    metrics: Mapping[str, float]
    targets: np.ndarray[Any, Any] | None


def residue_ids(tokenizer: Tokenizer) -> np.ndarray[Any, Any]:
    """Returns the ids that letters have: residues, the ambiguous ones among them, but no sentinel or end."""
    return np.unique(tokenizer.table[ord("A") : ord("Z") + 1])


def _histogram(targets: Sequence[np.ndarray[Any, Any]], vocabulary: int) -> np.ndarray[Any, Any]:
    """Counts symbols; what is no symbol (an ignored position) is not counted."""
    ids = np.concatenate(targets)
    return np.bincount(ids[(ids >= 0) & (ids < vocabulary)], minlength=vocabulary)


def term_name(alias: str, term: str, terms: Mapping[str, Term]) -> str:
    """Returns what logs call a term: its objective, and its own name where there are several."""
    return alias if len(terms) == 1 else f"{alias}.{term}"


def perplexity(nats: float) -> float:
    """Returns exp(nats), at most what a float holds."""
    return math.exp(min(700.0, nats))


def entropy(counts: np.ndarray[Any, Any]) -> float:
    """Returns the entropy, in nats, of a distribution given by counts; 0 for no counts."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts[counts > 0] / total
    return float(-(p * np.log(p)).sum())
