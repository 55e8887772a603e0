"""Building a store: read, clean, hash, shuffle once, write beside and rename.

Residues and ids go through files in the folder that is being built, so a corpus may be larger than memory: about 100
bytes of memory are needed for each sequence, and twice the store's size on disk while it is built.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from protloom import __version__
from protloom.data.chunk import byte_counts, hash_slices, lengths_of, offsets_of
from protloom.data.inputs import Input, Reader
from protloom.data.layout import FORMAT, VERSION, Store, content_hash
from protloom.data.parts import Parts, write_arrays
from protloom.data.policies import POLICY_VERSION, Tally, clean
from protloom.data.publish import beside, check_target, publish
from protloom.data.repeats import find_repeats
from protloom.errors import UserError
from protloom.rng import CounterRNG, Permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Record
    from protloom.data.drop import DropList


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
    """Builds a store folder of one source and opens it; the same input gives the same bytes.

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
    one = Input(source, column, origin or {}, licence, seed)
    return build_joined([one], out, strict=strict, simulated=simulated, drop=drop, progress=progress)


def build_joined(
    inputs: Sequence[Input],
    out: str | Path,
    *,
    strict: bool = False,
    licence: str | None = None,
    simulated: bool = False,
    drop: DropList | None = None,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """Builds one store folder of several sources, as if they were one after the other in one file, and opens it.

    So an id that an earlier source had is a repeated id. Rows of tables that name the same group are one group,
    whatever table they are in; groups of stores and of readers are their own.

    Args:
        inputs: what to read, in this order.
        out: as of :func:`build_store`, like the others.
        strict: refuse what the cleaning policies would change or drop.
        licence: a line for the manifest; None: what the inputs state, if all of them state something.
        simulated: the manifest says that sequences were made by a program, as it does where an input's origin says so.
        drop: sequences to leave out, by the ids of the store.
        progress: called with the number of records read so far.

    Raises:
        UserError: as of :func:`build_store`; also where one input of several holds nothing usable.
    """
    out = Path(out)
    check_target(out)
    reader = Reader(inputs, strict=strict)
    with beside(out) as folder:
        parts = _collect(reader, folder, progress)
        kept, missing = _kept(parts, reader.tallies, drop)
        if not len(kept):
            raise UserError(f"{reader.name}: every sequence of it is to be dropped, which leaves no corpus")
        seed = inputs[0].seed if len(inputs) == 1 else 0
        order, groups = _arrange(parts, kept, reader.tallies, seed)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"protloom {__version__}",
            "content_hash": content_hash(parts.hashes[order], groups),
            "seed": seed,
            "sources": reader.facts(parts.owners(order), parts.lengths[order]),
            "licence": _licence(inputs) if licence is None else licence,
            "simulated": simulated or any(one.origin.get("simulated") for one in inputs),
            "policies": _policies(reader, None if drop is None else drop.facts(missing), strict=strict),
            **_statistics(parts.lengths[order], reader.total().composition),
            "groups": len(order) if groups is None else len(groups) - 1,
        }
        write_arrays(folder, parts, order, groups, manifest)
        publish(folder, out)
    return Store.open(out)


def _policies(reader: Reader, drop: Mapping[str, Any] | None, *, strict: bool) -> dict[str, Any]:
    """Returns what the manifest says about cleaning."""
    total = reader.total()
    found = {"version": POLICY_VERSION, "strict": strict, "read": total.read, "rules": total.as_dict()}
    return found if drop is None else {**found, "drop": drop}


def _licence(inputs: Sequence[Input]) -> str | None:
    """Returns what all inputs state; None where one states nothing, for which the others cannot speak."""
    stated = [one.licence for one in inputs]
    return "; ".join(dict.fromkeys(filter(None, stated))) if all(stated) else None


def _collect(reader: Reader, folder: Path, progress: Callable[[int], None] | None) -> Parts:
    """Cleans and hashes every chunk and appends it to the files."""
    lengths, hashes, id_lengths, id_hashes, numbers = [], [], [], [], []
    labels: list[tuple[int, list[str | None] | None, int]] = []
    counts = [0] * len(reader.tallies)
    residue_file, id_file = folder / "residues.tmp", folder / "ids.tmp"
    with residue_file.open("wb", buffering=0) as residues, id_file.open("wb", buffering=0) as ids:
        for number, raw in reader.chunks():
            chunk = clean(raw, reader.tallies[number])
            names, name_lengths = b"".join(chunk.ids), lengths_of(chunk.ids)
            _write_all(residues, chunk.residues)
            _write_all(ids, names)
            counts[number] += len(chunk)
            lengths.append(chunk.lengths)
            hashes.append(hash_slices(chunk.residues, chunk.offsets))
            id_lengths.append(name_lengths)
            id_hashes.append(hash_slices(names, offsets_of(name_lengths)))
            numbers.append(chunk.numbers)
            labels.append((len(chunk), chunk.groups, reader.scope(number)))
            if progress is not None:
                progress(reader.read)
    _refuse_empty(reader, counts)
    sizes = np.concatenate(id_lengths)
    return Parts(
        lengths=np.concatenate(lengths),
        hashes=np.concatenate(hashes),
        id_starts=offsets_of(sizes)[:-1],
        id_lengths=sizes,
        id_hashes=np.concatenate(id_hashes),
        numbers=np.concatenate(numbers),
        groups=_numbered(labels),
        bounds=offsets_of(np.array(counts)),
        residue_file=residue_file,
        id_file=id_file,
    )


def _refuse_empty(reader: Reader, counts: Sequence[int]) -> None:
    """Raises UserError if cleaning left nothing of an input."""
    for tally, count in zip(reader.tallies, counts, strict=True):
        if not count:
            dropped = ", ".join(f"{n} {rule}" for rule, n, _ in tally.table())
            raise UserError(
                f"{tally.source} holds no usable sequence: {tally.read} records read; {dropped or 'none kept'}"
            )


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Writes all of ``data`` to an unbuffered file, which may take a part at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _numbered(labels: Sequence[tuple[int, list[str | None] | None, int]]) -> NDArray[np.int64] | None:
    """Turns group labels, which mean something within their scope, into numbers; None where there are none.

    A record without a label is a group of its own.
    """
    if all(names is None for _, names, _ in labels):
        return None
    scopes: dict[int, dict[str, int]] = {}
    numbers: list[int] = []
    fresh = 0
    for count, names, scope in labels:
        known = scopes.setdefault(scope, {})
        for name in names if names is not None else [None] * count:
            number = fresh if name is None else known.setdefault(name, fresh)
            fresh += number == fresh
            numbers.append(number)
    return np.array(numbers, dtype=np.int64)


def _arrange(
    parts: Parts, kept: NDArray[np.int64], tallies: Sequence[Tally], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Counts repeated sequences and draws the order.

    Returns:
        The source number of each stored sequence ``[N]``, and where groups begin ``[G + 1]``, or None without groups.
    """
    _count_repeated(parts, kept, tallies)
    rng = CounterRNG(seed, "store")
    if parts.groups is None:
        return kept[Permutation(len(kept), rng)(np.arange(len(kept)))], None
    _, group = np.unique(parts.groups[kept], return_inverse=True)  # [N] from 0, without gaps
    sizes = np.bincount(group)
    place = Permutation(len(sizes), rng)(np.arange(len(sizes)))  # [G] where each group goes
    ordered = np.empty_like(sizes)
    ordered[place] = sizes
    return kept[np.argsort(place[group], kind="stable")], offsets_of(ordered)


def _count_repeated(parts: Parts, kept: NDArray[np.int64], tallies: Sequence[Tally]) -> None:
    """Counts sequences that came before under another id, for the input where they came again."""
    hashes = parts.hashes[kept]
    if len(tallies) == 1:  # a sort takes a fraction of the time and memory of an argsort
        hashes.sort()
        tallies[0].add("repeated_sequence", int((hashes[1:] == hashes[:-1]).sum()), "")
        return
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    for number, again in parts.split(kept[order[1:][hashes[1:] == hashes[:-1]]]):
        tallies[number].add("repeated_sequence", len(again), "")


def _kept(parts: Parts, tallies: Sequence[Tally], drop: DropList | None) -> tuple[NDArray[np.int64], list[bytes]]:
    """Applies the policies for ids that came before, then the list of what is to be dropped.

    Returns:
        Which records stay ``[N]``, and the ids of the list that no record has.
    """
    name_of = parts.names()
    repeats = find_repeats(parts.id_hashes, parts.hashes, name_of)
    _count(parts, tallies, "repeated_id", sorted(repeats.renamed))
    _count(parts, tallies, "repeated_record", repeats.dropped)
    with parts.id_file.open("ab") as file:
        for i, name in repeats.renamed.items():
            parts.id_starts[i], parts.id_lengths[i] = file.tell(), len(name)
            parts.id_hashes[i] = hash_slices(name, np.array([0, len(name)]))[0]
            file.write(name)
    kept = _without(parts, np.arange(len(parts)), repeats.dropped, tallies)
    if drop is None:
        return kept, []
    name_of = parts.names()
    listed, missing = drop.find(parts.id_hashes[kept], lambda i: name_of(int(kept[i])))
    dropped = kept[listed].tolist()
    _count(parts, tallies, "listed", dropped)
    return _without(parts, kept, dropped, tallies), missing


def _count(parts: Parts, tallies: Sequence[Tally], policy: str, records: list[int]) -> None:
    """Counts records, which ascend, for the inputs that they are of."""
    if not records:
        return
    name_of = parts.names()
    for number, found in parts.split(np.array(records, dtype=np.int64)):
        first = int(found[0])
        tallies[number].add(policy, len(found), f"record {parts.numbers[first]} {name_of(first).decode()!r}")


def _without(parts: Parts, kept: NDArray[np.int64], dropped: list[int], tallies: Sequence[Tally]) -> NDArray[np.int64]:
    """Returns the records that stay, and takes the others' letters out of the compositions."""
    if not dropped:
        return kept
    for number, records in parts.split(np.array(dropped, dtype=np.int64)):
        left_out = io.BytesIO()
        parts.gather(records, left_out)
        tallies[number].composition -= byte_counts(left_out.getvalue())
    return kept[~np.isin(kept, dropped)]


def _statistics(lengths: NDArray[np.int64], composition: NDArray[np.int64]) -> dict[str, Any]:
    quantiles = (0, 1, 5, 25, 50, 75, 95, 99, 100)
    values = np.percentile(lengths, quantiles, method="lower")
    counts = np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1)
    present = np.flatnonzero(composition)
    return {
        "sequences": len(lengths),
        "residues": int(lengths.sum()),
        "lengths": {
            "mean": round(float(lengths.mean()), 2),
            "quantiles": {str(q): int(v) for q, v in zip(quantiles, values, strict=True)},
            # number of sequences of 2^k to 2^(k+1) - 1 residues
            "histogram": {str(1 << k): int(n) for k, n in enumerate(counts) if n},
        },
        "composition": {chr(b): int(composition[b]) for b in present},
    }
