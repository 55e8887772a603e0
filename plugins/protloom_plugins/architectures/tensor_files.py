"""Reads tensors from the files of other programs: safetensors, shards, plain pickles."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import torch
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
