"""The energy of a sequence on a fold: one field a site and one coupling a pair of neighbours (a Potts model).

    S(s) = Σ_i h_i(s_i) + Σ_(i,j) J_k(i,j)(s_i, s_j),    P(s) ∝ exp(S(s) / 100)

Scores S are whole numbers in hundredths of kT ("centi-kT"; higher is better, the energy is -S), so that sampling and
the stability of a sequence come out the same on every machine. The couplings have the shape of Miyazawa and Jernigan's
contact energies (1996), with numbers of this project's own making.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from protloom.rng import CounterRNG, below
from protloom_tasks.simulated import folds
from protloom_tasks.simulated.tables import (
    BACKGROUND,
    CHARGE,
    COIL,
    FIRST_TURN,
    HELIX,
    HYDROPHOBIC,
    LAST_TURN,
    SIZE,
    STRAND,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


BURIAL_WEIGHT = 250
"""Centi-kT by which the most buried site prefers the most hydrophobic residue."""
NONE, TOUCH, TURN, STEP, LADDER = range(5)
"""Kinds of pair: padding, touching side chains, a turn apart in a helix, two apart in a strand, across a sheet."""
LADDER_DISTANCE = 560
MOST_NEIGHBOURS = 12


@dataclass(frozen=True)
class Quirk:
    """What one lineage adds to the fields, by column of the fold's alignment.

    Attributes:
        rng: stream of the lineage.
        spread: largest random preference for a residue at a site, centi-kT.
        conserved: one site in this many is held to one residue; 0: none.
        strength: how much, centi-kT.
    """

    rng: CounterRNG
    spread: int
    conserved: int = 0
    strength: int = 0


@dataclass(frozen=True)
class Landscape:
    """Fields and couplings of several templates, their sites end to end.

    Attributes:
        offsets: ``[F + 1]`` int64 where each template's sites begin.
        physical: ``[P, 20]`` int16 fields of structure alone; they and the couplings make the stability.
        fields: ``[P, 20]`` int16 all fields: ``physical``, the background composition and the lineages' quirks.
        neighbours: ``[P, K]`` int32 displacement ``j - i`` to each neighbour of a site; 0 is padding.
        kinds: ``[P, K]`` uint8 kind of each pair, ``NONE`` for padding.
        colours: ``[P]`` uint8; sites of one colour are no neighbours, so they can be drawn at once.
        couplings: ``[5, 20, 20]`` int16 by kind of pair, symmetric.
    """

    offsets: NDArray[np.int64]
    physical: NDArray[np.int16]
    fields: NDArray[np.int16]
    neighbours: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    couplings: NDArray[np.int16]

    def length(self, template: int) -> int:
        """Returns the number of sites of a template."""
        return int(self.offsets[template + 1] - self.offsets[template])

    def score(self, codes: NDArray[np.uint8], templates: NDArray[np.integer]) -> NDArray[np.int64]:
        """Returns ``[n]`` the physical score of packed sequences, centi-kT.

        Args:
            codes: ``[T]`` residues as places in ``AMINO_ACIDS``, sequences end to end.
            templates: ``[n]`` the template of each; its length is the sequence's.
        """
        lengths = np.diff(self.offsets)[templates]
        cu = np.concatenate([[0], np.cumsum(lengths)])
        sites = np.repeat(self.offsets[templates] - cu[:-1], lengths) + np.arange(cu[-1])
        total = self.physical[sites, codes].astype(np.int64) * 2
        place = np.arange(len(codes))
        for k in range(self.neighbours.shape[1]):
            other = codes[place + self.neighbours[sites, k]]
            total += self.couplings[self.kinds[sites, k], other, codes]  # each pair is met from both ends
        return cast("NDArray[np.int64]", np.add.reduceat(total, cu[:-1]) // 2) if len(codes) else total

    def substitutions(self, codes: NDArray[np.uint8], template: int) -> NDArray[np.int64]:
        """Returns ``[L, 20]`` the change of the physical score by every single substitution, centi-kT."""
        sites = slice(int(self.offsets[template]), int(self.offsets[template + 1]))
        scores = self.physical[sites].astype(np.int64)
        place = np.arange(len(codes))
        for k in range(self.neighbours.shape[1]):
            scores += self.couplings[self.kinds[sites, k], codes[place + self.neighbours[sites, k]]]
        return cast("NDArray[np.int64]", scores - scores[place, codes][:, None])


def couplings() -> NDArray[np.int16]:
    """Returns ``[5, 20, 20]`` pair scores by kind, without any mean preference of a residue (that is the fields' part).

    They are the physics of every proteome, whatever its seed. Like meets like in hydrophobicity, opposite charges meet,
    large meets small; a fixed random part gives each pair of residues a preference of its own.
    """
    h, q, v = HYDROPHOBIC, CHARGE, SIZE
    rng = CounterRNG(0, "couplings")
    tables = np.zeros((5, 20, 20), dtype=np.int64)
    hydrophobic, charge = h[:, None] * h[None], q[:, None] * q[None]
    bulk = -np.abs(v[:, None] + v[None] - 10)
    # weights of hydrophobicity, charge and bulk, and the spread of the random part
    weights = {TOUCH: (35, 80, 4, 45), TURN: (30, 70, 1, 60), STEP: (20, 40, 1, 70), LADDER: (70, 140, 8, 130)}
    for kind, (a, b, c, noise) in weights.items():
        own = below(rng.at(kind, np.arange(20)[:, None], np.arange(20)[None]), 2 * noise + 1) - noise
        raw = a * hydrophobic // 10000 - b * charge + c * bulk + np.triu(own) + np.triu(own, 1).T
        raw[1, 1] += 60  # two cysteines
        rows = raw.sum(1)
        tables[kind] = raw - rows[:, None] // 20 - rows[None] // 20 + rows.sum() // 400
    return tables.astype(np.int16)


def landscape(structures: Sequence[folds.Structure], quirks: Sequence[Sequence[Quirk]]) -> Landscape:
    """Makes the fields and couplings of chains laid in space; ``quirks[t]`` are the lineages that template t is of."""
    parts = [_template(s, q) for s, q in zip(structures, quirks, strict=True)]
    lengths = [len(s.ss3) for s in structures]
    physical, fields, neighbours, kinds, colours = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Landscape(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        physical=physical,
        fields=fields,
        neighbours=neighbours,
        kinds=kinds,
        colours=colours,
        couplings=couplings(),
    )


def _template(structure: folds.Structure, quirks: Sequence[Quirk]) -> tuple[NDArray[np.generic], ...]:
    """Returns the physical fields, all fields, neighbours, kinds and colours of one chain."""
    physical = _physical(structure)
    fields = physical + BACKGROUND
    for quirk in quirks:
        fields = fields + _quirk(structure.column, quirk)
    neighbours, kinds = _pairs(structure)
    return physical.astype(np.int16), fields.astype(np.int16), neighbours, kinds, _colour(neighbours)


def _physical(structure: folds.Structure) -> NDArray[np.int64]:
    """Returns ``[L, 20]`` what secondary structure and burial prefer."""
    ss3 = structure.ss3
    fields = np.zeros((len(ss3), 20), dtype=np.int64)
    for letter, table in ((b"H", HELIX), (b"E", STRAND), (b"C", COIL)):
        fields[ss3 == letter[0]] += table
    helix = np.concatenate([[False], ss3 == ord("H"), [False]])
    begins = np.nonzero(helix[1:-1] & ~helix[:-2])[0]
    ends = np.nonzero(helix[1:-1] & ~helix[2:])[0]
    fields[begins] += FIRST_TURN
    fields[ends] += LAST_TURN
    # ranks, not counts: small folds have a core too
    order = np.argsort(structure.exposure(), kind="stable")
    burial = np.empty(len(ss3), dtype=np.int64)
    burial[order] = np.arange(len(ss3)) * 200 // max(1, len(ss3) - 1) - 100  # -100 outermost … 100 innermost
    # most sites are clearly in or out: that is what draws the pattern of helices and strands
    burial = np.clip(burial * 8 // 5, -100, 100)
    fields += burial[:, None] * HYDROPHOBIC[None] * BURIAL_WEIGHT // 10000
    return fields


def _quirk(column: NDArray[np.int32], quirk: Quirk) -> NDArray[np.int64]:
    """Returns ``[L, 20]`` a lineage's own preferences."""
    spread = quirk.rng.stream("spread")
    a, b = (spread.at(k, column[:, None], np.arange(20)[None]) for k in range(2))
    fields = (below(a, quirk.spread + 1) - below(b, quirk.spread + 1)) if quirk.spread else np.zeros(a.shape, np.int64)
    if quirk.conserved:
        chosen = below(quirk.rng.stream("conserved").at(column), quirk.conserved) == 0
        residue = below(quirk.rng.stream("residue").at(column), 20)
        fields[np.nonzero(chosen)[0], residue[chosen]] += quirk.strength
    return fields


def _pairs(structure: folds.Structure) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Returns ``[L, K]`` neighbours as displacements and the kinds of the pairs; the closest pairs come first."""
    ss3, far2 = structure.ss3, structure.distances2()
    n = len(ss3)
    neighbours = np.zeros((n, MOST_NEIGHBOURS), dtype=np.int32)
    kinds = np.zeros((n, MOST_NEIGHBOURS), dtype=np.uint8)
    used = [0] * n
    i, j = np.nonzero(np.triu(far2 < folds.CONTACT * folds.CONTACT, 2))
    for p in np.lexsort((j, i, far2[i, j])):
        a, b = int(i[p]), int(j[p])
        if used[a] == MOST_NEIGHBOURS or used[b] == MOST_NEIGHBOURS:
            continue
        kind = _kind(chr(ss3[a]) + chr(ss3[b]), b - a, int(far2[a, b]))
        if kind == NONE:
            continue
        for x, y in ((a, b), (b, a)):
            neighbours[x, used[x]], kinds[x, used[x]] = y - x, kind
            used[x] += 1
    return neighbours, kinds


def _kind(letters: str, apart: int, far2: int) -> int:
    """Returns the kind of a pair that is close in space, from its secondary structure and its place in the chain."""
    if apart == 2:
        return STEP if letters == "EE" else NONE
    if letters == "HH" and apart <= 4:
        return TURN
    return LADDER if letters == "EE" and far2 < LADDER_DISTANCE**2 else TOUCH


def _colour(neighbours: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Colours sites so that neighbours differ: the first free colour in chain order."""
    colours: list[int] = []
    for i, row in enumerate(neighbours.tolist()):
        taken = {colours[i + d] for d in row if d < 0}
        colours.append(next(c for c in range(len(taken) + 1) if c not in taken))
    return np.array(colours, dtype=np.uint8)
