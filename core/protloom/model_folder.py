"""A model folder: the form in which protloom keeps a network on disk.

It holds ``model.safetensors`` and ``config.json`` (in the names of the architecture's own ecosystem where it has a
weight adapter) and ``protloom.json``, which says what protloom needs to build the same network again. Nothing in it is
pickled, and reading one runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from protloom import __version__
from protloom.contracts import Tokenizer, WeightAdapter
from protloom.errors import UserError
from protloom.files import share
from protloom.specs import ArchitectureSpec

if TYPE_CHECKING:
    from protloom.plugins import Registry
    from protloom.plugins.loader import Component

FORMAT = 1
RECORD, TENSORS, CONFIG = "protloom.json", "model.safetensors", "config.json"


@dataclass(frozen=True)
class Stored:
    """A model as it was read, before a network is built.

    Attributes:
        source: the file or folder that it was read from.
        architecture: the component.
        config: its options.
        tokenizer: the tokenizer's component.
        tokenizer_config: its options.
        state: exactly the tensors of the network's ``state_dict()``, on the host.
        notes: things to tell the user.
        initialised: parameters that the source does not hold and that are random.
        untrained: parameters that it holds and that are random, since no step of training reached them.
    """

    source: Path
    architecture: Component
    config: BaseModel | None
    tokenizer: Component
    tokenizer_config: BaseModel | None
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()


# -------------------------------------------------------------------------------------------------------- writing


def save_pretrained(
    folder: Path,
    *,
    component: Component,
    config: BaseModel | None,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    tokenizer_component: Component,
    tokenizer_config: BaseModel | None,
    untrained: Sequence[str] = (),
    layout: Literal["auto", "adapter", "native"] = "auto",
) -> None:
    """Writes a model folder, beside its place first and then by one rename.

    Args:
        folder: must not exist yet, or be empty.
        component: the architecture.
        config: its options.
        state: whole tensors of its ``state_dict()``, on the host.
        tokenizer: goes with it.
        tokenizer_component: where the tokenizer comes from.
        tokenizer_config: the tokenizer's options.
        untrained: parameters that are random; the record says so.
        layout: adapter: names and config of the architecture's own ecosystem; native: those of protloom; auto: the
            adapter's where there is one and it can express the model; else the record says why not.

    Raises:
        UserError: if the folder exists and holds something, the disk is full, or ``layout="adapter"`` is not possible.
    """
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        about, document, tensors, files = _layout(layout, component, config, state, tokenizer)
        (partial / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (partial / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        _write_tensors(partial / TENSORS, tensors)
        record = {
            "format": FORMAT,
            "protloom": __version__,
            **about,
            "architecture": _origin(component, config),
            "tokenizer": {**_origin(tokenizer_component, tokenizer_config), "fingerprint": tokenizer.fingerprint},
            "sha256": _file_hash(partial / TENSORS),
            **({"untrained": list(untrained)} if untrained else {}),
        }
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raises UserError if something stands where a model folder is to be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already and is not overwritten: choose another folder or remove it")


def why_native(
    component: Component, config: BaseModel | None, state: Mapping[str, Tensor], tokenizer: Tokenizer
) -> str | None:
    """Returns why a network that the architecture's own ecosystem could hold is written under protloom's names.

    Args:
        component: the architecture.
        config: its options.
        state: its ``state_dict()``, of which names and shapes count; it may be sharded and on any device.
        tokenizer: goes with it.

    Returns:
        What :func:`save_pretrained` will write into the record as ``layout_reason``; None if the ecosystem can hold the
        network, if there is no other than protloom's own, or if the numbers decide.
    """
    adapter = adapter_of(component)
    if adapter is None:
        return None
    shapes = {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in state.items()}
    try:
        adapter.export(config, shapes, tokenizer)
    except UserError as error:
        return str(error)
    except (RuntimeError, TypeError):
        return None  # an adapter that looks at the numbers: it is asked again when they are written
    return None


def _layout(
    wanted: str, component: Component, config: BaseModel | None, state: Mapping[str, Tensor], tokenizer: Tokenizer
) -> tuple[dict[str, str], dict[str, Any], Mapping[str, Tensor], Mapping[str, str | bytes]]:
    """Returns what the record says of the layout, config.json, tensors and further files."""
    adapter = adapter_of(component) if wanted != "native" else None
    if adapter is None and wanted == "adapter":
        raise UserError(f"architecture {component.full_name} has no other program's format: use --to protloom")
    about = {"layout": "native"}
    if adapter is not None:
        try:
            return {"layout": "adapter"}, *adapter.export(config, state, tokenizer)
        except UserError as error:
            # options that the other program does not know; our own names hold any model
            if wanted == "adapter":
                raise UserError(f"{error}: use --to protloom") from None
            about["layout_reason"] = str(error)
    return about, {"model_type": f"protloom-{component.name}", **options_of(config)}, state, {}


def adapter_of(component: Component) -> WeightAdapter | None:
    """Makes the weight adapter of an architecture, None if it has none."""
    spec = component.spec
    if not isinstance(spec, ArchitectureSpec) or spec.weights is None:
        return None
    return cast(WeightAdapter, component.load(spec.weights)())


def options_of(config: BaseModel | None) -> dict[str, Any]:
    """Returns a component's options as plain values."""
    return {} if config is None else config.model_dump(mode="json")


def _origin(component: Component, config: BaseModel | None) -> dict[str, Any]:
    return {
        "name": component.name,
        "distribution": component.distribution,
        "version": component.version,
        "config": options_of(config),
    }


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file, {"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"{file}: cannot be written ({error}); free space there, or choose another folder") from None
    share(file)


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------- reading


def read_model_folder(folder: Path, registry: Registry) -> Stored:
    """Reads what :func:`save_pretrained` wrote; raises UserError naming the file that is missing or damaged."""
    record = read_record(folder / RECORD)
    architecture, config = from_record(record, "architecture", registry, folder)
    tokenizer, tokenizer_config = from_record(record, "tokenizer", registry, folder)
    file = folder / TENSORS
    if not file.is_file():
        raise UserError(f"{file} is missing: the model folder is incomplete")
    if _file_hash(file) != record.get("sha256"):
        raise UserError(f"{file} is damaged: its SHA-256 differs from the one in {RECORD}")
    untrained = tuple(map(str, record.get("untrained", ())))
    if record.get("layout") == "native":
        state: Mapping[str, Tensor] = _load_safetensors(file)
        return Stored(folder, architecture, config, tokenizer, tokenizer_config, state, untrained=untrained)
    adapter = adapter_of(architecture)
    if adapter is None:
        raise UserError(f"{folder}: architecture {architecture.full_name} {architecture.version} can no longer read it")
    imported = adapter.read(folder)
    return Stored(
        folder,
        architecture,
        config,
        tokenizer,
        tokenizer_config,
        imported.state,
        imported.notes,
        untrained=untrained,
    )


def read_record(file: Path) -> dict[str, Any]:
    """Reads protloom.json; raises UserError if it is damaged or of another version."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({' '.join(str(error).split())})") from None
    if not isinstance(record, dict):
        raise UserError(f"{file}: damaged: not a mapping")
    if record.get("format") != FORMAT:
        raise UserError(
            f"{file}: format {record.get('format')} is not {FORMAT}: written by another version of protloom"
        )
    return record


def from_record(
    record: Mapping[str, Any], kind: str, registry: Registry, folder: Path
) -> tuple[Component, BaseModel | None]:
    """Finds a component that a record names and validates the options stored with it."""
    try:
        section = record[kind]
        name, options = f"{section['distribution']}/{section['name']}", section["config"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD}: damaged: section {kind!r} lacks {error}") from None
    component = registry.resolve(kind, name)
    return component, validated(component, options, folder / RECORD)


def validated(component: Component, options: Mapping[str, Any], where: Path) -> BaseModel | None:
    """Returns a component's options as its own model; raises UserError naming ``where`` they stand."""
    model = component.load_config()
    if model is None:
        return None
    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "options"
        raise UserError(f"{where}: {component.kind} {component.full_name}: {at}: {first['msg']}") from None


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error})") from None
