"""What every generator promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from protloom.errors import UserError
from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import RESIDUES, global_seeds, global_state, small_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protloom.contracts import Architecture, Tokenizer

LENGTHS = (30, 1, 57, 12)


class Bench:
    """A generator on an untrained network.

    Args:
        request: which one. ``extra`` may name an ``architecture``, such as ``esm2:tiny``; else the first that serves.

    Raises:
        UserError: no architecture serves; says why not.
    """

    def __init__(self, request: Request) -> None:
        from protloom import config

        self.chosen = config.choose("generator", request.component.full_name, request.options, request.registry)
        self._request = request
        reasons: dict[str, list[str]] = {}
        for architecture in small_sizes(request.registry, request.extra.get("architecture")):
            try:
                self._model, self._tokenizer = self._network(architecture)
                self.write((3,))
            except UserError as error:
                reason = str(error).removeprefix(f"{request.component.label}: ")
                reasons.setdefault(reason, []).append(architecture)
            else:
                return
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise UserError(f"it can write with no architecture ({told})")

    def _network(self, architecture: str) -> tuple[Architecture, Tokenizer]:
        import torch

        from protloom import assembly, config, kernels

        registry = self._request.registry
        resolved = config.load(None, [f"architecture={architecture}", "data.corpus=none.fasta"], registry)
        tokenizer = assembly.make(resolved.tokenizer)
        ops = kernels.choose("auto", registry, torch.device("cpu"), torch.float32)
        with global_seeds(3):
            model = assembly.build_network(resolved, tokenizer, ops)
        return cast("Architecture", model.eval()), tokenizer

    def write(self, lengths: Sequence[int] = LENGTHS, *, seed: int = 1, tokens_per_batch: int = 8192) -> list[str]:
        """Returns sequences of these lengths, written in batches of so many tokens."""
        from protloom import generators

        found = generators.generate(
            self.chosen, self._model, self._tokenizer, lengths, seed=seed, tokens_per_batch=tokens_per_batch
        )
        return list(found)


@promise("generator")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("generator")
def it_writes_what_is_asked_for(request: Request) -> None:
    """There is a sequence for each length, of standard residues as capital letters, and none is longer or empty."""
    for text, length in zip(Bench(request).write(), LENGTHS, strict=True):
        odd = sorted(set(text) - set(RESIDUES))
        require(not odd, f"It wrote {odd[:1]}.")
        require(0 < len(text) <= length, f"{len(text)} residues where {length} were asked for.")


@promise("generator")
def a_sequence_is_a_function_of_the_seed(request: Request) -> None:
    """The same seed gives the same sequences, whatever shared random generators hold; another seed gives others."""
    bench = Bench(request)
    found = []
    for seed in (1, 2):
        with global_seeds(seed):
            found.append(bench.write())
    require(found[0] == found[1], "Two calls with one seed differ: hash with the stream that is given.")
    require(bench.write(seed=2) != found[0], "Another seed gives the same sequences.")


@promise("generator")
def a_sequence_does_not_depend_on_its_batch(request: Request) -> None:
    """Written one at a time, sequences are those that were written together."""
    bench = Bench(request)
    together, alone = bench.write(), bench.write(tokens_per_batch=1)
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        require(one == other, f"Sequence {number} is another one alone: hash its number among all, not its place.")


@promise("generator")
def no_global_generator_moves(request: Request) -> None:
    """Writing draws from the stream that is given, never from random, numpy.random or torch's generator."""
    bench = Bench(request)
    before = global_state()
    bench.write()
    after = global_state()
    for name, state in before.items():
        require(after[name] == state, f"That of {name} moved.")
