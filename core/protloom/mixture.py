"""Several objectives on one stream of sequences: who corrupts what, which terms count now, and by how much.

Everything here is numpy on the host and a pure function of (seed, step, sequences), so it may run in any thread and
comes out the same on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protloom.contracts import Packed, PassRequest, Prepared, SequenceBatch
from protloom.errors import UserError, did_you_mean
from protloom.rng import CounterRNG, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.objective import Objective
    from protloom.settings import ObjectiveMix

TermKey = tuple[str, str]
"""(objective alias, term name)."""


@dataclass(frozen=True)
class Member:
    """One objective of a run.

    Attributes:
        alias: its name in logs and in other objectives' ``corruption``.
        objective: the module.
        mix: weight, share, delay … as the run file states them.
    """

    alias: str
    objective: Objective
    mix: ObjectiveMix

    def weight(self, term: str) -> float:
        """Returns the weight of a term once it has started."""
        stated, own = self.mix.weight, self.objective.terms[term].weight
        return stated.get(term, own) if isinstance(stated, Mapping) else stated * own


@dataclass(frozen=True)
class HostShare:
    """One corrupted input and what each objective that reads it prepared."""

    inputs: Packed
    decoder: Packed | None
    clean: Packed | None
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]
    request: PassRequest


@dataclass(frozen=True)
class HostBatch:
    """One micro-batch, ready to be moved to the device.

    Attributes:
        shares: corrupted inputs; objectives of one share have one student pass.
        counts: what each term's total is divided by, here.
        tokens: tokens read by encoders and decoders.
    """

    shares: tuple[HostShare, ...]
    counts: Mapping[TermKey, int]
    tokens: int


class Mixture:
    """The objectives of a run and how they share its batches.

    Args:
        members: the objectives, in the order of the run file.
        combine: ``summed``: every objective reads every sequence; ``dealt``: each group goes to one of them.
        seed: the run's seed.
        reduction: ``objectives``: the mean of each term counts by its weight; ``items``: one mean over the items of
            all terms, each item by its term's weight, as if the objectives were one.

    Raises:
        UserError: if ``corruption`` names no earlier objective.
    """

    def __init__(
        self,
        members: Sequence[Member],
        combine: Literal["summed", "dealt"],
        seed: int,
        reduction: Literal["objectives", "items"] = "objectives",
    ) -> None:
        self.members = tuple(members)
        self.combine = combine
        self.reduction = reduction
        self._deal = CounterRNG(seed, "deal")
        self._keep = CounterRNG(seed, "keep")
        self._streams = {m.alias: CounterRNG(seed, "objective", m.alias) for m in members}
        self._validation = {m.alias: CounterRNG(seed, "validation", m.alias) for m in members}
        self._followers = self._families()

    def _families(self) -> dict[str, tuple[Member, ...]]:
        """Groups the objectives by whose corruption they read."""
        families: dict[str, list[Member]] = {}
        for member in self.members:
            base = member.mix.corruption
            if base is None:
                families[member.alias] = [member]
            elif base in families:
                families[base].append(member)
            else:
                raise UserError(
                    f"objectives: {member.alias!r} wants the corruption of {base!r}, which is not an earlier objective "
                    f"with a corruption of its own.{did_you_mean(base, families)}"
                )
        return {alias: tuple(members) for alias, members in families.items()}

    def refuse_idle_steps(self) -> None:
        """Raises UserError if there can be a step in which no objective counts."""
        if any(m.mix.start_step == 0 and m.mix.keep_rate >= 1.0 for m in self.members):
            return
        reasons = [
            f"{m.alias} starts at step {m.mix.start_step}"
            if m.mix.start_step
            else f"{m.alias} is computed in {m.mix.keep_rate:g} of the steps"
            for m in self.members
        ]
        raise UserError(
            f"at least one objective must count at every step, but {', '.join(reasons)}: "
            "give one of them start_step 0 and keep_rate 1"
        )

    def active(self, step: int) -> frozenset[str]:
        """Returns the aliases whose loss counts at a step: started, and kept by the hash of the step."""
        return frozenset(
            m.alias
            for number, m in enumerate(self.members)
            if step >= m.mix.start_step
            and (m.mix.keep_rate >= 1.0 or uniform(self._keep.at(step, number))[0] < m.mix.keep_rate)
        )

    @property
    def always_active(self) -> bool:
        """True if every objective counts at every step."""
        return all(m.mix.start_step == 0 and m.mix.keep_rate >= 1.0 for m in self.members)

    def weights(self, step: int) -> dict[TermKey, float]:
        """Returns the weight of each active term: its base weight, ramped, divided by the kept share of steps."""
        active = self.active(step)
        weights: dict[TermKey, float] = {}
        for member in self.members:
            if member.alias not in active:
                continue
            mix = member.mix
            scale = min(1.0, (step - mix.start_step + 1) / mix.ramp_steps) if mix.ramp_steps else 1.0
            for term in member.objective.terms:
                weights[member.alias, term] = member.weight(term) * scale / mix.keep_rate
        return weights

    def of_means(self, weights: Mapping[TermKey, float], counts: Mapping[TermKey, float]) -> dict[TermKey, float]:
        """Returns what the mean of each term counts in the loss.

        Args:
            weights: of the terms.
            counts: items of each term, over micro-batches and ranks.
        """
        if self.reduction == "objectives":
            return dict(weights)
        items = max(1.0, sum(counts.get(key, 0.0) for key in weights))
        return {key: weight * counts.get(key, 0.0) / items for key, weight in weights.items()}

    def final_weights(self) -> dict[TermKey, float]:
        """Returns the weight of every term once all have started."""
        return {(m.alias, term): m.weight(term) for m in self.members for term in m.objective.terms}

    def prepare(self, batch: SequenceBatch, *, active: frozenset[str]) -> HostBatch:
        """Corrupts a training micro-batch for the ``active`` objectives of its step."""
        return self._assemble(self._shares(batch), self._streams, active=active, validation=False)

    def prepare_validation(self, batch: SequenceBatch, alias: str) -> HostBatch:
        """Corrupts a validation micro-batch for one objective, with masks that never change."""
        family = next(base for base, members in self._followers.items() if any(m.alias == alias for m in members))
        return self._assemble({family: batch}, self._validation, active=frozenset({alias}), validation=True)

    def _shares(self, batch: SequenceBatch) -> dict[str, SequenceBatch]:
        """Gives each family of objectives its sequences."""
        if self.combine == "summed" or len(self._followers) == 1:
            return dict.fromkeys(self._followers, batch)
        shares = np.cumsum([members[0].mix.share for members in self._followers.values()])
        # all sequences of a group follow the key of its first one
        first = np.searchsorted(batch.group, batch.group) if len(batch.group) else np.zeros(0, dtype=np.int64)
        draw = uniform(batch.keys(self._deal))[first] * shares[-1]
        dealt = np.searchsorted(shares, draw, side="right")
        return {alias: batch.take(dealt == number) for number, alias in enumerate(self._followers)}

    def _assemble(
        self,
        dealt: Mapping[str, SequenceBatch],
        streams: Mapping[str, CounterRNG],
        *,
        active: frozenset[str],
        validation: bool,
    ) -> HostBatch:
        shares: list[HostShare] = []
        counts: dict[TermKey, int] = {}
        tokens = 0
        for base, batch in dealt.items():
            family = self._followers[base]
            if not any(m.alias in active for m in family):
                continue
            prepared = _prepare_family(family, batch, streams, active, validation)
            inputs = prepared[base].inputs
            decoder = next((p.decoder for p in prepared.values() if p.decoder is not None), None)
            clean = next((p.clean for p in prepared.values() if p.clean is not None), None)
            running = [m for m in family if m.alias in active]
            shares.append(
                HostShare(
                    inputs,
                    decoder,
                    clean,
                    {m.alias: prepared[m.alias].arrays for m in running},
                    unite([m.objective.request() for m in running]),
                )
            )
            tokens += len(inputs.tokens) + (len(decoder.tokens) if decoder is not None else 0)
            for member in running:
                counts.update(_counts(member, prepared[member.alias]))
        return HostBatch(tuple(shares), counts, tokens)


def _prepare_family(
    family: Sequence[Member],
    batch: SequenceBatch,
    streams: Mapping[str, CounterRNG],
    active: frozenset[str],
    validation: bool,
) -> dict[str, Prepared]:
    """Runs the first objective's corruption and lets the others build on it."""
    leader = family[0]
    corrupt = leader.objective.prepare_validation if validation else leader.objective.prepare
    prepared = {leader.alias: _prepared(leader.alias, corrupt(batch, streams[leader.alias]))}
    for member in family[1:]:
        if member.alias in active:
            base = prepared[leader.alias]
            shared = _prepared(member.alias, member.objective.prepare_shared(batch, base, streams[member.alias]))
            if shared.inputs is not base.inputs and not _equal(shared.inputs, base.inputs):
                raise UserError(
                    f"objective {member.alias!r} must keep the inputs of {leader.alias!r}, whose corruption it shares; "
                    "tell its author, or drop 'corruption'"
                )
            prepared[member.alias] = shared
    return prepared


def _prepared(alias: str, made: Any) -> Prepared:
    if not isinstance(made, Prepared):
        raise UserError(
            f"objective {alias!r} prepared a {type(made).__name__}, not a protloom.contracts.Prepared; tell its author"
        )
    return made


def _equal(one: Packed, other: Packed) -> bool:
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.cu, other.cu)


def _counts(member: Member, prepared: Prepared) -> dict[TermKey, int]:
    """Returns the count of every term; raises UserError where they are not those that the objective declares."""
    terms = member.objective.terms
    for term in prepared.counts:
        if term not in terms:
            raise UserError(
                f"objective {member.alias!r} counted the term {term!r}, which it does not declare "
                f"(it declares: {', '.join(terms)}); tell its author"
            )
    for term in terms:
        if term not in prepared.counts:
            raise UserError(f"objective {member.alias!r} prepared no count for its term {term!r}; tell its author")
    return {(member.alias, term): int(prepared.counts[term]) for term in terms}


def unite(requests: Sequence[PassRequest]) -> PassRequest:
    """Returns one pass that satisfies every request: all layers, and an early stop only where all agree to stop."""
    layers = tuple(sorted({layer for r in requests for layer in r.layers}))
    stops = [r.stop_at for r in requests]
    known = [s for s in stops if s is not None]
    stop = max([*known, *layers]) if len(known) == len(stops) and known else None
    return PassRequest(layers, stop, any(r.attentions for r in requests))
