"""What a store is made of: one source or several, read one after the other, each with counts of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import Record
from protloom.data.chunk import Chunk, chunks_of
from protloom.data.fasta import fasta_chunks
from protloom.data.policies import Tally
from protloom.data.streams import ByteSource, open_binary
from protloom.data.tabular import is_table, table_records
from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Input:
    """One source of a store.

    Attributes:
        source: a FASTA, CSV, TSV or Parquet file (``-`` for FASTA on standard input), or records.
        column: sequence column of a table.
        origin: where records come from, for the manifest (files state their own name and hash).
        licence: that the source states, None where it states none.
        seed: of the order of a store that is made of this source alone.
    """

    source: Iterable[Record] | str | Path
    column: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        if isinstance(self.source, str | Path):
            return "standard input" if str(self.source) == "-" else str(self.source)
        return str(self.origin.get("name", "the records"))

    def check(self) -> None:
        """Raises UserError where a file is not there, or a column is asked of a file that has none."""
        if not isinstance(self.source, str | Path):
            return
        if str(self.source) != "-":
            open_binary(Path(self.source)).close()
        if self.column is not None and not is_table(self.name):
            raise UserError(f"{self.name} is read as FASTA, which has no column {self.column!r}: leave --column out")


class Reader:
    """Gives the chunks of several inputs and, after they are read, what to say about each.

    Args:
        inputs: what to read, in this order; a file is opened when its turn comes.
        strict: refuse what the cleaning policies would change or drop.

    Attributes:
        name: what messages call all of it.
        tallies: what the policies did to each input.

    Raises:
        UserError: a file is not there.
    """

    def __init__(self, inputs: Sequence[Input], *, strict: bool) -> None:
        for one in inputs:
            one.check()
        self.name = ", ".join(one.name for one in inputs)
        self.tallies = [Tally(one.name, strict) for one in inputs]
        self._inputs = inputs
        self._facts: list[dict[str, Any]] = [dict(one.origin) for one in inputs]

    @property
    def read(self) -> int:
        """Records read so far."""
        return sum(tally.read for tally in self.tallies)

    def chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Yields the number of an input and a chunk of it."""
        for number, one in enumerate(self._inputs):
            if not isinstance(one.source, str | Path):
                yield from ((number, chunk) for chunk in chunks_of(one.source))
                continue
            source = ByteSource(one.source)
            found = chunks_of(table_records(source, one.column)) if is_table(one.name) else fasta_chunks(source)
            yield from ((number, chunk) for chunk in found)
            self._facts[number] = source.facts()

    def scope(self, number: int) -> int:
        """Returns whose group labels an input shares: all tables name their groups alike, others for themselves."""
        return -1 if isinstance(self._inputs[number].source, str | Path) else number

    def facts(self, owners: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Returns what a manifest says about each input: of several, also how much of it was read and stored.

        Args:
            owners: ``[N]`` the number of the input of each stored sequence.
            lengths: ``[N]`` residues of each.
        """
        if len(self._inputs) == 1:
            return self._facts
        n = len(self._inputs)
        sequences = np.bincount(owners, minlength=n).tolist()
        residues = np.bincount(owners, weights=lengths, minlength=n).astype(np.int64).tolist()
        return [
            {
                **self._facts[i],
                **({} if one.licence is None else {"licence": one.licence}),
                "read": self.tallies[i].read,
                "sequences": sequences[i],
                "residues": residues[i],
                "rules": {name: facts for name, facts in self.tallies[i].as_dict().items() if facts["records"]},
            }
            for i, one in enumerate(self._inputs)
        ]

    def total(self) -> Tally:
        """Returns the counts of all inputs together; where the first record of a policy stands says which input."""
        if len(self.tallies) == 1:
            return self.tallies[0]
        total = replace(Tally(self.name), read=self.read)
        for tally, facts in zip(self.tallies, self._facts, strict=True):
            total.composition += tally.composition
            for policy, count in tally.counts.items():
                total.counts[policy] += count
            for policy, where in tally.examples.items():
                total.examples.setdefault(policy, f"{facts.get('name', tally.source)}{', ' if where else ''}{where}")
        return total
