"""What the commands that ask a trained network share: options, what is refused before the long part, opening it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from protloom.cli import common
from protloom.errors import UserError

if TYPE_CHECKING:
    import torch

    from protloom.plugins import Registry
    from protloom.weights import Pretrained


def options(parser: argparse.ArgumentParser) -> None:
    """Declares ``--tokens-per-batch``, ``--device`` and ``--precision``."""
    parser.add_argument("--tokens-per-batch", type=int, metavar="N", help="memory (8192; on CPU 4096)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", metavar="fp32|bf16|auto", help="of the computation")


def refuse_sizes(args: argparse.Namespace) -> None:
    """Raises UserError for a number of tokens below 1."""
    if args.tokens_per_batch is not None and args.tokens_per_batch < 1:
        raise UserError(f"--tokens-per-batch {args.tokens_per_batch}: must be at least 1")


def refuse_mistakes(args: argparse.Namespace) -> None:
    """Raises UserError for a number of tokens below 1, and for a file ``--out`` that exists."""
    refuse_sizes(args)
    if args.out is not None and args.out.exists():
        raise UserError(f"{args.out} exists: remove it first, or choose another name")


def open_network(args: argparse.Namespace, registry: Registry, what: str) -> tuple[Pretrained, torch.dtype | None]:
    """Opens ``--model`` where ``--device`` says, and tells on stderr what its user should know.

    Args:
        args: the command line.
        registry: where components are found.
        what: it is asked to do, such as ``score``.

    Returns:
        The network, and the dtype of autocast that ``--precision`` means.

    Raises:
        UserError: device, precision or model cannot be had, or what it is asked for depends on untrained parameters.
    """
    from protloom.device import use_device
    from protloom.likelihood import refuse_untrained
    from protloom.precision import compute_dtype
    from protloom.weights import load_pretrained

    device = use_device(args.device, "--device")
    dtype = compute_dtype(args.precision, device, "--precision")
    pretrained = load_pretrained(args.model, registry, device=device)
    refuse_untrained(pretrained, args.model, what)
    for note in pretrained.notes:
        common.warn(note)
    return pretrained, dtype
