"""The ankh tokenizers against verified ids, sentencepiece and transformers."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protloom.contracts import Tokenizer
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.tokenizers.ankh import (
    STANDARD,
    Ankh3Tokenizer,
    Ankh3TokenizerConfig,
    AnkhTokenizer,
    AnkhTokenizerConfig,
)
from protloom_plugins.tokenizers.ankh_vocabulary import section_of, sentencepiece_model, transformers_files

ANKH3 = Ankh3Tokenizer(Ankh3TokenizerConfig())
ANKH = AnkhTokenizer(AnkhTokenizerConfig())
BOTH = {"ankh3": ANKH3, "ankh": ANKH}

# ids read off released tensors, written down on their own
ANKH3_IDS = {
    **{"<pad>": 0, "</s>": 1, "L": 7, "A": 8, "G": 9, "S": 10, "V": 11, "E": 12, "R": 13, "T": 14, "I": 15, "D": 16},
    **{"P": 17, "K": 18, "N": 19, "F": 20, "Q": 21, "Y": 22, "H": 23, "M": 24, "C": 25, "W": 26},
    **{"<extra_id_0>": 255, "<extra_id_1>": 254, "<extra_id_224>": 31},
}
ANKH_IDS = {
    **{"<pad>": 0, "</s>": 1, "<unk>": 2, "A": 3, "L": 4, "G": 5, "V": 6, "S": 7, "R": 8, "E": 9, "D": 10, "T": 11},
    **{"I": 12, "P": 13, "K": 14, "F": 15, "Q": 16, "N": 17, "Y": 18, "M": 19, "H": 20, "W": 21, "C": 22},
    **{"<extra_id_0>": 143, "<extra_id_115>": 28},
}


def make(name: str, **options: Any) -> AnkhTokenizer:
    if name == "ankh3":
        return Ankh3Tokenizer(Ankh3TokenizerConfig.model_validate(options))
    return AnkhTokenizer(AnkhTokenizerConfig.model_validate(options))


def processor_of(tokenizer: AnkhTokenizer) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer.vocab))


def trained_model(path: Path, symbols: list[str]) -> Path:
    """A model that sentencepiece's own trainer wrote, in which ``symbols`` follow <pad>, </s>, <unk>."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(s for s in symbols if len(s) == 1)] * 3),
        model_writer=out,
        model_type="char",
        vocab_size=len(symbols) + 3,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("name", BOTH)
def test_contract(name: str) -> None:
    tokenizer = BOTH[name]
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.name == name
    assert len(set(tokenizer.vocab)) == len(tokenizer.vocab) == {"ankh3": 256, "ankh": 144}[name]
    assert (tokenizer.pad_id, tokenizer.suffix, tokenizer.unknown_id, tokenizer.mask_id) == (0, (1,), 2, None)
    assert tokenizer.table.shape == (256,)
    assert tokenizer.table.dtype == np.int32
    assert "".join(tokenizer.vocab[i] for i in tokenizer.residue_ids) == STANDARD
    assert [tokenizer.vocab[i] for i in tokenizer.sentinels] == [
        f"<extra_id_{i}>" for i in range({"ankh3": 225, "ankh": 116}[name])
    ]
    with pytest.raises(ValueError):
        tokenizer.table[0] = 1


@pytest.mark.parametrize(("name", "ids"), [("ankh3", ANKH3_IDS), ("ankh", ANKH_IDS)])
def test_verified_ids(name: str, ids: dict[str, int]) -> None:
    assert {symbol: BOTH[name].vocab.index(symbol) for symbol in ids} == ids


def test_modes() -> None:
    assert {"NLU", "S2S"} <= set(ANKH3.prefixes)
    assert {ANKH3.vocab[ids[0]] for ids in ANKH3.prefixes.values()} == {f"[{mode}]" for mode in ANKH3.prefixes}
    assert ANKH3.prefix == ANKH3.prefixes["NLU"]
    assert make("ankh3", mode="S2S").prefix == ANKH3.prefixes["S2S"]
    assert (ANKH.prefix, dict(ANKH.prefixes)) == ((), {})
    assert ANKH3.decode(ANKH3.encode("MKA")) == "[NLU]MKA</s>"
    assert ANKH3.decode(ANKH3.encode("[S2S]MKA")) == "[S2S]MKA</s>"
    assert ANKH.decode(ANKH.encode("MKA")) == "MKA</s>"


def test_legacy_leading_unk() -> None:
    legacy = make("ankh3", legacy_leading_unk=True)
    assert legacy.encode("MKA").tolist() == [2, *ANKH3.encode("MKA")]
    assert legacy.encode("[S2S]MKA").tolist() == [2, *ANKH3.encode("[S2S]MKA")]
    assert make("ankh", legacy_leading_unk=True).encode("MKA").tolist() == [2, *ANKH.encode("MKA")]


@pytest.mark.parametrize(
    ("name", "letters", "options", "becomes"),
    [
        ("ankh3", "XUBZ", {}, ["X", "U", "B", "Z"]),
        ("ankh3", "OJ*-.", {}, ["<unk>"] * 5),
        ("ankh", "XBOUZ", {}, ["X", "B", "O", "U", "Z"]),
        ("ankh", "J", {}, ["<unk>"]),
        ("ankh3", "acxj", {}, ["A", "C", "X", "<unk>"]),
        ("ankh3", "aA", {"lower_case": "unknown"}, ["<unk>", "A"]),
        ("ankh3", "BUZOJXb", {"rare": "x"}, ["X"] * 7),
        ("ankh3", "é1 K", {}, ["<unk>", "<unk>", "<unk>", "K"]),
    ],
)
def test_policies(name: str, letters: str, options: dict[str, str], becomes: list[str]) -> None:
    tokenizer = make(name, **options)
    ids = tokenizer.encode(letters)[len(tokenizer.prefix) : -1]
    assert [tokenizer.vocab[i] for i in ids] == becomes


@given(st.sampled_from(["ankh3", "ankh"]), st.data())
def test_decode_inverts_encode(name: str, data: st.DataObject) -> None:
    tokenizer = BOTH[name]
    # a mode at the very front would be taken for the prefix
    first = st.lists(st.sampled_from(tokenizer.residue_ids), min_size=1, max_size=1)
    ids = data.draw(first) + data.draw(st.lists(st.integers(0, len(tokenizer.vocab) - 1), max_size=60))
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == [*tokenizer.prefix, *ids, *tokenizer.suffix]


# ------------------------------------------------------------------------------------------ sentencepiece as referee


@pytest.mark.parametrize("name", BOTH)
def test_table_agrees_with_sentencepiece_on_letters(name: str) -> None:
    tokenizer = BOTH[name]
    processor = processor_of(tokenizer)
    assert [processor.id_to_piece(i) for i in range(processor.get_piece_size())] == [
        symbol for symbol in tokenizer.vocab if not symbol.startswith("<extra_id_")
    ]
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()) == (0, 1, 2, -1)
    for letter in map(chr, range(ord("A"), ord("Z") + 1)):
        assert processor.encode(letter) == [tokenizer.table[ord(letter)]], letter
    text = "".join(f"[{mode}]" for mode in tokenizer.prefixes) + "MKAYVLINSRGPXU"
    assert processor.encode(text) == [tokenizer.vocab.index(s) for s in map("[{}]".format, tokenizer.prefixes)] + [
        int(tokenizer.table[ord(letter)]) for letter in "MKAYVLINSRGPXU"
    ]


@pytest.mark.parametrize("name", BOTH)
def test_table_agrees_with_sentencepiece_on_real_sequences(name: str, shared_data: Path) -> None:
    tokenizer = BOTH[name]
    processor = processor_of(tokenizer)
    compared = letters = 0
    for file in sorted((shared_data / "pretrain_corpus").glob("*.fasta.gz")):
        with gzip.open(file, "rt") as lines:
            sequences = [line.strip() for line in lines if not line.startswith(">")]
        rare = [s for s in sequences if set(s) - set(STANDARD)]
        for sequence in sequences[:300] + rare[:300]:
            ours = tokenizer.encode(sequence)[len(tokenizer.prefix) : -1].tolist()
            theirs = processor.encode(sequence)
            # sentencepiece makes one <unk> of several in a row
            single = [t for i, t in enumerate(ours) if t != 2 or i == 0 or ours[i - 1] != 2]
            assert theirs == single
            compared, letters = compared + 1, letters + len(sequence)
    assert compared > 900
    assert letters > 100_000


# --------------------------------------------------------------------------------------------- released files as source


@pytest.mark.parametrize("name", BOTH)
def test_a_written_file_reads_back(name: str, tmp_path: Path) -> None:
    tokenizer = BOTH[name]
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(tokenizer.vocab))
    for file, text in transformers_files(tokenizer.vocab).items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    for file in ("spiece.model", "tokenizer.json"):
        again = make(name, vocabulary_file=tmp_path / file)
        assert list(again.vocab) == list(tokenizer.vocab)
        assert again.fingerprint == tokenizer.fingerprint
        assert section_of(tmp_path / file) == {"name": name}


def test_ids_come_from_the_file(tmp_path: Path) -> None:
    """A model that sentencepiece trained, with other ids where they are not certain."""
    symbols = ["[S2S]", "[NLG]", "[MODE9]", "[NLU]", *"LAGSVERTIDPKNFQYHMCW", *"ZBUX"]
    file = trained_model(tmp_path / "spiece.model", symbols)
    tokenizer = make("ankh3", vocabulary_file=str(file))
    assert list(tokenizer.vocab)[:31] == ["<pad>", "</s>", "<unk>", *symbols]
    assert tokenizer.prefix == (6,)
    assert tokenizer.prefixes == {"S2S": (3,), "NLG": (4,), "MODE9": (5,), "NLU": (6,)}
    assert tokenizer.encode("MX").tolist() == [6, 24, 30, 1]
    assert tokenizer.sentinels == tuple(range(255, 30, -1))
    assert tokenizer.fingerprint != ANKH3.fingerprint
    section = section_of(file)
    assert section.pop("name") == "ankh3"
    assert make("ankh3", **section).fingerprint == tokenizer.fingerprint, "the section holds all that the file does"


@pytest.mark.parametrize("stated", [225, 200])
def test_as_many_sentinels_as_the_folder_states(tmp_path: Path, stated: int) -> None:
    """A file with fewer pieces than ids: what the sentinels leave has a row in the network, but no name."""
    transformers = pytest.importorskip("transformers")
    symbols = ["[S2S]", "[NLG]", "[MODE9]", "[NLU]", *"LAGSVERTIDPKNFQYHMCW", *"ZB"]  # 29 pieces in all
    file = trained_model(tmp_path / "spiece.model", symbols)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": stated}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = make("ankh3", vocabulary_file=str(file))
    assert tokenizer.sentinels == tuple(range(28 + stated, 28, -1))
    assert len(tokenizer.vocab) == 256
    referee = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=stated)
    assert referee.convert_tokens_to_ids("<extra_id_0>") == tokenizer.sentinels[0]
    # and written for sentencepiece, the pieces keep their ids
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer.vocab))
    assert [processor.id_to_piece(i) for i in range(processor.get_piece_size())] == list(tokenizer.vocab[:29])


def test_another_family_is_refused(tmp_path: Path) -> None:
    for file, tokenizer in (("3.model", ANKH3), ("1.model", ANKH)):
        (tmp_path / file).write_bytes(sentencepiece_model(tokenizer.vocab))
    with pytest.raises(UserError, match=r"3\.model: piece 'A' has id 8, but in Ankh base.* it has id 3.*: ankh3$"):
        make("ankh", vocabulary_file=tmp_path / "3.model")
    with pytest.raises(UserError, match=r"1\.model: piece 'L' has id 4, but in Ankh3 it has id 7.*tokenizer: ankh$"):
        make("ankh3", vocabulary_file=tmp_path / "1.model")
    assert section_of(tmp_path / "1.model") == {"name": "ankh"}


def swapped(symbols: list[str], one: str, other: str) -> list[str]:
    return [{one: other, other: one}.get(symbol, symbol) for symbol in symbols]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: swapped(s, "K", "N"), "piece 'K' has id 19, but in Ankh3 it has id 18"),
        (lambda s: swapped(s, "<pad>", "</s>"), "piece '<pad>' has id 1, but in Ankh3 it has id 0"),
        (lambda s: [x if x != "W" else "?" for x in s], "piece 'W' is missing, but in Ankh3 it has id 26"),
        (lambda s: [x if x != "[S2S]" else "?" for x in s], r"piece '\[S2S\]' is missing"),
        (lambda s: [x if x != "<unk>" else "?" for x in s], "piece '<unk>' is missing"),
        (lambda s: [x if x != "Z" else "X" for x in s], "piece 'X' has two ids"),
        (lambda s: [*s, "one more", "<extra_id_225>"], "258 pieces, but Ankh3 has room for 256"),
    ],
)
def test_a_wrong_vocabulary_is_refused(change: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make("ankh3", pieces=change(list(ANKH3.vocab)))


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"certainly not a model")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    for file in ("spiece.model", "empty.model"):
        with pytest.raises(UserError, match=f"{file}: is no sentencepiece model"):
            make("ankh3", vocabulary_file=tmp_path / file)
    for file in ("tokenizer.json", "broken.json"):
        with pytest.raises(UserError, match=f"{file}: is no tokenizer.json"):
            make("ankh3", vocabulary_file=tmp_path / file)
    with pytest.raises(UserError, match=r"no file '.*gone'"):
        make("ankh3", vocabulary_file=tmp_path / "gone")
    with pytest.raises(UserError, match=r"spiece\.model"):
        section_of(tmp_path / "spiece.model")


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mode: no mode 'NLX'\. Did you mean 'NLU'"):
        make("ankh3", mode="NLX")
    for name, options in (("ankh3", {"rare": "drop"}), ("ankh", {"mode": "NLU"}), ("ankh", {"vocab": 144})):
        with pytest.raises(ValidationError):
            make(name, **options)
    with pytest.raises(ValidationError, match="not both"):
        make("ankh3", vocabulary_file="x", pieces=list(ANKH3.vocab))


def test_fingerprint_tells_tokenizers_apart() -> None:
    variants: list[dict[str, Any]] = [{}, {"lower_case": "unknown"}, {"rare": "x"}, {"legacy_leading_unk": True}]
    prints = {make(name, **options).fingerprint for name in BOTH for options in variants}
    prints.add(make("ankh3", mode="S2S").fingerprint)
    assert len(prints) == 2 * len(variants) + 1


# --------------------------------------------------------------------------------------------- transformers as referee


def exported(folder: Path, tokenizer: AnkhTokenizer) -> Path:
    (folder / "spiece.model").write_bytes(sentencepiece_model(tokenizer.vocab))
    for file, text in transformers_files(tokenizer.vocab).items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", BOTH)
def test_auto_tokenizer_reads_the_export(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = BOTH[name]
    referee = transformers.AutoTokenizer.from_pretrained(exported(tmp_path, tokenizer))
    assert len(referee) == len(tokenizer.vocab)
    assert referee.convert_ids_to_tokens(list(range(len(referee)))) == list(tokenizer.vocab)
    assert (referee.pad_token_id, referee.eos_token_id, referee.unk_token_id) == (0, 1, 2)
    modes = [f"[{mode}]" for mode in tokenizer.prefixes] or [""]
    for text in ("MKAYVLINSRGP", "M<extra_id_0>AYXU<extra_id_17>", "MJK", STANDARD * 10):
        for mode in modes:
            assert referee(mode + text)["input_ids"] == tokenizer.encode(mode + text).tolist()


@pytest.mark.parametrize("name", BOTH)
def test_t5_tokenizer_reads_the_sentencepiece_model(name: str, tmp_path: Path) -> None:
    """T5Tokenizer may put <unk> at word boundaries that no protein has; all else is equal."""
    transformers = pytest.importorskip("transformers")
    tokenizer = BOTH[name]
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(tokenizer.vocab))
    referee = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=len(tokenizer.sentinels))
    assert len(referee) == len(tokenizer.vocab)
    assert referee.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_7>"]) == list(tokenizer.sentinels[0:8:7])
    text = ("[S2S]" if tokenizer.prefixes else "") + "MKAYVLINSRGPXU<extra_id_0>WCH<extra_id_1>"
    theirs = [token for token in referee(text)["input_ids"] if token != 2]
    assert theirs == tokenizer.encode(text).tolist()


def test_tokenizer_json_lists_every_symbol_once() -> None:
    document = json.loads(transformers_files(ANKH3.vocab)["tokenizer.json"])
    assert [piece for piece, _ in document["model"]["vocab"]] == list(ANKH3.vocab)
    assert {t["content"]: t["id"] for t in document["added_tokens"]} == {
        s: i for i, s in enumerate(ANKH3.vocab) if len(s) > 1
    }


def test_registered(registry: Registry) -> None:
    names = {component.name for component in registry.components("tokenizer")}
    assert {"ankh3", "ankh"} <= names
