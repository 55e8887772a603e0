"""The vocabularies of Ankh: built in, read from a released file, and written for sentencepiece and transformers."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protloom.errors import UserError

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MODE = re.compile(r"\[([A-Za-z0-9_]+)\]")
SENTINEL = re.compile(r"<extra_id_(\d+)>")
FILLER = re.compile(r"<unused_\d+>")
ANOTHER = "this is another family's vocabulary"


@dataclass(frozen=True)
class Layout:
    """One family's vocabulary.

    Attributes:
        name: the tokenizer's name.
        title: what its models are called.
        size: number of ids; the built-in sentinels fill those that ``pieces`` leaves, the first one has the last id.
        pieces: the built-in pieces in order of their ids, sentinels left out.
        verified: pieces whose ids are certain: a released file that differs is of another family.
        modes: mode names that every file of the family has.
    """

    name: str
    title: str
    size: int
    pieces: tuple[str, ...]
    verified: Mapping[str, int]
    modes: tuple[str, ...] = ()


def _residues(letters: str, first: int) -> dict[str, int]:
    return {PAD: 0, END: 1, **{letter: first + i for i, letter in enumerate(letters)}}


# Ids 3 to 6 hold the modes and other pieces; their order, and that of the rare letters, is not published. [NLG] is the
# mode that UL2 (Tay et al. 2023) has beside the other two. A released file always goes before this table.
ANKH3 = Layout(
    name="ankh3",
    title="Ankh3",
    size=256,
    pieces=(PAD, END, UNKNOWN, "[NLU]", "[S2S]", "[NLG]", "<reserved>", *"LAGSVERTIDPKNFQYHMCW", *"XUBZ"),
    verified=_residues("LAGSVERTIDPKNFQYHMCW", 7),
    modes=("NLU", "S2S"),
)
ANKH = Layout(
    name="ankh",
    title="Ankh base, large and 2",
    size=144,
    pieces=(PAD, END, UNKNOWN, *"ALGVSREDTIPKFQNYMHWC", *"XBOUZ"),
    verified=_residues("ALGVSREDTIPKFQNYMHWC", 3),
)
LAYOUTS = (ANKH3, ANKH)


def with_sentinels(pieces: Sequence[str], layout: Layout, sentinels: int | None = None) -> tuple[str, ...]:
    """Returns ``pieces``, sentinels in T5's order (``<extra_id_0>`` comes last), and fillers up to the layout's size.

    Args:
        pieces: symbols in order of their ids; sentinels among them stay as they are.
        layout: the family.
        sentinels: how many follow the pieces where there are none among them; default: the family's number.
    """
    listed = tuple(pieces)
    if not any(SENTINEL.fullmatch(piece) for piece in pieces):
        count = layout.size - len(layout.pieces) if sentinels is None else sentinels
        listed = (*pieces, *(f"<extra_id_{i}>" for i in reversed(range(count))))
    # ids that the network has rows for, but the file no names
    return (*listed, *(f"<unused_{i}>" for i in range(layout.size - len(listed))))


def read(path: Path, layout: Layout) -> tuple[str, ...]:
    """Returns the symbol of each id from a released ``spiece.model`` or ``tokenizer.json``.

    Raises:
        UserError: if there is no such file, it is neither, or its ids are not those of ``layout``.
    """
    if not path.is_file():
        raise UserError(f"vocabulary_file: no file {str(path)!r}: give a released spiece.model or tokenizer.json")
    vocab = _from_json(path, layout) if path.suffix == ".json" else _from_sentencepiece(path, layout)
    check(vocab, layout, str(path))
    return vocab


def section_of(path: Path) -> dict[str, Any]:
    """Returns a run file's ``tokenizer`` section for a released ``spiece.model`` or ``tokenizer.json``.

    The section holds the pieces themselves where they are not the built-in ones, so that a run does not need the file
    again.

    Raises:
        UserError: if the file fits no vocabulary that is known here.
    """
    problems = []
    for layout in LAYOUTS:
        try:
            vocab = read(path, layout)
        except UserError as error:
            problems.append(str(error))
            continue
        built_in = vocab == with_sentinels(layout.pieces, layout)
        return {"name": layout.name} if built_in else {"name": layout.name, "pieces": list(vocab)}
    # a file that is one family's but damaged is told so, not that it is not another's
    raise UserError(next((problem for problem in problems if ANOTHER not in problem), problems[0]))


def check(vocab: Sequence[str], layout: Layout, where: str) -> None:
    """Raises UserError, naming the piece and its id, where ``vocab`` cannot be a vocabulary of this family."""
    ids = {piece: number for number, piece in enumerate(vocab)}
    for piece, expected in layout.verified.items():
        if ids.get(piece) != expected:
            found = f"has id {ids[piece]}" if piece in ids else "is missing"
            raise UserError(
                f"{where}: piece {piece!r} {found}, but in {layout.title} it has id {expected}: "
                f"{ANOTHER}{_other_family(ids, layout)}"
            )
    required = [UNKNOWN, *(f"[{mode}]" for mode in layout.modes), "<extra_id_0>"]
    for piece in required:
        if piece not in ids:
            raise UserError(f"{where}: piece {piece!r} is missing: this is no vocabulary of {layout.title}")
    if len(ids) != len(vocab):
        twice = next(piece for number, piece in enumerate(vocab) if ids[piece] != number)
        raise UserError(f"{where}: piece {twice!r} has two ids: the file is damaged")
    if len(vocab) > layout.size:
        raise UserError(f"{where}: {len(vocab)} pieces, but {layout.title} has room for {layout.size}")


def _other_family(ids: Mapping[str, int], layout: Layout) -> str:
    fits = [o for o in LAYOUTS if o is not layout and all(ids.get(p) == expected for p, expected in o.verified.items())]
    return f", that of {fits[0].title}: use tokenizer: {fits[0].name}" if fits else ""


def _from_sentencepiece(path: Path, layout: Layout) -> tuple[str, ...]:
    import sentencepiece

    data = path.read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except Exception as error:
        raise UserError(f"{path}: is no sentencepiece model ({str(error).splitlines()[0]})") from None
    if not pieces:
        raise UserError(f"{path}: is no sentencepiece model (it holds no pieces)")
    return with_sentinels(pieces, layout, _stated_sentinels(path.parent))


def _stated_sentinels(folder: Path) -> int | None:
    """Returns how many sentinels the ``tokenizer_config.json`` beside a sentencepiece model adds; None without one."""
    try:
        stated = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if isinstance(stated.get("extra_ids"), int):
            return int(stated["extra_ids"])
        listed = stated.get("additional_special_tokens") or stated.get("extra_special_tokens") or ()
        return sum(bool(SENTINEL.fullmatch(str(symbol))) for symbol in listed) or None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _from_json(path: Path, layout: Layout) -> tuple[str, ...]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        listed = document["model"]["vocab"]
        ids = dict(listed) if isinstance(listed, dict) else {piece: i for i, (piece, _) in enumerate(listed)}
        ids.update({token["content"]: token["id"] for token in document.get("added_tokens", [])})
        by_id = {number: piece for piece, number in ids.items()}
        pieces = [by_id[number] for number in range(len(by_id))]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no tokenizer.json of transformers with ids 0, 1, 2 …") from None
    return with_sentinels(pieces, layout)


# ------------------------------------------------------------------------------------------------------------ writing


def sentencepiece_model(vocab: Sequence[str]) -> bytes:
    """Returns a sentencepiece model of the pieces in front of the sentinels, with exactly their ids.

    Readers of T5 models add the sentinels themselves (``T5Tokenizer(..., extra_ids=225)``). Written by hand, since
    sentencepiece's trainer would choose ids itself: a protobuf message ModelProto (sentencepiece_model.proto) of
    pieces (field 1: text 1, score 2, type 3), trainer_spec (2) and normalizer_spec (3).
    """
    pieces = [piece for piece in vocab if not SENTINEL.fullmatch(piece) and not FILLER.fullmatch(piece)]
    message = b"".join(_bytes(1, _piece(piece)) for piece in pieces)
    trainer = _int(3, 1) + _int(4, len(pieces))  # model_type unigram, vocab_size
    special = {40: UNKNOWN, 41: None, 42: END, 43: PAD}  # unk_id, bos_id, eos_id, pad_id; -1: there is none
    trainer += b"".join(_int(field, -1 if piece is None else pieces.index(piece)) for field, piece in special.items())
    trainer += b"".join(_bytes(field, piece.encode()) for field, piece in {45: UNKNOWN, 47: END, 48: PAD}.items())
    # nothing is normalised, and no word boundary is put in front: that is where a spurious <unk> comes from
    normalizer = _bytes(1, b"identity") + _int(3, 0) + _int(4, 0) + _int(5, 1)
    return message + _bytes(2, trainer) + _bytes(3, normalizer)


def _piece(piece: str) -> bytes:
    unknown, control, user_defined, normal = 2, 3, 4, 1
    kind = {UNKNOWN: unknown, PAD: control, END: control}.get(piece, normal if len(piece) == 1 else user_defined)
    return _bytes(1, piece.encode()) + _float(2, -1.0 if kind == normal else 0.0) + _int(3, kind)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative numbers are written as 64-bit two's complement
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def transformers_files(vocab: Sequence[str]) -> dict[str, str]:
    """Returns the text files with which transformers' ``AutoTokenizer`` gives these ids, ``</s>`` added.

    Unlike ``T5Tokenizer``, what they describe puts no word boundary, hence no ``<unk>``, in front of a sequence.
    """
    special = [PAD, END, UNKNOWN]
    sentinels = [piece for piece in vocab if SENTINEL.fullmatch(piece)]
    added = [
        {
            "id": number,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece in special or piece in sentinels,
        }
        for number, piece in enumerate(vocab)
        if len(piece) > 1
    ]
    end = {"id": END, "ids": [vocab.index(END)], "tokens": [END]}
    one, closing = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
    two = {"Sequence": {"id": "B", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [one, closing],
            "pair": [one, closing, two, closing],
            "special_tokens": {END: end},
        },
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": vocab.index(UNKNOWN),
            "vocab": [[piece, -1.0 if len(piece) == 1 else 0.0] for piece in vocab],
            "byte_fallback": False,
        },
    }
    symbols: dict[str, Any] = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    symbols["additional_special_tokens"] = sorted(sentinels, key=lambda s: int(s[10:-1]))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_ids": len(sentinels), **symbols}
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(symbols, indent=2) + "\n",
    }
