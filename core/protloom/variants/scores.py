"""What a network thinks of variants of a protein, without training: four scores, each 0 for the wild type.

Let x be the wild type, y a variant, M the positions where they differ, s_{-i} a sequence whose residue i is hidden,
alone, and log p(a | s_{-i}) what the network gives residue a there (:mod:`protloom.likelihood` says how it is hidden
and read):

- ``masked-marginals``: Σ_{i∈M} log p(y_i | x_{-i}) − log p(x_i | x_{-i}). One pass a position serves all variants.
- ``wt-marginals``: Σ_{i∈M} log p(y_i | x) − log p(x_i | x), nothing hidden. One pass. Masked-token models only.
- ``pll``: Σ_i log p(y_i | y_{-i}) − Σ_i log p(x_i | x_{-i}) over all positions of each: insertions and deletions
  have a score too. As many passes for each variant as it has residues.
- ``sentinel-pll``: the terms of ``pll`` at mutated positions, Σ_{i∈M} log p(y_i | y_{-i}) − log p(x_i | x_{-i}).
  Encoder-decoders only. As many passes for each variant as it has mutations. Equal to ``masked-marginals`` for one
  mutation; of several, each is judged beside the others, so that the score is no sum over mutations.

The first, second and third are those of Meier et al. 2021 ("Language models enable zero-shot prediction of the effects
of mutations on protein function"; its pseudolikelihood is here taken relative to the wild type's).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom.errors import UserError, did_you_mean
from protloom.inference import letter_ids
from protloom.likelihood import Place, Reader, can_hide, can_read
from protloom.variants import METHODS, Method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.variants import Mutation, Variant

Tell = Callable[[int, int], None]
"""Told of progress: (passes done, passes in all)."""


@dataclass(frozen=True)
class Scores:
    """Scores of variants.

    Attributes:
        values: ``[n]`` in nats, higher: more like what the network expects.
        method: how they were computed.
        passes: sequences that the network read.
        windows: ``[n]`` what the network saw of a protein that is longer than it sees at once, counted from 1:
            ``489-1512``, one for each mutation, joined by ``:``; empty where it saw the whole protein.
    """

    values: NDArray[np.float64]
    method: Method
    passes: int
    windows: Sequence[str]

    @property
    def windowed(self) -> int:
        """Number of variants for which the network saw a part of the protein only."""
        return sum(map(bool, self.windows))


def possible_methods(reader: Reader) -> tuple[Method, ...]:
    """Returns the methods that a model can serve."""
    hides, decodes = can_hide(reader.model, reader.tokenizer), not can_read(reader.model)
    able = {"masked-marginals": hides, "wt-marginals": not decodes, "pll": hides, "sentinel-pll": hides and decodes}
    return tuple(method for method in METHODS if able[method])


def known_method(name: str) -> Method:
    """Returns a method by its name; raises UserError naming the nearest if there is none."""
    if name not in METHODS:
        raise UserError(f"no method {name!r} to score variants.{did_you_mean(name, METHODS)}")
    return name


def check_method(name: str, reader: Reader) -> Method:
    """Returns a method by its name; raises UserError if there is none or the model cannot serve it."""
    method = known_method(name)
    able = possible_methods(reader)
    if method in able:
        return method
    if method == "wt-marginals":
        why = "an encoder-decoder says nothing about residues that its encoder sees"
    elif method == "sentinel-pll" and can_read(reader.model):
        why = "it has no decoder, so no sentinels"
    elif can_read(reader.model):
        why = f"tokenizer {reader.tokenizer.name!r} has no mask symbol to hide a residue behind"
    else:
        why = f"tokenizer {reader.tokenizer.name!r} has no sentinels to hide a residue behind"
    raise UserError(f"this model cannot do {method}: {why}; it can do: {', '.join(able) or 'none of the methods'}")


def score_variants(
    reader: Reader,
    wild_type: str,
    variants: Sequence[Variant],
    method: str = METHODS[0],
    *,
    tell: Tell | None = None,
    where: Callable[[int], str] | None = None,
) -> Scores:
    """Scores variants of one wild type.

    Args:
        reader: the network, what stands in front of a sequence, how many residues it sees at once, batch size.
        wild_type: residues as letters.
        variants: of :func:`protloom.variants.make_variants`.
        method: one of :data:`protloom.variants.METHODS`.
        tell: told of progress.
        where: says of a variant, counted from 0, in which row it stands, for messages; None: they give its name only.

    Raises:
        UserError: the model cannot serve the method, a variant has another length and the method compares position by
            position, a residue is not in the vocabulary, or a score is not finite.
    """
    chosen = check_method(method, reader)
    if not wild_type or not wild_type.isascii():
        raise UserError("the wild type is empty or not ASCII: give residues as letters")
    names = [f"{'variant' if where is None else f'{where(i)}:'} {v.name[:40]!r}" for i, v in enumerate(variants)]
    if chosen == "pll":
        sequences = (v.sequence for v in variants)
        _check_letters(reader, (("the wild type", wild_type), *zip(names, sequences, strict=True)))
        return _finite(_pll(reader, wild_type, variants, tell))
    for name, variant in zip(names, variants, strict=True):
        if variant.mutations is None:
            other = "; --method pll compares whole sequences" if "pll" in possible_methods(reader) else ""
            raise UserError(
                f"{name} has {len(variant.sequence)} residues, the wild type {len(wild_type)}: {chosen}"
                f" compares position by position{other}"
            )
    _check_letters(
        reader, ((n, m.wild + m.mutant) for n, v in zip(names, variants, strict=True) for m in v.mutations or ())
    )
    if chosen == "wt-marginals":
        return _finite(_wild_type_marginals(reader, wild_type, variants))
    return _finite(_hidden(reader, wild_type, variants, chosen, tell))


def _finite(scores: Scores) -> Scores:
    if not np.isfinite(scores.values).all():
        raise UserError("scores are not finite: the weights are damaged or have diverged")
    return scores


def _check_letters(reader: Reader, texts: Iterable[tuple[str, str]]) -> None:
    """Raises UserError if a letter that is asked for is not in the vocabulary: its probability would mean nothing."""
    known = {chr(byte) for byte in np.flatnonzero(reader.tokenizer.table != reader.tokenizer.unknown_id)}
    for what, letters in texts:
        strange = set(letters) - known
        if strange:
            raise UserError(f"{what} has {min(strange)!r}, which tokenizer {reader.tokenizer.name!r} does not know")


def _hidden(reader: Reader, wild_type: str, variants: Sequence[Variant], method: Method, tell: Tell | None) -> Scores:
    """Adds up log p of hidden residues: beside the wild type's others, or beside the variant's own."""
    # (other mutations, position) -> (variant, letter, sign): variants that share a place share its pass
    uses: dict[tuple[tuple[Mutation, ...], int], list[tuple[int, str, int]]] = defaultdict(list)
    for number, variant in enumerate(variants):
        mutations = variant.mutations or ()
        for mutation in mutations:
            others = tuple(m for m in mutations if m is not mutation) if method == "sentinel-pll" else ()
            uses[others, mutation.position].append((number, mutation.mutant, 1))
            uses[(), mutation.position].append((number, mutation.wild, -1))
    places = (Place(_with(wild_type, others), position) for others, position in uses)
    values = np.zeros(len(variants))
    for done, (row, asked) in enumerate(zip(reader.hidden(places), uses.values(), strict=True), start=1):
        for number, letter, sign in asked:
            values[number] += sign * float(row[reader.tokenizer.table[ord(letter)]])
        if tell is not None:
            tell(done, len(uses))
    windows = _windows(variants, len(wild_type), reader.hidden_window)
    return Scores(values, method, len(uses), windows)


def _windows(variants: Sequence[Variant], length: int, seen: Callable[[int, int], tuple[int, int]]) -> list[str]:
    found = []
    for variant in variants:
        spans = [seen(length, m.position) for m in variant.mutations or ()]
        whole = all(last - first == length for first, last in spans)
        found.append("" if whole else ":".join(f"{first + 1}-{last}" for first, last in spans))
    return found


def _with(wild_type: str, mutations: Iterable[Mutation]) -> str:
    letters = list(wild_type)
    for mutation in mutations:
        letters[mutation.position] = mutation.mutant
    return "".join(letters)


def _wild_type_marginals(reader: Reader, wild_type: str, variants: Sequence[Variant]) -> Scores:
    positions = sorted({m.position for variant in variants for m in variant.mutations or ()})
    table = reader.visible(wild_type, positions)  # [positions, V]
    row = {position: i for i, position in enumerate(positions)}
    ids = reader.tokenizer.table
    values = np.array(
        [
            sum(
                float(table[row[m.position], ids[ord(m.mutant)]] - table[row[m.position], ids[ord(m.wild)]]) for m in of
            )
            for of in (variant.mutations or () for variant in variants)
        ],
        dtype=np.float64,
    )
    passes = len({reader.visible_window(len(wild_type), position) for position in positions})
    return Scores(values, "wt-marginals", passes, _windows(variants, len(wild_type), reader.visible_window))


def _pll(reader: Reader, wild_type: str, variants: Sequence[Variant], tell: Tell | None) -> Scores:
    distinct = list(dict.fromkeys([wild_type, *(variant.sequence for variant in variants)]))
    passes, done = sum(map(len, distinct)), 0
    rows = reader.hidden(Place(sequence, i) for sequence in distinct for i in range(len(sequence)))
    total = dict.fromkeys(distinct, 0.0)
    for sequence in distinct:
        for letter in letter_ids(reader.tokenizer, sequence).tolist():
            total[sequence] += float(next(rows)[letter])
        done += len(sequence)
        if tell is not None:
            tell(done, passes)
    values = np.array([total[variant.sequence] - total[wild_type] for variant in variants], dtype=np.float64)
    most = reader.max_length or max(map(len, distinct))
    windows = [f"{most} round each residue" if max(len(v.sequence), len(wild_type)) > most else "" for v in variants]
    return Scores(values, "pll", passes, windows)
