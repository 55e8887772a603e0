"""What training needs beside the network's weights, as named tensors: what objectives own, and the optimizer's state.

Names are ``objective|NAME``, ``optimizer|PARAMETER|KEY`` (``…|number`` where the optimizer keeps a Python number) and
``optimizer|group|N|KEY`` for numbers that an optimizer keeps in its groups and moves itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from protloom.distributed import like
from protloom.errors import UserError

INITIAL = "initial"
"""Key of an optimizer's group under which its numbers stand as they were before the first step."""
_SET_EVERY_STEP = ("lr",)
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def note_initial(optimizer: Optimizer) -> None:
    """Notes the numbers of a fresh optimizer's groups, so that those which it moves itself can be told from options."""
    for group in optimizer.param_groups:
        group[INITIAL] = dict(_numbers(group))


def _numbers(group: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in group.items():
        if key not in _SET_EVERY_STEP and isinstance(value, bool | int | float):
            yield key, value
        elif isinstance(value, Tensor) and value.ndim == 0 and key not in _SET_EVERY_STEP:
            yield key, value.item()


def collect(objectives: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns everything under flat names; tensors may be sharded.

    Raises:
        UserError: if something is neither a tensor nor a number: a checkpoint without pickle cannot hold it.
    """
    tensors = {f"objective|{name}": _tensor(f"objective {name}", v) for name, v in objectives.state_dict().items()}
    for name, parameter in named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            suffix = "" if isinstance(value, Tensor) else "|number"
            tensors[f"optimizer|{name}|{key}{suffix}"] = _tensor(f"optimizer state {key!r} of {name}", value)
    for number, group in enumerate(optimizer.param_groups):
        before = group.get(INITIAL, {})
        for key, value in _numbers(group):
            if key not in before or before[key] != value:
                tensors[f"optimizer|group|{number}|{key}"] = _tensor(key, value)
    return tensors


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) not in _DTYPES:
        raise UserError(f"{what} is a {type(value).__name__}: a checkpoint holds tensors and numbers; tell its author")
    return torch.tensor(value, dtype=_DTYPES[type(value)])


def named_parameters(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """Returns the parameters that an optimizer moves, with their names."""
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


# ------------------------------------------------------------------------------------------------- on disk


def write_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes ``objectives.safetensors`` (if there is anything) and ``optimizer.safetensors``."""
    parts: dict[str, dict[str, Tensor]] = {"objective": {}, "optimizer": {}}
    places: set[int] = set()
    for name, value in tensors.items():
        kind, rest = name.split("|", 1)
        whole = value.cpu().contiguous()
        # tied weights (a teacher that is a copy of a tied network) are one memory; safetensors wants each its own
        parts[kind][rest] = whole.clone() if whole.data_ptr() in places else whole
        places.add(whole.data_ptr())
    if parts["objective"]:
        save_file(parts["objective"], folder / "objectives.safetensors")
    save_file(parts["optimizer"], folder / "optimizer.safetensors")


def write_sharded(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Lets every process write its shards; DCP's safetensors storage, since its own metadata file is a pickle.

    Raises:
        OSError: if a process could not write its part; on every process.
    """
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.api.CheckpointException as error:  # no Exception, so nobody else would make a line of it
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"rank {rank}: {' '.join(str(cause).split())}") from error


def read(folder: Path) -> dict[str, Tensor]:
    """Reads what a checkpoint folder holds, whole or sharded, as whole tensors on the host.

    Raises:
        SafetensorError: if a file is damaged.
    """
    if (folder / "training").is_dir():
        return _read_sharded(folder / "training")
    stored: dict[str, Tensor] = {}
    for kind, name in (("objective", "objectives.safetensors"), ("optimizer", "optimizer.safetensors")):
        if (folder / name).exists():
            stored.update({f"{kind}|{key}": value for key, value in load_file(folder / name).items()})
    return stored


def _read_sharded(folder: Path) -> dict[str, Tensor]:
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    entries: Any = reader.read_metadata().state_dict_metadata.items()
    wanted: dict[str, Any] = {name: torch.empty(e.size, dtype=e.properties.dtype) for name, e in entries}
    dcp.load(wanted, storage_reader=reader, no_dist=True)
    return wanted


# ------------------------------------------------------------------------------------------------- restoring


def restore(stored: Mapping[str, Tensor], *, objectives: nn.Module, optimizer: Optimizer) -> None:
    """Puts everything back in place, sharded as the run is now, whatever number of processes wrote it.

    Args:
        stored: whole tensors on the host.
        objectives: built and wrapped as for training.
        optimizer: fresh.

    Raises:
        UserError: if they are not those of the run; changes nothing then.
    """
    owned = {name.split("|", 1)[1]: value for name, value in stored.items() if name.startswith("objective|")}
    slots: dict[str, dict[str, Any]] = {}
    groups: list[tuple[int, str, float]] = []
    for name, value in stored.items():
        kind, *path = name.split("|")
        if kind == "optimizer" and path[0] == "group":
            groups.append((int(path[1]), path[2], value.item()))
        elif kind == "optimizer":
            parameter, key, *number = path
            slots.setdefault(parameter, {})[key] = value.item() if number else value
    own = objectives.state_dict()
    _check(own, owned, slots, optimizer)
    objectives.load_state_dict({name: like(owned[name], value) for name, value in own.items()})
    _restore_optimizer(optimizer, slots, groups)


def _check(
    own: Mapping[str, Tensor], owned: Mapping[str, Tensor], slots: Mapping[str, Any], optimizer: Optimizer
) -> None:
    for name in sorted(own.keys() ^ owned.keys()):
        where = "lacks" if name in own else "has, but the run has not,"
        raise UserError(f"the checkpoint {where} {name!r} of the objectives")
    for name, value in own.items():
        if value.shape != owned[name].shape:
            shapes = f"{list(owned[name].shape)}, the run's has {list(value.shape)}"
            raise UserError(f"{name!r} of the objectives has shape {shapes}")
    unknown = sorted(slots.keys() - {name for name, _ in named_parameters(optimizer)})
    if unknown:
        raise UserError(f"the checkpoint has optimizer state of {unknown[0]!r}, which the run does not train")


def _restore_optimizer(
    optimizer: Optimizer, slots: Mapping[str, Mapping[str, Any]], groups: list[tuple[int, str, float]]
) -> None:
    fresh = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for group, plain in zip(optimizer.param_groups, fresh["param_groups"], strict=True):
        for name, parameter, index in zip(group["names"], group["params"], plain["params"], strict=True):
            if name in slots:
                state[index] = {
                    key: like(value, parameter)
                    if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape
                    else value
                    for key, value in slots[name].items()
                }
    # the optimizer's own loading knows on which device its step counters and moments belong
    optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})
    for number, key, value in groups:
        group = optimizer.param_groups[number]
        if isinstance(group.get(key), Tensor):
            group[key].fill_(value)
        else:
            group[key] = value


__all__ = [
    "SafetensorError",
    "collect",
    "named_parameters",
    "note_initial",
    "read",
    "restore",
    "write_sharded",
    "write_whole",
]
