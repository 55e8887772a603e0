"""The simulated proteome: sequences together with everything that is true of them.

Folds hold superfamilies, superfamilies hold families, families hold members; see ``docs/simulated_proteome.md``.
Everything is a pure function of (``VERSION``, n, seed), in whole numbers, and so the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protloom.rng import CounterRNG, threshold
from protloom_tasks.simulated import VERSION, energy, evolution, folds
from protloom_tasks.simulated.energy import Landscape, Quirk
from protloom_tasks.simulated.tables import LETTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")
MEMBERS_PER_FOLD = 500
SUPERFAMILIES_PER_FOLD = 3
FAMILIES_PER_SUPERFAMILY = 4
ROOT_SWEEPS = 12
FAMILY_BRANCH = 650_000
"""Probability, in millionths, that a site is visited between the roots of a superfamily and of a family."""
BRANCH = (30_000, 200_000)
"""The same for the shortest and the longest branch of a family's tree."""
SUPERFAMILY_SPREAD, FAMILY_SPREAD = 35, 30
CONSERVED_ONE_IN, CONSERVED_STRENGTH = 12, 350


@dataclass(frozen=True)
class Proteome:
    """SIMULATED proteins and their truths; T residues, n sequences, F families, P sites of all families together.

    Attributes:
        seed: what it was drawn with.
        residues: ``[T]`` uint8 ASCII.
        ss: ``[T]`` uint8 ASCII ``H``, ``E`` or ``C``.
        offsets: ``[n + 1]`` int64 where sequences begin and end.
        fold: ``[n]`` int32 number of the fold.
        superfamily: ``[n]`` int32 number of the superfamily, counted through all folds.
        family: ``[n]`` int32 number of the family, counted through all superfamilies.
        member: ``[n]`` int32 number within the family.
        part: ``[n]`` uint8 place in ``SPLITS``; whole superfamilies, so no two parts share one.
        energy: ``[n]`` int32 structural energy, hundredths of kT; low is stable.
        stability: ``[n]`` float32 -energy a residue, standardised over the proteome; free of noise.
        contact_pairs: ``[K, 2]`` int32 contacts i < j of all families (Cβ < 8 Å, j - i >= 6).
        contact_offsets: ``[F + 1]`` int64 where each family's contacts begin.
        columns: ``[P]`` int32 place of each site in its fold's alignment; equal columns correspond within a fold.
        landscape: fields and couplings; template f is family f.
    """

    seed: int
    residues: NDArray[np.uint8]
    ss: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    fold: NDArray[np.int32]
    superfamily: NDArray[np.int32]
    family: NDArray[np.int32]
    member: NDArray[np.int32]
    part: NDArray[np.uint8]
    energy: NDArray[np.int32]
    stability: NDArray[np.float32]
    contact_pairs: NDArray[np.int32]
    contact_offsets: NDArray[np.int64]
    columns: NDArray[np.int32]
    landscape: Landscape

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def id(self, i: int) -> str:
        """Returns the name of sequence i, such as ``SIM|F012.S2.f3|0007``: fold, superfamily, family and member."""
        superfamily, family = int(self.superfamily[i]), int(self.family[i])
        # numbers within the level above, as classifications of domains write them
        first_s = int(self.superfamily[np.searchsorted(self.fold, self.fold[i])])
        first_f = int(self.family[np.searchsorted(self.superfamily, superfamily)])
        return f"SIM|F{self.fold[i]:03d}.S{superfamily - first_s}.f{family - first_f}|{self.member[i]:04d}"

    def length(self, i: int) -> int:
        """Returns the number of residues of sequence i."""
        return int(self.offsets[i + 1] - self.offsets[i])

    def sequence(self, i: int) -> str:
        """Returns the residues of sequence i."""
        return self.residues[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def ss3(self, i: int) -> str:
        """Returns the secondary structure of sequence i, a letter ``H``, ``E`` or ``C`` a residue."""
        return self.ss[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def contacts(self, i: int) -> NDArray[np.int32]:
        """Returns ``[k, 2]`` the contacts (a, b) of sequence i: a < b, counted from 0, b - a >= 6."""
        f = int(self.family[i])
        return self.contact_pairs[self.contact_offsets[f] : self.contact_offsets[f + 1]]

    def alignment(self, i: int) -> NDArray[np.int32]:
        """Returns ``[L]`` the column of each residue of sequence i in its fold's alignment."""
        f = int(self.family[i])
        return self.columns[self.landscape.offsets[f] : self.landscape.offsets[f + 1]]

    def split(self, i: int) -> str:
        """Returns ``train``, ``valid`` or ``test`` for sequence i."""
        return SPLITS[int(self.part[i])]

    def indices(self, split: str) -> NDArray[np.int64]:
        """Returns the numbers of the sequences of a split, in ascending order."""
        return np.nonzero(self.part == SPLITS.index(split))[0]

    def mutation_effects(self, i: int) -> NDArray[np.int64]:
        """Returns ``[L, 20]`` the change of the energy of sequence i by each single substitution, hundredths of kT.

        Columns follow ``protloom_tasks.simulated.tables.AMINO_ACIDS``; positive is destabilising.
        """
        codes = encode(self.residues[self.offsets[i] : self.offsets[i + 1]])
        return -self.landscape.substitutions(codes, int(self.family[i]))


def encode(residues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns ASCII residues as places in ``AMINO_ACIDS``."""
    return np.searchsorted(LETTERS, residues).astype(np.uint8)


def simulate(n: int = 20_000, seed: int = 0) -> Proteome:
    """Simulates ``n`` sequences; the same (n, seed) gives the same bytes everywhere.

    Args:
        n: sequences, at least 1.
        seed: any whole number.

    Raises:
        ValueError: where ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"a proteome needs n >= 1 sequences, not {n}")
    rng = CounterRNG(seed, "simulated proteome", VERSION)
    plan = _Plan.draw(n, rng.stream("plan"))
    land, structures, roots = _roots(plan, rng)
    families = len(plan.sizes)
    levels = evolution.trees(plan.sizes, BRANCH, rng.stream("trees"))
    grown = evolution.grow(land, roots, np.arange(families), levels, rng.stream("evolution"))

    member_family = np.repeat(np.arange(families), plan.sizes)
    cu, sites = evolution.sites_of(land, member_family)
    codes = np.empty(int(cu[-1]), dtype=np.uint8)
    first = np.concatenate([[0], np.cumsum(plan.sizes)])
    for level, level_cu, level_codes in grown:
        rows = np.nonzero(level.leaf >= 0)[0]
        targets = first[level.family[rows]] + level.leaf[rows]
        for row, target in zip(rows, targets, strict=True):
            codes[cu[target] : cu[target + 1]] = level_codes[level_cu[row] : level_cu[row + 1]]

    score = land.score(codes, member_family)
    superfamily = np.array(plan.superfamily)[member_family]
    contacts = [s.contacts() for s in structures]
    return Proteome(
        seed=seed,
        residues=LETTERS[codes],
        ss=np.concatenate([s.ss3 for s in structures])[sites],
        offsets=cu,
        fold=np.array(plan.fold, dtype=np.int32)[superfamily],
        superfamily=superfamily.astype(np.int32),
        family=member_family.astype(np.int32),
        member=(np.arange(n) - first[member_family]).astype(np.int32),
        part=_parts(len(plan.fold), rng.stream("split"))[superfamily],
        energy=(-score).astype(np.int32),
        stability=_standardised(score, np.diff(cu)),
        contact_pairs=np.concatenate(contacts),
        contact_offsets=np.concatenate([[0], np.cumsum([len(c) for c in contacts])]).astype(np.int64),
        columns=np.concatenate([s.column for s in structures]),
        landscape=land,
    )


@dataclass(frozen=True)
class _Plan:
    """How many of what: the fold of each superfamily, the superfamily of each family, the members of each family."""

    fold: Sequence[int]
    superfamily: Sequence[int]
    sizes: Sequence[int]

    @classmethod
    def draw(cls, n: int, rng: CounterRNG) -> _Plan:
        """Draws a hierarchy with n members; small proteomes have fewer folds and smaller families."""
        n_folds = max(n // MEMBERS_PER_FOLD, min(4, -(-n // 24)))
        fold = [f for f in range(n_folds) for _ in range(SUPERFAMILIES_PER_FOLD)]
        most = max(1, min(2 * FAMILIES_PER_SUPERFAMILY - 2, n // (8 * len(fold))))
        counts = [folds.pick(rng, min(2, most), most, 0, s) for s in range(len(fold))]
        superfamily = [s for s, count in enumerate(counts) for _ in range(count)]
        # shares between 1 and 3, then largest remainders
        shares = [folds.pick(rng, 1000, 3000, 1, f) for f in range(len(superfamily))]
        exact = [n * share for share in shares]
        total = sum(shares)
        sizes = [x // total for x in exact]
        by_rest = sorted(range(len(sizes)), key=lambda f: (-(exact[f] % total), f))
        for f in by_rest[: n - sum(sizes)]:
            sizes[f] += 1
        kept = [f for f, size in enumerate(sizes) if size]
        return cls(fold, [superfamily[f] for f in kept], [sizes[f] for f in kept])


def _roots(plan: _Plan, rng: CounterRNG) -> tuple[Landscape, list[folds.Structure], NDArray[np.uint8]]:
    """Returns the families' landscape and structures, and their ``[P]`` root sequences."""
    # classes in turn, so that a proteome of few folds has them all
    classes = [folds.CLASSES[f % len(folds.CLASSES)] for f in range(max(plan.fold) + 1)]
    blueprints = [folds.blueprint(name, rng.stream("fold", f)) for f, name in enumerate(classes)]
    ancestors = [folds.vary(blueprints[f], rng.stream("superfamily", s), reach=2) for s, f in enumerate(plan.fold)]
    quirks = [
        Quirk(rng.stream("superfamily quirk", s), SUPERFAMILY_SPREAD, CONSERVED_ONE_IN, CONSERVED_STRENGTH)
        for s in range(len(ancestors))
    ]
    old = [folds.build(a) for a in ancestors]
    old_land = energy.landscape(old, [[q] for q in quirks])
    old_codes = evolution.equilibrate(old_land, np.arange(len(old)), ROOT_SWEEPS, rng.stream("superfamily roots"))

    new = [
        folds.build(folds.vary(ancestors[s], rng.stream("family", f), reach=1)) for f, s in enumerate(plan.superfamily)
    ]
    own = [[quirks[s], Quirk(rng.stream("family quirk", f), FAMILY_SPREAD)] for f, s in enumerate(plan.superfamily)]
    land = energy.landscape(new, own)
    inherited = []
    for structure, s in zip(new, plan.superfamily, strict=True):
        where = {int(c): p for p, c in enumerate(old[s].column, start=int(old_land.offsets[s]))}
        inherited.append([where.get(c, -1) for c in structure.column.tolist()])
    source = np.concatenate([np.array(x, dtype=np.int64) for x in inherited])
    return land, new, _divide(land, old_codes, source, rng.stream("family roots"))


def _divide(land: Landscape, old: NDArray[np.uint8], source: NDArray[np.int64], rng: CounterRNG) -> NDArray[np.uint8]:
    """Returns the families' ``[P]`` roots: residues of ``old`` at ``source``, evolved; -1 marks an insertion."""
    families = np.arange(len(land.offsets) - 1)
    keys = rng.at(families)
    fresh = (rng.stream("inserted").positions(keys, land.offsets) % np.uint64(20)).astype(np.uint8)
    codes = np.where(source >= 0, old[source], fresh)
    # an inserted residue has no history to keep: it is always drawn
    visited = (rng.stream("visit").positions(keys, land.offsets) < threshold(FAMILY_BRANCH / 1e6)) | (source < 0)
    sites = np.arange(len(codes))
    evolution.resample(land, codes, sites, visited, rng.stream("draw").positions(keys, land.offsets))
    return codes


def _parts(superfamilies: int, rng: CounterRNG) -> NDArray[np.uint8]:
    """Returns ``[S]`` the split of each superfamily: a fifth tests, a tenth validates, at least one each of three."""
    order = np.argsort(rng.at(np.arange(superfamilies)), kind="stable")
    part = np.zeros(superfamilies, dtype=np.uint8)
    test = max(1, superfamilies // 5) if superfamilies > 1 else 0
    valid = max(1, superfamilies // 10) if superfamilies > 2 else 0
    part[order[:test]] = 2
    part[order[test : test + valid]] = 1
    return part


def _standardised(score: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns scores a residue with mean 0 and standard deviation 1, of sums of whole numbers."""
    each = score * 1000 // lengths
    n, total = len(each), int(each.sum())
    centred = n * each.astype(object) - total  # n times the deviation, exact
    variance = sum(int(c) * int(c) for c in centred) / n**3 if n else 0.0
    return np.array([int(c) / n / (variance**0.5 or 1.0) for c in centred], dtype=np.float32)
