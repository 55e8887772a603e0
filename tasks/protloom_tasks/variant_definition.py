"""What the file of a task on effects of mutations says.

A definition, say::

    title: growth of my enzyme's mutants
    kind: variant-effect
    file: scan.csv                # ProteinGym's columns: mutant and/or mutated_sequence, DMS_score, DMS_score_bin
    wild_type: enzyme.fasta       # or the residues themselves
    protein: BLAT_ECOLX           # UniProt entry
    selection: OrganismalFitness
    origin: measured in our laboratory, 2026
    licence: unpublished

Paths are below the data folder, or beside the file of the definition.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from protloom.settings import Section
from protloom_tasks.definition import Definition


class WildType(Section):
    """Where the protein that was mutated stands."""

    sequence: str | None = Field(default=None, pattern="^[A-Z]+$", description="Its residues")
    file: str | None = Field(default=None, description="FASTA, or JSON of names and sequences; below the data folder")
    name: str | None = Field(default=None, description="Which sequence of the file; default: the only one")

    @model_validator(mode="after")
    def _one(self) -> WildType:
        if (self.sequence is None) == (self.file is None):
            raise ValueError("give either a sequence or a file")
        return self


class VariantDefinition(Definition):
    """A task about effects of mutations, without training."""

    kind: Literal["variant-effect"] = Field(description="variant-effect")
    file: str = Field(description="Table with a variant a row: CSV, TSV, JSON or JSONL, may be .gz")
    wild_type: WildType = Field(description="Residues, a FASTA file, or {file: ..., name: ...}")
    mutant: str | None = Field(default=None, description="Column of substitutions (A24G:L30P); default: mutant")
    score: str = Field(default="DMS_score", description="Column of what was measured")
    better: Literal["higher", "lower"] = Field(default="higher", description="Which scores are fitter")
    functional: str = Field(
        default="DMS_score_bin", description="Column of 0 and 1; where it is missing, the cut-off decides"
    )
    cutoff: float | None = Field(
        default=None, description="Scores at least as fit count as functional; default: the median of the assay"
    )
    first_residue: int = Field(default=1, description="Number of the wild type's first residue")
    protein: str = Field(default="", description="UniProt entry, for the mean over assays")
    selection: str = Field(default="", description="What was selected for, for the mean over assays")

    @field_validator("wild_type", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"file": value} if "." in value or "/" in value else {"sequence": value}
