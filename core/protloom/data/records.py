"""Sequences of any source one after the other, cleaned, in the order of the source: for commands that use, not train.

The same readers and policies as for a store, without building one. Ids are made unique as a store does: a record that
repeats an earlier id and sequence is dropped, one that has an earlier id with another sequence is named ``id#2``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protloom.data.chunk import Chunk, chunks_of
from protloom.data.fasta import fasta_chunks
from protloom.data.layout import Store
from protloom.data.policies import Tally, clean
from protloom.data.store import uri_records, uri_scheme
from protloom.data.streams import ByteSource
from protloom.data.tabular import is_table, table_records
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.plugins import Registry


class Entry(NamedTuple):
    """A sequence that passed the policies."""

    id: str
    sequence: str


class Source:
    """A corpus that is read once, from its first sequence to its last.

    About 150 bytes of memory are needed for each sequence, to find repeated ids.

    Args:
        spec: a FASTA, CSV, TSV or Parquet file (also compressed), ``-`` for FASTA on standard input, a store folder, or
            a URI such as ``demo:?n=100``. A store gives its own order, which was shuffled when it was built.
        registry: finds the reader of a URI's scheme.
        column: sequence column of a table.
        strict: refuse what the policies would change or drop.
        names: shared by sources that go into one store, read in its order: ids are unique among all of them.

    Attributes:
        name: what messages call it.
        tally: what the policies did so far; complete once the source is exhausted.

    Raises:
        UserError: no such source; :meth:`entries` raises for what is wrong inside.
    """

    def __init__(
        self,
        spec: str,
        registry: Registry,
        *,
        column: str | None = None,
        strict: bool = False,
        names: Names | None = None,
    ) -> None:
        self.name = spec
        self._column = column
        self._names = names
        self._store: Store | None = None
        if uri_scheme(spec, registry) is not None:
            self._refuse_column()
            records, _ = uri_records(spec, registry)
            self._chunks: Iterator[Chunk] = chunks_of(records)
        elif spec != "-" and Path(spec).expanduser().is_dir():
            self._refuse_column()
            self._store = Store.open(Path(spec).expanduser())
        else:
            source = ByteSource(spec if spec == "-" else Path(spec).expanduser())
            self.name = source.name
            if is_table(source.name):
                self._chunks = chunks_of(table_records(source, column))
            else:
                self._refuse_column()
                self._chunks = fasta_chunks(source)
        self.tally = Tally(self.name, strict)

    def _refuse_column(self) -> None:
        if self._column is not None:
            raise UserError(f"{self.name} is no table, so it has no column {self._column!r}: leave --column out")

    def entries(self) -> Iterator[Entry]:
        """Yields the sequences.

        Raises:
            UserError: bad input, or nothing usable in it.
        """
        found = 0
        for entry in self._stored(self._store) if self._store is not None else self._cleaned():
            found += 1
            yield entry
        if not found and not self.tally.counts["repeated_record"]:  # an earlier source may have had all of it
            dropped = ", ".join(f"{n} {rule}" for rule, n, _ in self.tally.table())
            raise UserError(
                f"{self.name} holds no usable sequence: {self.tally.read} records read; {dropped or 'none kept'}"
            )

    def _stored(self, store: Store) -> Iterator[Entry]:
        for i in range(len(store)):  # cleaned and named when it was built
            self.tally.read += 1
            name, residues = store.id(i), store.sequence(i).tobytes()
            if self._names is None:
                yield Entry(name, residues.decode("ascii"))
            else:
                yield from self._named(self._names, name.encode(), residues, f"record {i + 1} {name!r}")

    def _cleaned(self) -> Iterator[Entry]:
        names = Names() if self._names is None else self._names
        for raw in self._chunks:
            chunk = clean(raw, self.tally)
            bounds = chunk.offsets.tolist()
            for i, name in enumerate(chunk.ids):
                yield from self._named(names, name, chunk.residues[bounds[i] : bounds[i + 1]], chunk.where(i))

    def _named(self, names: Names, name: bytes, residues: bytes, where: str) -> Iterator[Entry]:
        """Yields the record under an id of its own, nothing if it repeats an earlier one."""
        unique = names.unique(name, residues)
        if unique != name:
            self.tally.add("repeated_record" if unique is None else "repeated_id", 1, where)
        if unique is not None:
            yield Entry(unique.decode(), residues.decode("ascii"))


class Names:
    """Makes ids unique, one after the other.

    Attributes:
        unclear: an id that stands in the source and was given to an earlier record before; None where there is none. A
            store, which knows all ids beforehand, gives another one.
    """

    def __init__(self) -> None:
        self.unclear: str | None = None
        self._content: dict[bytes, bytes] = {}  # hash of an id -> hash of its sequence
        self._again: dict[bytes, tuple[int, set[bytes]]] = {}  # of an id that came again: last number, sequences
        self._given: set[bytes] = set()  # hashes of ids that were made

    def unique(self, name: bytes, residues: bytes) -> bytes | None:
        """Returns the id to use, None for a record that repeats an earlier one."""
        key, content = _hash(name), _hash(residues)
        if key not in self._content:
            self._content[key] = content
            return name
        if key in self._given and self.unclear is None:
            self.unclear = name.decode()
        number, seen = self._again.get(key, (1, {self._content[key]}))
        if content in seen:
            return None
        while (other := _hash(b"%s#%d" % (name, number + 1))) in self._content:
            number += 1
        self._content[other] = content
        self._given.add(other)
        seen.add(content)
        self._again[key] = (number + 1, seen)
        return b"%s#%d" % (name, number + 1)


def _hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()
