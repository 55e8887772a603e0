"""Evolution along trees: sites are drawn anew from their conditional distribution, all lineages at once.

A lineage keeps most of its parent's residues. Each site is visited with a probability that is the branch's length, and
a visited site takes a residue drawn given all its neighbours (Gibbs sampling: Geman and Geman 1984), so selection for
the fold acts on every branch and touching sites change together. Trees have the shapes of the Yule process. Every draw
is a hash of (seed, node, site), and Boltzmann weights are whole numbers, so the outcome is the same on every machine.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from protloom.rng import CounterRNG, threshold
from protloom_tasks.simulated.folds import pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from protloom_tasks.simulated.energy import Landscape

_CHUNK = 8192
_DEPTH = 1500
"""Scores this far below the best (15 kT) are as good as impossible."""


@dataclass(frozen=True)
class Level:
    """The nodes of all trees at one distance from their roots.

    Attributes:
        parent: ``[m]`` row of each node's parent in the level before (level 0: the family).
        family: ``[m]`` the family.
        branch: ``[m]`` probability that a site is visited, in millionths.
        leaf: ``[m]`` number of the member that the node is within its family, or -1.
    """

    parent: NDArray[np.int64]
    family: NDArray[np.int64]
    branch: NDArray[np.int64]
    leaf: NDArray[np.int64]


@cache
def boltzmann() -> NDArray[np.int64]:
    """Returns ``[1501]`` 2²⁴·exp(-d/100) rounded, by correctly rounded decimal arithmetic."""
    with decimal.localcontext() as context:
        context.prec = 30
        return np.array(
            [int((decimal.Decimal(-d) / 100).exp() * 2**24 + decimal.Decimal("0.5")) for d in range(_DEPTH + 1)],
            dtype=np.int64,
        )


def resample(
    landscape: Landscape,
    codes: NDArray[np.uint8],
    sites: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    bits: NDArray[np.uint64],
) -> None:
    """Draws the chosen residues anew, in place, given their neighbours.

    Args:
        landscape: fields and couplings.
        codes: ``[T]`` residues of packed sequences.
        sites: ``[T]`` the landscape's site of each.
        chosen: ``[T]`` which to draw.
        bits: ``[T]`` the randomness of each.
    """
    events = np.nonzero(chosen)[0]
    colours = landscape.colours[sites[events]]
    order = np.argsort(colours, kind="stable")
    bounds = np.searchsorted(colours[order], np.arange(int(colours.max(initial=0)) + 2))
    table = landscape.couplings.reshape(-1, 20)
    weights = boltzmann()
    for begin, end in pairwise(bounds.tolist()):
        for first in range(begin, end, _CHUNK):
            where = events[order[first : min(first + _CHUNK, end)]]
            site = sites[where]
            score = landscape.fields[site].astype(np.int32)  # [e, 20]
            for k in range(landscape.neighbours.shape[1]):
                kind = landscape.kinds[site, k]
                if not kind.any():
                    break  # neighbours are packed to the front
                score += table[kind.astype(np.int64) * 20 + codes[where + landscape.neighbours[site, k]]]
            below_best = score.max(1, keepdims=True) - score
            ladder = np.cumsum(weights[np.minimum(below_best, _DEPTH)], axis=1)
            draw = ((bits[where] >> np.uint64(32)) * ladder[:, -1].astype(np.uint64)) >> np.uint64(32)
            codes[where] = (ladder <= draw.astype(np.int64)[:, None]).sum(1)


def sites_of(landscape: Landscape, templates: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the packed offsets ``[n + 1]`` of sequences of these templates and the site ``[T]`` of each residue."""
    lengths = np.diff(landscape.offsets)[templates]
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return cu, np.repeat(landscape.offsets[templates] - cu[:-1], lengths) + np.arange(cu[-1])


def equilibrate(landscape: Landscape, templates: NDArray[np.int64], sweeps: int, rng: CounterRNG) -> NDArray[np.uint8]:
    """Returns one sequence a template: random residues after ``sweeps`` visits of every site.

    Args:
        landscape: fields and couplings.
        templates: ``[n]`` the template of each sequence.
        sweeps: visits of every site.
        rng: the randomness.
    """
    cu, sites = sites_of(landscape, templates)
    keys = rng.at(np.arange(len(templates)))
    codes = (rng.stream("start").positions(keys, cu) % np.uint64(20)).astype(np.uint8)
    everywhere = np.ones(len(codes), dtype=np.bool_)
    for sweep in range(sweeps):
        resample(landscape, codes, sites, everywhere, rng.stream("sweep", sweep).positions(keys, cu))
    return codes


def trees(sizes: Sequence[int], branch: tuple[int, int], rng: CounterRNG) -> list[Level]:
    """Draws one tree a family, of the Yule process: each split leaves 1 … n - 1 of n leaves on one side, all as likely.

    Args:
        sizes: leaves of each family, at least 1.
        branch: shortest and longest branch, in millionths of a visit a site.
        rng: the randomness.
    """
    levels = []
    # (parent row, family, leaves, first leaf, hash key of the node)
    nodes = [(f, f, n, 0, 1) for f, n in enumerate(sizes)]
    while nodes:
        branches = [pick(rng, *branch, 0, f, key) for _, f, _, _, key in nodes]
        leaf = [first if n == 1 else -1 for _, _, n, first, _ in nodes]
        parents, families = [x[0] for x in nodes], [x[1] for x in nodes]
        levels.append(Level(*(np.array(x, dtype=np.int64) for x in (parents, families, branches, leaf))))
        children = []
        for row, (_, f, n, first, key) in enumerate(nodes):
            if n > 1:
                left = pick(rng, 1, n - 1, 1, f, key)
                a, b = rng.draw(2, key, 0), rng.draw(2, key, 1)
                children += [(row, f, left, first, a), (row, f, n - left, first + left, b)]
        nodes = children
    return levels


def grow(
    landscape: Landscape,
    roots: NDArray[np.uint8],
    templates: NDArray[np.int64],
    levels: Sequence[Level],
    rng: CounterRNG,
) -> list[tuple[Level, NDArray[np.int64], NDArray[np.uint8]]]:
    """Evolves families from their roots along their trees.

    Args:
        landscape: fields and couplings.
        roots: ``[T]`` the families' root sequences, packed.
        templates: ``[F]`` the template of each family.
        levels: the trees, from :func:`trees`.
        rng: the randomness.

    Returns:
        For each level its nodes, their packed offsets and their sequences.
    """
    cu, _ = sites_of(landscape, templates)
    codes, grown = roots, []
    for depth, level in enumerate(levels):
        parent_cu, parent_codes = cu, codes
        cu, sites = sites_of(landscape, templates[level.family])
        lengths = np.diff(cu)
        codes = parent_codes[np.repeat(parent_cu[level.parent] - cu[:-1], lengths) + np.arange(cu[-1])]
        keys = rng.at(depth, level.family, np.arange(len(level.family)))
        visited = rng.stream("visit").positions(keys, cu) < np.repeat(threshold(level.branch / 1e6), lengths)
        resample(landscape, codes, sites, visited, rng.stream("draw").positions(keys, cu))
        grown.append((level, cu, codes))
    return grown
