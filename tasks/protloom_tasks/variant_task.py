"""Effects of mutations without training: how well scores of variants rank what a deep mutational scan measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from protloom.contracts import TaskResult, VariantScorer
from protloom.errors import UserError
from protloom.scoring import percentile_interval
from protloom.settings import Section
from protloom.variants import METHODS, Method
from protloom_tasks import intervals, metrics
from protloom_tasks.datasets import assays
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.definition import load_as
from protloom_tasks.task_base import DefinedTask
from protloom_tasks.variant_definition import VariantDefinition
from protloom_tasks.variant_floors import Hydrophobicity, Substitution
from protloom_tasks.variant_metrics import METRICS, TOP, all_metrics, multiplicities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject
    from protloom.variants import Variant
    from protloom_tasks.datasets.assays import Assay
    from protloom_tasks.datasets.files import Source
    from protloom_tasks.floors import Floor

MAIN = "Spearman"
"""The main metric."""


class VariantConfig(Section):
    """Options of a task on effects of mutations."""

    definition: str = Field(description="A shipped definition, or the path of a YAML file")
    variant: str | None = Field(default=None, description="Which of its variants")
    data_dir: str | None = Field(default=None, description="Data folder; default: PROTLOOM_DATA")
    method: Method = Field(default=METHODS[0], description="How a network is asked")
    rows: int | None = Field(default=2000, ge=2, description="Variants, drawn by seed; null: all")


class VariantTask(DefinedTask[VariantDefinition]):
    """One scan of a definition.

    Args:
        config: which definition, how a network is asked, how many variants.

    Raises:
        UserError: the definition is wrong.
    """

    def __init__(self, config: VariantConfig) -> None:
        super().__init__(load_as(VariantDefinition, config.definition, config.variant), config.data_dir)
        self.config = config
        self._assay: Assay | None = None

    def _sources(self) -> Sequence[Source]:
        return assays.sources(self.definition)

    def _floors(self) -> Sequence[Floor]:
        return (Substitution(), Hydrophobicity())

    def card(self) -> Mapping[str, Any]:
        """Describes the task."""
        said = self.definition
        functional = f"column {said.functional}, where it is missing: " if said.cutoff is None else ""
        cut = "the median of the assay" if said.cutoff is None else said.cutoff
        return {
            "title": said.title,
            "kind": "effects of mutations, no training",
            "metric": MAIN,
            "better": "higher",
            "also": tuple(name for name in METRICS if name != MAIN),
            "definition": "correlation of the ranks of a network's scores of variants and of what was measured",
            "functional": f"{functional}at least as fit as {cut}; for AUC and MCC, which cuts scores at their median",
            "best": f"NDCG of the best {TOP} % by score, gains from 0 to 1; recall of the best {TOP} % among them",
            "splits": f"all variants of {said.file} are test; repeated ones are averaged and counted",
            "probe": f"none: {self.config.method}",
            "options": self.config.model_dump(exclude={"data_dir", "definition", "variant"}),
            "interval": "bootstrap over sets of mutated positions: variants of one set are resampled together; sets of"
            " multiple mutants that overlap count as independent, which makes intervals somewhat narrow",
            "protein": said.protein or None,
            "selection": said.selection or None,
            **self._tail(),
        }

    def sequences(self, split: str) -> Sequence[str]:
        """Returns the wild type for ``test``; see :class:`protloom.contracts.HasSequences`."""
        return [self._read().wild_type] if split == "test" else []

    def _read(self) -> Assay:
        if self._assay is None:
            try:
                self._assay = assays.read(self.definition, self._find, any_length=self.config.method == "pll")
            except UserError as error:
                raise UserError(f"{self.name}: {error}") from None
        return self._assay

    def run(self, subject: Subject, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        """Scores a subject; see :class:`protloom.contracts.Task`."""
        if not isinstance(subject, VariantScorer):
            floors = ", ".join(floor.name for floor in self._floors())
            raise UserError(f"{subject.name} has no scores of variants: use a network, {floors}")
        assay = self._read()
        most = min((n for n in (self.config.rows, limit) if n is not None), default=None)
        chosen = draw(len(assay.variants), most, seed, 1)
        variants = [assay.variants[i] for i in chosen]
        scores = subject.score_variants(assay.wild_type, variants, self.config.method)
        details = {
            "files": assay.files,
            "available": len(assay.variants),
            "rows": len(variants),
            "left_out": dict(assay.counts),
            "method": self.config.method,
            "functional_at": assay.cutoff,
            "mutations": _sizes(variants),
            "protein": self.definition.protein,
            "selection": self.definition.selection,
            "limit": limit,
            "seed": seed,
            "per_item_is": "mean error of the ranks of each set's variants, as a share of all ranks",
        }
        return self._result(variants, assay.measured[chosen], assay.functional[chosen], scores, details, seed)

    def _result(
        self,
        variants: Sequence[Variant],
        measured: NDArray[np.float64],
        functional: NDArray[np.bool_],
        scores: NDArray[np.float64],
        details: dict[str, Any],
        seed: int,
    ) -> TaskResult:
        truth = measured if self.definition.better == "higher" else -measured
        sites, group = np.unique([_site(variant) for variant in variants], return_inverse=True)
        once = np.ones((1, len(truth)), dtype=np.int64)
        values = {name: float(of[0]) for name, of in all_metrics(truth, scores, functional, once).items()}
        blocks: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in METRICS}
        for drawn in intervals.draws(len(sites), seed=seed):
            for counts in multiplicities(drawn, group):
                for name, of in all_metrics(truth, scores, functional, counts).items():
                    blocks[name].append(of)
        replicates = {name: np.concatenate(of) for name, of in blocks.items()}
        if math.isnan(values[MAIN]):
            details = {**details, "undefined": metrics.why_undefined(truth, scores)}
        return TaskResult(
            metric=MAIN,
            value=values[MAIN],
            interval=percentile_interval(replicates[MAIN]),
            n=len(sites),
            unit="sets of mutated positions",
            metrics=values,
            intervals={name: percentile_interval(of) for name, of in replicates.items()},
            per_item=_misplaced(truth, scores, group, len(sites)),
            replicates=replicates[MAIN],
            items=intervals.fingerprint(self.name, (variant.sequence for variant in variants), seed),
            predictions={
                "mutant": [variant.name for variant in variants],
                self.definition.score: measured.tolist(),
                "functional": functional.astype(int).tolist(),
                "score": scores.tolist(),
            },
            details=details,
        )


def _site(variant: Variant) -> str:
    """Returns what variants have in common that are no independent measurements: the set of their positions."""
    if variant.mutations is None:
        return variant.sequence
    return ":".join(str(mutation.position) for mutation in variant.mutations)


def _sizes(variants: Sequence[Variant]) -> dict[str, int]:
    """Returns how many variants have how many mutations."""
    sizes = ["other length" if variant.mutations is None else str(len(variant.mutations)) for variant in variants]
    return {size: sizes.count(size) for size in sorted(set(sizes), key=lambda size: (len(size), size))}


def _misplaced(
    truth: NDArray[np.float64], scores: NDArray[np.float64], group: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Returns by how many places, as a share of all, the ranks of each set's variants are wrong on average, ``[n]``."""
    from scipy.stats import rankdata

    wrong = np.abs(rankdata(truth) - rankdata(scores)) / len(truth)
    return np.bincount(group, weights=wrong, minlength=n) / np.bincount(group, minlength=n)
