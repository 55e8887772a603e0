"""Building a store: read, clean, hash, shuffle once, write beside and rename.

Residues and ids go through files in the folder that is being built, so a corpus may be larger than memory: about 100
bytes of memory are needed for each sequence, and twice the store's size on disk while it is built.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from protloom import __version__
from protloom.data.chunk import Chunk, byte_counts, chunks_of, hash_slices, lengths_of, offsets_of
from protloom.data.fasta import fasta_chunks
from protloom.data.layout import ARRAYS, FORMAT, MANIFEST, VERSION, Store, content_hash
from protloom.data.policies import POLICY_VERSION, Tally, clean
from protloom.data.publish import beside, check_target, publish
from protloom.data.repeats import find_repeats
from protloom.data.streams import ByteSource
from protloom.data.tabular import is_table, table_records
from protloom.errors import UserError
from protloom.rng import CounterRNG, Permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Record
    from protloom.data.drop import DropList

SORT_BYTES = 1 << 28
"""Residues that are put in their final order at once; a larger corpus takes several passes over the source's order."""
INDEX_ROWS = 1 << 15
"""Ids put in order at once."""
WRITE_ROWS = 512
"""Sequences joined and written at once: few enough that the garbage collector never sees their views."""


def build_store(
    source: Iterable[Record] | str | Path,
    out: str | Path,
    *,
    strict: bool = False,
    column: str | None = None,
    seed: int = 0,
    licence: str | None = None,
    simulated: bool = False,
    origin: Mapping[str, Any] | None = None,
    drop: DropList | None = None,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """Builds a store folder and opens it; the same input gives the same bytes.

    Args:
        source: a FASTA, CSV, TSV or Parquet file (``-`` for FASTA on standard input), or records.
        out: the folder to make. A store that is there is replaced once the new one is complete.
        strict: refuse what the cleaning policies would change or drop.
        column: sequence column of a table.
        seed: of the order in which groups are stored.
        licence: a line for the manifest.
        simulated: the sequences were made by a program; the manifest says so.
        origin: where ``records`` come from, for the manifest (files state their own name and hash).
        drop: sequences to leave out; their ids are those of the store, so ``a#2`` for the second record named ``a``.
        progress: called with the number of records read so far.

    Raises:
        UserError: bad input, nothing left after cleaning, or ``out`` cannot be written; what existed is unchanged.
    """
    out = Path(out)
    check_target(out)
    reader = _Reader(source, column, origin)
    tally = Tally(reader.name, strict)
    with beside(out) as folder:
        parts = _collect(reader.chunks(), tally, folder, progress)
        if not len(parts):
            dropped = ", ".join(f"{n} {rule}" for rule, n, _ in tally.table())
            raise UserError(
                f"{reader.name} holds no usable sequence: {tally.read} records read; {dropped or 'none kept'}"
            )
        kept, missing = _kept(parts, tally, drop)
        if not len(kept):
            raise UserError(f"{reader.name}: every sequence of it is to be dropped, which leaves no corpus")
        order, groups = _arrange(parts, kept, tally, seed)
        policies = {"version": POLICY_VERSION, "strict": strict, "read": tally.read, "rules": tally.as_dict()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"protloom {__version__}",
            "content_hash": content_hash(parts.hashes[order], groups),
            "seed": seed,
            "sources": reader.facts(),
            "licence": licence,
            "simulated": simulated,
            "policies": policies if drop is None else {**policies, "drop": drop.facts(missing)},
            **_statistics(parts.lengths[order], tally),
            "groups": len(order) if groups is None else len(groups) - 1,
        }
        _write(folder, parts, order, groups, manifest)
        publish(folder, out)
    return Store.open(out)


@dataclass
class _Parts:
    """A cleaned corpus in the order of its source; residues and ids are in files."""

    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    id_starts: NDArray[np.int64]
    id_lengths: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    numbers: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    residue_file: Path
    id_file: Path

    def __len__(self) -> int:
        return len(self.lengths)


class _Reader:
    """Gives the chunks of any kind of source and, after they are read, what to say about it."""

    def __init__(
        self, source: Iterable[Record] | str | Path, column: str | None, origin: Mapping[str, Any] | None
    ) -> None:
        self._bytes: ByteSource | None = None
        self._records: Iterable[Record] | None = None
        self._column = column
        self._origin = dict(origin or {})
        if isinstance(source, str | Path):
            self._bytes = ByteSource(source)
            self.name = self._bytes.name
        else:
            self._records = source
            self.name = str(self._origin.get("name", "the records"))

    def chunks(self) -> Iterator[Chunk]:
        if self._bytes is None:
            return chunks_of(self._records or ())
        if is_table(self.name):
            return chunks_of(table_records(self._bytes, self._column))
        if self._column is not None:
            raise UserError(f"{self.name} is read as FASTA, which has no column {self._column!r}: leave --column out")
        return fasta_chunks(self._bytes)

    def facts(self) -> list[dict[str, Any]]:
        return [self._bytes.facts() if self._bytes else self._origin]


def _collect(chunks: Iterable[Chunk], tally: Tally, folder: Path, progress: Callable[[int], None] | None) -> _Parts:
    """Cleans and hashes every chunk and appends it to the files."""
    lengths, hashes, id_lengths, id_hashes, numbers, labels = [], [], [], [], [], []
    residue_file, id_file = folder / "residues.tmp", folder / "ids.tmp"
    grouped = False
    with residue_file.open("wb", buffering=0) as residues, id_file.open("wb", buffering=0) as ids:
        for raw in chunks:
            chunk = clean(raw, tally)
            names, name_lengths = b"".join(chunk.ids), lengths_of(chunk.ids)
            _write_all(residues, chunk.residues)
            _write_all(ids, names)
            lengths.append(chunk.lengths)
            hashes.append(hash_slices(chunk.residues, chunk.offsets))
            id_lengths.append(name_lengths)
            id_hashes.append(hash_slices(names, offsets_of(name_lengths)))
            numbers.append(chunk.numbers)
            labels.append((len(chunk), chunk.groups))
            grouped = grouped or chunk.groups is not None
            if progress is not None:
                progress(tally.read)
    sizes = _joined(id_lengths, np.int64)
    return _Parts(
        lengths=_joined(lengths, np.int64),
        hashes=_joined(hashes, np.uint64),
        id_starts=offsets_of(sizes)[:-1],
        id_lengths=sizes,
        id_hashes=_joined(id_hashes, np.uint64),
        numbers=_joined(numbers, np.int64),
        groups=_numbered(labels) if grouped else None,
        residue_file=residue_file,
        id_file=id_file,
    )


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Writes all of ``data`` to an unbuffered file, which may take a part at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _joined(arrays: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _numbered(labels: list[tuple[int, list[str | None] | None]]) -> NDArray[np.int64]:
    """Turns group labels into numbers; a record without a label is a group of its own."""
    known: dict[str, int] = {}
    numbers: list[int] = []
    fresh = 0
    for count, names in labels:
        for name in names if names is not None else [None] * count:
            number = fresh if name is None else known.setdefault(name, fresh)
            fresh += number == fresh
            numbers.append(number)
    return np.array(numbers, dtype=np.int64)


def _arrange(
    parts: _Parts, kept: NDArray[np.int64], tally: Tally, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Counts repeated sequences and draws the order.

    Returns:
        The source number of each stored sequence ``[N]``, and where groups begin ``[G + 1]``, or None without groups.
    """
    hashes = np.sort(parts.hashes[kept])
    tally.add("repeated_sequence", int((hashes[1:] == hashes[:-1]).sum()), "")
    rng = CounterRNG(seed, "store")
    if parts.groups is None:
        return kept[Permutation(len(kept), rng)(np.arange(len(kept)))], None
    _, group = np.unique(parts.groups[kept], return_inverse=True)  # [N] from 0, without gaps
    sizes = np.bincount(group)
    place = Permutation(len(sizes), rng)(np.arange(len(sizes)))  # [G] where each group goes
    ordered = np.empty_like(sizes)
    ordered[place] = sizes
    return kept[np.argsort(place[group], kind="stable")], offsets_of(ordered)


def _kept(parts: _Parts, tally: Tally, drop: DropList | None) -> tuple[NDArray[np.int64], list[bytes]]:
    """Applies the policies for ids that came before, then the list of what is to be dropped.

    Returns:
        Which records stay ``[N]``, and the ids of the list that no record has.
    """
    name_of = _namer(parts)
    repeats = find_repeats(parts.id_hashes, parts.hashes, name_of)
    for policy, found in (("repeated_id", sorted(repeats.renamed)), ("repeated_record", repeats.dropped)):
        if found:
            tally.add(policy, len(found), f"record {parts.numbers[found[0]]} {name_of(found[0]).decode()!r}")
    with parts.id_file.open("ab") as file:
        for i, name in repeats.renamed.items():
            parts.id_starts[i], parts.id_lengths[i] = file.tell(), len(name)
            parts.id_hashes[i] = hash_slices(name, np.array([0, len(name)]))[0]
            file.write(name)
    kept = _without(parts, np.arange(len(parts)), repeats.dropped, tally)
    if drop is None:
        return kept, []
    name_of = _namer(parts)
    listed, missing = drop.find(parts.id_hashes[kept], lambda i: name_of(int(kept[i])))
    if listed:
        first = int(kept[listed[0]])
        tally.add("listed", len(listed), f"record {parts.numbers[first]} {name_of(first).decode()!r}")
    return _without(parts, kept, kept[listed].tolist(), tally), missing


def _namer(parts: _Parts) -> Callable[[int], bytes]:
    """Returns what gives the id of a record, as the file of ids is now."""
    names = np.memmap(parts.id_file, dtype=np.uint8, mode="r").data
    return lambda i: bytes(names[parts.id_starts[i] : parts.id_starts[i] + parts.id_lengths[i]])


def _without(parts: _Parts, kept: NDArray[np.int64], dropped: list[int], tally: Tally) -> NDArray[np.int64]:
    """Returns the records that stay, and takes the others' letters out of the composition."""
    if not dropped:
        return kept
    left_out = io.BytesIO()
    _gather(parts.residue_file, offsets_of(parts.lengths), np.array(dropped), left_out)
    tally.composition -= byte_counts(left_out.getvalue())
    return kept[~np.isin(kept, dropped)]


def _statistics(lengths: NDArray[np.int64], tally: Tally) -> dict[str, Any]:
    quantiles = (0, 1, 5, 25, 50, 75, 95, 99, 100)
    values = np.percentile(lengths, quantiles, method="lower")
    counts = np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1)
    present = np.flatnonzero(tally.composition)
    return {
        "sequences": len(lengths),
        "residues": int(lengths.sum()),
        "lengths": {
            "mean": round(float(lengths.mean()), 2),
            "quantiles": {str(q): int(v) for q, v in zip(quantiles, values, strict=True)},
            # number of sequences of 2^k to 2^(k+1) - 1 residues
            "histogram": {str(1 << k): int(n) for k, n in enumerate(counts) if n},
        },
        "composition": {chr(b): int(tally.composition[b]) for b in present},
    }


def _write(
    folder: Path, parts: _Parts, order: NDArray[np.int64], groups: NDArray[np.int64] | None, manifest: dict[str, Any]
) -> None:
    """Writes the arrays in their final order, then the manifest."""
    arrays: dict[str, NDArray[Any]] = {
        "offsets": offsets_of(parts.lengths[order]),
        "hashes": parts.hashes[order],
    }
    if groups is not None:
        arrays["groups"] = groups
    with (folder / "residues.npy").open("wb") as file:
        _header(file, "residues", int(arrays["offsets"][-1]))
        _gather(parts.residue_file, offsets_of(parts.lengths), order, file)
    parts.residue_file.unlink()
    arrays["id_offsets"] = _write_ids(folder, parts, order)
    parts.id_file.unlink()
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            _header(file, name, len(array))
            file.write(np.ascontiguousarray(array, dtype=ARRAYS[name]).data)
    lengths = {name: len(array) for name, array in arrays.items()}
    lengths |= {"residues": int(arrays["offsets"][-1]), "ids": int(arrays["id_offsets"][-1])}
    manifest["arrays"] = {name: {"length": n} for name, n in sorted(lengths.items())}
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _header(file: IO[bytes], name: str, length: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": ARRAYS[name], "fortran_order": False, "shape": (length,)})


def _write_ids(folder: Path, parts: _Parts, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Writes the ids in the given order; returns their offsets."""
    text = np.memmap(parts.id_file, dtype=np.uint8, mode="r").view(np.ndarray)
    starts, lengths = parts.id_starts[order], parts.id_lengths[order]
    offsets = offsets_of(lengths)
    with (folder / "ids.npy").open("wb") as file:
        _header(file, "ids", int(offsets[-1]))
        for first in range(0, len(order), INDEX_ROWS):
            rows = slice(first, first + INDEX_ROWS)
            # ids are short: an index of every byte is faster than a slice of every id
            at = np.repeat(starts[rows] - offsets[:-1][rows], lengths[rows])
            at += np.arange(offsets[first], offsets[first] + len(at))
            file.write(text[at].data)
    return offsets


def _gather(source: Path, bounds: NDArray[np.int64], order: NDArray[np.int64], file: IO[bytes]) -> None:
    """Writes slices of ``source`` in the given order."""
    data = np.memmap(source, dtype=np.uint8, mode="r").data
    starts, ends = bounds[order], bounds[order + 1]
    if len(data) > SORT_BYTES:
        _gather_sorted(data, starts, ends, file)
        return
    for first in range(0, len(order), WRITE_ROWS):
        rows = slice(first, first + WRITE_ROWS)
        slices = zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)
        file.write(b"".join([data[a:b] for a, b in slices]))


def _gather_sorted(data: memoryview, starts: NDArray[np.int64], ends: NDArray[np.int64], file: IO[bytes]) -> None:
    """The same for a source that may be larger than memory: a disk is read forwards, not at random places."""
    for first, last in _blocks(ends - starts, SORT_BYTES):
        parts = [b""] * (last - first)
        for i in np.argsort(starts[first:last]).tolist():
            parts[i] = bytes(data[starts[first + i] : ends[first + i]])
        file.write(b"".join(parts))


def _blocks(lengths: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Cuts a list of lengths into runs of about ``size`` in total."""
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // size)) + 1
    return itertools.pairwise([0, *cuts.tolist(), len(lengths)])
