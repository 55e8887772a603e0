"""A T5 of transformers with random weights, in a folder and in memory, and the same network here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from protloom import ops
from protloom.contracts import BuildContext, Offsets, Tokenizer
from protloom_plugins.architectures.ankh import Ankh
from protloom_plugins.architectures.ankh_config import AnkhConfig
from protloom_plugins.architectures.ankh_weights import AnkhWeights
from protloom_plugins.kernels.native import TorchBackend
from protloom_plugins.kernels.reference import ReferenceBackend

OWN = {"reference": ReferenceBackend(), "torch": TorchBackend()}
OPS = ops.select("auto", OWN, {}, torch.device("cpu"), torch.float32)
PAD, END = 0, 1
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def tokenizer(vocabulary: int) -> Tokenizer:
    """As much of a tokenizer as the network looks at."""
    return cast(Tokenizer, SimpleNamespace(vocab=range(vocabulary), pad_id=PAD, suffix=(END,)))


def build(config: AnkhConfig, vocabulary: int = 256, *, checkpointing: bool = False, kernels: ops.Ops = OPS) -> Ankh:
    return Ankh(config, BuildContext(tokenizer(vocabulary), kernels, activation_checkpointing=checkpointing))


@dataclass(frozen=True)
class Pair:
    """One set of weights in two programs."""

    ours: Ankh
    theirs: Any
    folder: Path


def make_pair(folder: Path, seed: int = 3, **options: Any) -> Pair:
    """Writes a folder with transformers' names and config, and loads it in both programs.

    transformers 5 ties every T5 that it builds, so a head of its own is put into the folder before it is loaded.
    """
    torch.manual_seed(seed)
    defaults = {"vocab_size": 256, "num_layers": 3, "num_decoder_layers": 2, "d_model": 24, "num_heads": 3, "d_kv": 8}
    defaults |= {"d_ff": 40, "feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 64}
    defaults |= {"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": END}
    asked = defaults | options
    config = transformers.T5Config(
        **asked, relative_attention_max_distance=128, dropout_rate=0.0, tie_word_embeddings=False
    )
    model = transformers.T5ForConditionalGeneration(config)
    state = {name: randomised(name, value) for name, value in model.state_dict().items()}
    state["lm_head.weight"] = randomised("lm_head.weight", state["shared.weight"])
    tensors = {name: value for name, value in state.items() if "embed_tokens" not in name}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stated = config.to_dict() | {"tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
    stated.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(stated))
    return Pair(ours(folder), theirs(folder), folder)


def randomised(name: str, value: Tensor) -> Tensor:
    """Draws a parameter anew, norms too, so that no two of them can be confused."""
    if "norm" in name:
        return 1 + 0.2 * torch.randn(value.shape)
    if "relative_attention_bias" in name or "shared" in name or "embed_tokens" in name:
        return torch.randn(value.shape)
    # matrices keep the size of what they multiply; queries are small, since scores are not divided by √d
    return torch.randn(value.shape) * (value.shape[-1] ** -0.5) * (0.5 if ".q." in name else 1.0)


def ours(folder: Path) -> Ankh:
    imported = AnkhWeights().read(folder)
    model = build(AnkhConfig(**imported.config), imported.state["embedding.weight"].shape[0]).eval()
    model.load_state_dict(dict(imported.state))
    return model


def theirs(folder: Path) -> Any:
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    assert not torch.equal(model.lm_head.weight, model.shared.weight), "transformers tied the head"
    return model


def packed(lengths: Sequence[int], vocabulary: int = 256, *, seed: int = 0) -> tuple[Tensor, Offsets]:
    """Random tokens of sequences with these lengths."""
    generator = torch.Generator().manual_seed(seed + sum(lengths))
    return torch.randint(2, vocabulary, (sum(lengths),), generator=generator), Offsets.of(lengths)
