"""The amplify tokenizer: its table, its policies, and that it tells itself apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protloom.contracts import Tokenizer
from protloom_plugins.tokenizers.amplify import AmplifyTokenizer, AmplifyTokenizerConfig
from protloom_plugins.tokenizers.letters import STANDARD

TOKENIZER = AmplifyTokenizer(AmplifyTokenizerConfig())


def test_contract() -> None:
    assert isinstance(TOKENIZER, Tokenizer)
    assert len(TOKENIZER.vocab) == len(set(TOKENIZER.vocab)) == 27
    assert (TOKENIZER.prefix, TOKENIZER.suffix) == ((3,), (4,))
    assert (TOKENIZER.pad_id, TOKENIZER.unknown_id, TOKENIZER.mask_id) == (0, 1, 2)
    assert TOKENIZER.table.shape == (256,)
    assert TOKENIZER.table.dtype == np.int32
    assert sorted(TOKENIZER.residue_ids) == list(range(6, 26))
    assert "".join(TOKENIZER.vocab[i] for i in TOKENIZER.residue_ids) == STANDARD


def test_ids_are_the_published_ones() -> None:
    ids = {letter: 6 + i for i, letter in enumerate("LAGVSERTIDPKQNFYMHWCB")}
    assert TOKENIZER.encode("".join(ids)).tolist() == [3, *ids.values(), 4]
    assert TOKENIZER.encode("A|<mask><pad>").tolist() == [3, 7, 5, 2, 0, 4]


@pytest.mark.parametrize(
    ("letters", "options", "becomes"),
    [
        ("XUZOJ*-.", {}, ["<unk>"] * 8),
        ("B|", {}, ["B", "|"]),
        ("acyb", {}, ["A", "C", "Y", "B"]),
        ("acX", {"lower_case": "unknown"}, ["<unk>"] * 3),
        ("BbK", {"rare": "unknown"}, ["<unk>", "<unk>", "K"]),
        ("M1 K", {}, ["M", "<unk>", "<unk>", "K"]),
        ("é", {}, ["<unk>"]),
    ],
)
def test_policies(letters: str, options: dict[str, str], becomes: list[str]) -> None:
    tokenizer = AmplifyTokenizer(AmplifyTokenizerConfig.model_validate(options))
    assert [tokenizer.vocab[i] for i in tokenizer.encode(letters)[1:-1]] == becomes


def test_every_other_byte_is_unknown() -> None:
    known = set(STANDARD + STANDARD.lower() + "Bb|")
    for byte in range(256):
        assert (TOKENIZER.table[byte] != TOKENIZER.unknown_id) == (chr(byte) in known)


@given(st.lists(st.integers(0, 26), max_size=60))
def test_decode_inverts_encode(ids: list[int]) -> None:
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).tolist() == [3, *ids, 4]


def test_fingerprint_tells_tokenizers_apart() -> None:
    options = [{}, {"lower_case": "unknown"}, {"rare": "unknown"}]
    prints = [AmplifyTokenizer(AmplifyTokenizerConfig.model_validate(o)).fingerprint for o in options]
    assert len(set(prints)) == len(options)


def test_bad_options_are_refused() -> None:
    for options in ({"rare": "x"}, {"gap": "own"}):
        with pytest.raises(ValidationError):
            AmplifyTokenizerConfig.model_validate(options)
