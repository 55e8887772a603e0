"""Heads that turn a frozen network's features into scores of residue pairs, and which of them a subject can have.

``attention`` reads attention maps as Rao et al. 2021 do ("Transformer protein language models are unsupervised
structure learners"): an L1-penalised logistic regression over all heads' symmetric, corrected maps, fitted on few
proteins. ``pairs`` asks for nothing but residue states: products and distances of their leading principal components.
``ankh`` (:mod:`protloom_tasks.heads.pair_products`) and ``jacobian`` (:mod:`protloom_tasks.contact_jacobian`) have
modules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from protloom.errors import UserError
from protloom.settings import Section
from protloom_tasks import probes
from protloom_tasks.contact_protocol import Head, Mapped, candidates
from protloom_tasks.datasets.proteins import draw
from protloom_tasks.floors import Floor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Subject

    F32 = NDArray[np.float32]

Name = Literal["attention", "pairs", "ankh", "jacobian"]
Wanted = Literal["auto", "attention", "pairs", "ankh", "jacobian"]

BLOCK = 50_000
"""Pairs that features are made of at once; bounds memory."""


class HeadOptions(Section):
    """Options of contact heads; each says which heads read it."""

    head: Wanted = Field(
        default="auto", description="What scores pairs; auto: attention, or pairs where a network has no attention maps"
    )
    c: float | None = Field(
        default=None, gt=0, description="attention, pairs: inverse penalty; null: 1 / 0.15 (L1, as published), 1 (L2)"
    )
    # no cap that --full should lift: so many are the protocol
    attention_proteins: int = Field(default=20, ge=1, description="attention: training proteins, drawn by seed")
    train_pairs: int | None = Field(
        default=40_000, ge=100, description="attention: training pairs, all contacts kept; null: all"
    )
    components: int = Field(default=128, ge=1, description="pairs: principal components of residue states")
    protein_pairs: int = Field(default=2000, ge=2, description="pairs: most training pairs a protein, half contacts")
    epochs: int = Field(
        default=50, ge=1, description="ankh: passes over the training proteins; published: 5, over a hundred times more"
    )
    jacobian_length: int = Field(default=200, ge=1, description="jacobian: longer test proteins are left out, counted")
    jacobian_proteins: int | None = Field(
        default=20, ge=1, description="jacobian: test proteins, drawn by seed among the shorter ones; null: all"
    )


def choose(wanted: Wanted, subject: Subject) -> Name:
    """Returns the head that a subject gets.

    A floor of pair features is always read by ``attention``'s regression, one of residues by ``pairs`` under ``auto``.

    Raises:
        UserError: if a floor is asked for a Jacobian.
    """
    if isinstance(subject, Floor):
        if type(subject).of_pairs is not Floor.of_pairs:
            return "attention"
        if wanted == "jacobian":
            raise UserError(f"{subject.name} has no logits, which head: jacobian needs: use floor:separation")
        return "ankh" if wanted == "ankh" else "pairs"
    if wanted != "auto":
        return wanted
    # subjects of other makes, which show no network, are asked for their pair features
    capabilities = getattr(getattr(subject, "model", None), "capabilities", None)
    return "attention" if capabilities is None or "attentions" in capabilities else "pairs"


def fit(subject: Subject, train: Sequence[Mapped], options: HeadOptions, *, seed: int) -> Head:
    """Returns the head of a subject, fitted on training proteins.

    Args:
        subject: gives features.
        train: training proteins; the Jacobian needs none.
        options: which head, and of it.
        seed: of draws of proteins and pairs, and of initial weights.

    Raises:
        UserError: if the subject lacks what the head reads, or the training pairs are all of one kind.
    """
    name = choose(options.head, subject)
    if name == "attention":
        return AttentionHead(subject, train, options, seed=seed)
    if name == "pairs":
        return PairHead(subject, train, options, seed=seed)
    if name == "ankh":
        from protloom_tasks.heads.pair_products import AnkhHead

        return AnkhHead(subject, train, epochs=options.epochs, seed=seed)
    from protloom_tasks.contact_jacobian import JacobianHead

    return JacobianHead(subject)


class AttentionHead:
    """Logistic regression, L1, over a subject's features of pairs.

    Args:
        subject: gives them.
        train: training proteins; at most ``options.attention_proteins`` are used.
        options: C, and how many pairs: beyond that all contacts stay and the others are drawn by seed, but never fewer
            than contacts (this moves the intercept, which no ranking depends on).
        seed: of the draws.

    Attributes:
        details: the probe, and how many features have a weight.
    """

    def __init__(self, subject: Subject, train: Sequence[Mapped], options: HeadOptions, *, seed: int) -> None:
        self._subject = subject
        used = [train[i] for i in draw(len(train), options.attention_proteins, seed, 3)]
        share = None if options.train_pairs is None else options.train_pairs // len(used)
        rng = np.random.default_rng([seed, 2])
        rows: list[F32] = []
        labels: list[NDArray[np.bool_]] = []
        for protein in used:
            maps = subject.contact_features(protein.sequence)
            first, second = candidates(protein, len(maps))
            truth = protein.contacts[first, second]
            kept = _all_contacts(truth, share, rng)
            rows.append(maps[first[kept], second[kept]])
            labels.append(truth[kept])
        self._probe = probes.fit_classifier(
            np.concatenate(rows),
            np.concatenate(labels).astype(np.int64),
            kind="l1",
            c=1 / 0.15 if options.c is None else options.c,
            seed=seed,
        )
        self.details: Mapping[str, Any] = {
            "head": "attention",
            **self._probe.details,
            "features_used": int(np.count_nonzero(self._probe.model[-1].coef_)),
            "proteins_fitted_on": len(used),
        }

    def scores(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yields decision values of all pairs."""
        for sequence in sequences:
            maps = self._subject.contact_features(sequence)
            yield _of_pairs(len(maps), lambda first, second, maps=maps: self._probe.scores(maps[first, second]))


def _all_contacts(truth: NDArray[np.bool_], share: int | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns which pairs of a protein to fit on: all, or its contacts and drawn others, about ``share`` together."""
    if share is None or len(truth) <= share:
        return np.arange(len(truth))
    contacts, others = np.flatnonzero(truth), np.flatnonzero(~truth)
    room = min(len(others), max(len(contacts), share - len(contacts)))
    return np.concatenate([contacts, rng.choice(others, room, replace=False)])


class PairHead:
    """Logistic regression, L2, on h_i ∘ h_j, |h_i − h_j| and log(1 + |i − j|) of reduced residue states.

    The states are projected on the leading principal components of the training residues; i and j are places in the
    sequence that the network reads. Each training protein gives as many other pairs as contacts, drawn by seed. All
    training states are held at once (4 bytes times residues times width).

    Args:
        subject: gives residue states.
        train: training proteins.
        options: components, pairs a protein, C.
        seed: of the draws.

    Attributes:
        details: the probe, the components and the share of variance that they keep.
    """

    def __init__(self, subject: Subject, train: Sequence[Mapped], options: HeadOptions, *, seed: int) -> None:
        self._subject = subject
        states = list(subject.residues([protein.sequence for protein in train]))
        self._mean, self._axes, kept = principal_axes(states, options.components)
        rng = np.random.default_rng([seed, 4])
        rows: list[F32] = []
        labels: list[NDArray[np.bool_]] = []
        for protein, of in zip(train, states, strict=True):
            first, second = candidates(protein, len(of))
            truth = protein.contacts[first, second]
            pair = balanced(truth, options.protein_pairs, rng)
            rows.append(pair_features(self._reduced(of), first[pair], second[pair]))
            labels.append(truth[pair])
        self._probe = probes.fit_classifier(
            np.concatenate(rows), np.concatenate(labels).astype(np.int64), c=options.c or 1.0, seed=seed
        )
        self.details: Mapping[str, Any] = {
            "head": "pairs",
            **self._probe.details,
            "components": self._axes.shape[1],
            "variance_kept": round(kept, 4),
            "proteins_fitted_on": len(train),
        }

    def _reduced(self, states: F32) -> F32:
        return np.asarray((states - self._mean) @ self._axes, dtype=np.float32)

    def scores(self, sequences: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yields decision values of all pairs."""
        for of in self._subject.residues(sequences):
            reduced = self._reduced(of)
            yield _of_pairs(
                len(of), lambda first, second, h=reduced: self._probe.scores(pair_features(h, first, second))
            )


def principal_axes(states: Sequence[F32], components: int) -> tuple[F32, F32, float]:
    """Returns the mean ``[D]`` of residue states ``[l, D]``, their leading axes ``[D, k]`` and the variance kept.

    The axes are orthonormal eigenvectors of the covariance, added up in fp64 a protein at a time; k is ``components``,
    or D where that is less.

    Raises:
        UserError: if there is no residue.
    """
    count = sum(map(len, states))
    if not count:
        raise UserError("no residue of the training proteins has features: nothing to find principal components of")
    mean = sum(of.sum(axis=0, dtype=np.float64) for of in states) / count
    width = len(mean)
    covariance = np.zeros((width, width))
    for of in states:
        centred = of - mean  # [l, D] fp64
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance)  # ascending
    k = min(components, width)
    total = float(values.sum())
    kept = float(values[-k:].sum()) / total if total > 0 else 1.0
    return mean.astype(np.float32), vectors[:, ::-1][:, :k].astype(np.float32), kept


def balanced(truth: NDArray[np.bool_], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns as many contacts as other pairs, drawn, ``most`` of both together at most."""
    contacts, others = np.flatnonzero(truth), np.flatnonzero(~truth)
    n = min(most // 2, len(contacts), len(others))
    return np.concatenate([rng.choice(of, n, replace=False) for of in (contacts, others)])


def pair_features(states: F32, first: NDArray[np.integer], second: NDArray[np.integer]) -> F32:
    """Returns ``[n, 2k + 1]``: products, absolute differences and log(1 + separation) of pairs of ``[l, k]``."""
    left, right = states[first], states[second]
    apart = np.log1p(np.abs(first - second)).astype(np.float32)
    return np.concatenate([left * right, np.abs(left - right), apart[:, None]], axis=1)


def _of_pairs(length: int, score: Any) -> NDArray[np.float64]:
    """Returns ``[l, l]`` symmetric scores, asked for in blocks by ``score(first, second)``; 0 on the diagonal."""
    found = np.zeros((length, length))
    first, second = np.triu_indices(length, 1)
    for start in range(0, len(first), BLOCK):
        block = slice(start, start + BLOCK)
        found[first[block], second[block]] = found[second[block], first[block]] = score(first[block], second[block])
    return found
