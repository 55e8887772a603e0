"""Denoising with sentinels: what is hidden, how it is written, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

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
    close_to,
    layouts,
    log_probabilities,
    loss_of,
    originals,
    previewed,
    split,
    streams,
    tokenizer_of,
    words,
)

from protloom.contracts import Packed, Prepared
from protloom.errors import UserError
from protloom.rng import CounterRNG
from protloom_plugins.objectives.denoise import Denoise
from protloom_plugins.objectives.denoise_config import DenoiseConfig
from protloom_plugins.tokenizers.ankh import AnkhTokenizer, AnkhTokenizerConfig
from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

TOKENIZER = tokenizer_of()
STYLES = [(target, sentinels) for target in ("paired", "t5_literal") for sentinels in ("merged", "unmerged")]


def objective_of(tokenizer: Any = TOKENIZER, architecture: Any = None, **options: Any) -> Denoise:
    return Denoise(DenoiseConfig.model_validate(options), build(tokenizer, architecture))


# ------------------------------------------------------------------------------------------- plain-Python references


def walk(residues: Sequence[int], mask: Sequence[bool], sentinels: Sequence[int], target: str, merge: bool) -> Any:
    """(encoder body, target) by walking along the residues, as the algorithm is written down."""
    encoder: list[int] = []
    answer: list[int] = []
    hidden = shown = 0
    for i, (residue, masked) in enumerate(zip(residues, mask, strict=True)):
        begins = i == 0 or mask[i - 1] != masked
        if masked:
            if begins or not merge:
                encoder.append(sentinels[hidden])
                if target == "paired":
                    answer.append(sentinels[hidden])
                hidden += 1
            answer.append(residue)
        else:
            encoder.append(residue)
            if begins and target == "t5_literal":
                answer.append(sentinels[shown])
                shown += 1
    return encoder, [*answer, END]


def restore(tokenizer: Any, encoder: list[int], target: list[int], style: str, merge: bool) -> list[int]:
    """The original residues, from what the encoder reads and the target alone."""
    known = set(tokenizer.sentinels)
    assert target[-1] == END
    groups: list[tuple[int | None, list[int]]] = [(None, [])]
    for token in target[:-1]:
        if token in known:
            groups.append((token, []))
        else:
            groups[-1][1].append(token)
    if style == "paired":
        assert not groups[0][1]
        answers = dict(groups[1:])
        return [r for token in encoder for r in (answers.pop(token) if token in known else [token])]
    runs = [residues for _, residues in groups if residues]
    units = iter(runs if merge else [[residue] for run in runs for residue in run])
    out = [r for token in encoder for r in (next(units) if token in known else [token])]
    assert next(units, None) is None
    return out


def masks_of(tokenizer: Any, prepared: Prepared, lengths: Sequence[int]) -> list[list[bool]]:
    """Which residues are hidden, from paired streams."""
    known = set(tokenizer.sentinels)
    masks = []
    for (encoder, _, target), length in zip(streams(prepared), lengths, strict=True):
        sizes: dict[int, int] = {}
        last = -1
        for token in target[:-1]:
            if token in known:
                last = token
            else:
                sizes[last] = sizes.get(last, 0) + 1
        body = encoder[1:-1]
        masks.append([m for token in body for m in ([True] * sizes[token] if token in known else [False])])
        assert len(masks[-1]) == length
    return masks


# ------------------------------------------------------------------------------------------------------ card examples


def test_the_model_cards_example_in_preview(capsys: Any, monkeypatch: Any) -> None:
    shown = previewed(capsys, monkeypatch, "denoise", "mask_positions=[2,5,8,12]", "--sequence", CARD)
    assert shown == {
        "sequence": "[NLU] M K A Y V L I N S R G P </s>",
        "input": "[NLU] M <0> A Y <1> L I <2> S R G <3> </s>",
        "decoder input": "<pad> <0> K <1> V <2> N <3> P",
        "target": "<0> K <1> V <2> N <3> P </s>",
    }


@pytest.mark.parametrize(
    ("positions", "options", "encoder", "target"),
    [
        # the example in the notes on Ankh1: C and G of ABCDEFG, here with residues that all have ids
        ([3, 7], {}, "M K <0> Y V L <1> N S R G P", "<0> A <1> I"),
        ([2, 3, 4], {}, "M <0> V L I N S R G P", "<0> K A Y"),
        ([2, 3], {"sentinels": "unmerged"}, "M <0> <1> Y V L I N S R G P", "<0> K <1> A"),
        ([2, 3], {"target": "t5_literal"}, "M <0> Y V L I N S R G P", "<0> K A <1>"),
        # same as paired where the sequence begins unmasked and ends masked
        ([2, 12], {"target": "t5_literal"}, "M <0> A Y V L I N S R G <1>", "<0> K <1> P"),
        # numbering is shifted where residue 1 is masked
        ([1, 5], {"target": "t5_literal"}, "<0> K A Y <1> L I N S R G P", "M <0> V <1>"),
        ([2, 3], {"target": "t5_literal", "sentinels": "unmerged"}, "M <0> <1> Y V L I N S R G P", "<0> K A <1>"),
        ([5], {"prefix": "S2S"}, "M K A Y <0> L I N S R G P", "<0> V"),
    ],
)
def test_written_out(positions: list[int], options: dict[str, Any], encoder: str, target: str) -> None:
    prepared = objective_of(mask_positions=positions, **options).prepare(batch_of(TOKENIZER, [0], text=CARD), RNG)
    ((read, decoder, asked),) = streams(prepared)
    assert words(TOKENIZER, read) == f"[{options.get('prefix', 'NLU')}] {encoder} </s>"
    assert words(TOKENIZER, asked) == f"{target} </s>"
    assert words(TOKENIZER, decoder) == f"<pad> {target}"


# -------------------------------------------------------------------------------------------------------- properties

SPANS = st.sampled_from([None, {"mean": 3.0}, {"kind": "fixed", "mean": 4}])


@settings(max_examples=150, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    overflow=st.sampled_from(["drop_random", "drop_tail"]),
    sentinels=st.integers(2, 40),
    lengths=st.lists(st.integers(0, 60), max_size=6),
    rates=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3),
    span=SPANS,
    seed=st.integers(0, 5),
)
def test_input_and_target_give_the_original_back(
    style: tuple[str, str],
    overflow: str,
    sentinels: int,
    lengths: list[int],
    rates: list[float],
    span: Any,
    seed: int,
) -> None:
    tokenizer = tokenizer_of(sentinels)
    target, merge = style[0], style[1] == "merged"
    objective = objective_of(
        tokenizer, target=target, sentinels=style[1], overflow=overflow, mask_rates=rates, span=span
    )
    batch = batch_of(tokenizer, lengths, numbers=range(seed * 10, seed * 10 + len(lengths)))
    rows = streams(objective.prepare(batch, RNG))
    assert len(rows) == len(lengths)
    for (encoder, _, asked), original in zip(rows, originals(tokenizer, batch), strict=True):
        assert encoder[0] == tokenizer.prefix[0]
        body = encoder[1:-1]
        assert restore(tokenizer, body, asked, target, merge) == original
        for stream in (body, asked):
            used = [t for t in stream if t in tokenizer.sentinels]
            assert used == list(tokenizer.sentinels[: len(used)]), "in order, each once"
        shown = [t for t in body if t not in tokenizer.sentinels]
        if original:
            assert len(shown) < len(original), "something is masked"
        if len(original) > 1:
            assert shown, "something is not masked"


@settings(max_examples=150, deadline=None)
@given(style=st.sampled_from(STYLES), masks=st.lists(st.lists(st.booleans(), min_size=1, max_size=40), max_size=5))
def test_equal_to_the_walk(style: tuple[str, str], masks: list[list[bool]]) -> None:
    """The vectorised streams, for any mask (also empty and full ones), against a walk in plain Python."""
    target, merge = style[0], style[1] == "merged"
    objective = objective_of(target=target, sentinels=style[1])
    batch = batch_of(TOKENIZER, [len(mask) for mask in masks])
    flat = np.array([m for mask in masks for m in mask], dtype=np.bool_)
    cast("Any", objective)._fixed = lambda residues: np.flatnonzero(flat)
    objective.config = DenoiseConfig.model_validate({**objective.config.model_dump(), "mask_positions": [1]})
    prepared = objective.prepare(batch, RNG)
    for (encoder, _, asked), residues, mask in zip(streams(prepared), originals(TOKENIZER, batch), masks, strict=True):
        body, answer = walk(residues, mask, TOKENIZER.sentinels, target, merge)
        assert encoder == [*TOKENIZER.prefix, *body, END]
        assert asked == answer


@pytest.mark.parametrize("sentinels", ["merged", "unmerged"])
def test_overflow_keeps_as_many_units_as_there_are_sentinels(sentinels: str) -> None:
    lengths, few = [300, 40, 200, 5, 300], 6
    options: dict[str, Any] = {"mask_rates": [0.4], "sentinels": sentinels}
    many, little = tokenizer_of(), tokenizer_of(few)
    whole = masks_of(many, objective_of(many, **options).prepare(batch_of(many, lengths), RNG), lengths)
    merge = sentinels == "merged"
    for overflow in ("drop_random", "drop_tail"):
        prepared = objective_of(little, overflow=overflow, **options).prepare(batch_of(little, lengths), RNG)
        kept = masks_of(little, prepared, lengths)
        dropped = 0
        for before, after in zip(whole, kept, strict=True):
            units = [i for i, m in enumerate(before) if m and not (merge and i and before[i - 1])]
            left = [i for i, m in enumerate(after) if m and not (merge and i and after[i - 1])]
            assert set(left) <= set(units), "only masked residues are shown again, in whole units"
            assert len(left) == min(few, len(units))
            if overflow == "drop_tail" or len(units) <= few:
                assert left == units[:few]
            dropped += len(units) - len(left)
        assert dropped > 0
        assert prepared.arrays["counters"].tolist() == [sum(map(sum, kept)), sum(lengths), dropped, len(lengths)]


def test_random_overflow_favours_no_part_of_a_protein() -> None:
    tokenizer = tokenizer_of(5)
    lengths = [200] * 600
    prepared = objective_of(tokenizer, mask_rates=[0.3]).prepare(batch_of(tokenizer, lengths), RNG)
    where = np.concatenate([np.flatnonzero(mask) for mask in masks_of(tokenizer, prepared, lengths)])
    thirds = np.bincount(where * 3 // 200, minlength=3)
    # runs, not residues, are drawn: their lengths spread the counts a little beyond a binomial's
    assert all(close_to(count, thirds.sum(), 1 / 3) for count in thirds), thirds


def test_t5_literal_never_runs_out_of_sentinels() -> None:
    """Its target may need one sentinel more than there are masked runs."""
    for few in (2, 3, 4):
        tokenizer = tokenizer_of(few)
        for sentinels in ("merged", "unmerged"):
            objective = objective_of(tokenizer, target="t5_literal", sentinels=sentinels, mask_rates=[0.5])
            batch = batch_of(tokenizer, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 20, numbers=range(200))
            for (encoder, _, asked), original in zip(
                streams(objective.prepare(batch, RNG)), originals(tokenizer, batch), strict=True
            ):
                assert restore(tokenizer, encoder[1:-1], asked, "t5_literal", sentinels == "merged") == original


def test_overflow_error_says_what_to_do() -> None:
    tokenizer = tokenizer_of(4)
    objective = objective_of(tokenizer, overflow="error", mask_rates=[0.3])
    objective.prepare(batch_of(tokenizer, [3, 4]), RNG)
    with pytest.raises(UserError, match=r"masked runs, but there are sentinels for only 4 of them.*overflow: drop"):
        objective.prepare(batch_of(tokenizer, [3, 300]), RNG)


# ------------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
def test_realised_rate(rate: float) -> None:
    tokenizer = tokenizer_of(1000)
    prepared = objective_of(tokenizer, mask_rates=[rate]).prepare(batch_of(tokenizer, [1000] * 60), RNG)
    masked, residues, dropped, sequences = prepared.arrays["counters"].tolist()
    assert (residues, dropped, sequences) == (60_000, 0, 60)
    assert close_to(masked, residues, rate)
    kinds = prepared.arrays["kinds"]
    assert (kinds == 0).sum() == masked
    assert (kinds == 2).sum() == sequences


@pytest.mark.parametrize(
    ("given", "rates"),
    [("ankh3", [0.15, 0.2, 0.3]), ("ankh3-blog", [0.15, 0.2, 0.5]), ([0.1, 0.4], [0.1, 0.4]), ("ankh1", [0.2])],
)
def test_each_sequence_draws_one_rate(given: Any, rates: list[float]) -> None:
    n, length = 900, 600
    tokenizer = tokenizer_of(700)
    prepared = objective_of(tokenizer, mask_rates=given).prepare(batch_of(tokenizer, [length] * n), RNG)
    realised = np.array([sum(mask) for mask in masks_of(tokenizer, prepared, [length] * n)])
    # the nearest rate is the drawn one but for few: standard deviation 0.015 to 0.02, distances 0.05 and more
    edges = [(a + b) / 2 * length for a, b in pairwise(rates)]
    drawn = np.bincount(np.searchsorted(edges, realised), minlength=len(rates))
    for i, rate in enumerate(rates):
        mine = realised[np.searchsorted(edges, realised) == i]
        assert abs(mine.mean() / length - rate) < 0.006
        assert close_to(drawn[i], n, 1 / len(rates)) or abs(drawn[i] - n / len(rates)) < 0.08 * n


TABLE = [  # METHODS: rate, length, masked residues, runs, encoder length, decoder length
    (0.15, 512, 76.8, 65, 503, 143),
    (0.20, 512, 102.4, 82, 494, 185),
    (0.30, 512, 153.6, 108, 468, 262),
    (0.50, 512, 256, 128, 386, 385),
    (0.15, 1024, 153.6, 131, 1003, 285),
    (0.20, 1024, 204.8, 164, 985, 370),
    (0.30, 1024, 307.2, 215, 934, 523),
    (0.50, 1024, 512, 256, 770, 769),
]


@pytest.mark.parametrize(("rate", "length", "masked", "runs", "encoder", "decoder"), TABLE)
def test_expected_sizes(rate: float, length: int, masked: float, runs: float, encoder: float, decoder: float) -> None:
    n = 300
    tokenizer = tokenizer_of(1100)
    batch = batch_of(tokenizer, [length] * n)
    prepared = objective_of(tokenizer, mask_rates=[rate]).prepare(batch, RNG)
    assert prepared.decoder is not None
    assert prepared.arrays["counters"][0] / n == pytest.approx(masked, rel=0.02)
    assert (prepared.arrays["kinds"] == 1).sum() / n == pytest.approx(runs, rel=0.02)
    assert len(prepared.inputs.tokens) / n == pytest.approx(encoder, rel=0.01)
    assert len(prepared.decoder.tokens) / n == pytest.approx(decoder, rel=0.02)
    unmerged = objective_of(tokenizer, mask_rates=[rate], sentinels="unmerged").prepare(batch, RNG)
    assert (unmerged.arrays["kinds"] == 1).sum() == prepared.arrays["counters"][0], "one sentinel a masked residue"
    assert len(unmerged.inputs.tokens) == n * (length + 2), "the encoder's length is unchanged"
    literal = objective_of(tokenizer, mask_rates=[rate], target="t5_literal").prepare(batch, RNG)
    assert literal.decoder is not None
    assert (literal.inputs.tokens == prepared.inputs.tokens).all(), "only the target differs"
    assert abs(len(literal.decoder.tokens) - len(prepared.decoder.tokens)) <= n, "to within a token"


def test_short_sequences() -> None:
    lengths = [1] * 50 + [2] * 200 + [3] * 50 + [0]
    for rate in (0.01, 0.5, 1.0):
        prepared = objective_of(mask_rates=[rate]).prepare(batch_of(TOKENIZER, lengths), RNG)
        masks = masks_of(TOKENIZER, prepared, lengths)
        assert all(mask == [True] for mask in masks[:50]), "the only residue is asked for"
        assert all(sum(mask) == 1 for mask in masks[50:250])
        assert close_to(sum(mask[0] for mask in masks[50:250]), 200, 0.5), "which of two is masked is even"
        assert all(1 <= sum(mask) <= 2 for mask in masks[250:300])
        assert masks[-1] == []


# ------------------------------------------------------------------------------------------------------- determinism

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "blog": {"mask_rates": "ankh3-blog"},
    "spans": {"span": {}},
    "some masked whole": {"mask_rates": [1.0, 0.4]},
    "unmerged": {"sentinels": "unmerged"},
    "literal": {"target": "t5_literal", "mask_rates": [0.5]},
    "ul2": {"mixture": "ul2"},
    "both heads": {"sentinels": "unmerged", "head": "both"},
}


def prepared_rows(objective: Denoise, batch: Any) -> list[Any]:
    return streams(objective.prepare(batch, RNG))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("sentinels", [225, 20])
def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(name: str, sentinels: int) -> None:
    tokenizer = tokenizer_of(sentinels)
    objective = objective_of(tokenizer, Tiny(), **FORMS[name])
    lengths = [30, 200, 1, 2, 77, 700]
    together = prepared_rows(objective, batch_of(tokenizer, lengths))
    for i, length in enumerate(lengths):
        assert prepared_rows(objective, batch_of(tokenizer, [length], numbers=[i])) == [together[i]]
    backwards = batch_of(tokenizer, lengths[::-1], numbers=range(len(lengths))[::-1])
    assert prepared_rows(objective, backwards) == together[::-1]


@pytest.mark.parametrize("name", FORMS)
def test_it_changes_with_epoch_corpus_and_stream_only(name: str) -> None:
    objective = objective_of(TOKENIZER, Tiny(), **FORMS[name])
    batch = batch_of(TOKENIZER, [200] * 5)
    before = batch.packed.tokens.copy()
    first = objective.prepare(batch, RNG)
    np.testing.assert_array_equal(batch.packed.tokens, before, err_msg="the batch was changed")
    assert streams(objective.prepare(batch, RNG)) == streams(first)
    for other in (
        objective.prepare(batch_of(TOKENIZER, [200] * 5, epoch=1), RNG),
        objective.prepare(batch_of(TOKENIZER, [200] * 5, corpus=1), RNG),
        objective.prepare(batch, CounterRNG(0, "another")),
        objective.prepare(batch, CounterRNG(1, "seq2seq")),
    ):
        assert streams(other) != streams(first)


@pytest.mark.parametrize("name", FORMS)
def test_a_batch_without_sequences(name: str) -> None:
    objective = objective_of(TOKENIZER, Tiny(), **FORMS[name])
    prepared = objective.prepare(batch_of(TOKENIZER, []), RNG)
    assert set(prepared.counts.values()) == {0}
    assert streams(prepared) == []


# ----------------------------------------------------------------------------------------------------------- mixture


def test_denoisers_are_drawn_by_share_and_tell_their_mode() -> None:
    n, length = 900, 200
    mixture = [
        {"mask_rates": [0.1], "prefix": "NLU", "share": 2},
        {"suffix": [0.3, 0.5], "prefix": "S2S"},
        {"mask_rates": [0.5], "span": {"mean": 8, "max": 30}, "prefix": "none"},
    ]
    prepared = objective_of(mixture=mixture).prepare(batch_of(TOKENIZER, [length] * n), RNG)
    rows = streams(prepared)
    batch = originals(TOKENIZER, batch_of(TOKENIZER, [length] * n))
    hidden: dict[str, list[int]] = {"[NLU]": [], "[S2S]": [], "none": []}
    for (encoder, _, target), original in zip(rows, batch, strict=True):
        mode = TOKENIZER.vocab[encoder[0]]
        mode = mode if mode in hidden else "none"
        body = encoder[:-1] if mode == "none" else encoder[1:-1]
        assert restore(TOKENIZER, body, target, "paired", True) == original
        hidden[mode].append(sum(t not in TOKENIZER.sentinels for t in target[:-1]))
        if mode == "[S2S]":
            assert target == [TOKENIZER.sentinels[0], *original[-hidden[mode][-1] :], END]
    assert close_to(len(hidden["[NLU]"]), n, 0.5)
    assert close_to(len(hidden["[S2S]"]), n, 0.25)
    assert close_to(sum(hidden["[NLU]"]), length * len(hidden["[NLU]"]), 0.1)
    assert min(hidden["[S2S]"]) in range(60, 64)
    assert max(hidden["[S2S]"]) in range(97, 101)
    # spans of 8 make the variance about 8 + 7 times a binomial's
    assert abs(np.mean(hidden["none"]) / length - 0.5) < 0.04


def test_ul2_preset() -> None:
    n, length = 1400, 400
    rows = streams(objective_of(mixture="ul2").prepare(batch_of(TOKENIZER, [length] * n), RNG))
    modes = [TOKENIZER.vocab[encoder[0]] for encoder, _, _ in rows]
    for mode, share in (("[NLU]", 2 / 7), ("[S2S]", 1 / 7), ("[NLG]", 4 / 7)):
        assert close_to(modes.count(mode), n, share)
    for (_, _, target), mode in zip(rows, modes, strict=True):
        if mode == "[S2S]":
            assert len(target) == length // 4 + 2
    # one mode less to tell: the older vocabulary has none, and still trains the mixture
    plain = AnkhTokenizer(AnkhTokenizerConfig())
    objective = objective_of(plain, mixture="ul2")
    batch = batch_of(plain, [length] * 20)
    for (encoder, _, target), original in zip(
        streams(objective.prepare(batch, RNG)), originals(plain, batch), strict=True
    ):
        assert restore(plain, encoder[:-1], target, "paired", True) == original


# -------------------------------------------------------------------------------------------------------------- loss


def test_loss_is_the_sum_of_minus_log_probabilities() -> None:
    model, objective = Tiny(), objective_of()
    prepared = objective.prepare(batch_of(TOKENIZER, [50, 3, 120]), RNG)
    nats, right, asked = log_probabilities(model, prepared)
    losses = loss_of(model, objective, prepared)
    assert set(losses.totals) == set(objective.terms) == set(prepared.counts) == {"denoise"}
    assert objective.terms["denoise"].additive
    assert prepared.counts["denoise"] == len(asked)
    assert losses.totals["denoise"].item() == pytest.approx(sum(nats), rel=1e-9)
    kinds = {
        "residue_loss": [t in TOKENIZER.residue_ids for t in asked],
        "sentinel_loss": [t in TOKENIZER.sentinels for t in asked],
        "end_loss": [t == END for t in asked],
    }
    layout = layouts(model, prepared, TOKENIZER)
    for name, chosen in kinds.items():
        metric = losses.metrics[name]
        expected = sum(x for x, c in zip(nats, chosen, strict=True) if c)
        if name == "residue_loss":  # which residue, given that it is one: the rest is told apart
            apart = sum(y for y, c in zip(layout, chosen, strict=True) if c)
            assert float(losses.metrics["layout_loss"].total) == pytest.approx(apart, rel=1e-9)
            expected -= apart
        assert float(metric.total) == pytest.approx(expected, rel=1e-9)
        assert float(metric.count) == sum(chosen)
    accuracy = losses.metrics["accuracy"]
    residue = kinds["residue_loss"]
    assert float(accuracy.total) == sum(r for r, c in zip(right, residue, strict=True) if c)
    assert float(accuracy.count) == sum(residue)
    assert float(losses.metrics["mask_rate"].total) == sum(residue)
    assert float(losses.metrics["mask_rate"].count) == 173
    assert (float(losses.metrics["dropped_runs"].total), float(losses.metrics["dropped_runs"].count)) == (0, 3)


def test_z_loss_is_for_training_only() -> None:
    model = Tiny()
    plain, penalised = objective_of(), objective_of(z_loss=0.01)
    prepared = plain.prepare(batch_of(TOKENIZER, [50, 3]), RNG)
    without = loss_of(model, plain, prepared).totals["denoise"].item()
    expected = 0.0
    reads, writes, head = (p.detach().numpy() for p in (model.reads, model.writes, model.head))
    for encoder, decoder, _ in streams(prepared):
        for token in decoder:
            expected += np.log(np.exp(head @ (writes[token] + reads[encoder].mean(0))).sum()) ** 2
    losses = loss_of(model, penalised, prepared)
    assert losses.totals["denoise"].item() == pytest.approx(without + 0.01 * expected, rel=1e-6)
    assert float(losses.metrics["z_loss"].total) == pytest.approx(0.01 * expected, rel=1e-6)
    assert loss_of(model, cast("Denoise", penalised.eval()), prepared).totals["denoise"].item() == without


@pytest.mark.parametrize("head", ["encoder", "both"])
@pytest.mark.parametrize("target", ["paired", "t5_literal"])
def test_encoder_head(head: str, target: str) -> None:
    tokenizer = tokenizer_of(12)  # some are dropped
    model = Tiny()
    objective = objective_of(tokenizer, model, head=head, sentinels="unmerged", target=target, mask_rates=[0.3])
    objective.double()
    lengths = [50, 1, 120, 7]
    batch = batch_of(tokenizer, lengths)
    prepared = objective.prepare(batch, RNG)
    front = "encoder_" if head == "both" else ""
    index, asked = prepared.arrays[f"{front}index"], prepared.arrays[f"{front}targets"]
    # every sentinel of the encoder, and for each the residue that stood there: nothing moves when unmerged
    at = np.flatnonzero(np.isin(prepared.inputs.tokens, tokenizer.sentinels))
    np.testing.assert_array_equal(index, at)
    np.testing.assert_array_equal(prepared.inputs.cu, batch.packed.cu)
    np.testing.assert_array_equal(asked, batch.packed.tokens[at])
    assert (prepared.decoder is None) == (head == "encoder")
    assert set(objective.terms) == set(prepared.counts) == {"denoise_encoder", *(["denoise"] * (head == "both"))}
    assert prepared.counts["denoise_encoder"] == len(index)

    losses = loss_of(model, objective, prepared)
    assert objective.encoder_head is not None
    weight = objective.encoder_head.weight.detach().numpy()
    assert weight.shape == (256, 8)
    expected = 0.0
    for position, residue in zip(index.tolist(), asked.tolist(), strict=True):
        scores = weight @ model.reads.detach().numpy()[prepared.inputs.tokens[position]]
        expected += np.log(np.exp(scores).sum()) - scores[residue]
    assert losses.totals["denoise_encoder"].item() == pytest.approx(expected, rel=1e-9)
    assert float(losses.metrics[f"{front}residue_loss"].total) == pytest.approx(expected, rel=1e-9)
    assert float(losses.metrics[f"{front}residue_loss"].count) == len(index)
    if head == "both":
        nats, _, _ = log_probabilities(model, prepared)
        assert losses.totals["denoise"].item() == pytest.approx(sum(nats), rel=1e-9)
    sum(losses.totals.values()).backward()
    assert objective.encoder_head.weight.grad is not None


def test_encoder_positions_where_prefixes_differ() -> None:
    mixture = [{"prefix": "NLU"}, {"prefix": "none"}]
    objective = objective_of(TOKENIZER, Tiny(), mixture=mixture, head="encoder", sentinels="unmerged")
    prepared = objective.prepare(batch_of(TOKENIZER, [40] * 30), RNG)
    at = np.flatnonzero(np.isin(prepared.inputs.tokens, TOKENIZER.sentinels))
    np.testing.assert_array_equal(prepared.arrays["index"], at)
    assert {len(piece) for piece in split(Packed(prepared.inputs.tokens, prepared.inputs.cu))} == {41, 42}


@pytest.mark.parametrize("options", [{}, {"head": "both", "sentinels": "unmerged"}, {"z_loss": 1e-4}])
def test_loss_of_nothing_is_a_zero_that_depends_on_the_parameters(options: dict[str, Any]) -> None:
    model = Tiny()
    objective = objective_of(TOKENIZER, model, **options).double()
    losses = loss_of(model, objective, objective.prepare(batch_of(TOKENIZER, []), RNG))
    for total in losses.totals.values():
        assert total.item() == 0.0
    sum(losses.totals.values()).backward()
    for parameter in (model.head, model.writes, model.reads, *objective.parameters()):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_losses_of_parts_add_up() -> None:
    model = Tiny()
    objective = objective_of(TOKENIZER, model, head="both", sentinels="unmerged").double()
    lengths = [50, 3, 120, 8]
    whole = loss_of(model, objective, objective.prepare(batch_of(TOKENIZER, lengths), RNG)).totals
    parts = [batch_of(TOKENIZER, lengths[:1]), batch_of(TOKENIZER, lengths[1:], numbers=[1, 2, 3])]
    summed = [loss_of(model, objective, objective.prepare(part, RNG)).totals for part in parts]
    for term, total in whole.items():
        assert total.item() == pytest.approx(sum(s[term].item() for s in summed), rel=1e-9)


def test_validation_is_plain_and_fixed() -> None:
    objective = objective_of()
    batch = batch_of(TOKENIZER, [100, 50])
    assert streams(objective.prepare_validation(batch, RNG)) == streams(objective.prepare_validation(batch, RNG))


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_rates": []}, "at least 1"),
        ({"mask_rates": [0.0]}, "greater than 0"),
        ({"mask_rates": "ankh4"}, "ankh3"),
        ({"mixture": "ul2", "mask_rates": [0.2]}, "give mixture or mask_rates, not both"),
        ({"mixture": []}, "at least 1"),
        ({"mixture": [{"suffix": [0.5, 0.2]}]}, "smallest, largest"),
        ({"mixture": [{"suffix": [0.2, 0.5], "span": {}}]}, "give suffix or span, not both"),
        ({"mixture": [{"suffix": [0.2, 1.0]}]}, "less than 1"),
        ({"head": "encoder"}, "head: encoder needs sentinels: unmerged"),
        ({"head": "both"}, "head: both needs sentinels: unmerged"),
        ({"target": "t5"}, "t5_literal"),
        ({"z_loss": -1}, "greater than or equal to 0"),
        ({"mask_positions": [0]}, "greater than or equal to 1"),
        ({"mask_rate": 0.2}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DenoiseConfig.model_validate(options)


def test_tokenizers_that_cannot_do_it_are_refused() -> None:
    with pytest.raises(UserError, match="needs sentinels, but tokenizer 'esm' has none"):
        objective_of(EsmTokenizer(EsmTokenizerConfig()))
    plain = AnkhTokenizer(AnkhTokenizerConfig())
    with pytest.raises(UserError, match=r"tokenizer 'ankh' has no mode 'NLU'\. It has no modes: say prefix: none"):
        objective_of(plain, prefix="NLU")
    with pytest.raises(UserError, match=r"tokenizer 'ankh3' has no mode 'NLX'\. Did you mean 'NLU'"):
        objective_of(prefix="NLX")
    assert streams(objective_of(plain).prepare(batch_of(plain, [20]), RNG))


def test_a_position_beyond_the_end_is_refused() -> None:
    with pytest.raises(UserError, match="mask_positions: 13 is beyond the end of a sequence of 12 residues"):
        objective_of(mask_positions=[2, 13]).prepare(batch_of(TOKENIZER, [0], text=CARD), RNG)


def test_no_loop_over_sequences() -> None:
    """A batch of thousands of short sequences takes not much more numpy calls than one of a few: no Python loop."""
    import sys

    def calls(n: int) -> int:
        count = 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        objective, batch = objective_of(mixture="ul2"), batch_of(TOKENIZER, [30] * n)
        sys.setprofile(profile)
        try:
            objective.prepare(batch, RNG)
        finally:
            sys.setprofile(None)
        return count

    assert calls(4000) < 1.5 * calls(400)
