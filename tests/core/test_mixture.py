"""Several objectives on one stream: dealing, shared corruption, schedules of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protloom.contracts import Packed, PassRequest, Prepared, SequenceBatch, Term
from protloom.errors import UserError
from protloom.mixture import HostBatch, Member, Mixture, unite
from protloom.rng import CounterRNG
from protloom.settings import ObjectiveMix


class Counting:
    """Stands for an objective: scores every token and remembers whose corruption it read."""

    def __init__(self, request: PassRequest | None = None) -> None:
        self.terms = {"main": Term()}
        self.asked = request or PassRequest()

    def request(self) -> PassRequest:
        return self.asked

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        tokens = batch.packed.tokens + 100
        return Prepared(Packed(tokens, batch.packed.cu), {"main": len(tokens)}, {"index": batch.index})

    prepare_validation = prepare

    def prepare_shared(self, batch: SequenceBatch, base: Prepared, rng: CounterRNG) -> Prepared:
        return Prepared(base.inputs, {"main": 1}, {"index": batch.index})


def batch(n: int, *, group: list[int] | None = None, offset: int = 0) -> SequenceBatch:
    lengths = np.arange(n) % 7 + 3
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return SequenceBatch(
        packed=Packed(np.repeat(np.arange(n), lengths).astype(np.int32), cu),
        residue=np.ones(int(cu[-1]), dtype=np.bool_),
        epoch=np.zeros(n, dtype=np.int64),
        index=np.arange(offset, offset + n, dtype=np.int64),
        corpus=np.zeros(n, dtype=np.int32),
        group=np.array(group if group is not None else range(n), dtype=np.int32),
        metadata={"label": np.arange(n), "depth": np.arange(int(cu[-1]))},
    )


def mixture(combine: Any = "summed", **mixes: dict[str, Any]) -> Mixture:
    members: Any = [Member(alias, Counting(), ObjectiveMix(**mix)) for alias, mix in mixes.items()]  # type: ignore[arg-type]
    return Mixture(members, combine, seed=3)


def indices(host: HostBatch) -> dict[str, list[int]]:
    return {alias: arrays["index"].tolist() for share in host.shares for alias, arrays in share.arrays.items()}


def test_take_keeps_whole_sequences_and_their_metadata() -> None:
    whole = batch(5)
    part = whole.take(np.array([True, False, False, True, False]))
    assert part.index.tolist() == [0, 3]
    assert part.packed.tokens.tolist() == [0] * 3 + [3] * 6
    assert part.packed.cu.tolist() == [0, 3, 9]
    assert part.metadata["label"].tolist() == [0, 3]
    assert part.metadata["depth"].tolist() == [0, 1, 2, *range(12, 18)]


def test_summed_objectives_read_every_sequence_each_with_its_own_corruption() -> None:
    host = mixture(a={}, b={}).prepare(batch(20), active=frozenset({"a", "b"}))
    assert len(host.shares) == 2
    assert indices(host) == {"a": list(range(20)), "b": list(range(20))}


def test_dealt_objectives_share_the_sequences_by_weight_whatever_the_batch() -> None:
    mixed = mixture("dealt", a={"share": 3}, b={"share": 1})
    active = frozenset({"a", "b"})
    together = indices(mixed.prepare(batch(4000), active=active))
    assert sorted(together["a"] + together["b"]) == list(range(4000))
    # 4000 draws at 3/4: 4 standard deviations are 110
    assert abs(len(together["a"]) - 3000) < 110
    halves = [indices(mixed.prepare(batch(2000, offset=o), active=active)) for o in (0, 2000)]
    assert halves[0]["a"] + halves[1]["a"] == together["a"]


def test_a_group_is_dealt_as_a_whole() -> None:
    groups = [i // 4 for i in range(400)]
    dealt = indices(mixture("dealt", a={}, b={}).prepare(batch(400, group=groups), active=frozenset({"a", "b"})))
    for alias in ("a", "b"):
        members = np.bincount([i // 4 for i in dealt[alias]], minlength=100)
        assert set(members) == {0, 4}


def test_shared_corruption_makes_one_input_and_one_pass() -> None:
    host = mixture(a={}, b={"corruption": "a"}).prepare(batch(6), active=frozenset({"a", "b"}))
    assert len(host.shares) == 1
    assert set(host.shares[0].arrays) == {"a", "b"}
    assert host.counts == {("a", "main"): len(host.shares[0].inputs.tokens), ("b", "main"): 1}


def test_the_corruption_of_an_objective_that_does_not_count_yet_still_serves_the_other() -> None:
    host = mixture(a={"start_step": 5}, b={"corruption": "a"}).prepare(batch(6), active=frozenset({"b"}))
    assert [set(share.arrays) for share in host.shares] == [{"b"}]


def test_an_unknown_corruption_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'mlm'"):
        mixture(mlm={}, jepa={"corruption": "mlmm"})
    with pytest.raises(UserError, match="not an earlier objective"):
        mixture(jepa={"corruption": "mlm"}, mlm={})


def test_weights_start_ramp_and_are_scaled_up_for_kept_steps() -> None:
    mixed = mixture(a={"weight": 2.0, "start_step": 10, "ramp_steps": 4}, b={"keep_rate": 0.25, "weight": {"main": 3}})
    assert ("a", "main") not in mixed.weights(9)
    assert [mixed.weights(s)["a", "main"] for s in (10, 11, 13, 50)] == [0.5, 1.0, 2.0, 2.0]
    kept = [s for s in range(4000) if "b" in mixed.active(s)]
    assert abs(len(kept) - 1000) < 110
    assert mixed.weights(kept[0])["b", "main"] == 12.0
    assert not mixed.always_active


@pytest.mark.parametrize(
    ("mixes", "reason"),
    [
        ({"a": {"start_step": 5}}, "a starts at step 5"),
        ({"a": {"keep_rate": 0.5}, "b": {"start_step": 2}}, "a is computed in 0.5 of the steps, b starts at step 2"),
    ],
)
def test_a_step_in_which_nothing_counts_is_refused(mixes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"at least one objective must count at every step, but {reason}"):
        mixture(**mixes).refuse_idle_steps()
    mixture(c={}, **mixes).refuse_idle_steps()


def test_requests_are_united() -> None:
    early = PassRequest(layers=(2,), stop_at=3)
    assert unite([early, PassRequest(layers=(5,), stop_at=4)]) == PassRequest((2, 5), 5, False)
    assert unite([early, PassRequest(attentions=True)]) == PassRequest((2,), None, True)


def test_an_empty_batch_is_prepared_for_every_objective() -> None:
    host = mixture("dealt", a={}, b={}).prepare(batch(0), active=frozenset({"a", "b"}))
    assert host.counts == {("a", "main"): 0, ("b", "main"): 0}
