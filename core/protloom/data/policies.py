"""What happens to a record that is not plain upper-case letters: the cleaning policies, each counted, none silent.

``strict`` turns every policy that changes or drops something into an error that names the first such record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.data.chunk import Chunk, byte_counts, offsets_of
from protloom.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLICY_VERSION = 1
"""Raised whenever a policy does something else, so that cached stores are built again."""


@dataclass(frozen=True)
class Policy:
    """One stated rule.

    Attributes:
        effect: ``changes`` or ``drops`` (refused under strict), ``asked`` (done because the user listed the record), or
            ``notes`` (counted only).
        rule: what is done, for tables.
        found: what is wrong with a record, for errors: "<where> <found>".
    """

    effect: Literal["changes", "drops", "asked", "notes"]
    rule: str
    found: str


POLICIES: Mapping[str, Policy] = {
    "lower_case": Policy("changes", "lower-case letters become upper case", "has lower-case letters"),
    "whitespace": Policy("changes", "spaces and tabs inside a sequence are removed", "has spaces in its sequence"),
    "gap": Policy("changes", "gaps ('-' and '.') are removed", "has gap characters"),
    "final_stop": Policy("changes", "'*' at the end is removed", "ends in '*'"),
    "inner_stop": Policy("drops", "'*' inside: dropped, it is not one protein", "has '*' inside its sequence"),
    "illegal": Policy("drops", "a character outside A-Z: dropped", "has a character outside A-Z"),
    "empty": Policy("drops", "no residues: dropped", "has no residues"),
    "unnamed": Policy("changes", "no id: named after its number", "has no id"),
    "repeated_record": Policy("drops", "same id and sequence as an earlier one: dropped", "repeats an earlier record"),
    "repeated_id": Policy(
        "changes", "same id, other sequence: '#2', '#3' … is added", "has the id of an earlier record"
    ),
    "listed": Policy("asked", "in the list of what to drop: dropped", "is in the list of what to drop"),
    "repeated_sequence": Policy("notes", "same sequence under another id: kept, counted", "repeats a sequence"),
}
"""Every policy. U, O, B, Z, J and X are residues like any other here: the tokenizer decides about them. No sequence is
too long: long ones are cropped when batches are made."""

_LOWER, _SPACE, _GAP, _STOP, _ILLEGAL = 1, 2, 4, 8, 16
_UPPER_CASE = slice(ord("A"), ord("Z") + 1)


def _classes() -> NDArray[np.uint8]:
    table = np.full(256, _ILLEGAL, dtype=np.uint8)
    table[_UPPER_CASE] = 0
    table[ord("a") : ord("z") + 1] = _LOWER
    for characters, kind in ((b" \t\v\f", _SPACE), (b"-.", _GAP), (b"*", _STOP)):
        table[list(characters)] = kind
    return table


_CLASS = _classes()


@dataclass
class Tally:
    """Counts of what the policies did to one source.

    Attributes:
        source: name of the source, for errors.
        strict: refuse instead of changing or dropping.
        counts: records by policy.
        examples: where the first record of each policy stands.
        composition: ``[256]`` occurrences of each byte in the cleaned residues.
        read: records read.
    """

    source: str
    strict: bool = False
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))
    examples: dict[str, str] = field(default_factory=dict)
    composition: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    read: int = 0

    def add(self, policy: str, count: int, first: str) -> None:
        """Counts ``count`` records; ``first`` says where the first stands.

        Raises:
            UserError: under strict, if the policy changes or drops on its own account.
        """
        if not count:
            return
        if self.strict and POLICIES[policy].effect in ("changes", "drops"):
            raise UserError(
                f"{self.source}, {first} {POLICIES[policy].found}: --strict refuses it "
                f"(without --strict: {POLICIES[policy].rule})"
            )
        self.counts[policy] += count
        self.examples.setdefault(policy, first)

    def table(self) -> list[tuple[str, int, str]]:
        """Returns (rule, records, first record) of every policy that did something."""
        return [(POLICIES[k].rule, n, self.examples.get(k, "")) for k, n in self.counts.items() if n]

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts of all policies and the first record of those that did something."""
        return {
            name: {"records": n, "rule": POLICIES[name].rule}
            | ({"first": self.examples[name]} if name in self.examples else {})
            for name, n in self.counts.items()
        }


def clean(chunk: Chunk, tally: Tally) -> Chunk:
    """Applies the policies that look at one record alone; returns upper-case records only, at least one residue each.

    Raises:
        UserError: under ``tally.strict``, naming the first record that would be changed or dropped.
    """
    tally.read += len(chunk)
    chunk = _named(chunk, tally)
    counts = byte_counts(chunk.residues)
    letters = int(counts[_UPPER_CASE].sum())
    if letters != len(chunk.residues):
        chunk = _cleaned(chunk, tally)
        counts = byte_counts(chunk.residues)
    tally.composition += counts
    lengths = chunk.lengths
    if len(lengths) and not lengths.all():
        # after the other policies, so that a record of gaps alone is empty too
        empty = lengths == 0
        tally.add("empty", int(empty.sum()), chunk.where(int(np.argmax(empty))))
        chunk = _keep(chunk, ~empty)
    return chunk


def _named(chunk: Chunk, tally: Tally) -> Chunk:
    if all(chunk.ids):
        return chunk
    missing = [i for i, name in enumerate(chunk.ids) if not name]
    tally.add("unnamed", len(missing), chunk.where(missing[0]))
    ids = [name or b"record-%d" % chunk.numbers[i] for i, name in enumerate(chunk.ids)]
    return replace(chunk, ids=ids)


def _cleaned(chunk: Chunk, tally: Tally) -> Chunk:
    """The slow way, for chunks that hold something other than upper-case letters."""
    data = np.frombuffer(chunk.residues, dtype=np.uint8).copy()  # [R]
    kind = _CLASS[data]
    at = np.flatnonzero(kind)  # [odd] positions of odd characters
    record = np.searchsorted(chunk.offsets, at, side="right") - 1  # [odd] the record of each
    odd = kind[at]
    inner = np.zeros(0, dtype=np.int64)
    if (odd == _STOP).any():
        letters = np.cumsum(kind <= _LOWER)  # [R] letters up to and with each position
        last = letters[chunk.offsets[record + 1] - 1]
        inner = record[(odd == _STOP) & (last > letters[at])]
    dropped = np.zeros(len(chunk), dtype=bool)
    for policy, records in (("illegal", record[odd == _ILLEGAL]), ("inner_stop", inner)):
        fresh = np.unique(records[~dropped[records]])
        if len(fresh):
            detail = f" ({_first_odd(data, at, record, int(fresh[0]))})" if policy == "illegal" else ""
            tally.add(policy, len(fresh), chunk.where(int(fresh[0])) + detail)
            dropped[fresh] = True
    for policy, flag in (("lower_case", _LOWER), ("whitespace", _SPACE), ("gap", _GAP), ("final_stop", _STOP)):
        changed = np.unique(record[odd == flag])
        changed = changed[~dropped[changed]]
        if len(changed):
            tally.add(policy, len(changed), chunk.where(int(changed[0])))
    data[at[odd == _LOWER]] -= 32
    removed = at[odd > _LOWER]
    keep = np.ones(len(data), dtype=bool)
    keep[removed] = False
    lengths = chunk.lengths - np.bincount(record[odd > _LOWER], minlength=len(chunk))
    cleaned = replace(chunk, residues=data[keep].tobytes(), offsets=offsets_of(lengths))
    return _keep(cleaned, ~dropped) if dropped.any() else cleaned


def _first_odd(data: NDArray[np.uint8], at: NDArray[np.int64], record: NDArray[np.int64], wanted: int) -> str:
    bad = at[(record == wanted) & (_CLASS[data[at]] == _ILLEGAL)][0]
    return f"byte {data[bad]:#04x}" if data[bad] > 126 or data[bad] < 33 else f"{chr(data[bad])!r}"


def _keep(chunk: Chunk, keep: NDArray[np.bool_]) -> Chunk:
    """Leaves records out."""
    lengths = chunk.lengths
    data = np.frombuffer(chunk.residues, dtype=np.uint8)[np.repeat(keep, lengths)]
    kept = np.flatnonzero(keep).tolist()
    return Chunk(
        ids=[chunk.ids[i] for i in kept],
        residues=data.tobytes(),
        offsets=offsets_of(lengths[keep]),
        numbers=chunk.numbers[keep],
        lines=None if chunk.lines is None else chunk.lines[keep],
        groups=None if chunk.groups is None else [chunk.groups[i] for i in kept],
    )
