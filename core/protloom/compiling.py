"""torch.compile of a network's repeated blocks, so that starting stays short whatever the depth."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.ops import Ops


def opaque(ops: Ops) -> Ops:
    """Returns the functions with attention kept out of compiled code.

    It loops over sequences, or calls a kernel that takes their offsets: traced, each batch's lengths would be a program
    of their own. What lies between two attentions is compiled.
    """
    return replace(ops, attention=torch.compiler.disable(ops.attention))


def compile_blocks(module: nn.Module) -> int:
    """Compiles each repeated block of every network below ``module``, in place; names of parameters stay.

    Blocks are the members of a network's ``blocks``; the first call of one compiles for all that are alike, whatever
    number of tokens they get.

    Returns:
        How many blocks that are.

    Raises:
        UserError: if this machine has no compiler for what PyTorch writes, or no network has ``blocks``.
    """
    lists = [getattr(part, "blocks", None) for part in module.modules()]
    blocks = {id(block): block for found in lists if isinstance(found, nn.ModuleList) for block in found}
    if not blocks:
        raise UserError("trainer.compile: the network has no 'blocks' to compile; train with trainer.compile=false")
    reason = unavailable()
    if reason is not None:
        raise UserError(f"trainer.compile: {reason}")
    for block in blocks.values():
        block.compile(dynamic=True)
    return len(blocks)


def unavailable() -> str | None:
    """Returns why torch.compile cannot work here and what to do, or None; does not look for Triton."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if any(shutil.which(name) for name in compilers):
        return None
    return f"no C++ compiler on the PATH ({', '.join(compilers)}): install one, or train with trainer.compile=false"
