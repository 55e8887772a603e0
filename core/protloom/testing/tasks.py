"""What every task promises."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import HasSequences
from protloom.errors import UserError
from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Task, TaskResult
    from protloom.variants import Variant

LIMIT = 40
"""Items of each split in a check; ``extra`` may name another ``limit``, where a task cannot be scored on so few."""
WIDTH = 6


class Noise:
    """A subject whose features are random, but the same for the same sequence.

    Args:
        seed: two subjects of one seed have the same features.
    """

    def __init__(self, seed: int) -> None:
        self.name, self.summary = f"noise {seed}", "random features"
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.counts: Counter[str] = Counter()
        self._seed = seed

    def _draw(self, sequence: str, *shape: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([self._seed, *sequence.encode()])
        return rng.standard_normal(shape).astype(np.float32)

    def residues(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yields random features of each sequence's residues."""
        for sequence in sequences:
            yield self._draw(sequence, len(sequence), WIDTH)

    def pooled(
        self, sequences: Sequence[str], pool: str = "mean", include_specials: bool = False
    ) -> NDArray[np.float32]:
        """Returns random features of sequences."""
        return np.stack([self._draw(sequence, WIDTH) for sequence in sequences])

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> NDArray[np.float64]:
        """Returns a random score of each variant."""
        return np.array([float(self._draw(variant.sequence, 1)[0]) for variant in variants])

    def contact_features(self, sequence: str) -> NDArray[np.float32]:
        """Returns random symmetric features of residue pairs."""
        maps = self._draw(sequence, len(sequence), len(sequence), WIDTH)
        return maps + maps.transpose(1, 0, 2)


def _make(request: Request) -> Task:
    from protloom.task import suite as task_suite

    name = request.registry.shortest(request.component)
    data = request.extra.get("data_dir")
    return task_suite.build(
        name, request.registry, data_dir=None if data is None else str(data), options=request.options
    )


def _run(request: Request, *, subject: int = 1, seed: int = 0) -> TaskResult | None:
    """Returns a result on few items; None where the data are missing, which a task may say."""
    task = _make(request)
    try:
        task.check()
    except UserError:
        return None
    return task.run(Noise(subject), seed=seed, limit=request.extra.get("limit", LIMIT))


@promise("task")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("task")
def its_card_says_what_it_is(request: Request) -> None:
    """``card`` reads no data, is plain data, and names title, metric, definition, splits, probe and a licence."""
    card = _make(request).card()
    lacking = [key for key in ("title", "metric", "definition", "splits", "probe") if not card.get(key)]
    require(not lacking, f"It lacks {', '.join(lacking)}.")
    require(bool(card.get("data") or card.get("licence")), "It says no licence: under 'data' a file, or 'licence'.")
    require(card.get("simulated") in (True, False), "It does not say whether its data are simulated.")
    try:
        json.dumps(card)
    except TypeError as error:
        require(False, f"It is no plain data: {error}.")


@promise("task")
def missing_data_are_told(request: Request) -> None:
    """``check`` raises a UserError of one line where data are missing, and is silent where they are there."""
    try:
        _make(request).check()
    except UserError as error:
        require("\n" not in str(error) and bool(str(error)), f"It says {str(error)!r}.")


@promise("task")
def a_result_is_whole(request: Request) -> None:
    """The main metric is among the metrics, its interval holds it, and replicates are as many for every subject."""
    result = _run(request)
    if result is None:
        return
    require(result.metric in result.metrics, f"{result.metric!r} is not among {', '.join(result.metrics)}.")
    same = math.isclose(result.value, result.metrics[result.metric], rel_tol=1e-9) or math.isnan(result.value)
    require(same, f"value is {result.value}, metrics[{result.metric!r}] {result.metrics[result.metric]}.")
    require(result.n == len(result.per_item) or result.n > 0, f"n is {result.n}.")
    low, high = result.interval
    if not math.isnan(low):
        require(low <= high, f"The interval is [{low}, {high}].")
    require(result.replicates.ndim == 1, f"replicates have shape {list(result.replicates.shape)}.")
    require(bool(result.items) and bool(result.unit), "items and unit must be stated: they tell what pairs.")
    try:
        json.dumps(dict(result.details))
    except TypeError as error:
        require(False, f"details are no plain data: {error}.")


@promise("task")
def a_result_says_what_it_was_made_of(request: Request) -> None:
    """``details`` names the SHA-256 of files that were read, under ``files``, or what was simulated, and the seed."""
    result = _run(request)
    if result is None:
        return
    card = _make(request).card()
    named = dict(card.get("data") or {})
    files = result.details.get("files")
    if named:
        require(isinstance(files, Mapping) and bool(files), f"The card names files, details['files'] is {files!r}.")
        for path, digest in dict(files or {}).items():
            require(path in named, f"It read {path!r}, which the card does not name.")
            require(bool(re.fullmatch(r"[0-9a-f]{64}", str(digest))), f"{digest!r} is no SHA-256 of {path}.")
    if card.get("simulated"):
        require(bool(result.details.get("simulated")), "The data are simulated, details['simulated'] does not say how.")
    require(result.details.get("seed") == 0, f"details['seed'] is {result.details.get('seed')!r}.")


@promise("task")
def a_result_survives_writing(request: Request) -> None:
    """Written as JSON and read again, a result is what it was: a run of many tasks goes on where it was stopped."""
    from protloom.plain_data import plain
    from protloom.task.results import fields_of, result_of

    result = _run(request)
    if result is None:
        return
    again = result_of(json.loads(json.dumps(plain(fields_of(result)), allow_nan=False)))
    numbers = {"value": (result.value, again.value), **_pairs(result.metrics, again.metrics)}
    for name, (one, other) in numbers.items():
        require(one == other or (math.isnan(one) and math.isnan(other)), f"{name}: {one!r} comes back as {other!r}.")
    require(np.array_equal(result.replicates, again.replicates, equal_nan=True), "The replicates differ.")
    require(np.array_equal(result.per_item, again.per_item, equal_nan=True), "per_item differs.")
    require(result.items == again.items, "items differ.")


def _pairs(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {f"metrics[{name!r}]": (value, other.get(name, math.nan)) for name, value in one.items()}


@promise("task")
def validation_is_kept_apart_from_training(request: Request) -> None:
    """Where a task tells its sequences, none of the split ``valid``, by which choices are made, stands in ``train``.

    A test split is as it was published; ``protloom data overlap`` counts what a corpus shares with it.
    """
    task = _make(request)
    if not isinstance(task, HasSequences):
        return
    try:
        task.check()
    except UserError:
        return
    both = sorted(set(task.sequences("train")) & set(task.sequences("valid")))
    require(not both, f"{len(both)} stand in both, such as {both[0][:20]}… ({len(both[0])} residues)." if both else "")


@promise("task")
def a_metric_stays_in_its_bounds(request: Request) -> None:
    """Random features give a metric within the bounds of its kind: shares in [0, 1], correlations in [−1, 1]."""
    result = _run(request)
    if result is None:
        return
    shares = ("accuracy", "auc", "recall", "precision", "q3", "q8", "p@", "f1", "ap", "fmax", "ndcg")
    for name, value in result.metrics.items():
        word = name.lower()
        if math.isnan(value) or "mse" in word or "mae" in word or "r2" in word:
            continue
        if any(word.startswith(share) for share in shares):
            require(0 <= value <= 1, f"{name} is {value}.")
        elif word in ("spearman", "pearson", "mcc"):
            require(-1 - 1e-9 <= value <= 1 + 1e-9, f"{name} is {value}.")


@promise("task")
def a_result_is_a_function_of_subject_and_seed(request: Request) -> None:
    """The same subject and seed give the same value, replicates and items, in a fresh task too."""
    one, other = _run(request), _run(request)
    if one is None or other is None:
        return
    require(one.value == other.value or math.isnan(one.value), f"{one.value} and {other.value}.")
    require(np.array_equal(one.replicates, other.replicates, equal_nan=True), "The replicates differ.")
    require(one.items == other.items, "The items differ.")


@promise("task")
def results_of_two_subjects_pair(request: Request) -> None:
    """Two subjects are scored on the same items by the same draws: ``items`` and the number of replicates agree."""
    one, other = _run(request, subject=1), _run(request, subject=2)
    if one is None or other is None:
        return
    require(one.items == other.items, "items differ between subjects: they must depend on the data and the seed alone.")
    require(len(one.replicates) == len(other.replicates), "They have not as many replicates.")


@promise("task")
def another_seed_is_another_draw(request: Request) -> None:
    """Results of two seeds have other ``items``: their replicates do not pair."""
    one, other = _run(request, seed=0), _run(request, seed=1)
    if one is None or other is None:
        return
    require(one.items != other.items, "items are the same for seeds 0 and 1.")


@promise("task")
def its_floors_can_be_scored(request: Request) -> None:
    """Every subject that ``floors`` gives has a name ``floor:...`` and can be scored."""
    task = _make(request)
    try:
        task.check()
    except UserError:
        return
    for name, floor in task.floors().items():
        require(name.startswith("floor:"), f"A floor is called {name!r}.")
        result = task.run(floor, limit=request.extra.get("limit", LIMIT))
        require(math.isfinite(result.value) or math.isnan(result.value), f"{name} reaches {result.value}.")
