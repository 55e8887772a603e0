"""The esm tokenizer against fair-esm's alphabet and transformers' tokenizer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protloom.contracts import Tokenizer
from protloom_plugins.tokenizers.esm import VOCAB, EsmTokenizer, EsmTokenizerConfig
from protloom_plugins.tokenizers.letters import STANDARD

TOKENIZER = EsmTokenizer(EsmTokenizerConfig())
ODD = "XBUZOJ*-."


def sequences() -> list[str]:
    generator = np.random.default_rng(0)
    letters = np.array(list(STANDARD + ODD))
    return [STANDARD, ODD, "M", *("".join(generator.choice(letters, length)) for length in (5, 40, 300))]


@pytest.fixture(scope="module")
def alphabet() -> Any:
    esm = pytest.importorskip("esm")
    return esm.data.Alphabet.from_architecture("ESM-1b")


def test_contract() -> None:
    assert isinstance(TOKENIZER, Tokenizer)
    assert len(TOKENIZER.vocab) == 33
    assert len(set(TOKENIZER.vocab)) == 33
    assert (TOKENIZER.prefix, TOKENIZER.suffix) == ((0,), (2,))
    assert (TOKENIZER.pad_id, TOKENIZER.unknown_id, TOKENIZER.mask_id) == (1, 3, 32)
    assert TOKENIZER.table.shape == (256,)
    assert TOKENIZER.table.dtype == np.int32
    assert sorted(TOKENIZER.residue_ids) == list(range(4, 24))
    assert "".join(TOKENIZER.vocab[i] for i in TOKENIZER.residue_ids) == STANDARD


def test_vocabulary_is_that_of_fair_esm(alphabet: Any) -> None:
    assert list(VOCAB) == alphabet.all_toks
    assert alphabet.mask_idx == TOKENIZER.mask_id
    assert alphabet.padding_idx == TOKENIZER.pad_id
    assert alphabet.unk_idx == TOKENIZER.unknown_id


@pytest.mark.parametrize("sequence", sequences())
def test_ids_are_those_of_fair_esm(alphabet: Any, sequence: str) -> None:
    # fair-esm's own encode() stumbles over letters that are not in its vocabulary
    expected = [alphabet.cls_idx, *(alphabet.get_idx(letter) for letter in sequence), alphabet.eos_idx]
    assert TOKENIZER.encode(sequence).tolist() == expected
    if not set(sequence) & set("J*"):
        _, _, tokens = alphabet.get_batch_converter()([("name", sequence)])
        assert TOKENIZER.encode(sequence).tolist() == tokens[0].tolist()


@pytest.mark.parametrize("sequence", sequences())
def test_ids_are_those_of_transformers(tmp_path: Path, sequence: str) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(VOCAB))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        referee = transformers.EsmTokenizer(vocab_file=str(vocabulary))
    if "J" not in sequence and "*" not in sequence:
        assert TOKENIZER.encode(sequence).tolist() == referee(sequence)["input_ids"]
    # a run of unknown letters is one token there: ask letter by letter
    letters = [referee.convert_tokens_to_ids(letter) for letter in sequence]
    assert TOKENIZER.encode(sequence)[1:-1].tolist() == letters
    written = sequence.replace("K", "<mask>")
    if "J" not in sequence and "*" not in sequence:
        assert TOKENIZER.encode(written).tolist() == referee(written)["input_ids"]


@pytest.mark.parametrize(
    ("letters", "options", "becomes"),
    [
        ("X", {}, ["X"]),
        ("BUZO", {}, ["B", "U", "Z", "O"]),
        ("J*", {}, ["<unk>", "<unk>"]),
        ("-.", {}, ["-", "."]),
        ("acy", {}, ["A", "C", "Y"]),
        ("xj", {}, ["X", "<unk>"]),
        ("M1 K", {}, ["M", "<unk>", "<unk>", "K"]),
        ("é", {}, ["<unk>"]),
        ("acX", {"lower_case": "unknown"}, ["<unk>", "<unk>", "X"]),
        ("BUZOJX", {"rare": "x"}, ["X"] * 6),
        ("bj", {"rare": "x"}, ["X", "X"]),
        ("J*", {"rare": "x"}, ["X", "<unk>"]),
        ("-.A", {"gap": "unknown"}, ["<unk>", "<unk>", "A"]),
    ],
)
def test_policies(letters: str, options: dict[str, str], becomes: list[str]) -> None:
    tokenizer = EsmTokenizer(EsmTokenizerConfig.model_validate(options))
    assert [tokenizer.vocab[i] for i in tokenizer.encode(letters)[1:-1]] == becomes


def test_every_other_byte_is_unknown() -> None:
    known = set(STANDARD + STANDARD.lower() + "XBUZOxbuzo-.")
    for byte in range(256):
        assert (TOKENIZER.table[byte] != TOKENIZER.unknown_id) == (chr(byte) in known)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        TOKENIZER.table[0] = 1


@given(st.lists(st.integers(0, 32), max_size=60))
def test_decode_inverts_encode(ids: list[int]) -> None:
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).tolist() == [0, *ids, 2]


@given(st.text(alphabet=STANDARD + "XBUZO-.", max_size=60))
def test_encode_inverts_decode(sequence: str) -> None:
    ids = TOKENIZER.encode(sequence)
    assert ids.dtype == np.int32
    assert TOKENIZER.decode(ids) == f"<cls>{sequence}<eos>"


def test_fingerprint_tells_tokenizers_apart() -> None:
    options = [{}, {"lower_case": "unknown"}, {"rare": "x"}, {"gap": "unknown"}]
    prints = [EsmTokenizer(EsmTokenizerConfig.model_validate(o)).fingerprint for o in options]
    assert len(set(prints)) == len(options)
    assert EsmTokenizer(EsmTokenizerConfig()).fingerprint == prints[0]


def test_bad_options_are_refused() -> None:
    for options in ({"lower_case": "keep"}, {"vocab": 33}):
        with pytest.raises(ValidationError):
            EsmTokenizerConfig.model_validate(options)
