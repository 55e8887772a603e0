"""The core's own sections of a run file, as pydantic models.

A component's section (tokenizer, architecture, objective, optimizer …) is validated by that component's own model; see
:mod:`protloom.config`. Unknown keys are errors everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from protloom.errors import UserError

ComponentSection = str | dict[str, Any]
"""A component by name, or a mapping with ``name`` and the component's options."""


NO_HALF = (
    "fp16 is not offered: states of T5 networks exceed its largest number, 65504, and others need loss scaling; "
    "use bf16, which costs the same, or fp32"
)


class Section(BaseModel):
    """Base of every config model: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def differing(config: BaseModel, names: Iterable[str]) -> list[str]:
    """Returns which of some options are not at their defaults, for options that exclude each other.

    Which ones were *stated* (``model_fields_set``) is no question to ask: the file of a run states all of them, and has
    to be read again when the run is resumed.
    """
    fields = type(config).model_fields
    return [name for name in names if getattr(config, name) != fields[name].get_default(call_default_factory=True)]


class CorpusPart(Section):
    """One corpus of a mixture."""

    path: str = Field(description="A FASTA, CSV or Parquet file, a store folder, or a URI such as demo:")
    weight: float = Field(default=1.0, gt=0, description="Share of the tokens, relative to the other corpora")
    column: str | None = Field(default=None, description="Sequence column of a CSV or Parquet file")


class DataConfig(Section):
    """Where sequences come from and how they become batches."""

    corpus: str | list[CorpusPart] | None = Field(default=None, description="One corpus, or several mixed by weight")
    validation: str | None = Field(default=None, description="A corpus to validate on; by default a share is held out")
    validation_fraction: float = Field(default=0.02, ge=0, lt=1, description="Share of the corpus held out by hash")
    max_length: int = Field(default=1024, ge=1, description="Residues kept of a sequence: a random window of it")
    min_length: int = Field(default=1, ge=1, description="Shorter sequences are left out, and counted")
    threads: int = Field(default=1, ge=0, description="Threads that prepare batches; 0 prepares them inline")
    strict: bool = Field(default=False, description="Refuse what the cleaning policies would change or drop")
    cache_dir: str | None = Field(
        default=None,
        description="Where stores are built; default: stores in PROTLOOM_CACHE, or in ~/.cache/protloom",
    )

    def parts(self) -> list[CorpusPart]:
        """Returns the corpora to train on; raises UserError if there are none."""
        if self.corpus is None:
            raise UserError(
                "no corpus: give --data FILE, or data.corpus in the run file (demo: is the simulated proteome)"
            )
        if not self.corpus:
            raise UserError("data.corpus is empty: name at least one corpus")
        return [CorpusPart(path=self.corpus)] if isinstance(self.corpus, str) else list(self.corpus)


class ScheduleConfig(Section):
    """How the learning rate moves; every form starts with a linear warm-up."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0, description="Steps of the linear warm-up")
    final_fraction: float = Field(default=0.1, ge=0, le=1, description="Final rate as a share of the peak")
    decay_steps: int | None = Field(default=None, ge=1, description="wsd: length of the decay; default 10 % of the run")


class TrainerConfig(Section):
    """The training loop."""

    steps: int = Field(default=1000, ge=1, description="Optimizer steps")
    max_seconds: float | None = Field(default=None, gt=0, description="Stop earlier: seconds of training steps alone")
    max_tokens: int | None = Field(default=None, ge=1, description="Stop earlier: tokens read")
    max_flops: float | None = Field(default=None, gt=0, description="Stop earlier: estimated FLOPs")
    tokens_per_step: int = Field(default=16384, ge=1, description="Tokens of a step, all ranks together")
    tokens_per_microbatch: int | None = Field(default=None, ge=1, description="Tokens at once (memory only)")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 where it is fast")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    clip_norm: float | None = Field(default=1.0, gt=0, description="Largest gradient norm; null: no clipping")
    activation_checkpointing: bool = Field(default=False, description="Recompute blocks to save memory")
    compile: bool = Field(default=False, description="torch.compile of the network's blocks")
    keep_freed_memory: bool = Field(
        default=False, description="On CPU: freed memory stays with the process, which saves page faults"
    )
    parallel: Literal["none", "ddp", "fsdp2"] = Field(default="none", description="Under torchrun: ddp or fsdp2")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl")
    validate_every: int | None = Field(
        default=None, ge=1, description="Steps between validations; default: a tenth of the run, 50 to 1,000"
    )
    validation_tokens: int = Field(default=65536, ge=1, description="Tokens of a validation")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints, one more at the end; default: as validations"
    )
    keep_last: int = Field(default=2, ge=1, description="Newest checkpoints kept; the best one is kept besides")
    best_metric: str = Field(default="validation/loss", description="Lowest at the best checkpoint")
    nonfinite_limit: int = Field(default=10, ge=1, description="Non-finite steps in a row after which the run stops")
    tensorboard: bool = Field(default=True, description="Write TensorBoard event files beside metrics.jsonl")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half(cls, precision: Any) -> Any:
        if precision in ("fp16", "float16", "half"):
            raise ValueError(NO_HALF)
        return precision

    @model_validator(mode="after")
    def _budget(self) -> TrainerConfig:
        micro = self.tokens_per_microbatch
        if micro is not None and micro > self.tokens_per_step:
            raise ValueError(f"tokens_per_microbatch ({micro}) is above tokens_per_step ({self.tokens_per_step})")
        return self


class ObjectiveMix(Section):
    """What the trainer, not the objective, needs to know of one entry of ``objectives``.

    These keys stand beside the objective's own options in the run file.
    """

    alias: str | None = Field(
        default=None,
        description="Name in logs and in 'corruption'; default: the objective's",
    )
    weight: float | dict[str, float] = Field(default=1.0, description="Loss weight, or one a term")
    share: float = Field(default=1.0, gt=0, description="combine: dealt: share of the groups, relative to the others")
    start_step: int = Field(default=0, ge=0, description="Step from which the loss counts")
    ramp_steps: int = Field(default=0, ge=0, description="Steps over which the weight grows from 0 after the start")
    keep_rate: float = Field(default=1.0, gt=0, le=1, description="Share of steps that compute it; weight is scaled up")
    corruption: str | None = Field(default=None, description="Alias of an earlier objective whose corruption it shares")

    @field_validator("alias")
    @classmethod
    def _word(cls, alias: str | None) -> str | None:
        # it becomes part of the names of metrics and of parameters
        if alias is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", alias):
            raise ValueError("an alias is made of letters, digits, '-' and '_'")
        return alias


class RunConfig(Section):
    """A whole run file; component sections are still unvalidated here."""

    seed: int = Field(default=0, ge=0, description="Seed of everything random")
    out: str | None = Field(default=None, description="Run folder; default runs/<architecture>-<time>")
    init: str | None = Field(default=None, description="Weights to start from: a run, a folder, a file or a hub id")
    data: DataConfig = DataConfig()
    tokenizer: ComponentSection | None = Field(default=None, description="Default: the architecture's")
    architecture: ComponentSection | None = Field(default=None, description="NAME, NAME:SIZE or a mapping; needed")
    objective: ComponentSection | None = Field(default=None, description="One objective; default: the architecture's")
    objectives: list[ComponentSection] | None = Field(default=None, description="Several objectives")
    combine: Literal["summed", "dealt"] = Field(default="summed", description="How several objectives share a batch")
    reduction: Literal["objectives", "items"] = Field(
        default="objectives",
        description="objectives: the mean of each counts by its weight; items: one mean over what all of them score",
    )
    optimizer: ComponentSection | None = Field(default=None, description="Default: the architecture's")
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()
    kernels: Annotated[str | dict[str, str], Field(description="auto, a backend, or function -> backend")] = "auto"
    callbacks: list[ComponentSection] = []

    @model_validator(mode="after")
    def _one_or_many(self) -> RunConfig:
        if self.objective is not None and self.objectives is not None:
            raise ValueError("give 'objective' (one) or 'objectives' (several), not both")
        return self
