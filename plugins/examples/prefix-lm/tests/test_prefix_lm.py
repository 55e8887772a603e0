"""What encoder and decoder read, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from protloom_prefix_lm.prefix_lm import PrefixLM
from protloom_prefix_lm.prefix_lm_config import PrefixLMConfig
from pydantic import ValidationError

from protloom import config, kernels
from protloom.contracts import BuildContext
from protloom.plugins import Registry
from protloom.rng import CounterRNG
from protloom.testing.materials import batch_of, proteins

REGISTRY = Registry.discover()
CHOSEN = config.choose("tokenizer", "ankh", {}, REGISTRY)
TOKENIZER = CHOSEN.component.build(CHOSEN.config)


def objective(**options: float) -> PrefixLM:
    import torch

    ops = kernels.choose("auto", REGISTRY, torch.device("cpu"), torch.float32)
    return PrefixLM(PrefixLMConfig(**options), BuildContext(TOKENIZER, ops))


def test_beginning_and_rest_make_the_sequence() -> None:
    sequences = proteins((2, 9, 50, 31))
    prepared = objective().prepare(batch_of(TOKENIZER, sequences), CounterRNG(0))
    for i, sequence in enumerate(sequences):
        read = prepared.inputs.tokens[prepared.inputs.cu[i] : prepared.inputs.cu[i + 1]]
        rows = slice(*prepared.decoder.cu[i : i + 2])
        written, given = prepared.arrays["targets"][rows], prepared.decoder.tokens[rows]
        begun = read[len(TOKENIZER.prefix) : len(read) - len(TOKENIZER.suffix)]
        rest = written[: len(written) - len(TOKENIZER.suffix)]
        assert TOKENIZER.decode(begun) + TOKENIZER.decode(rest) == sequence
        assert given.tolist() == [TOKENIZER.pad_id, *written[:-1].tolist()]
        assert min(len(begun), len(rest)) >= 1


def test_cuts_lie_where_the_options_say() -> None:
    prepared = objective(least=0.25, most=0.75).prepare(batch_of(TOKENIZER, proteins([200] * 300)), CounterRNG(1))
    kept = (np.diff(prepared.inputs.cu) - len(TOKENIZER.prefix) - len(TOKENIZER.suffix)) / 200
    assert kept.min() >= 0.25
    assert kept.max() <= 0.75
    assert np.median(kept) == pytest.approx(0.5, abs=0.05)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="below least"):
        PrefixLMConfig(least=0.8, most=0.2)
