"""Tables of variants as deep mutational scans are published: read with all their columns, written with scores."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protloom.data.streams import ByteSource
from protloom.data.tabular import delimited_rows, is_delimited
from protloom.errors import UserError, did_you_mean
from protloom.variants import Variant, make_variants

if TYPE_CHECKING:
    from protloom.variants.scores import Scores

MUTANT_COLUMNS = ("mutant", "mutants", "mutation", "mutations", "variant", "hgvs_pro")
"""Names by which the column of substitutions is recognised, in any case, the first that is there."""
SEQUENCE_COLUMNS = ("mutated_sequence", "mutant_sequence", "sequence")
"""The same of the column of whole sequences."""
MEASURED = "DMS_score"
"""ProteinGym's column of what was measured."""


@dataclass(frozen=True)
class VariantTable:
    """A CSV or TSV file with a variant in every row.

    Attributes:
        name: of the file.
        header: names of the columns.
        rows: the cells of each row.
        lines: line number of each row.
        mutant: number of the column of substitutions, or None.
        sequence: number of the column of whole sequences, or None; one of the two is there.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    mutant: int | None
    sequence: int | None

    def variants(self, wild_type: str, first: int = 1) -> list[Variant]:
        """Returns the variants; see :func:`protloom.variants.make_variants` for ``first`` and what is refused."""
        mutant, sequence = self.mutant, self.sequence
        return make_variants(
            (
                (row[mutant] if mutant is not None else None, row[sequence] if sequence is not None else None)
                for row in self.rows
            ),
            wild_type,
            first=first,
            where=self.place,
        )

    def place(self, number: int) -> str:
        """Returns the file and line of a row, for messages."""
        return f"{self.name}, line {self.lines[number]}"

    def measured(self) -> tuple[list[int], list[float]]:
        """Returns the numbers of the rows that hold a number in the column ``DMS_score``, and those numbers."""
        rows: list[int] = []
        values: list[float] = []
        column = self.header.index(MEASURED) if MEASURED in self.header else None
        for number, row in enumerate(self.rows if column is not None else ()):
            try:
                value = float(row[column or 0])
            except ValueError:
                continue
            if math.isfinite(value):
                rows.append(number)
                values.append(value)
        return rows, values

    def with_scores(self, scores: Scores, name: str) -> str:
        """Returns CSV text: the table, a column of scores, and one of windows where the network saw parts only."""
        windows = ["window"] if scores.windowed else []
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.header, name, *windows])
        for row, value, window in zip(self.rows, scores.values.tolist(), scores.windows, strict=True):
            writer.writerow([*row, f"{value:.6f}", *([window] if windows else [])])
        return text.getvalue()


def read_variants(path: str | Path, column: str | None = None) -> VariantTable:
    """Reads a table of variants.

    Args:
        path: a CSV or TSV file, may be compressed.
        column: the column of substitutions; None: one of :data:`MUTANT_COLUMNS`.

    Raises:
        UserError: no such file, no table, no row, or no column that names variants.
    """
    source = ByteSource(Path(path).expanduser())
    if not is_delimited(source.name):
        raise UserError(f"{source.name}: variants come in a .csv or .tsv file (.gz, .zst too), a row each")
    lines = delimited_rows(source)
    _, header = next(lines)
    mutant, sequence = variant_columns(header, source.name, column)
    rows = list(lines)
    if not rows:
        raise UserError(f"{source.name} holds a header and no variant")
    return VariantTable(
        source.name,
        header,
        [row for _, row in rows],
        [line for line, _ in rows],
        None if mutant is None else header.index(mutant),
        None if sequence is None else header.index(sequence),
    )


def variant_columns(header: Sequence[str], where: str, column: str | None = None) -> tuple[str | None, str | None]:
    """Returns the columns of substitutions and of whole sequences; one of them may be missing.

    Args:
        header: names of the columns.
        where: the table, for messages.
        column: that of substitutions; None: one of :data:`MUTANT_COLUMNS`.

    Raises:
        UserError: there is no such column, or neither.
    """
    if column is not None and column not in header:
        raise UserError(f"{where} has no column {column!r}.{did_you_mean(column, header)}")
    mutant = column if column is not None else _find(header, MUTANT_COLUMNS)
    sequence = _find([name for name in header if name != mutant], SEQUENCE_COLUMNS)
    if mutant is None and sequence is None:
        raise UserError(
            f"{where} has no column {MUTANT_COLUMNS[0]!r} (A24G:L30P) and none {SEQUENCE_COLUMNS[0]!r}: rename one or"
            f" choose it with --column; its columns are {', '.join(map(repr, header))}"
        )
    return mutant, sequence


def _find(header: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {column.strip().lower(): column for column in reversed(header)}
    return next((lower[name] for name in names if name in lower), None)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns Spearman's correlation, ties at their mean rank; NaN where one side is constant."""
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    a, b = (rank - rank.mean() for rank in ranks)
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread else float("nan")
