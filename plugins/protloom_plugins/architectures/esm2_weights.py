"""ESM-2 weights in the formats of fair-esm and of Hugging Face transformers, read and written without either.

Names and layouts are those of fair-esm's ``esm2.py`` and of transformers' ``modeling_esm.py`` (versions 4 and 5). Only
tensors and plain data are ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from protloom.contracts import BuildContext, ImportedWeights
from protloom.errors import UserError
from protloom_plugins.architectures.esm2_config import Esm2Config
from protloom_plugins.architectures.esm2_files import tokenizer_files, transformers_config
from protloom_plugins.architectures.rotary import rotary_frequencies
from protloom_plugins.architectures.tensor_files import (
    config_of,
    load_tensors,
    load_torch,
    require_numbers,
    take,
    validated,
)
from protloom_plugins.tokenizers.esm import VOCAB, EsmTokenizer, EsmTokenizerConfig

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer
    from protloom.ops import Ops

# own name -> (fair-esm, transformers); {i} is the block, and q, k, v are joined to one projection
TOP = {
    "embedding.weight": ("embed_tokens.weight", "embeddings.word_embeddings.weight"),
    "final_norm": ("emb_layer_norm_after", "encoder.emb_layer_norm_after"),
    "head.dense": ("lm_head.dense", "lm_head.dense"),
    "head.norm": ("lm_head.layer_norm", "lm_head.layer_norm"),
    "head.bias": ("lm_head.bias", "lm_head.bias"),
    "contact_head": ("contact_head.regression", "contact_head.regression"),
}
BLOCK = {
    "attention_norm": ("self_attn_layer_norm", "attention.LayerNorm"),
    "attention_out": ("self_attn.out_proj", "attention.output.dense"),
    "mlp_norm": ("final_layer_norm", "LayerNorm"),
    "mlp_in": ("fc1", "intermediate.dense"),
    "mlp_out": ("fc2", "output.dense"),
}
QKV = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attention.self.query", "attention.self.key", "attention.self.value"),
)
PARTS = ("weight", "bias")
IGNORED = re.compile(r"embeddings\.position_embeddings\.weight|embeddings\.position_ids|embed_positions.*|pooler\..*")
FREQUENCIES = re.compile(r"(layers\.\d+\.self_attn\.rot_emb|(.*\.)?rotary_embeddings)\.inv_freq")
TIED = ("lm_head.weight", "lm_head.decoder.weight")


class Naming(NamedTuple):
    """The names of one format.

    Attributes:
        column: 0 for fair-esm, 1 for transformers.
        block: prefix of block i.
    """

    column: int
    block: str

    def sources(self, config: Esm2Config) -> dict[str, tuple[str, ...]]:
        """Returns own name -> the one (or three) names in the file."""
        table: dict[str, tuple[str, ...]] = {}
        # blocks first: a wrong number of them then shows before what follows from it
        for i in range(config.layers):
            prefix = self.block.format(i=i)
            for own, names in BLOCK.items():
                table |= _with_parts(f"blocks.{i}.{own}", (prefix + names[self.column],))
            table |= _with_parts(f"blocks.{i}.qkv", tuple(prefix + name for name in QKV[self.column]))
        for own, names in TOP.items():
            table |= _with_parts(own, (names[self.column],))
        return table


FAIR_ESM = Naming(0, "layers.{i}.")
TRANSFORMERS = Naming(1, "encoder.layer.{i}.")


def _with_parts(own: str, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Spreads a module's name over its weight and bias; a name that already is a tensor's stays."""
    if own.endswith(PARTS):
        return {own: names}
    return {f"{own}.{part}": tuple(f"{name}.{part}" for name in names) for part in PARTS}


class Esm2Weights:
    """Reads fair-esm ``.pt`` files and Hugging Face folders, writes Hugging Face folders."""

    def recognises(self, source: Path) -> bool:
        """Tells whether ``source`` is an ESM-2 ``.pt`` file or a folder whose config.json says ``esm``."""
        if source.is_dir():
            return config_of(source).get("model_type") == "esm"
        return source.is_file() and source.suffix == ".pt" and _looks_like_fair_esm(source)

    def read(self, source: Path) -> ImportedWeights:
        """Reads either format; see :meth:`protloom.contracts.WeightAdapter.read`."""
        return _read_folder(source) if source.is_dir() else _read_fair_esm(source)

    def export(
        self, config: Esm2Config, state: Mapping[str, Tensor], tokenizer: Tokenizer
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
        """Returns what ``transformers.EsmForMaskedLM.from_pretrained`` reads."""
        if config.token_dropout and abs(config.train_mask_ratio - 0.12) > 1e-9:
            raise UserError(
                f"transformers fixes ESM-2's train_mask_ratio at 0.12, this model has {config.train_mask_ratio}"
            )
        if config.token_dropout and tokenizer.mask_id is None:
            raise UserError(f"tokenizer {tokenizer.name!r} has no mask symbol, which transformers' ESM needs")
        tensors: dict[str, Tensor] = {}
        for own, names in TRANSFORMERS.sources(config).items():
            for name, part in zip(names, state[own].chunk(len(names)), strict=True):
                tensors[name if name.startswith("lm_head.") else f"esm.{name}"] = part.contiguous()
        frequencies = stored_frequencies(config)
        for i in range(config.layers):
            tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
        return transformers_config(config, tokenizer), tensors, tokenizer_files(tokenizer)


def stored_frequencies(config: Esm2Config) -> Tensor:
    """Returns the rotary frequencies ``[d/2]`` that the network uses, in fp32."""
    exact = rotary_frequencies(config.width // config.heads, config.rope_base)
    return exact.half().float() if config.rope_precision == "fp16" else exact


# ------------------------------------------------------------------------------------------------------- fair-esm


def _looks_like_fair_esm(file: Path) -> bool:
    """Looks for ESM-2's names in the index of a ``.pt`` file; one that cannot be opened is judged by its name."""
    try:
        with zipfile.ZipFile(file) as archive:
            index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            content = b"" if index is None else archive.read(index)
    except (zipfile.BadZipFile, OSError):
        return file.name.startswith("esm2_")
    return b"embed_tokens.weight" in content and b"emb_layer_norm_after.weight" in content


def _read_fair_esm(file: Path) -> ImportedWeights:
    if file.stem.endswith("-contact-regression"):
        whole = file.name.replace("-contact-regression", "")
        raise UserError(f"{file}: this is only the contact head; name {whole}, and it is read along")
    content = load_torch(file)
    named = content.get("model")
    if not isinstance(named, dict):
        raise UserError(f"{file}: no key 'model': not a checkpoint of fair-esm")
    stripped = re.compile(r"^(encoder\.sentence_encoder\.|encoder\.|sentence_encoder\.)")
    tensors = {stripped.sub("", key): value for key, value in named.items()}
    regression = file.with_name(f"{file.stem}-contact-regression.pt")
    if regression.is_file():
        tensors |= load_torch(regression).get("model", {})
    config = _fair_esm_config(content, tensors, file)
    return _assemble(tensors, config, FAIR_ESM, file)


def _fair_esm_config(content: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> Esm2Config:
    stated = content.get("cfg", {}).get("model") if isinstance(content.get("cfg"), dict) else content.get("args")
    options: dict[str, Any] = stated if isinstance(stated, dict) else vars(stated) if stated is not None else {}
    options = {key.removeprefix("encoder_"): value for key, value in options.items()}
    embedding = _get(tensors, "embed_tokens.weight", file)
    numbers = [int(m[1]) for key in tensors if (m := re.match(r"layers\.(\d+)\.", key))]
    frequencies = next((value for key, value in tensors.items() if FREQUENCIES.fullmatch(key)), None)
    heads = options.get("attention_heads")
    if heads is None and frequencies is not None:
        heads = embedding.shape[1] // (2 * frequencies.numel())
    if heads is None:
        raise UserError(f"{file}: states no 'encoder_attention_heads' under 'cfg' or 'args', so it cannot be used")
    return validated(
        Esm2Config,
        {
            "layers": options.get("layers", max(numbers, default=0) + 1),
            "width": embedding.shape[1],
            "heads": heads,
            "ffn_multiple": _ffn_multiple(
                _get(tensors, "layers.0.fc1.weight", file).shape[0], embedding.shape[1], file
            ),
            "token_dropout": bool(options.get("token_dropout", True)),
            "rope_precision": _rope_precision(frequencies, 10000.0, file),
        },
        file,
        "ESM-2",
    )


# --------------------------------------------------------------------------------------------------- transformers


def _read_folder(folder: Path) -> ImportedWeights:
    stated = config_of(folder)
    file, tensors = load_tensors(folder)
    tensors = {_modern(key.removeprefix("esm.")): value for key, value in tensors.items()}
    frequencies = next((value for key, value in tensors.items() if FREQUENCIES.fullmatch(key)), None)
    config = _folder_config(stated, frequencies, folder / "config.json")
    _check_vocabulary(folder, stated)
    return _assemble(tensors, config, TRANSFORMERS, file)


def _modern(key: str) -> str:
    """Undoes TensorFlow's names of norm parameters, which transformers still writes in places."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))


def _folder_config(stated: Mapping[str, Any], frequencies: Tensor | None, file: Path) -> Esm2Config:
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    require_numbers(stated, needed, file, "an ESM-2")
    if stated.get("position_embedding_type") != "rotary":
        kind = stated.get("position_embedding_type", "absolute")
        raise UserError(
            f"{file}: position_embedding_type is {kind!r}: only rotary ESM-2 models can be read, not ESM-1b"
        )
    if stated.get("emb_layer_norm_before"):
        raise UserError(f"{file}: emb_layer_norm_before is set, which ESM-2 models do not have")
    width, base = stated["hidden_size"], _rope_base(stated)
    return validated(
        Esm2Config,
        {
            "layers": stated["num_hidden_layers"],
            "width": width,
            "heads": stated["num_attention_heads"],
            "ffn_multiple": _ffn_multiple(stated["intermediate_size"], width, file),
            "token_dropout": bool(stated.get("token_dropout", False)),
            "norm_eps": stated.get("layer_norm_eps", 1e-12),
            "rope_base": base,
            "rope_precision": _rope_precision(frequencies, base, file),
        },
        file,
        "ESM-2",
    )


def _rope_base(stated: Mapping[str, Any]) -> float:
    nested = stated.get("rope_parameters") or {}
    return float(nested.get("rope_theta", stated.get("rope_theta", 10000.0)))


def _check_vocabulary(folder: Path, stated: Mapping[str, Any]) -> None:
    """Refuses a folder whose token ids mean something else than those of the tokenizer ``esm``."""
    file = folder / "vocab.txt"
    if file.is_file():
        listed = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        if tuple(listed) != VOCAB:
            raise UserError(f"{file}: the vocabulary is not that of ESM-2 ({len(VOCAB)} symbols, <cls> first)")
    elif stated.get("vocab_size") != len(VOCAB):
        raise UserError(f"{folder / 'config.json'}: vocab_size is {stated.get('vocab_size')}, ESM-2 has {len(VOCAB)}")


# --------------------------------------------------------------------------------------------------------- common


def _ffn_multiple(inner: int, width: int, file: Path) -> int:
    if inner % width:
        raise UserError(f"{file}: the feed-forward width ({inner}) is not a multiple of the model's width ({width})")
    return inner // width


def _rope_precision(frequencies: Tensor | None, base: float, file: Path) -> str:
    """Tells how the stored rotary frequencies were rounded; fair-esm and transformers use them as they are stored."""
    if frequencies is None:
        return "fp32"
    stored = frequencies.float()
    exact = rotary_frequencies(2 * frequencies.numel(), base)
    if torch.allclose(stored, exact, rtol=1e-6, atol=0):
        return "fp32"
    if torch.equal(stored, exact.half().float()):
        return "fp16"
    raise UserError(f"{file}: the stored rotary frequencies (inv_freq) are not those of base {base:g}")


def _get(tensors: Mapping[str, Tensor], key: str, file: Path) -> Tensor:
    if key not in tensors:
        raise UserError(f"{file}: key {key!r} is missing")
    return tensors[key]


def _assemble(tensors: Mapping[str, Tensor], config: Esm2Config, naming: Naming, file: Path) -> ImportedWeights:
    """Renames, joins and checks tensors, and initialises heads that the file lacks.

    Raises:
        UserError: for a key that is missing, unexpected or of the wrong shape.
    """
    table = naming.sources(config)
    _get(tensors, table["embedding.weight"][0], file)
    shapes = _shapes(config)
    known = {name for names in table.values() for name in names}
    _check_unexpected(tensors, known, table["embedding.weight"][0], file)
    state: dict[str, Tensor] = {}
    notes = []
    for head, what in (("head.", "language-model head"), ("contact_head.", "contact head")):
        wanted = {name for own in table if own.startswith(head) for name in table[own]}
        if not wanted & tensors.keys():
            notes.append(f"{file.name} has no {what}: initialised, so train it before using it")
            state |= _fresh({own: shapes[own] for own in table if own.startswith(head)})
    initialised = tuple(state)
    for own, names in table.items():
        if own in state:
            continue
        shape = (shapes[own][0] // len(names), *shapes[own][1:])
        state[own] = torch.cat([take(tensors, name, shape, file) for name in names]).contiguous()
    return ImportedWeights(config.model_dump(mode="json"), state, "esm", tuple(notes), initialised)


def _check_unexpected(tensors: Mapping[str, Tensor], known: Iterable[str], embedding: str, file: Path) -> None:
    expected = set(known)
    for name, value in tensors.items():
        if name in expected or IGNORED.fullmatch(name) or FREQUENCIES.fullmatch(name):
            continue
        if name not in TIED:
            raise UserError(f"{file}: unexpected key {name!r}: not the weights of an ESM-2 model of the stated size")
        if not torch.equal(value, tensors[embedding]):
            raise UserError(f"{file}: key {name!r} differs from {embedding!r}: ESM-2 ties the two")


def _shapes(config: Esm2Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by asking a network without storage."""
    from protloom_plugins.architectures.esm2 import Esm2

    # no kernel runs on the meta device, so none is chosen
    build = BuildContext(EsmTokenizer(EsmTokenizerConfig()), cast("Ops", None))
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Esm2(config, build).state_dict().items()}


def _fresh(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Initialises a head: norms 1, biases 0, matrices N(0, 0.02), always the same numbers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            state[name] = torch.zeros(shape)
        elif len(shape) == 1:
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.02
    return state
