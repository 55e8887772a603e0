"""What transformers reads beside ESM-2's weights: its config and the files of its tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer
    from protloom_plugins.architectures.esm2_config import Esm2Config


def transformers_config(config: Esm2Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the config.json that makes transformers build an EsmForMaskedLM."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "vocab_size": len(tokenizer.vocab),
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.width * config.ffn_multiple,
        "layer_norm_eps": config.norm_eps,
        "token_dropout": config.token_dropout,
        "position_embedding_type": "rotary",
        "rope_theta": config.rope_base,
        "max_position_embeddings": 1026,
        "emb_layer_norm_before": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "is_folding_model": False,
        "tie_word_embeddings": True,
        "use_cache": False,
        "pad_token_id": tokenizer.pad_id,
        "mask_token_id": tokenizer.mask_id,
        "bos_token_id": tokenizer.prefix[0] if tokenizer.prefix else None,
        "eos_token_id": tokenizer.suffix[-1] if tokenizer.suffix else None,
        "torch_dtype": "float32",
    }


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns vocab.txt and the two JSON files that make transformers choose its EsmTokenizer."""
    vocab = tokenizer.vocab
    symbols = {"unk_token": vocab[tokenizer.unknown_id], "pad_token": vocab[tokenizer.pad_id]}
    if tokenizer.mask_id is not None:
        symbols["mask_token"] = vocab[tokenizer.mask_id]
    if tokenizer.prefix:
        symbols["cls_token"] = vocab[tokenizer.prefix[0]]
    if tokenizer.suffix:
        symbols["eos_token"] = vocab[tokenizer.suffix[-1]]
    return {
        "vocab.txt": "\n".join(vocab),
        "special_tokens_map.json": json.dumps(symbols, indent=2),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "EsmTokenizer", **symbols}, indent=2),
    }
