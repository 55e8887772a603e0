"""From the results of a comparison to differences with intervals, wins, losses and ties.

For a task, Δ is the mean over seeds of recipe minus baseline of the same seed (turned round where lower is better).
Its 95 % interval comes from bootstrap replicates of the test items, averaged over seeds in the same way, as every
result of a task is resampled by the same draws. It tells how far the difference depends on the items of the test set;
how far it depends on the seed of the training is told apart, by the differences of the single seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protloom.compare import significance
from protloom.compare.evaluation import START, Asked, read_failures
from protloom.compare.plan import Plan
from protloom.compare.runner import Part, parts
from protloom.errors import UserError
from protloom.scoring import VERDICTS, percentile_interval, verdict
from protloom.task.results import HOME, entry_of, read
from protloom.task.run import FLOOR

Result = Mapping[str, Any]
"""A record of :mod:`protloom.task.results`; ``value``, ``interval95`` and ``replicates`` as numbers, NaN for null."""
Results = Mapping[Asked, Result]


def analyse(plan: Plan, folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Returns everything that a report tells, as plain data but for NaN where a number is undefined; see the keys.

    Args:
        plan: what was compared.
        folder: of the comparison, see :mod:`protloom.compare.runner`.
        warn: receives a line about a result that cannot be read and is left out.

    Raises:
        UserError: if results of one task are about different items, data or probes.
    """
    # seeds and tasks that were taken out again may have left results: they have no row, and refuse nothing
    trained = {part.name for part in parts(plan)}
    failed = {a: line for a, line in read_failures(folder).items() if _counts(a.who, trained)}
    results = {a: result for a, result in _read_results(folder, warn).items() if _counts(a.who, trained)}
    results = {a: result for a, result in results.items() if a not in failed}  # of data or code before the failure
    tasks = sorted({asked.task for asked in (*results, *failed) if asked.who in trained})
    facts = {task: _task_facts(results, task) for task in tasks}  # refuses results that are about different things
    points: list[dict[str, Any]] = [
        {"point": point, "arms": {arm: _arm(plan, results, tasks, arm, point) for arm in plan.arms}}
        for point in plan.points
    ]
    for point in points:
        others = [entry for arm, entry in point["arms"].items() if arm != plan.baseline]
        p_values = [entry["wilcoxon_p"] for entry in others]
        known = [p for p in p_values if p is not None]
        adjusted = iter(significance.holm(known))
        for entry, p in zip(others, p_values, strict=True):
            entry["wilcoxon_p_holm"] = None if p is None else next(adjusted)
    return {
        "baseline": plan.baseline,
        "arms": list(plan.arms),
        "budget": {"unit": plan.budget.unit, "number": plan.budget.number},
        "seeds": list(plan.config.seeds),
        "margins": list(plan.config.margins),
        "init": plan.init,
        "split": plan.config.split,
        "precision": sorted({r["identity"]["precision"] for r in results.values() if "precision" in r["identity"]}),
        "allowed_differences": list(plan.config.allow),
        "tasks": facts,
        "training": _training(plan, folder),
        "points": points,
        "undefined": [
            f"{task}: {result['metric']} of {who} is undefined, so it is in no mean and no difference"
            for (who, task), result in results.items()
            if who in trained and math.isnan(result["value"])
        ],
        "failures": [line for asked, line in failed.items() if asked.task in tasks],
    }


def _counts(who: str, trained: set[str]) -> bool:
    return who in trained or who == START or who.startswith(FLOOR)


def _read_results(folder: Path, warn: Callable[[str], None]) -> Results:
    found: dict[Asked, Result] = {}
    for path in sorted((folder / HOME).glob("*/*.json")):
        try:
            record = read(path)
            result = entry_of(record).result
        except UserError as error:
            warn(str(error))
            continue
        numbers = {"value": result.value, "interval95": list(result.interval), "replicates": result.replicates}
        asked = Asked(record["subject"], record["task"])
        # an earlier version called the one set of rows of a task its validation split: the newer result counts
        if asked in found and str(found[asked].get("written", "")) > str(record.get("written", "")):
            continue
        found[asked] = {**record, **numbers, "predictions": {}}  # which no comparison needs, and may be many
    return found


def _task_facts(results: Results, task: str) -> dict[str, Any]:
    """Returns what a task is and what floors and the start reach; checks that all results are about the same."""
    known = {asked.who: result for asked, result in results.items() if asked.task == task}
    if not known:
        return {"metric": None, "references": {}}
    first = next(iter(known.values()))
    expected: dict[str, tuple[str, Any]] = {}
    for who, result in known.items():
        for what, value in _conditions(result).items():
            whose, other = expected.setdefault(what, (who, value))
            if value != other:
                raise UserError(
                    f"{task}: the result of {who} is about other {what} than that of {whose}: data, code, split or "
                    f"probe changed between them; remove the folder results and evaluate again"
                )
    references = {
        who: {"value": result["value"], "interval95": result["interval95"]}
        for who, result in known.items()
        if who == START or result["role"] == "floor"
    }
    card = first["card"]
    return {
        "metric": first["metric"],
        "better": card.get("better", "higher"),
        "n": first["n"],
        "unit": first["unit"],
        "simulated": bool(card.get("simulated")),
        "references": references,
    }


def _conditions(result: Result) -> dict[str, Any]:
    """Returns what all results of a task must have in common, by the words that name it."""
    shared = {what: result[what] for what in ("items", "metric", "n")}
    shared |= {what: result["key"][what] for what in ("data", "options")}
    shared["code"] = result["key"]["code"]
    if "precision" in result["identity"]:  # floors compute in none
        shared["precision"] = result["identity"]["precision"]
    return shared


# ---------------------------------------------------------------------------------------------------------- one recipe


def _arm(plan: Plan, results: Results, tasks: Sequence[str], arm: str, point: float) -> dict[str, Any]:
    """Returns what a recipe reached at a point, and for all but the baseline how that differs from the baseline."""
    entry: dict[str, Any] = {"values": {}, "differences": {}}
    for task in tasks:
        own = _of_seeds(plan, results, task, arm, point)
        if own:
            entry["values"][task] = {
                "mean": float(np.mean([result["value"] for result in own.values()])),
                "seeds": {str(seed): result["value"] for seed, result in own.items()},
            }
        if arm != plan.baseline:
            other = _of_seeds(plan, results, task, plan.baseline, point)
            pairs = [(own[seed], other[seed]) for seed in plan.config.seeds if seed in own and seed in other]
            if pairs:
                entry["differences"][task] = _difference(pairs)
    if arm == plan.baseline:
        return entry
    deltas = [d["delta"] for d in entry["differences"].values()]
    entry["counts"] = [significance.count(deltas, margin) for margin in plan.config.margins]
    verdicts = [d["verdict"] for d in entry["differences"].values()]
    entry["decided"] = {word: verdicts.count(word) for word in VERDICTS}
    entry["mean_delta"] = float(np.mean(deltas)) if deltas else None
    entry["median_delta"] = float(np.median(deltas)) if deltas else None
    entry["wilcoxon_p"] = significance.wilcoxon(deltas)
    return entry


def _of_seeds(plan: Plan, results: Results, task: str, arm: str, point: float) -> dict[int, Result]:
    found = {seed: results.get(Asked(Part(arm, seed, point).name, task)) for seed in plan.config.seeds}
    return {seed: result for seed, result in found.items() if result is not None and not math.isnan(result["value"])}


def _difference(pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
    """Returns Δ of one task with its interval and the differences of the single seeds."""
    sign = -1.0 if pairs[0][0]["card"].get("better") == "lower" else 1.0
    seeds = [sign * (own["value"] - other["value"]) for own, other in pairs]
    replicates: NDArray[np.float64] = np.mean(
        [sign * (own["replicates"] - other["replicates"]) for own, other in pairs], axis=0
    )
    interval = percentile_interval(replicates)
    return {
        "delta": float(np.mean(seeds)),
        "interval95": list(interval),
        "verdict": verdict(interval, pairs[0][0]["n"]),
        "seeds": seeds,
        "seed_std": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
    }


# ------------------------------------------------------------------------------------------------------------ training


def _training(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Returns what every stretch of training used, in order."""
    found = []
    for point in plan.turns:
        for arm in plan.arms:
            for seed in plan.config.seeds:
                part = Part(arm, seed, point)
                path = folder / "parts" / f"{part.name}.json"
                if path.is_file():
                    facts = json.loads(path.read_text(encoding="utf-8"))
                    found.append({"arm": arm, "seed": seed, "point": point, **facts})
    corpora = {tuple(facts["corpora"]) for facts in found}
    if len(corpora) > 1 and "corpus" not in plan.config.allow:
        raise UserError("the runs of this comparison saw different corpora: a file changed between them; train again")
    return found


def curves(plan: Plan, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the logged lines of every run, by its name: for pictures."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in plan.arms:
        for seed in plan.config.seeds:
            name = Part(arm, seed, plan.points[-1]).run
            path = folder / "runs" / name / "metrics.jsonl"
            if path.is_file():
                found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found
