"""Networks from wherever a user has them: a run, a checkpoint, a folder, a file of another program, a hub.

:mod:`protloom.model_folder` is the form in which protloom itself keeps them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from protloom import checkpoint, hub
from protloom.contracts import Architecture, BuildContext, Tokenizer, WeightAdapter
from protloom.errors import UserError
from protloom.model_folder import (
    CONFIG,
    RECORD,
    TENSORS,
    Stored,
    adapter_of,
    from_record,
    options_of,
    read_model_folder,
    read_record,
    refuse_existing,
    save_pretrained,
    validated,
    why_native,
)
from protloom.specs import ArchitectureSpec

if TYPE_CHECKING:
    from protloom.plugins import Registry
    from protloom.plugins.loader import Component

__all__ = [
    "Loaded",
    "Pretrained",
    "Stored",
    "describe",
    "fingerprint",
    "load_into",
    "load_pretrained",
    "locate",
    "read",
    "refuse_existing",
    "save_pretrained",
    "why_native",
]

HUB_ID = re.compile(r"(hf:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


class ChosenComponent(Protocol):
    """A component with its validated options, as :mod:`protloom.config` resolves it."""

    @property
    def component(self) -> Component:
        """What was chosen."""

    @property
    def config(self) -> Any:
        """Its options, None where it has none."""


@dataclass(frozen=True)
class Pretrained:
    """A network that is ready to compute.

    Attributes:
        model: the network, in evaluation mode.
        tokenizer: the tokenizer that it was trained with.
        stored: where it came from and its options; ``stored.state`` shares no memory with ``model``'s parameters
            unless they have the same type and device.
        fingerprint: hash of the weights, whatever file format held them.
    """

    model: nn.Module
    tokenizer: Tokenizer
    stored: Stored
    fingerprint: str

    @property
    def architecture(self) -> Architecture:
        """The network, seen as what it can do."""
        return cast(Architecture, self.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """Things to tell the user, such as heads that were initialised."""
        return self.stored.notes


# -------------------------------------------------------------------------------------------------------- reading


def read(source: str | Path, registry: Registry) -> Stored:
    """Reads a model without building it.

    Args:
        source: a run folder (its best checkpoint, else its newest), a checkpoint, a model folder, anything that an
            installed architecture recognises, or the id of a Hugging Face repository (``org/name`` or
            ``hf:org/name@revision``) if no such path exists.
        registry: where architectures and tokenizers are found.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    path = locate(source)
    if (path / RECORD).is_file():
        return read_model_folder(path, registry)
    failures = []
    for component in sorted(registry.components("architecture"), key=lambda c: not c.builtin):
        try:
            adapter = adapter_of(component)
        except UserError as error:
            failures.append(str(error))  # one broken plugin must not stop the others from recognising their files
            continue
        if adapter is not None and adapter.recognises(path):
            return _read_foreign(path, component, adapter, registry)
    known = ", ".join(registry.names("architecture")) or "none"
    also = f" ({'; '.join(failures)})" if failures else ""
    raise UserError(
        f"{path}: neither a run, a checkpoint nor a model folder, and no installed architecture ({known}) recognises it"
        f"{also}; a model folder holds {CONFIG} and {TENSORS}"
    )


def describe(source: str | Path, registry: Registry) -> dict[str, Any]:
    """Returns the sections ``architecture`` and ``tokenizer`` of a run file that fit the weights of ``source``."""
    path = locate(source)
    if (path / RECORD).is_file():
        record = read_record(path / RECORD)
        parts = {kind: from_record(record, kind, registry, path) for kind in ("architecture", "tokenizer")}
    else:
        stored = read(path, registry)
        parts = {
            "architecture": (stored.architecture, stored.config),
            "tokenizer": (stored.tokenizer, stored.tokenizer_config),
        }
    return {
        kind: {"name": component.name if component.builtin else component.full_name, **options_of(config)}
        for kind, (component, config) in parts.items()
    }


def locate(source: str | Path) -> Path:
    """Returns the file or model folder that a user's word means; downloads a hub id.

    Raises:
        UserError: if there is nothing, or a run without a checkpoint.
    """
    text = str(source)
    path = Path(text).expanduser()
    if text.startswith("hf:") or not path.exists():
        return _from_hub(text)
    if (path / RECORD).is_file() or path.is_file():
        return path
    if (path / "model" / RECORD).is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        chosen = checkpoint.best(path) or checkpoint.latest(path)
        if chosen is None:
            raise UserError(f"{path}: the run has no checkpoint yet; let it reach trainer.checkpoint_every")
        if not (chosen / "model" / RECORD).is_file():
            raise UserError(f"{chosen / 'model' / RECORD} is missing: the checkpoint is incomplete; name another one")
        return chosen / "model"
    return path


def _from_hub(text: str) -> Path:
    if not HUB_ID.fullmatch(text):
        raise UserError(f"{text}: no such file or folder, and not the id of a hub repository (org/name)")
    if not text.startswith("hf:") and Path(text).parent.is_dir():
        # the folder is there, so a path was meant
        near = sorted(p.name for p in Path(text).parent.iterdir())[:8]
        raise UserError(f"{text}: no such file or folder ({Path(text).parent} holds {', '.join(near) or 'nothing'})")
    name, _, revision = text.removeprefix("hf:").partition("@")
    return hub.download(name, revision=revision or "main")


def _read_foreign(path: Path, component: Component, adapter: WeightAdapter, registry: Registry) -> Stored:
    imported = adapter.read(path)
    section = imported.tokenizer or cast(ArchitectureSpec, component.spec).defaults.get("tokenizer")
    if section is None:
        raise UserError(f"{path}: architecture {component.full_name} does not say which tokenizer goes with it")
    options = {} if isinstance(section, str) else {k: v for k, v in section.items() if k != "name"}
    tokenizer = registry.resolve("tokenizer", section if isinstance(section, str) else section["name"])
    return Stored(
        path,
        component,
        validated(component, imported.config, path),
        tokenizer,
        validated(tokenizer, options, path),
        imported.state,
        imported.notes,
        imported.initialised,
    )


# ------------------------------------------------------------------------------------------------------- building


def load_pretrained(
    source: str | Path,
    registry: Registry,
    *,
    kernels: str | Mapping[str, str] = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pretrained:
    """Reads a model and builds its network for inference.

    Args:
        source: see :func:`read`.
        registry: where components are found.
        kernels: see :func:`protloom.ops.select`.
        device: where it shall compute.
        dtype: type of its parameters.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    from protloom.kernels import choose

    stored = read(source, registry)
    device = torch.device(device)
    tokenizer: Tokenizer = stored.tokenizer.build(stored.tokenizer_config)
    ops = choose(kernels, registry, device, dtype)
    with torch.random.fork_rng(devices=[]):  # the random weights that are replaced at once must not move anybody's seed
        model: nn.Module = stored.architecture.build(stored.config, BuildContext(tokenizer, ops), of=nn.Module)
    _load_state(model, stored)
    return Pretrained(model.to(device=device, dtype=dtype).eval(), tokenizer, stored, fingerprint(stored.state))


class Loaded(NamedTuple):
    """What was loaded into a network.

    Attributes:
        notes: things to tell the user.
        random: names of the parameters that nobody trained.
    """

    notes: tuple[str, ...]
    random: frozenset[str]


def load_into(
    model: nn.Module, chosen: ChosenComponent, tokenizer: Tokenizer, source: str | Path, registry: Registry
) -> Loaded:
    """Loads weights into a network that a run has built.

    Args:
        model: the network, whole and on the host.
        chosen: its architecture and options.
        tokenizer: the run's tokenizer.
        source: see :func:`read`.
        registry: where components are found.

    Raises:
        UserError: if the weights are of another architecture, size or vocabulary; says which option differs.
    """
    stored = read(source, registry)
    if stored.architecture.full_name != chosen.component.full_name:
        raise UserError(
            f"init: {stored.source} holds {stored.architecture.name!r}, but the run trains {chosen.component.name!r}"
        )
    theirs: Tokenizer = stored.tokenizer.build(stored.tokenizer_config)
    if tuple(theirs.vocab) != tuple(tokenizer.vocab):
        raise UserError(
            f"init: {stored.source} was trained with the vocabulary of tokenizer {theirs.name!r}"
            f" ({len(theirs.vocab)} symbols), the run uses {tokenizer.name!r} ({len(tokenizer.vocab)} symbols)"
        )
    own, other = options_of(chosen.config), options_of(stored.config)
    differing = [f"{key} {other[key]} (run: {own.get(key)})" for key in other if other[key] != own.get(key)]
    fits = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if fits != {name: tuple(value.shape) for name, value in stored.state.items()}:
        raise UserError(f"init: the network of {stored.source} has another size: {', '.join(differing)}")
    _load_state(model, stored)
    notes = (*stored.notes, *(f"init: {stored.source} was made with {difference}" for difference in differing))
    return Loaded(notes, frozenset((*stored.initialised, *stored.untrained)))


def _load_state(model: nn.Module, stored: Stored) -> None:
    own = model.state_dict()
    for name in own:
        if name not in stored.state:
            raise UserError(f"{stored.source}: parameter {name!r} is missing")
    for name, value in stored.state.items():
        if name not in own:
            raise UserError(f"{stored.source}: unexpected parameter {name!r}")
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)}, expected {list(own[name].shape)}"
            raise UserError(f"{stored.source}: parameter {name!r} has shape {shapes}")
    model.load_state_dict(stored.state)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Returns a hash of names, types, shapes and numbers: equal weights have equal fingerprints in any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
