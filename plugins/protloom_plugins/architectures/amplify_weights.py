"""AMPLIFY weights as they are released, read and written without AMPLIFY's own code.

Names and layouts are those of the ``amplify.py`` that the authors publish beside their weights (github
chandar-lab/AMPLIFY) and of the tensors of the released 120M model. The order of gate and values in ``ffn.w12`` is that
of the SwiGLU layer of xFormers, which AMPLIFY uses: the gate first. Only tensors and plain data are ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protloom.contracts import ImportedWeights
from protloom.errors import UserError
from protloom_plugins.architectures.amplify_config import AmplifyConfig
from protloom_plugins.architectures.tensor_files import config_of, load_tensors, require_numbers, take, validated
from protloom_plugins.tokenizers.amplify import VOCAB

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
FIXED = {
    "rms_norm": True,
    "hidden_act": "SwiGLU",
    "layer_norm_after_embedding": False,
    "layer_norm_before_last_layer": True,
    "ffn_bias": False,
    "att_bias": False,
    "vocab_size": len(VOCAB),
}
"""What AMPLIFY's config can vary and its released models do not; its own defaults, too."""
ROPE_BASE = 10000.0
# own name -> the name in the file where the tensor is the same
TOP = {
    "embedding.weight": "encoder.weight",
    "final_norm.weight": "layer_norm_2.weight",
    "head.weight": "decoder.weight",
    "head.bias": "decoder.bias",
}
BLOCK = {
    "attention_norm.weight": "attention_norm.weight",
    "attention_out.weight": "wo.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp.down.weight": "ffn.w3.weight",
}
QKV = ("q.weight", "k.weight", "v.weight")
GATE_AND_UP = "ffn.w12.weight"


class AmplifyWeights:
    """Reads and writes folders with config.json and model.safetensors as AMPLIFY is released."""

    def recognises(self, source: Path) -> bool:
        """Tells whether ``source`` is a folder whose config.json says ``AMPLIFY``."""
        return source.is_dir() and config_of(source).get("model_type") == "AMPLIFY"

    def read(self, source: Path) -> ImportedWeights:
        """Reads a folder; see :meth:`protloom.contracts.WeightAdapter.read`."""
        stated, file = config_of(source), source / "config.json"
        config = _network_config(stated, file)
        _check_vocabulary(source / "tokenizer.json")
        weights, tensors = load_tensors(source)
        state = _from_released(tensors, config, weights)
        dropout = stated.get("dropout_prob", 0)
        notes = (f"{file.name} states dropout {dropout}: the network here has none",) if dropout else ()
        return ImportedWeights(config.model_dump(mode="json"), state, "amplify", notes)

    def export(
        self, config: AmplifyConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
        """Returns what AMPLIFY's own class reads; transformers needs that class, whose code is not in the folder."""
        if tuple(tokenizer.vocab) != VOCAB:
            raise UserError(
                f"AMPLIFY's format is for its own vocabulary of {len(VOCAB)} symbols, not that of tokenizer"
                f" {tokenizer.name!r}"
            )
        if config.rope_base != ROPE_BASE:
            raise UserError(
                f"AMPLIFY fixes the base of rotary angles at {ROPE_BASE:g}, this model has {config.rope_base:g}"
            )
        return _released_config(config, tokenizer), _to_released(state, config), _tokenizer_files(tokenizer)


# --------------------------------------------------------------------------------------------------------- tensors


def halves_first(matrix: Tensor, heads: int) -> Tensor:
    """Reorders the rows ``[H · d, D]`` of each head from (0, 1, 2, 3 …) to (0, 2, 4 … 1, 3, 5 …)."""
    return matrix.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def pairs_first(matrix: Tensor, heads: int) -> Tensor:
    """Undoes :func:`halves_first`."""
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def released_shapes(config: AmplifyConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every tensor of a released model, blocks first."""
    width, inner, vocabulary = config.width, config.inner, len(VOCAB)
    block = {
        **dict.fromkeys((*QKV, "wo.weight"), (width, width)),
        GATE_AND_UP: (2 * inner, width),
        "ffn.w3.weight": (width, inner),
        "attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
    }
    # blocks first: a wrong number of them then shows before what follows from it
    shapes = {f"transformer_encoder.{i}.{name}": shape for i in range(config.layers) for name, shape in block.items()}
    matrix = vocabulary, width
    return shapes | {
        "encoder.weight": matrix,
        "layer_norm_2.weight": (width,),
        "decoder.weight": matrix,
        "decoder.bias": (vocabulary,),
    }


def _from_released(tensors: Mapping[str, Tensor], config: AmplifyConfig, file: Path) -> dict[str, Tensor]:
    """Renames, reorders and joins tensors; raises UserError for a key that is missing, unexpected or of another shape.

    Only rows move, so :func:`_to_released` gives back the same numbers.
    """
    shapes = released_shapes(config)
    found = {name: take(tensors, name, shape, file) for name, shape in shapes.items()}
    for name in tensors:
        if name not in shapes:
            raise UserError(f"{file}: unexpected key {name!r}: not the weights of an AMPLIFY model of the stated size")
    state = {own: found[name] for own, name in TOP.items()}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"transformer_encoder.{i}."
        state |= {ours + own: found[theirs + name] for own, name in BLOCK.items()}
        q, k, v = (found[theirs + name] for name in QKV)
        state[f"{ours}qkv.weight"] = torch.cat([halves_first(q, config.heads), halves_first(k, config.heads), v])
        state[f"{ours}mlp.gate.weight"], state[f"{ours}mlp.up.weight"] = found[theirs + GATE_AND_UP].chunk(2)
    return {name: value.contiguous() for name, value in state.items()}


def _to_released(state: Mapping[str, Tensor], config: AmplifyConfig) -> dict[str, Tensor]:
    tensors = {name: state[own] for own, name in TOP.items()}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"transformer_encoder.{i}."
        tensors |= {theirs + name: state[ours + own] for own, name in BLOCK.items()}
        q, k, v = state[f"{ours}qkv.weight"].chunk(3)
        rows = pairs_first(q, config.heads), pairs_first(k, config.heads), v
        tensors |= {theirs + name: part for name, part in zip(QKV, rows, strict=True)}
        tensors[theirs + GATE_AND_UP] = torch.cat([state[f"{ours}mlp.gate.weight"], state[f"{ours}mlp.up.weight"]])
    return {name: value.contiguous() for name, value in tensors.items()}


# ---------------------------------------------------------------------------------------------------------- config


def gated_width(intermediate: int) -> int:
    """Returns the width of AMPLIFY's gated layer: two thirds of ``intermediate_size``, up to a multiple of 8."""
    return -(-(2 * intermediate // 3) // 8) * 8


def _network_config(stated: Mapping[str, Any], file: Path) -> AmplifyConfig:
    require_numbers(stated, NEEDED, file, "an AMPLIFY")
    for key, expected in FIXED.items():
        found = stated.get(key, expected)
        if str(found).lower() != str(expected).lower():  # the activation is read in any case of letters
            raise UserError(f"{file}: {key} is {found!r}: only networks as released can be read, with {expected!r}")
    return validated(
        AmplifyConfig,
        {
            "layers": stated["num_hidden_layers"],
            "width": stated["hidden_size"],
            "heads": stated["num_attention_heads"],
            "inner": gated_width(stated["intermediate_size"]),
            "norm_eps": stated.get("norm_eps", 1e-5),
            "init_range": stated.get("decoder_init_range", 0.02),
        },
        file,
        "AMPLIFY",
    )


def _released_config(config: AmplifyConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the config.json that AMPLIFY's own class reads."""
    usual = 4 * config.width
    return {
        "architectures": ["AMPLIFY"],
        "model_type": "AMPLIFY",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": usual if gated_width(usual) == config.inner else 3 * config.inner // 2,
        "dropout_prob": 0,
        "embedding_init_range": config.init_range,
        "decoder_init_range": config.init_range,
        "norm_eps": config.norm_eps,
        **FIXED,
        "max_length": 2048,
        "pad_token_id": tokenizer.pad_id,
        "unk_token_id": tokenizer.unknown_id,
        "mask_token_id": tokenizer.mask_id,
        "bos_token_id": tokenizer.prefix[0],
        "eos_token_id": tokenizer.suffix[0],
        "torch_dtype": "float32",
    }


# ------------------------------------------------------------------------------------------------------- tokenizer


def _check_vocabulary(file: Path) -> None:
    """Refuses a folder whose tokenizer.json gives a symbol another id than the tokenizer ``amplify``."""
    if not file.is_file():
        return
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: damaged, or not a vocabulary of one symbol a letter; get it again") from None
    theirs, ours = dict(listed), {symbol: number for number, symbol in enumerate(VOCAB)}
    for symbol in (*ours, *theirs):
        if theirs.get(symbol) != ours.get(symbol):
            raise UserError(
                f"{file}: {symbol!r} has id {theirs.get(symbol)}, in AMPLIFY's vocabulary it has {ours.get(symbol)}"
            )


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the files from which transformers builds a tokenizer with these ids, without any code of AMPLIFY."""
    vocab = tokenizer.vocab
    begin, end = tokenizer.prefix[0], tokenizer.suffix[0]
    special = {vocab[number]: number for number in (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.mask_id or 0)}
    special |= {vocab[begin]: begin, vocab[end]: end}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    one = [{"SpecialToken": {"id": vocab[begin], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    one.append({"SpecialToken": {"id": vocab[end], "type_id": 0}})
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": symbol, **flags}
            for symbol, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        # every letter is a word
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, *one],
            "special_tokens": {vocab[i]: {"id": vocab[i], "ids": [i], "tokens": [vocab[i]]} for i in (begin, end)},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {symbol: number for number, symbol in enumerate(vocab)},
            "unk_token": vocab[tokenizer.unknown_id],
        },
    }
    names = {
        "pad_token": vocab[tokenizer.pad_id],
        "unk_token": vocab[tokenizer.unknown_id],
        "mask_token": vocab[tokenizer.mask_id or 0],
        "bos_token": vocab[begin],
        "eos_token": vocab[end],
    }
    return {
        "tokenizer.json": json.dumps(document, indent=2),
        "special_tokens_map.json": json.dumps(names, indent=2),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=2),
    }
