"""``python -m protloom_masked_diffusion MODEL``: writes proteins as FASTA."""

from __future__ import annotations

import argparse
import sys

from protloom.errors import UserError
from protloom.plugins import Registry


def main() -> int:
    """Reads the command line and writes to standard output."""
    parser = argparse.ArgumentParser(prog="python -m protloom_masked_diffusion", description=__doc__)
    parser.add_argument("model", help="a run, a model folder or a hub id")
    parser.add_argument("--n", type=int, default=5, help="sequences (5)")
    parser.add_argument("--length", type=int, default=100, help="residues of each (100)")
    parser.add_argument("--steps", type=int, default=64, help="passes of the network (64)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from protloom.weights import load_pretrained
    from protloom_masked_diffusion.sampler import generate

    try:
        found = load_pretrained(args.model, Registry.discover())
        lengths = [args.length] * args.n
        options = {"steps": args.steps, "temperature": args.temperature, "seed": args.seed}
        written = generate(found.model, found.tokenizer, lengths, **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for number, sequence in enumerate(written, start=1):
        print(f">generated-{number} seed={args.seed}\n{sequence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
