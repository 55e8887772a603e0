"""Reads the files of other programs: config.json, and tensors in safetensors, shards and plain pickles."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protloom.errors import UserError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

C = TypeVar("C", bound=BaseModel)


def config_of(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a folder, empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def require_numbers(stated: Mapping[str, Any], keys: Iterable[str], file: Path, what: str) -> None:
    """Raises UserError if a config lacks one of ``keys``, or has something else than a whole number there."""
    for key in keys:
        if not isinstance(stated.get(key), int):
            raise UserError(f"{file}: key {key!r} is missing or not a whole number: not the config of {what} model")


def validated(model: type[C], options: Mapping[str, Any], file: Path, what: str) -> C:
    """Returns options as a config model; raises UserError, in one line, if they make no network."""
    try:
        return model(**options)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: not a valid {what} size: {reason}") from None


def take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    """Returns a tensor in fp32; raises UserError if it is missing or has another shape."""
    if name not in tensors:
        raise UserError(f"{file}: key {name!r} is missing")
    value = tensors[name]
    if tuple(value.shape) != shape:
        raise UserError(f"{file}: key {name!r} has shape {list(value.shape)}, expected {list(shape)}")
    return value.to(torch.float32)


def load_torch(file: Path) -> dict[str, Any]:
    """Reads a file of ``torch.save``; of classes only ``argparse.Namespace`` is allowed beside tensors.

    Raises:
        UserError: if it is damaged, or holds objects that only running code could rebuild.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: holds more than tensors and plain data, or is damaged; not read ({reason})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file}: damaged or not a PyTorch file ({reason}); get it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not a mapping of names to tensors")
    return content


def load_safetensors(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; raises UserError if it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file}: damaged or not a safetensors file ({error}); get it again") from None


def load_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Reads the weights of a Hugging Face folder, whole or sharded; safetensors are preferred to pickled files.

    Returns:
        The file that names the tensors, and the tensors.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no weights: none of {', '.join(WEIGHT_FILES)} is there")
    if file.suffix == ".safetensors":
        return file, load_safetensors(file)
    if file.suffix == ".bin":
        return file, load_torch(file)
    return file, _load_shards(file)


def _load_shards(index: Path) -> dict[str, Tensor]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: damaged ({type(error).__name__}: {error}); get it again") from None
    tensors: dict[str, Tensor] = {}
    for name in shards:
        # a plain name: an index must not reach outside its folder
        if Path(name).name != name:
            raise UserError(f"{index}: names the shard {name!r}, which is not a file of this folder")
        shard = index.parent / name
        tensors |= load_torch(shard) if shard.suffix == ".bin" else load_safetensors(shard)
    absent = next((key for key in table if key not in tensors), None)
    if absent is not None:
        raise UserError(f"{index.parent / table[absent]}: key {absent!r} is missing")
    return tensors
