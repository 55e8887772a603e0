"""``protloom convert``: between protloom's own weights and those of other programs."""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from protloom.cli.common import example, registry, warn
from protloom.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import Architecture, Offsets
    from protloom.weights import Pretrained

# the standard residues, a short one, repeats and a masked position: enough to show a permuted or transposed tensor
CHECKED = ("ACDEFGHIKLMNPQRSTVWY", "MK", "GSGSGSGSGSPPPPPWWWWW", "MKTAYIAKQR<mask>ISFVKSHFSRQLEERLGLIEVQ")
TOLERANCE = 1e-5


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a run, a checkpoint, a folder, a file or a hub id (org/name)")
    parser.add_argument(
        "--to",
        choices=("hf", "protloom"),
        required=True,
        help="hf: a folder that transformers reads; protloom: tensors under protloom's own names",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write (new)")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the folder again and compare logits (yes)",
    )
    example(
        parser,
        "protloom convert runs/first --to hf --out exported",
        "protloom convert esm2_t6_8M_UR50D.pt --to protloom --out models/esm2-8M",
    )


def run(args: argparse.Namespace) -> int:
    """Converts, and returns 0 if the written folder gives the same logits (or was not checked)."""
    from protloom import weights

    weights.refuse_existing(args.out)  # before the long part
    known = registry(args)
    before = weights.load_pretrained(args.source, known)
    for note in before.notes:
        warn(note)
    stored = before.stored
    weights.save_pretrained(
        args.out,
        component=stored.architecture,
        config=stored.config,
        state=stored.state,
        tokenizer=before.tokenizer,
        tokenizer_component=stored.tokenizer,
        tokenizer_config=stored.tokenizer_config,
        untrained=(*stored.initialised, *stored.untrained),
        layout="native" if args.to == "protloom" else "adapter",
    )
    print(f"wrote {args.out}: {stored.architecture.name}, {sum(t.numel() for t in stored.state.values()):,} parameters")
    if not args.check:
        return 0
    after = weights.load_pretrained(args.out, known)
    difference = _difference(before, after)
    print(f"check: largest difference of logits {difference:.2e} over {len(CHECKED)} sequences")
    if not difference <= TOLERANCE:
        shutil.rmtree(args.out)
        what = "are not numbers (NaN)" if math.isnan(difference) else f"differ by {difference:.2e}"
        raise UserError(f"{args.source} was not converted: logits before and after {what}; {args.out} is removed")
    return 0


def _difference(before: Pretrained, after: Pretrained) -> float:
    """Returns the largest difference of logits over a few fixed sequences."""
    import torch

    from protloom.contracts import Offsets

    encoded = [torch.as_tensor(before.tokenizer.encode(sequence)) for sequence in CHECKED]
    tokens, cu = torch.cat(encoded).long(), Offsets.of(len(ids) for ids in encoded)
    with torch.inference_mode():
        first, second = (_logits(model, tokens, cu) for model in (before.architecture, after.architecture))
    return float((first - second).abs().max())


def _logits(model: Architecture, tokens: Tensor, cu: Offsets) -> Tensor:
    """Returns the logits at every token; a decoder's, where there is one, as it reads the same tokens."""
    states = model.encode(tokens, cu).last
    if "decode" in model.capabilities:
        states = cast(Any, model).decode(tokens, cu, states, cu).last
    return model.logits(states)
