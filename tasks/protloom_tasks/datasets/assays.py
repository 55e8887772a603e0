"""Deep mutational scans: variants with what was measured of each, duplicates averaged, everything left out counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom.data.fasta import read_fasta
from protloom.errors import UserError, did_you_mean
from protloom.variants import STOP, Variant, make_variants
from protloom.variants.table import variant_columns
from protloom_tasks.datasets import formats
from protloom_tasks.datasets.files import Source, sha256
from protloom_tasks.datasets.selection import text_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from protloom_tasks.variant_definition import VariantDefinition


@dataclass(frozen=True)
class Assay:
    """A scan of one protein.

    Attributes:
        wild_type: residues of the protein.
        variants: each once.
        measured: ``[n]`` what was measured, as the table says it.
        functional: ``[n]`` bool: whether a variant counts as functional.
        cutoff: what decided that; None where a column did.
        counts: rows that were left out or joined, by reason.
        files: path -> SHA-256 of its bytes.
    """

    wild_type: str
    variants: Sequence[Variant]
    measured: NDArray[np.float64]
    functional: NDArray[np.bool_]
    cutoff: float | None
    counts: Counter[str]
    files: dict[str, str]


@dataclass
class _Row:
    """A row that has a number."""

    place: str
    mutant: str | None
    sequence: str | None
    measured: float
    functional: float | None


def sources(definition: VariantDefinition) -> list[Source]:
    """Returns the files of a definition."""
    columns = (definition.score, *((definition.mutant,) if definition.mutant else ()))
    found = [Source(definition.file, definition.origin, definition.licence, columns)]
    if definition.wild_type.file is not None:
        found.append(Source(definition.wild_type.file, definition.origin, definition.licence))
    return found


def read(definition: VariantDefinition, find: Callable[[Source], Path], *, any_length: bool) -> Assay:
    """Reads a scan.

    Args:
        definition: its file.
        find: returns the path of a data file.
        any_length: keep variants of another length than the wild type's.

    Raises:
        UserError: a file, column or sequence is missing or damaged, a cell is no number, a variant contradicts the wild
            type, or nothing is left.
    """
    paths = {source.path: find(source) for source in sources(definition)}
    counts: Counter[str] = Counter()
    wild_type = _wild_type(definition, paths)
    rows = list(_rows(definition, paths[definition.file], counts))
    variants = make_variants(
        ((row.mutant, row.sequence) for row in rows),
        wild_type,
        first=definition.first_residue,
        where=lambda number: rows[number].place,
        option="set first_residue to",
    )
    together: dict[str, list[int]] = {}
    for number, variant in enumerate(variants):
        if variant.mutations is None and not any_length:
            counts["of another length than the wild type"] += 1
        elif variant.sequence == wild_type:
            counts["the wild type itself"] += 1
        else:
            together.setdefault(variant.sequence, []).append(number)
    if not together:
        raise UserError(f"{paths[definition.file]}: no variant is left: {dict(counts) or 'the table is empty'}")
    counts["repeated variants, averaged"] = sum(len(numbers) for numbers in together.values()) - len(together)
    measured = np.array([math.fsum(rows[i].measured for i in of) / len(of) for of in together.values()])
    functional, cutoff = _functional(
        definition, measured, [[rows[i].functional for i in of] for of in together.values()]
    )
    files = {path: sha256(where) for path, where in paths.items()}
    return Assay(wild_type, [variants[of[0]] for of in together.values()], measured, functional, cutoff, +counts, files)


def _rows(definition: VariantDefinition, path: Path, counts: Counter[str]) -> Sequence[_Row]:
    found: list[_Row] = []
    columns: tuple[str | None, str | None] | None = None
    for place, cells in formats.rows(path, sources(definition)[0]):
        where = f"{path}, {place}"
        if columns is None:
            columns = variant_columns(list(cells), str(path), definition.mutant)
        mutant, sequence = (None if name is None else text_of(cells, name, where).strip() for name in columns)
        value = _number(text_of(cells, definition.score, where), definition.score, where)
        if value is None:
            counts["without a score"] += 1
        elif STOP in (mutant or "") + (sequence or "") or "Ter" in (mutant or ""):
            counts["with a stop"] += 1
        else:
            known = definition.functional in cells
            label = (
                _number(text_of(cells, definition.functional, where), definition.functional, where) if known else None
            )
            found.append(_Row(where, mutant, sequence, value, label))
    return found


def _number(text: str, column: str, where: str) -> float | None:
    """Returns a finite number, None where there is none."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {column} is {text[:40]!r}, which is not a number") from None
    return value if math.isfinite(value) else None


def _functional(
    definition: VariantDefinition, measured: NDArray[np.float64], labels: Sequence[Sequence[float | None]]
) -> tuple[NDArray[np.bool_], float | None]:
    """Returns which variants count as functional: by their column where every one has an entry, else by the cut-off."""
    given = [[label for label in of if label is not None] for of in labels]
    if definition.cutoff is None and all(given):
        return np.array([2 * math.fsum(of) >= len(of) for of in given]), None
    cutoff = float(np.median(measured)) if definition.cutoff is None else definition.cutoff
    return (measured >= cutoff if definition.better == "higher" else measured <= cutoff), cutoff


def _wild_type(definition: VariantDefinition, paths: dict[str, Path]) -> str:
    said = definition.wild_type
    if said.file is None:
        return said.sequence or ""
    path = paths[said.file]
    known = _json(path) if path.suffix == ".json" else {r.id: r.residues.decode().upper() for r in read_fasta(path)}
    if said.name is None and len(known) != 1:
        raise UserError(f"{path}: holds {len(known)} sequences: say which by wild_type: {{file: ..., name: ...}}")
    name = said.name if said.name is not None else next(iter(known))
    if name not in known:
        raise UserError(f"{path}: no sequence {name!r}.{did_you_mean(name, known)}")
    return known[name]


def _json(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(of, str) for of in found.values()):
        raise UserError(f"{path}: should hold names and sequences")
    return {str(name): of for name, of in found.items()}
