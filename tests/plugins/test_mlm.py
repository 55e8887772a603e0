"""Masked language modelling: which residues, what instead, how often, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from protloom.contracts import BuildContext, Encoded, Packed, Prepared, SequenceBatch, StepContext
from protloom.errors import UserError
from protloom.rng import CounterRNG
from protloom_plugins.objectives.mlm import MaskedLM
from protloom_plugins.objectives.mlm_config import MaskedLMConfig
from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
MASK = TOKENIZER.mask_id
RNG = CounterRNG(0, "mlm")


def objective_of(**options: Any) -> MaskedLM:
    ops = SimpleNamespace(cross_entropy=lambda x, y: torch.nn.functional.cross_entropy(x.float(), y, reduction="none"))
    build = BuildContext(tokenizer=TOKENIZER, ops=cast("Any", ops))
    return MaskedLM(MaskedLMConfig.model_validate(options), build)


def batch_of(
    lengths: Sequence[int], *, numbers: Sequence[int] | None = None, epoch: int = 0, corpus: int = 0, step: int = 0
) -> SequenceBatch:
    """Random residues of sequences ``numbers`` (a sequence's residues depend on its number alone)."""
    numbers = range(len(lengths)) if numbers is None else numbers
    n = len(lengths)
    pieces = [
        [0, *np.random.default_rng(i).choice(TOKENIZER.residue_ids, length), 2]
        for i, length in zip(numbers, lengths, strict=True)
    ]
    tokens = np.array([token for piece in pieces for token in piece], dtype=np.int32)
    cu = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int32)
    return SequenceBatch(
        packed=Packed(tokens, cu),
        residue=tokens >= 4,
        epoch=np.full(n, epoch, dtype=np.int64),
        index=np.array(numbers, dtype=np.int64),
        corpus=np.full(n, corpus, dtype=np.int32),
        group=np.arange(n, dtype=np.int32),
        step=step,
    )


def per_sequence(batch: SequenceBatch, prepared: Prepared) -> list[tuple[list[int], list[int]]]:
    """(corrupted ids, chosen positions) of each sequence."""
    chosen = np.zeros(len(batch.packed.tokens), dtype=bool)
    chosen[prepared.arrays["index"]] = True
    cu = batch.packed.cu
    return [
        (prepared.inputs.tokens[a:b].tolist(), np.flatnonzero(chosen[a:b]).tolist()) for a, b in pairwise(cu.tolist())
    ]


def counts_of(batch: SequenceBatch, prepared: Prepared) -> NDArray[np.int64]:
    return np.diff(np.searchsorted(prepared.arrays["index"], batch.packed.cu))


def close_to(successes: float, trials: float, rate: float) -> bool:
    """Within 6 standard deviations of a binomial."""
    return bool(abs(successes - trials * rate) <= 6 * np.sqrt(trials * rate * (1 - rate)) + 1e-9)


FORMS: dict[str, dict[str, Any]] = {
    "fixed": {"mask_rate": 0.15},
    "set": {"mask_rates": [0.1, 0.5]},
    "schedule": {"mask_rate_schedule": [(0, 0.1), (100, 0.3)]},
    "geometric spans": {"mask_rate": 0.3, "span": {}},
    "fixed spans": {"mask_rate": 0.2, "span": {"kind": "fixed", "mean": 4}},
    "spans and a set": {"mask_rates": [0.1, 0.4], "span": {"mean": 2.5, "max": 6}},
    "other": {"replace_by_other": True, "split": {"mask": 0, "random": 1, "keep": 0}},
}


@pytest.mark.parametrize("name", FORMS)
def test_masks_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    objective = objective_of(**FORMS[name])
    lengths = [30, 200, 1, 2, 77, 512]
    together = per_sequence(batch_of(lengths), objective.prepare(batch_of(lengths), RNG))
    for i, length in enumerate(lengths):
        single = batch_of([length], numbers=[i])
        assert per_sequence(single, objective.prepare(single, RNG)) == [together[i]]
    turned = batch_of(lengths[::-1], numbers=range(len(lengths))[::-1])
    assert per_sequence(turned, objective.prepare(turned, RNG)) == together[::-1]


@pytest.mark.parametrize("name", FORMS)
def test_masks_change_with_epoch_corpus_and_stream_only(name: str) -> None:
    objective = objective_of(**FORMS[name])
    lengths = [200] * 5
    first = objective.prepare(batch_of(lengths), RNG).inputs.tokens
    assert (objective.prepare(batch_of(lengths), RNG).inputs.tokens == first).all()
    others = [
        objective.prepare(batch_of(lengths, epoch=1), RNG),
        objective.prepare(batch_of(lengths, corpus=1), RNG),
        objective.prepare(batch_of(lengths), CounterRNG(0, "another")),
        objective.prepare(batch_of(lengths), CounterRNG(1, "mlm")),
    ]
    assert all((other.inputs.tokens != first).any() for other in others)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_prepared(name: str) -> None:
    batch = batch_of([30, 1, 200, 64])
    clean = batch.packed.tokens.copy()
    prepared = objective_of(**FORMS[name]).prepare(batch, RNG)
    index, targets = prepared.arrays["index"], prepared.arrays["targets"]
    assert index.dtype == targets.dtype == np.int64
    assert prepared.inputs.tokens.dtype == np.int32
    assert (np.diff(index) > 0).all()
    assert prepared.counts == {"mlm": len(index)}
    assert prepared.inputs.cu is batch.packed.cu
    np.testing.assert_array_equal(batch.packed.tokens, clean, err_msg="the batch was changed")
    np.testing.assert_array_equal(targets, clean[index])
    assert batch.residue[index].all(), "a special symbol was chosen"
    rest = np.delete(np.arange(len(clean)), index)
    np.testing.assert_array_equal(prepared.inputs.tokens[rest], clean[rest])


@pytest.mark.parametrize("name", FORMS)
def test_a_batch_without_sequences(name: str) -> None:
    prepared = objective_of(**FORMS[name]).prepare(batch_of([]), RNG)
    assert prepared.counts == {"mlm": 0}
    assert prepared.inputs.cu.tolist() == [0]


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.6, 1.0])
def test_fixed_rate(rate: float) -> None:
    batch = batch_of([1000] * 60)
    counts = counts_of(batch, objective_of(mask_rate=rate).prepare(batch, RNG))
    assert close_to(counts.sum(), 60_000, rate)
    if rate < 1:
        assert len(set(counts.tolist())) > 5, "counts should scatter like a binomial"


@pytest.mark.parametrize("span", [None, {}, {"mean": 6}, {"kind": "fixed", "mean": 8}])
def test_every_residue_has_the_same_chance(span: dict[str, Any] | None) -> None:
    """The first ones too, although no span starts on a residue before them."""
    n, length, rate = 30_000, 50, 0.3
    one = np.array([0, *[5] * length, 2], dtype=np.int32)
    batch = SequenceBatch(
        packed=Packed(np.tile(one, n), np.arange(n + 1, dtype=np.int32) * (length + 2)),
        residue=np.tile(one >= 4, n),
        epoch=np.zeros(n, dtype=np.int64),
        index=np.arange(n),
        corpus=np.zeros(n, dtype=np.int32),
        group=np.arange(n, dtype=np.int32),
    )
    prepared = objective_of(mask_rate=rate, span=span).prepare(batch, RNG)
    counts = np.bincount(prepared.arrays["index"] % (length + 2), minlength=length + 2)[1:-1]
    # a sequence in which nothing is chosen gets one residue, for spans in one of a hundred
    assert all(close_to(count, n, rate) or close_to(count - 0.01 * n / length, n, rate) for count in counts)


def test_split() -> None:
    batch = batch_of([2000] * 40)
    prepared = objective_of(mask_rate=0.5, split={"mask": 0.6, "random": 0.3, "keep": 0.1}).prepare(batch, RNG)
    got = prepared.inputs.tokens[prepared.arrays["index"]]
    targets, trials = prepared.arrays["targets"], len(got)
    assert close_to((got == MASK).sum(), trials, 0.6)
    # one in twenty of the random replacements is the original
    assert close_to((got == targets).sum(), trials, 0.1 + 0.3 / 20)
    swapped = got[(got != MASK) & (got != targets)]
    assert set(np.unique(swapped)) == set(TOKENIZER.residue_ids)
    counts = np.bincount(swapped, minlength=24)[4:24]
    assert all(close_to(count, len(swapped), 1 / 20) for count in counts)


def test_default_split_is_80_10_10() -> None:
    batch = batch_of([2000] * 40)
    prepared = objective_of(mask_rate=0.15).prepare(batch, RNG)
    got, targets = prepared.inputs.tokens[prepared.arrays["index"]], prepared.arrays["targets"]
    assert close_to((got == MASK).sum(), len(got), 0.8)
    assert close_to((got == targets).sum(), len(got), 0.1 + 0.1 / 20)


def test_replacement_by_another_residue() -> None:
    batch = batch_of([2000] * 20)
    batch.packed.tokens[5] = 24  # X: not a standard residue, so any of the 20 may replace it
    options = {"mask_rate": 1.0, "split": {"mask": 0, "random": 1, "keep": 0}}
    prepared = objective_of(replace_by_other=True, **options).prepare(batch, RNG)
    got, targets = prepared.inputs.tokens[prepared.arrays["index"]], prepared.arrays["targets"]
    assert (got != targets).all()
    of_leucine = got[targets == 4]
    counts = np.bincount(of_leucine, minlength=24)[5:24]
    assert all(close_to(count, len(of_leucine), 1 / 19) for count in counts)
    plain = objective_of(**options).prepare(batch, RNG)
    same = plain.inputs.tokens[plain.arrays["index"]] == targets
    assert close_to(same.sum(), len(targets), 1 / 20)


def test_rates_of_a_set_are_drawn_per_sequence() -> None:
    n, length, rates = 900, 400, [0.05, 0.3, 0.9]
    batch = batch_of([length] * n)
    share = counts_of(batch, objective_of(mask_rates=rates).prepare(batch, RNG)) / length
    nearest = np.abs(share[:, None] - np.array(rates)).argmin(axis=1)
    assert all(close_to((nearest == k).sum(), n, 1 / 3) for k in range(3))
    for k, rate in enumerate(rates):
        of_rate = share[nearest == k]
        assert close_to(of_rate.sum() * length, len(of_rate) * length, rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (50, 0.2), (100, 0.3), (150, 0.45), (200, 0.6), (10**6, 0.6)])
def test_schedule(step: int, rate: float) -> None:
    objective = objective_of(mask_rate_schedule=[(0, 0.1), (100, 0.3), (200, 0.6)])
    batch = batch_of([2000] * 20, step=step)
    assert close_to(objective.prepare(batch, RNG).counts["mlm"], 40_000, rate)


def runs(batch: SequenceBatch, prepared: Prepared) -> NDArray[np.int64]:
    """Lengths of runs of chosen residues."""
    index = prepared.arrays["index"]
    ends = np.flatnonzero(np.concatenate((np.diff(index) > 1, [True])))
    return np.diff(ends, prepend=-1)


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("span", [{}, {"mean": 8, "max": 30}, {"kind": "fixed", "mean": 3}, {"mean": 1}])
def test_spans_keep_the_rate(rate: float, span: dict[str, Any]) -> None:
    batch = batch_of([3000] * 60)
    prepared = objective_of(mask_rate=rate, span=span).prepare(batch, RNG)
    # neighbours are chosen together: one independent draw for about two longest spans
    trials = 180_000 / (2 * 30)
    share = prepared.counts["mlm"] / 180_000
    assert abs(share - rate) < 6 * np.sqrt(rate * (1 - rate) / trials)
    if span.get("mean") != 1:
        alone = objective_of(mask_rate=rate).prepare(batch, RNG)
        assert runs(batch, prepared).mean() > 1.2 * runs(batch, alone).mean()


def test_span_lengths() -> None:
    """At a low rate spans hardly meet, so runs have the lengths that were asked for."""
    batch = batch_of([3000] * 200)
    fixed = runs(batch, objective_of(mask_rate=0.004, span={"kind": "fixed", "mean": 4}).prepare(batch, RNG))
    assert np.mean(fixed == 4) > 0.95
    longest = 10
    geometric = runs(batch, objective_of(mask_rate=0.004, span={"mean": 3, "max": longest}).prepare(batch, RNG))
    expected = (1 - (2 / 3) ** longest) * 3  # Σ S(j) of the cut geometric
    assert abs(geometric.mean() - expected) < 6 * geometric.std() / np.sqrt(len(geometric)) + 0.05
    assert np.mean(geometric > longest) < 0.02


@pytest.mark.parametrize("name", FORMS)
def test_no_sequence_is_left_without_a_chosen_residue(name: str) -> None:
    lengths = [1, 2, 3, 4] * 100
    batch = batch_of(lengths)
    prepared = objective_of(**{**FORMS[name], "mask_rate_schedule": None}).prepare(batch, RNG)
    assert counts_of(batch, prepared).min() >= 1
    rare = {"mask_rate": 1e-9} | ({"span": FORMS[name]["span"]} if "span" in FORMS[name] else {})
    assert counts_of(batch, objective_of(**rare).prepare(batch, RNG)).tolist() == [1] * len(lengths)


def test_the_residue_that_saves_an_empty_mask_is_drawn_evenly() -> None:
    n = 6000
    batch = batch_of([4] * n)
    prepared = objective_of(mask_rate=1e-9).prepare(batch, RNG)
    counts = np.bincount(prepared.arrays["index"] % 6, minlength=6)
    assert counts[[0, 5]].tolist() == [0, 0]
    assert all(close_to(count, n, 1 / 4) for count in counts[1:5])


def test_validation_masks_everything_that_is_chosen() -> None:
    batch = batch_of([1000] * 40)
    for options in FORMS.values():
        prepared = objective_of(**options).prepare_validation(batch, RNG)
        index = prepared.arrays["index"]
        assert (prepared.inputs.tokens[index] == MASK).all()
        assert (prepared.inputs.tokens == MASK).sum() == len(index)
        assert close_to(len(index), 40_000, 0.15), "runs of any rate are validated at the same one"
        np.testing.assert_array_equal(prepared.arrays["targets"], batch.packed.tokens[index])
    assert close_to(objective_of(validation_rate=0.3).prepare_validation(batch, RNG).counts["mlm"], 40_000, 0.3)


class Linear(torch.nn.Module):
    """Stands for a network: an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter(torch.randn(33, 8, generator=generator, dtype=torch.float64))
        self.head = torch.nn.Parameter(torch.randn(33, 8, generator=generator, dtype=torch.float64))

    def encode(self, tokens: torch.Tensor) -> Encoded:
        return Encoded(self.embedding[tokens], {})

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.head.T


def loss_of(model: Linear, objective: MaskedLM, prepared: Prepared) -> Any:
    tokens = torch.from_numpy(prepared.inputs.tokens.astype(np.int64))
    passes = SimpleNamespace(encoded=model.encode(tokens))
    arrays = {name: torch.from_numpy(array) for name, array in prepared.arrays.items()}
    ctx = StepContext(0, RNG, lambda x: x, lambda x: x)
    return objective.loss(cast("Any", model), cast("Any", passes), arrays, ctx)


def test_loss_is_the_sum_of_minus_log_probabilities() -> None:
    model, objective, batch = Linear(), objective_of(mask_rate=0.3), batch_of([50, 3, 120])
    prepared = objective.prepare(batch, RNG)
    losses = loss_of(model, objective, prepared)
    embedding, head = model.embedding.detach().numpy(), model.head.detach().numpy()
    expected, correct = 0.0, 0
    for position, target in zip(*(prepared.arrays[k].tolist() for k in ("index", "targets")), strict=True):
        scores = head @ embedding[prepared.inputs.tokens[position]]
        expected += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target]
        correct += int(scores.argmax() == target)
    assert set(losses.totals) == set(objective.terms) == {"mlm"}
    assert objective.terms["mlm"].additive
    assert losses.totals["mlm"].item() == pytest.approx(expected, rel=1e-5)
    accuracy = losses.metrics["accuracy"]
    assert float(accuracy.total) == correct
    assert float(accuracy.count) == prepared.counts["mlm"]


def test_loss_of_nothing_is_a_zero_that_depends_on_the_parameters() -> None:
    model, objective = Linear(), objective_of()
    losses = loss_of(model, objective, objective.prepare(batch_of([]), RNG))
    total = losses.totals["mlm"]
    assert total.item() == 0.0
    total.backward()
    assert model.head.grad is not None
    assert not model.head.grad.any()
    assert float(losses.metrics["accuracy"].count) == 0


def test_losses_of_parts_add_up() -> None:
    model, objective = Linear(), objective_of()
    lengths = [50, 3, 120, 8]
    whole = loss_of(model, objective, objective.prepare(batch_of(lengths), RNG)).totals["mlm"].item()
    parts = [batch_of(lengths[:1], numbers=[0]), batch_of(lengths[1:], numbers=[1, 2, 3])]
    summed = sum(loss_of(model, objective, objective.prepare(part, RNG)).totals["mlm"].item() for part in parts)
    assert whole == pytest.approx(summed, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_rate": 0}, "greater than 0"),
        ({"mask_rate": -0.1}, "greater than 0"),
        ({"mask_rate": 1.5}, "less than or equal to 1"),
        ({"mask_rates": []}, "at least 1"),
        ({"mask_rates": [0.1, 2]}, "less than or equal to 1"),
        ({"mask_rate_schedule": [(10, 0.1), (5, 0.2)]}, "must ascend"),
        ({"mask_rate_schedule": [(0, 0.0)]}, "greater than 0"),
        ({"mask_rate": 0.2, "mask_rates": [0.1]}, "give only one of mask_rate and mask_rates"),
        ({"split": {"mask": 0.8, "random": 0.1, "keep": 0.2}}, "must add up to 1, not 1.1"),
        ({"split": {"mask": 1.2, "random": -0.2, "keep": 0}}, "less than or equal to 1"),
        ({"span": {"mean": 0.5}}, "greater than or equal to 1"),
        ({"span": {"kind": "fixed", "mean": 2.5}}, "whole number"),
        ({"validation_rate": 0}, "greater than 0"),
        ({"mask_ratio": 0.2}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MaskedLMConfig.model_validate(options)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer = EsmTokenizer(EsmTokenizerConfig())
    tokenizer.mask_id = None
    with pytest.raises(UserError, match="needs a mask symbol, but tokenizer 'esm' has none"):
        MaskedLM(MaskedLMConfig(), BuildContext(tokenizer=tokenizer, ops=cast("Any", None)))
