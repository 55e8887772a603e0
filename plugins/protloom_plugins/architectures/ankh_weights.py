"""Ankh weights in the format of Hugging Face transformers (T5), read and written without it.

Names and layouts are those of transformers' ``modeling_t5.py`` (versions 4 and 5). Only tensors and plain data are ever
unpickled. Both ``shared.weight`` and ``lm_head.weight`` are always written: transformers 5 takes a folder for tied that
holds only the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from protloom.contracts import BuildContext, ImportedWeights
from protloom.errors import UserError
from protloom_plugins.architectures.ankh_config import AnkhConfig
from protloom_plugins.architectures.tensor_files import config_of, load_tensors, require_numbers, take, validated
from protloom_plugins.tokenizers.ankh import AnkhTokenizer
from protloom_plugins.tokenizers.ankh_vocabulary import LAYOUTS, section_of, sentencepiece_model, transformers_files

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer
    from protloom.ops import Ops

SHARED, HEAD = "shared.weight", "lm_head.weight"
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# own name -> the name in the file; {i} is the block
TOP = {
    "embedding.weight": SHARED,
    "encoder_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder_norm.weight": "encoder.final_layer_norm.weight",
    "decoder_norm.weight": "decoder.final_layer_norm.weight",
    "head.weight": HEAD,
}
MATRICES = {"q": "q", "k": "k", "v": "v", "out": "o"}
MLP = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
# written by old versions of transformers, which never read it
IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
GATES = {"gated-gelu": "gelu_tanh", "gated-gelu_new": "gelu_tanh", "gated-silu": "silu"}
# transformers builds "gated-gelu" with the tanh form, and has no name for the exact one
EXPORTED_GATES = {"gelu_tanh": "gated-gelu", "silu": "gated-silu"}
NEEDED = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size")
VOCABULARIES = ("spiece.model", "tokenizer.json")
"""Files that say what the ids mean, the best first."""


class AnkhWeights:
    """Reads and writes folders of ``T5ForConditionalGeneration``; reads those of ``T5EncoderModel`` too."""

    def recognises(self, source: Path) -> bool:
        """Tells whether ``source`` is a folder whose config.json says ``t5``."""
        return source.is_dir() and config_of(source).get("model_type") == "t5"

    def read(self, source: Path) -> ImportedWeights:
        """Reads a folder; see :meth:`protloom.contracts.WeightAdapter.read`."""
        stated = config_of(source)
        file = source / "config.json"
        config = _network_config(stated, file)
        weights, tensors = load_tensors(source)
        tensors, notes = _untied(tensors, stated, weights)
        vocabulary = tensors[SHARED].shape[0]
        if vocabulary != stated["vocab_size"]:
            raise UserError(f"{weights}: {SHARED!r} has {vocabulary} rows, but {file} says {stated['vocab_size']}")
        state, missing = _assemble(tensors, config, vocabulary, weights)
        if missing:
            what = "decoder" if len(missing) > 1 else "output head"
            notes.append(f"{weights.name} has no {what}: initialised, so train it before using it")
        if stated.get("dropout_rate", 0.1) > 0:
            notes.append(f"{file.name} states dropout {stated.get('dropout_rate', 0.1)}: the network here has none")
        return ImportedWeights(
            config.model_dump(mode="json"), state, _tokenizer(source, vocabulary), tuple(notes), tuple(missing)
        )

    def export(
        self, config: AnkhConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer
    ) -> tuple[dict[str, Any], dict[str, Tensor], Mapping[str, str | bytes]]:
        """Returns what ``transformers.T5ForConditionalGeneration.from_pretrained`` reads."""
        if config.activation not in EXPORTED_GATES:
            raise UserError("transformers' T5 has no gate with the exact GELU")
        tensors = {theirs: state[own].contiguous() for own, theirs in names(config)}
        special = {
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.suffix[-1] if tokenizer.suffix else None,
            "decoder_start_token_id": tokenizer.pad_id,
        }
        files: dict[str, str | bytes] = {"generation_config.json": json.dumps(special, indent=2)}
        if isinstance(tokenizer, AnkhTokenizer):
            files |= transformers_files(tokenizer.vocab)
            files[VOCABULARIES[0]] = sentencepiece_model(tokenizer.vocab)
        return transformers_config(config, len(tokenizer.vocab), special), tensors, files


def names(config: AnkhConfig) -> Iterator[tuple[str, str]]:
    """Yields (own name, transformers' name) of every parameter, blocks first."""
    # blocks first: a wrong number of them then shows before what follows from it
    for stack, count in (("encoder", config.layers), ("decoder", config.decoder_layers)):
        layers = [("attention", "SelfAttention"), ("cross", "EncDecAttention")][: 1 if stack == "encoder" else 2]
        for i in range(count):
            ours, theirs = f"{stack}_blocks.{i}", f"{stack}.block.{i}.layer"
            for number, (part, name) in enumerate(layers):
                for own, other in MATRICES.items():
                    yield f"{ours}.{part}.{own}.weight", f"{theirs}.{number}.{name}.{other}.weight"
                yield f"{ours}.{part}_norm.weight", f"{theirs}.{number}.layer_norm.weight"
            for own, other in MLP.items():
                yield f"{ours}.mlp.{own}.weight", f"{theirs}.{len(layers)}.DenseReluDense.{other}.weight"
            yield f"{ours}.mlp_norm.weight", f"{theirs}.{len(layers)}.layer_norm.weight"
    yield from TOP.items()


def transformers_config(config: AnkhConfig, vocabulary: int, special: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json that makes transformers build a T5ForConditionalGeneration."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": config.width,
        "d_kv": config.head_size,
        "d_ff": config.inner,
        "num_layers": config.layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": 0.0,
        "classifier_dropout": 0.0,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_factor": config.init_factor,
        "feed_forward_proj": EXPORTED_GATES[config.activation],
        "is_encoder_decoder": True,
        "use_cache": True,
        # version 5 ties in any case unless the two tensors differ, and reads from this only that logits are not scaled
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **special,
    }


# -------------------------------------------------------------------------------------------------------- reading


def _network_config(stated: Mapping[str, Any], file: Path) -> AnkhConfig:
    require_numbers(stated, NEEDED, file, "a T5")
    gate = stated.get("feed_forward_proj", "relu")
    if gate not in GATES:
        raise UserError(
            f"{file}: feed_forward_proj is {gate!r}: only the gated networks of T5 v1.1 and Ankh can be read "
            f"({', '.join(GATES)})"
        )
    return validated(
        AnkhConfig,
        {
            "layers": stated["num_layers"],
            "decoder_layers": stated.get("num_decoder_layers") or stated["num_layers"],
            "width": stated["d_model"],
            "heads": stated["num_heads"],
            "head_size": stated["d_kv"],
            "inner": stated["d_ff"],
            "activation": GATES[gate],
            "buckets": stated.get("relative_attention_num_buckets", 32),
            "max_distance": stated.get("relative_attention_max_distance", 128),
            "norm_eps": stated.get("layer_norm_epsilon", 1e-6),
            "init_factor": stated.get("initializer_factor", 1.0),
        },
        file,
        "T5",
    )


def _untied(tensors: dict[str, Tensor], stated: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Resolves the names under which transformers keeps the embedding, and gives a tied network a head of its own."""
    copies = [name for name in (SHARED, *ALIASES) if name in tensors]
    if not copies:
        raise UserError(f"{file}: key {SHARED!r} is missing")
    shared = tensors[copies[0]]
    for name in copies[1:]:
        if not torch.equal(tensors[name], shared):
            raise UserError(f"{file}: key {name!r} differs from {copies[0]!r}: T5 has one embedding for both stacks")
    rest = {name: value for name, value in tensors.items() if name not in copies and name != IGNORED}
    rest[SHARED] = shared
    if not any(name.startswith("decoder.") for name in rest):
        return rest, []
    notes = []
    if HEAD not in rest:
        # version 5 leaves the head out where it equals the embedding, whatever the config says
        rest[HEAD] = shared.clone()
        notes.append(f"{file.name} ties the output head to the embedding: here it becomes a matrix of its own")
    # version 5 writes whether the head's input is scaled, version 4 scales it where the embedding is tied
    if stated.get("scale_decoder_outputs", stated.get("tie_word_embeddings") is not False):
        rest[HEAD] = rest[HEAD].float() * stated["d_model"] ** -0.5
        notes.append(f"{file.name} scales what its output head reads by d_model^-1/2: the factor is now in the head")
    return rest, notes


def _assemble(
    tensors: Mapping[str, Tensor], config: AnkhConfig, vocabulary: int, file: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames and checks tensors, and initialises the decoder and head that an encoder's file lacks.

    Raises:
        UserError: for a key that is missing, unexpected or of the wrong shape.
    """
    table = dict(names(config))
    known = set(table.values())
    for name in tensors:
        if name not in known:
            raise UserError(f"{file}: unexpected key {name!r}: not the weights of a T5 model of the stated size")
    shapes = _shapes(config, vocabulary)
    absent = ["head.weight"] if HEAD not in tensors else []
    if not any(name.startswith("decoder.") for name in tensors):
        absent += [own for own in table if own.startswith("decoder_")]
    state = _fresh(config, {own: shapes[own] for own in sorted(absent)})
    for own, name in table.items():
        if own in state:
            continue
        state[own] = take(tensors, name, shapes[own], file).contiguous()
    return state, absent


def _shapes(config: AnkhConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by asking a network without storage."""
    from protloom_plugins.architectures.ankh import Ankh

    # no kernel runs on the meta device, and of the tokenizer only the size of its vocabulary matters
    tokenizer = cast("Tokenizer", SimpleNamespace(vocab=range(vocabulary)))
    with torch.device("meta"):
        network = Ankh(config, BuildContext(tokenizer, cast("Ops", None)))
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _fresh(config: AnkhConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Initialises parameters as a new network's, always with the same numbers."""
    from protloom_plugins.architectures.ankh import initial_std

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        std = initial_std(name, config)
        if std is None:
            state[name] = torch.full(shape, config.init_factor)
        else:
            state[name] = torch.randn(shape, generator=generator) * std
    return state


def _tokenizer(folder: Path, vocabulary: int) -> str | dict[str, Any] | None:
    """Returns the tokenizer of these weights; it takes the ids from the folder's own file where there is one.

    Raises:
        UserError: if the vocabulary is that of no Ankh model, or the file's is of another size.
    """
    if (folder / "protloom.json").is_file():
        return None  # that file says which tokenizer it is
    layout = next((known for known in LAYOUTS if known.size == vocabulary), None)
    if layout is None:
        sizes = " or ".join(str(known.size) for known in LAYOUTS)
        raise UserError(
            f"{folder / 'config.json'}: the vocabulary has {vocabulary} symbols, those of Ankh have {sizes}"
        )
    file = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if file is None:
        return layout.name
    section = section_of(file)
    if section["name"] != layout.name:
        raise UserError(
            f"{file}: the vocabulary of tokenizer {section['name']!r}, but the network has {vocabulary} symbols "
            f"as that of {layout.name!r}"
        )
    return section
