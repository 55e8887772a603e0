"""Random compact folds: secondary-structure elements as parallel sticks in layers, joined by loops.

Taylor (2002, Nature 416, 657, "A 'periodic table' for protein structures") describes globular domains as layers of
packed sticks: strands 4.8 Å apart inside a sheet, helices 10 Å apart, layers 10 Å apart. A :class:`Blueprint` is one
random arrangement of that kind, and :func:`build` turns it into coordinates, contacts and burial.

All coordinates are integers in hundredths of an ångström, so that every machine finds the same contacts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.rng import CounterRNG

STRAND_GAP, LAYER_GAP, HELIX_GAP = 480, 1000, 1000
STRAND_RISE, HELIX_RISE = 330, 150
HELIX_RADIUS, HELIX_CB_RADIUS = 230, 330
STRAND_CA_OUT, STRAND_CB_OUT = 90, 240
CONTACT = 800
"""Two residues touch where their Cβ are closer than this (8 Å)."""
CONTACT_SEPARATION = 6
"""Smallest ``|i - j|`` that counts as a contact of the truth."""
EXPOSURE_RADIUS = 1300
COLUMNS_PER_SEGMENT = 64
CLASSES = ("alpha/beta", "beta", "alpha", "alpha+beta")
# 1000·cos and 1000·sin of multiples of 20 degrees: 18 residues make five turns of 100 degrees each
_COS = (1000, 940, 766, 500, 174, -174, -500, -766, -940, -1000, -940, -766, -500, -174, 174, 500, 766, 940)
_SIN = (0, 342, 643, 866, 985, 985, 866, 643, 342, 0, -342, -643, -866, -985, -985, -866, -643, -342)


@dataclass(frozen=True)
class Element:
    """One helix or strand: a stick parallel to z.

    Attributes:
        kind: ``"H"`` or ``"E"``.
        x: place inside the layer, 0.01 Å.
        y: height of the layer, 0.01 Å.
        up: whether the chain runs towards +z.
        start: z of the first residue, 0.01 Å; strands of a sheet share a grid of 3.3 Å, which sets their register.
        phase: turns a helix about its axis, in steps of 20 degrees.
        length: residues.
    """

    kind: str
    x: int
    y: int
    up: bool
    start: int
    phase: int
    length: int


@dataclass(frozen=True)
class Blueprint:
    """A fold: its elements in chain order and the loops before, between and after them.

    Attributes:
        elements: helices and strands.
        loops: residues of each loop; one more than there are elements.
        name: the class it was drawn from.
    """

    elements: tuple[Element, ...]
    loops: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Structure:
    """A chain of L residues laid in space.

    Attributes:
        ss3: ``[L]`` uint8 ASCII ``H``, ``E`` or ``C``.
        column: ``[L]`` int32 place in the fold's own alignment: equal columns correspond, in any two chains of a fold.
        ca: ``[L, 3]`` int64 Cα, 0.01 Å.
        cb: ``[L, 3]`` int64 Cβ, 0.01 Å.
    """

    ss3: NDArray[np.uint8]
    column: NDArray[np.int32]
    ca: NDArray[np.int64]
    cb: NDArray[np.int64]

    def distances2(self) -> NDArray[np.int64]:
        """Returns ``[L, L]`` squared Cβ distances in (0.01 Å)²."""
        apart = self.cb[:, None] - self.cb[None]
        return (apart * apart).sum(-1)

    def contacts(self) -> NDArray[np.int32]:
        """Returns ``[k, 2]`` pairs i < j with Cβ closer than 8 Å and ``j - i >= 6``, in ascending order."""
        i, j = np.nonzero(self.distances2() < CONTACT * CONTACT)
        keep = j - i >= CONTACT_SEPARATION
        return np.stack([i[keep], j[keep]], axis=1).astype(np.int32)

    def exposure(self) -> NDArray[np.int64]:
        """Returns ``[L]`` the number of Cα within 13 Å on the side chain's side.

        That is the upper half-sphere exposure of Hamelryck (2005, Proteins 59, 38): high means buried.
        """
        apart = self.ca[None] - self.ca[:, None]  # [L, L, 3] from i to j
        near = (apart * apart).sum(-1) < EXPOSURE_RADIUS * EXPOSURE_RADIUS
        ahead = (apart * (self.cb - self.ca)[:, None]).sum(-1) > 0
        return (near & ahead).sum(1)


def pick(rng: CounterRNG, low: int, high: int, *counters: int) -> int:
    """Returns a whole number in [low, high] that depends on the stream and the counters alone."""
    return low + rng.draw(*counters) % (high - low + 1)


def blueprint(name: str, rng: CounterRNG) -> Blueprint:
    """Draws a fold of a class in ``CLASSES``: its elements and where each stands."""
    kinds = _kinds(name, rng.stream("kinds"))
    slots = _slots(kinds, name, rng.stream("layers"))
    places = _places(kinds, slots, rng.stream("places"))
    elements = []
    for k, (kind, (x, y)) in enumerate(zip(kinds, places, strict=True)):
        length = pick(rng, 9, 16, 1, k) if kind == "H" else pick(rng, 5, 10, 1, k)
        rise = HELIX_RISE if kind == "H" else STRAND_RISE
        # centred on the layer; strands stay on the common grid, which sets which residues pair
        start = -(length // 2) * rise + (pick(rng, -1, 1, 2, k) * rise if kind == "E" else pick(rng, -200, 200, 2, k))
        up = k % 2 == 0
        elements.append(Element(kind, x, y, up, start if up else -start, pick(rng, 0, 17, 3, k), length))
    loops = [pick(rng, 2, 7, 4, 0)]
    loops += [_loop(a, b, pick(rng, 0, 4, 4, k + 1)) for k, (a, b) in enumerate(pairwise(elements))]
    loops.append(pick(rng, 2, 7, 4, len(kinds)))
    return Blueprint(tuple(elements), tuple(loops), name)


def vary(fold: Blueprint, rng: CounterRNG, *, reach: int) -> Blueprint:
    """Returns the fold with some loops and element ends longer or shorter by at most ``reach`` residues.

    Elements keep their first residue's place, so columns and register stay comparable.
    """
    elements = []
    for k, e in enumerate(fold.elements):
        change = pick(rng, -1, 1, 0, k) if pick(rng, 0, 3, 1, k) < reach else 0
        low = 7 if e.kind == "H" else 4
        elements.append(replace(e, length=max(low, e.length + change)))
    loops = [
        max(2, n + (pick(rng, -reach, reach, 2, k) if pick(rng, 0, 1, 3, k) else 0)) for k, n in enumerate(fold.loops)
    ]
    return replace(fold, elements=tuple(elements), loops=tuple(loops))


def build(fold: Blueprint) -> Structure:
    """Lays the chain: ideal helices and strands, and loops that arc outside the layers between their ends."""
    sticks = [_stick(e) for e in fold.elements]
    ca, cb, letters, columns = [], [], [], []

    def add(part: tuple[NDArray[np.int64], NDArray[np.int64]], letter: str, segment: int) -> None:
        n = len(part[0])
        ca.append(part[0])
        cb.append(part[1])
        letters.append(np.full(n, ord(letter), dtype=np.uint8))
        columns.append(segment * COLUMNS_PER_SEGMENT + np.arange(n, dtype=np.int32))

    for k in range(len(sticks) + 1):
        before = sticks[k - 1][0][-1] if k else None
        after = sticks[k][0][0] if k < len(sticks) else None
        # the chain leaves at the end towards which the previous element ran
        outward = 1 if (fold.elements[k - 1].up if k else not fold.elements[0].up) else -1
        add(_arc(before, after, fold.loops[k], outward), "C", 2 * k)
        if k < len(sticks):
            add(sticks[k], fold.elements[k].kind, 2 * k + 1)
    return Structure(np.concatenate(letters), np.concatenate(columns), np.concatenate(ca), np.concatenate(cb))


def _kinds(name: str, rng: CounterRNG) -> list[str]:
    """Draws the order of helices and strands along the chain."""
    if name == "alpha":
        return ["H"] * pick(rng, 4, 7, 0)
    if name == "beta":
        return ["E"] * pick(rng, 6, 10, 0)
    if name == "alpha/beta":
        return ["E", "H"] * pick(rng, 3, 4, 0) + ["E"] * pick(rng, 0, 1, 1)
    n = pick(rng, 6, 8, 0)
    kinds = ["H" if pick(rng, 0, 9, 1, k) < 4 else "E" for k in range(n)]
    # a sheet of one strand is no sheet, and the class has both
    kinds[pick(rng, 0, n - 1, 2)] = "H"
    for k in range(n):
        if kinds.count("E") < 3:
            kinds[k] = "E"
    return kinds if "H" in kinds else [*kinds[:-1], "H"]


def _slots(kinds: list[str], name: str, rng: CounterRNG) -> dict[str, list[tuple[int, int]]]:
    """Returns the free places (x, y) for each kind of element."""
    strands, helices = kinds.count("E"), kinds.count("H")

    def row(n: int, gap: int, y: int) -> list[tuple[int, int]]:
        return [((2 * k - n + 1) * gap // 2, y) for k in range(n)]

    if name == "beta":
        half = strands // 2
        return {"E": row(half, STRAND_GAP, 0) + row(strands - half, STRAND_GAP, LAYER_GAP), "H": []}
    if name == "alpha":
        half = helices // 2
        return {"E": [], "H": row(half, HELIX_GAP, 0) + row(helices - half, HELIX_GAP, LAYER_GAP)}
    above = helices if pick(rng, 0, 1, 0) and helices < 4 else (helices + 1) // 2
    return {
        "E": row(strands, STRAND_GAP, 0),
        "H": row(above, HELIX_GAP, LAYER_GAP) + row(helices - above, HELIX_GAP, -LAYER_GAP),
    }


def _places(kinds: list[str], slots: dict[str, list[tuple[int, int]]], rng: CounterRNG) -> list[tuple[int, int]]:
    """Gives each element a place: one of the two nearest free ones as a rule, so that loops stay short."""
    free = {kind: list(places) for kind, places in slots.items()}
    placed: list[tuple[int, int]] = []
    for k, kind in enumerate(kinds):
        options = free[kind]
        if placed:
            x, y = placed[-1]
            options.sort(key=lambda p: ((p[0] - x) ** 2 + (p[1] - y) ** 2, p))
            choice = pick(rng, 0, min(len(options), 2 if pick(rng, 0, 3, 0, k) else 4) - 1, 1, k)
        else:
            choice = pick(rng, 0, len(options) - 1, 1, k)
        placed.append(options.pop(choice))
    return placed


def _loop(a: Element, b: Element, extra: int) -> int:
    """Returns how many residues join two elements: enough to span the gap at 3.4 Å a step, and some more."""
    gap2 = (a.x - b.x) ** 2 + (a.y - b.y) ** 2
    steps = 1
    while (340 * steps) ** 2 < gap2:
        steps += 1
    return max(2, steps - 1) + extra


def _stick(e: Element) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns ``[n, 3]`` Cα and Cβ of an ideal helix (1.5 Å and 100 degrees a residue) or strand (3.3 Å)."""
    k = np.arange(e.length)
    way = 1 if e.up else -1
    ca, cb = np.zeros((e.length, 3), dtype=np.int64), np.zeros((e.length, 3), dtype=np.int64)
    if e.kind == "H":
        angle = (5 * k * way + e.phase) % 18
        cos, sin = np.array(_COS), np.array(_SIN)
        for out, radius in ((ca, HELIX_RADIUS), (cb, HELIX_CB_RADIUS)):
            out[:, 0] = e.x + cos[angle] * radius // 1000
            out[:, 1] = e.y + sin[angle] * radius // 1000
            out[:, 2] = e.start + way * HELIX_RISE * k
        return ca, cb
    height = e.start + way * STRAND_RISE * k
    # neighbours in a sheet at the same height point to the same side of it
    side = np.where((height // STRAND_RISE) % 2 == 0, 1, -1)
    for out, reach in ((ca, STRAND_CA_OUT), (cb, STRAND_CB_OUT)):
        out[:, 0] = e.x
        out[:, 1] = e.y + side * reach
        out[:, 2] = height
    return ca, cb


def _arc(
    before: NDArray[np.int64] | None, after: NDArray[np.int64] | None, n: int, outward: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns ``[n, 3]`` Cα and Cβ of a loop: a parabola outside the layers, or a straight tail at an end."""
    t = np.arange(1, n + 1)
    if before is None or after is None:
        anchor = after if before is None else before
        assert anchor is not None
        steps = t[::-1] if before is None else t
        ca = anchor + steps[:, None] * np.array([120, 120, 300 * outward])
    else:
        ca = before + (after - before) * t[:, None] // (n + 1)
        ca[:, 2] += outward * (250 + 45 * n) * 4 * t * (n + 1 - t) // (n + 1) ** 2
    cb = ca.copy()
    cb[:, 2] += 150 * outward
    cb[:, 1] += np.where(t % 2 == 0, 100, -100)
    return ca, cb
