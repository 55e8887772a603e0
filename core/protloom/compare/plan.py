"""What is to be compared: the file of a comparison, and what would make it unfair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from protloom import config
from protloom.budget import ENDLESS, UNITS, Amount
from protloom.config import source as config_source
from protloom.config.errors import explain
from protloom.errors import UserError, did_you_mean
from protloom.plugins import Registry
from protloom.run import folder as run_folder
from protloom.scoring import MARGINS
from protloom.settings import Section


class Arm(Section):
    """One of the recipes."""

    recipe: str | None = Field(default=None, description="A run file, or recipe:NAME; none: 'shared' and 'set' say all")
    set: list[str] = Field(default=[], description="Options on top, each key=value")


class ComparisonConfig(Section):
    """The file of a comparison."""

    recipes: dict[str, Arm] = Field(min_length=2, description="What is compared, by name: recipe, or {recipe, set}")
    baseline: str | None = Field(default=None, description="Whom the others are measured against; default: the first")
    shared: list[str] = Field(default=[], description="Options of every recipe, each key=value; init, for example")
    budget: dict[str, float] = Field(description="One of seconds, steps, tokens, flops: what every recipe may use")
    checkpoints: list[float] = Field(default=[], description="Evaluate at these amounts of the budget too")
    rounds: int = Field(default=1, ge=1, description="Recipes take turns so many times on the way to the budget")
    seeds: list[int] = Field(default=[0], min_length=1, description="Seeds that every recipe is trained with")
    tasks: list[str] = Field(
        min_length=1, description="Tasks, groups, patterns or suite:NAME, as 'task run' takes them"
    )
    task_options: list[str] = Field(default=[], description="Options of tasks, each key=value")
    split: Literal["valid", "test"] = Field(default="valid", description="What tasks score; choices use valid")
    data_dir: str | None = Field(default=None, description="Folder of real data")
    limit: int | None = Field(default=None, ge=1, description="At most this many items of each split")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="In which tasks ask the networks; auto: bf16 where it is fast"
    )
    margins: list[float] = Field(default=list(MARGINS), description="Differences within a margin are ties")
    allow: list[Literal["corpus", "tokenizer", "batch"]] = Field(
        default=[], description="Differences between recipes that are wanted"
    )

    @field_validator("recipes", mode="before")
    @classmethod
    def _named(cls, recipes: Any) -> Any:
        if not isinstance(recipes, Mapping):
            return recipes
        return {name: {"recipe": arm} if isinstance(arm, str) else arm for name, arm in recipes.items()}

    @field_validator("budget")
    @classmethod
    def _one_unit(cls, budget: dict[str, float]) -> dict[str, float]:
        if len(budget) != 1 or next(iter(budget)) not in UNITS:
            raise ValueError(f"give one of {', '.join(UNITS)}")
        if not next(iter(budget.values())) > 0:
            raise ValueError("a budget is above 0")
        return budget

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonConfig:
        if self.baseline is not None and self.baseline not in self.recipes:
            raise ValueError(f"baseline: no recipe {self.baseline!r}.{did_you_mean(self.baseline, self.recipes)}")
        total = next(iter(self.budget.values()))
        if any(not 0 < point <= total for point in self.checkpoints):
            raise ValueError(f"checkpoints lie above 0 and up to the budget ({total:g})")
        return self


@dataclass(frozen=True)
class Plan:
    """A checked comparison.

    Attributes:
        config: as the file says it.
        baseline: name of the recipe that others are measured against.
        budget: what every recipe may use.
        points: where runs are evaluated, ascending; the last is the budget.
        turns: where one recipe pauses and the next goes on: every point, and the ends of the rounds.
        options: what the command line of each recipe is: (run file or None, overrides), without seed and folder.
        init: weights that all recipes start from, or None.
        documents: each recipe as a whole run file, with every default, before seed and folder are set.
    """

    config: ComparisonConfig
    baseline: str
    budget: Amount
    points: tuple[float, ...]
    turns: tuple[float, ...]
    options: Mapping[str, tuple[str | None, tuple[str, ...]]]
    init: str | None
    documents: Mapping[str, Mapping[str, Any]]

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the recipes."""
        return tuple(self.config.recipes)


def load(path: Path, overrides: Sequence[str], registry: Registry) -> Plan:
    """Reads and checks the file of a comparison.

    Args:
        path: YAML; see :class:`ComparisonConfig`.
        overrides: options on top, each ``key=value``.
        registry: finds recipes and components.

    Raises:
        UserError: an option is wrong, a recipe cannot run, or two recipes differ where a comparison needs them alike.
    """
    raw, name = config_source.read(path, registry)
    for override in overrides:
        keys, value = config_source.split_override(override)
        config_source.apply(raw, keys, value)
    try:
        settings = ComparisonConfig.model_validate(raw)
    except ValidationError as error:
        raise explain(error, raw, ComparisonConfig, lambda _: name) from None
    unit, number = next(iter(settings.budget.items()))
    budget = Amount(unit, number)
    limits = (f"trainer.steps={int(number)}",) if unit == "steps" else (_limit(budget), f"trainer.steps={ENDLESS}")
    options: dict[str, tuple[str | None, tuple[str, ...]]] = {}
    documents: dict[str, Mapping[str, Any]] = {}
    for arm, said in settings.recipes.items():
        options[arm] = said.recipe, (*settings.shared, *said.set, *limits)
        try:
            resolved = config.load(said.recipe, list(options[arm][1]), registry)
        except UserError as error:
            raise UserError(f"{name}: recipe {arm!r}: {error}") from None
        documents[arm] = run_folder.document(resolved)
        if budget.unit == "tokens" and number < resolved.settings.trainer.tokens_per_step:
            raise UserError(
                f"{name}: budget: {number:g} tokens are too few for one step of recipe {arm!r} "
                f"({resolved.settings.trainer.tokens_per_step} tokens)"
            )
    _refuse_unlike(documents, settings, name)
    starts = {document["init"] for document in documents.values()}
    points = tuple(sorted({*settings.checkpoints, number}))
    rounds = (_whole(number * i / settings.rounds, unit) for i in range(1, settings.rounds))
    return Plan(
        settings,
        settings.baseline or next(iter(settings.recipes)),
        budget,
        points,
        tuple(sorted({*points, *rounds} - {0})),
        options,
        starts.pop() if len(starts) == 1 else None,
        documents,
    )


def _whole(number: float, unit: str) -> float:
    """Returns an amount that its unit allows: steps and tokens are whole."""
    return float(int(number)) if unit in ("steps", "tokens") else number


def _limit(budget: Amount) -> str:
    number = int(budget.number) if budget.unit == "tokens" else budget.number
    return f"trainer.max_{budget.unit}={number!r}"


ALIKE: Mapping[str, tuple[str, ...]] = {
    "corpus": ("data.corpus", "data.validation", "data.validation_fraction", "data.strict"),
    "tokenizer": ("tokenizer",),
    "batch": ("trainer.tokens_per_step", "data.max_length", "data.min_length", "seed"),
}
"""What recipes must have in common, by the word that allows a difference."""


def _refuse_unlike(documents: Mapping[str, Mapping[str, Any]], settings: ComparisonConfig, name: str) -> None:
    """Raises UserError for two recipes that would not see the same sequences in the same order."""
    (first, base), *others = documents.items()
    for word, keys in ALIKE.items():
        for key in keys if word not in settings.allow else ():
            for arm, document in others:
                one, other = _at(base, key), _at(document, key)
                if one != other:
                    raise UserError(
                        f"{name}: recipes {first!r} and {arm!r} differ in {key} ({_short(one)} and {_short(other)}), "
                        f"so a difference between them would not be one of training: put it into 'shared', or say "
                        f"allow: [{word}] if it is meant"
                    )


def _at(document: Mapping[str, Any], key: str) -> Any:
    value: Any = document
    for part in key.split("."):
        value = value[part]
    return value


def _short(value: Any) -> str:
    text = value["name"] if isinstance(value, Mapping) and set(value) == {"name"} else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
