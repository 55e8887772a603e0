"""Variants of a protein as tables name them: substitutions checked against the wild type, or whole sequences.

The columns are those of ProteinGym: ``mutant`` holds substitutions such as ``A24G``, several joined by ``:``, numbered
from 1 along the wild type; ``mutated_sequence`` holds the whole sequence. One of them is enough; both must agree. A
sequence of another length than the wild type is an insertion or a deletion and has no list of substitutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from protloom.errors import UserError

Method = Literal["masked-marginals", "wt-marginals", "pll", "sentinel-pll"]
"""How a network is asked about variants; :mod:`protloom.variants.scores` says what each is."""
METHODS: tuple[Method, ...] = get_args(Method)
"""Every method, the usual one first."""

UNCHANGED = frozenset({"wt", "_wt", "wildtype", "wild-type", "wild type", "p.=", "="})
"""Names, in lower case, of the wild type itself."""

STOP = "*"

AMBIGUOUS: Mapping[str, str] = {"B": "D or N", "Z": "E or Q", "J": "I or L", "X": "any residue"}
"""Letters that stand for several residues, so for no variant. U and O are residues: some vocabularies have a symbol for
each, and a tokenizer without one refuses them; ProteinGym's assays hold neither."""

_CODES = "AAla RArg NAsn DAsp CCys QGln EGlu GGly HHis IIle LLeu KLys MMet FPhe PPro SSer TThr WTrp YTyr VVal"
_CODES += " USec OPyl BAsx ZGlx XXaa *Ter"
_THREE_LETTERS = {code[1:]: code[0] for code in _CODES.split()}
_ONE = re.compile(r"(?:p\.)?\(?([A-Za-z])(\d+)([A-Za-z*=])\)?")
_THREE = re.compile(r"(?:p\.)?\(?([A-Z][a-z]{2})(\d+)([A-Z][a-z]{2}|[*=])\)?")
_BETWEEN = re.compile(r"[:;,]\s*")


class Mutation(NamedTuple):
    """One substitution.

    Attributes:
        position: in the wild type, from 0.
        wild: the residue there.
        mutant: the residue instead.
    """

    position: int
    wild: str
    mutant: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a wild type.

    Attributes:
        name: what its table calls it.
        sequence: its residues.
        mutations: where it differs, in order of position; empty for the wild type; None where the length differs, so
            that positions do not correspond.
    """

    name: str
    sequence: str
    mutations: tuple[Mutation, ...] | None


class _Change(NamedTuple):
    """A substitution as a table writes it."""

    wild: str
    number: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild}{self.number}{self.mutant}"


def make_variants(
    rows: Iterable[tuple[str | None, str | None]],
    wild_type: str,
    *,
    first: int = 1,
    where: Callable[[int], str] = lambda number: f"variant {number + 1}",
    option: str = "--first-residue",
) -> list[Variant]:
    """Makes variants of what a table says, and checks every position.

    Args:
        rows: (mutant, sequence) of each; either may be None.
        wild_type: its residues.
        first: number of the wild type's first residue.
        where: names a row, counted from 0, in messages.
        option: what sets ``first``, for messages.

    Raises:
        UserError: a row cannot be read, contradicts the wild type or itself; names row, position, what was expected and
            what is there, and the numbering that would fit all rows if there is one.
    """
    given = list(rows)
    variants = []
    for number, (name, sequence) in enumerate(given):
        place = where(number)
        mutant = (name or "").strip() or None
        letters = (sequence or "").strip().upper() or None
        if letters is not None and len(letters) != len(wild_type):
            variants.append(_indel(mutant, letters, place, wild_type))
            continue
        if mutant is None or mutant.upper() == letters:
            if letters is None:
                raise UserError(f"{place}: names neither substitutions, such as A24G, nor a whole sequence")
            changes = _differences(letters, wild_type, first)
        else:
            changes = _parse(mutant, place)
        wrong = _disagreement(changes, wild_type, first)
        if wrong is not None:
            raise UserError(f"{place}: {wrong}{_numbering(given, wild_type, first, option)}")
        variant = _apply(changes, wild_type, first, mutant or "", place)
        if letters is not None and variant.sequence != letters:
            at = next(i for i, (a, b) in enumerate(zip(variant.sequence, letters, strict=True)) if a != b)
            raise UserError(
                f"{place}: {mutant} of the wild type has {variant.sequence[at]} at {at + first}, the row's sequence"
                f" {letters[at]}: one of the two columns is wrong, or the wild type is another protein"
            )
        variants.append(variant)
    return variants


def _parse(mutant: str, where: str) -> list[_Change]:
    text = mutant
    if text.lower() in UNCHANGED:
        return []
    if text.startswith("p.[") and text.endswith("]"):
        text = text[3:-1]
    changes = []
    for part in _BETWEEN.split(text):
        short, long = _ONE.fullmatch(part), _THREE.fullmatch(part)
        if short is not None:
            wild, number, instead = short[1].upper(), short[2], short[3].upper()
        elif long is not None and long[1] in _THREE_LETTERS and long[3] in {*_THREE_LETTERS, "*", "="}:
            wild, number, instead = _THREE_LETTERS[long[1]], long[2], _THREE_LETTERS.get(long[3], long[3])
        else:
            raise UserError(
                f"{where}: {part[:40]!r} is no substitution: write A24G or p.Ala24Gly, several joined by ':';"
                " insertions and deletions need a column with the whole sequence"
            )
        if STOP in (wild, instead):
            raise UserError(f"{where}: {part} is a stop, not a residue: leave the row out")
        changes.append(_Change(wild, int(number), wild if instead == "=" else instead))
    numbers = [change.number for change in changes]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"{where}: {text[:40]} changes position {twice} twice")
    return sorted(changes, key=lambda change: change.number)


def _differences(sequence: str, wild_type: str, first: int) -> list[_Change]:
    return [
        _Change(wild, i + first, letter)
        for i, (wild, letter) in enumerate(zip(wild_type, sequence, strict=True))
        if wild != letter
    ]


def _indel(mutant: str | None, sequence: str, where: str, wild_type: str) -> Variant:
    _check_letters(sequence, where)
    vague = next((letter for letter in sequence if letter in AMBIGUOUS and letter not in wild_type), None)
    if vague is not None:
        raise UserError(f"{where}: {vague!r} at {sequence.index(vague) + 1} {_vague(vague)}")
    if mutant is not None and all(map(_ONE.fullmatch, _BETWEEN.split(mutant))):
        raise UserError(
            f"{where}: {mutant[:40]} are substitutions, but the row's sequence has {len(sequence)} residues and the"
            f" wild type {len(wild_type)}: is it the right wild type?"
        )
    return Variant(mutant or sequence, sequence, None)


def _vague(letter: str) -> str:
    return f"stands for {AMBIGUOUS[letter]}, which is no variant: leave the row out"


def _disagreement(changes: Iterable[_Change], wild_type: str, first: int) -> str | None:
    """Says which change does not fit the wild type, None if all do."""
    last = first + len(wild_type) - 1
    for change in changes:
        if not first <= change.number <= last:
            return f"{change}: position {change.number} does not exist: the wild type has residues {first} to {last}"
        found = wild_type[change.number - first]
        if found != change.wild:
            return f"{change}: expected {change.wild} at position {change.number}, but the wild type has {found} there"
    return None


def _numbering(given: Sequence[tuple[str | None, str | None]], wild_type: str, first: int, option: str) -> str:
    """Says which number of the first residue would fit all rows, if another one does."""
    pairs: set[tuple[int, str]] = set()
    for number, (mutant, _) in enumerate(given):
        try:
            pairs |= {(change.number, change.wild) for change in _parse((mutant or "=").strip(), f"row {number}")}
        except UserError:  # what is wrong with that row is told when its turn comes
            continue
    numbers = [number for number, _ in pairs]
    fitting = [
        other
        for other in range(max(numbers) - len(wild_type) + 1, min(numbers) + 1)
        if all(wild_type[number - other] == wild for number, wild in pairs)
    ]
    best = min(fitting, key=lambda other: abs(other - first), default=first)
    if best == first:
        return "; no other numbering fits all rows: is it the right wild type?"
    if len(pairs) < 3 and abs(best - first) > 1:  # so few residues are somewhere in any protein
        return f": is it the right wild type, and its first residue number {first}?"
    return f"; all rows would fit if its first residue were number {best}: {option} {best}"


def _apply(changes: Sequence[_Change], wild_type: str, first: int, name: str, where: str) -> Variant:
    letters = list(wild_type)
    mutations = []
    for change in changes:
        at = change.number - first
        letters[at] = change.mutant
        if change.mutant != change.wild:
            if change.mutant in AMBIGUOUS:
                raise UserError(f"{where}: {change}: {change.mutant} {_vague(change.mutant)}")
            mutations.append(Mutation(at, change.wild, change.mutant))
    sequence = "".join(letters)
    _check_letters(sequence, where)
    return Variant(name or ":".join(map(str, changes)) or "WT", sequence, tuple(mutations))


def _check_letters(sequence: str, where: str) -> None:
    if not sequence:
        raise UserError(f"{where}: has no residues")
    bad = next((letter for letter in sequence if not "A" <= letter <= "Z"), None)
    if bad is not None:
        what = "is a stop" if bad == STOP else "is no residue"
        raise UserError(
            f"{where}: {bad!r} at {sequence.index(bad) + 1} {what}: leave the row out, or write letters only"
        )
