"""Completion: where sequences are cut, what is asked for, and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from seq2seq_batches import (
    CARD,
    END,
    RNG,
    Tiny,
    batch_of,
    build,
    layouts,
    log_probabilities,
    loss_of,
    originals,
    previewed,
    streams,
    tokenizer_of,
    words,
)

from protloom.errors import UserError
from protloom.rng import CounterRNG
from protloom_plugins.objectives.complete import Complete
from protloom_plugins.objectives.complete_config import CompleteConfig
from protloom_plugins.tokenizers.ankh import AnkhTokenizer, AnkhTokenizerConfig

TOKENIZER = tokenizer_of()
S2S = TOKENIZER.prefixes["S2S"]
FORMS: dict[str, dict[str, Any]] = {"half": {}, "uniform": {"split": {"min": 0.2, "max": 0.8}}}


def objective_of(tokenizer: Any = TOKENIZER, **options: Any) -> Complete:
    return Complete(CompleteConfig.model_validate(options), build(tokenizer))


def test_the_model_cards_example_in_preview(capsys: Any, monkeypatch: Any) -> None:
    assert previewed(capsys, monkeypatch, "complete", "--sequence", CARD) == {
        "sequence": "[NLU] M K A Y V L I N S R G P </s>",
        "input": "[S2S] M K A Y V L </s>",
        "decoder input": "<pad> I N S R G P",
        "target": "I N S R G P </s>",
    }


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=8),
    split=st.one_of(st.just("half"), st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99))),
    leading=st.booleans(),
)
def test_input_and_target_give_the_original_back(lengths: list[int], split: Any, leading: bool) -> None:
    tokenizer = tokenizer_of(legacy_leading_unk=leading)
    if split != "half":
        split = {"min": min(split), "max": max(split)}
    batch = batch_of(tokenizer, lengths)
    prepared = objective_of(tokenizer, split=split).prepare(batch, RNG)
    front = [*([2] * leading), *S2S]
    rows = streams(prepared)
    assert len(rows) == len(lengths)
    for (encoder, _, target), original in zip(rows, originals(tokenizer, batch), strict=True):
        assert encoder[: len(front)] == front
        given, asked = encoder[len(front) : -1], target[:-1]
        assert given + asked == original
        if split == "half":
            assert len(given) == len(original) // 2
        if len(original) > 1:
            assert given, "the encoder reads something"
            assert asked, "something is asked for"
        if len(original) == 1:
            assert asked == original
    assert prepared.counts == {"complete": sum(len(target) for _, _, target in rows)}


def test_uniform_split_covers_its_range() -> None:
    n, length = 2000, 1000
    split = {"min": 0.25, "max": 0.75}
    prepared = objective_of(split=split).prepare(batch_of(TOKENIZER, [length] * n), RNG)
    kept = np.diff(prepared.inputs.cu) - 2
    assert kept.min() in range(250, 256)
    assert kept.max() in range(744, 751)
    quarters = np.histogram(kept, bins=4, range=(250, 750))[0]
    assert (abs(quarters - n / 4) < 6 * np.sqrt(n * 3 / 16)).all()


@pytest.mark.parametrize("name", FORMS)
def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    objective = objective_of(**FORMS[name])
    lengths = [30, 200, 1, 2, 77, 512]
    together = streams(objective.prepare(batch_of(TOKENIZER, lengths), RNG))
    for i, length in enumerate(lengths):
        assert streams(objective.prepare(batch_of(TOKENIZER, [length], numbers=[i]), RNG)) == [together[i]]


def test_the_cut_changes_with_epoch_corpus_and_stream_only() -> None:
    objective = objective_of(**FORMS["uniform"])
    batch = batch_of(TOKENIZER, [200] * 5)
    first = streams(objective.prepare(batch, RNG))
    assert streams(objective.prepare(batch, RNG)) == first
    for other in (
        objective.prepare(batch_of(TOKENIZER, [200] * 5, epoch=1), RNG),
        objective.prepare(batch_of(TOKENIZER, [200] * 5, corpus=1), RNG),
        objective.prepare(batch, CounterRNG(1, "seq2seq")),
    ):
        assert streams(other) != first


def test_prefixes() -> None:
    plain = AnkhTokenizer(AnkhTokenizerConfig())
    ((encoder, _, target),) = streams(objective_of(plain).prepare(batch_of(plain, [0], text=CARD), RNG))
    assert (words(plain, encoder), words(plain, target)) == ("M K A Y V L </s>", "I N S R G P </s>")
    ((encoder, _, _),) = streams(objective_of(prefix="none").prepare(batch_of(TOKENIZER, [0], text=CARD), RNG))
    assert words(TOKENIZER, encoder) == "M K A Y V L </s>"
    ((encoder, _, _),) = streams(objective_of(prefix="NLU").prepare(batch_of(TOKENIZER, [0], text=CARD), RNG))
    assert words(TOKENIZER, encoder) == "[NLU] M K A Y V L </s>"
    with pytest.raises(UserError, match=r"objective complete: prefix: tokenizer 'ankh' has no mode 'S2S'\. It"):
        objective_of(plain, prefix="S2S")


def test_loss_is_the_sum_of_minus_log_probabilities() -> None:
    model, objective = Tiny(), objective_of()
    prepared = objective.prepare(batch_of(TOKENIZER, [50, 3, 120, 1]), RNG)
    nats, right, asked = log_probabilities(model, prepared)
    losses = loss_of(model, objective, prepared)
    assert set(losses.totals) == set(objective.terms) == {"complete"}
    assert losses.totals["complete"].item() == pytest.approx(sum(nats), rel=1e-9)
    residue = [t != END for t in asked]
    layout = layouts(model, prepared, TOKENIZER)
    parts = {
        "residue_loss": [x - y if r else 0.0 for x, y, r in zip(nats, layout, residue, strict=True)],
        "layout_loss": [y if r else 0.0 for y, r in zip(layout, residue, strict=True)],
        "end_loss": [x if not r else 0.0 for x, r in zip(nats, residue, strict=True)],
    }
    for name, values in parts.items():
        assert float(losses.metrics[name].total) == pytest.approx(sum(values), rel=1e-9)
        assert float(losses.metrics[name].count) == sum(residue) if name != "end_loss" else len(asked) - sum(residue)
    assert set(losses.metrics) == {"accuracy", *parts, "kept"}
    accuracy = losses.metrics["accuracy"]
    assert (float(accuracy.total), float(accuracy.count)) == (
        sum(r for r, c in zip(right, residue, strict=True) if c),
        sum(residue),
    )
    assert (float(losses.metrics["kept"].total), float(losses.metrics["kept"].count)) == (25 + 1 + 60, 174)


def test_z_loss_is_for_training_only() -> None:
    model, objective = Tiny(), objective_of(z_loss=0.1)
    prepared = objective.prepare(batch_of(TOKENIZER, [50]), RNG)
    plain = sum(log_probabilities(model, prepared)[0])
    assert loss_of(model, objective, prepared).totals["complete"].item() > plain + 1
    objective.eval()
    assert loss_of(model, objective, prepared).totals["complete"].item() == pytest.approx(plain, rel=1e-9)


def test_loss_of_nothing_is_a_zero_that_depends_on_the_parameters() -> None:
    model, objective = Tiny(), objective_of()
    prepared = objective.prepare(batch_of(TOKENIZER, []), RNG)
    assert prepared.counts == {"complete": 0}
    total = loss_of(model, objective, prepared).totals["complete"]
    assert total.item() == 0.0
    total.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": {"min": 0.6, "max": 0.4}}, "above max"),
        ({"split": {"min": 0.0, "max": 0.4}}, "greater than 0"),
        ({"split": {"min": 0.5, "max": 1.0}}, "less than 1"),
        ({"split": "third"}, "half"),
        ({"z_loss": -0.1}, "greater than or equal to 0"),
        ({"keep": 0.5}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CompleteConfig.model_validate(options)
