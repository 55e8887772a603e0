"""An objective on a small network, ready to be asked: builds it, corrupts batches with it, and scores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from protloom.errors import UserError
from protloom.rng import CounterRNG
from protloom.testing.checks import Request, Violation
from protloom.testing.materials import batch_of, global_seeds, global_state, proteins, small_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from protloom.config import ResolvedRun
    from protloom.contracts import Architecture, Losses, Prepared, SequenceBatch, Tokenizer
    from protloom.objective import Objective
    from protloom.step import DeviceShare

ALIAS = "tested"
SEED = 5


@dataclass
class Made:
    """A network and an objective that was built for it.

    Attributes:
        model: the network.
        objective: the objective under test.
        tokenizer: of both.
    """

    model: nn.Module
    objective: Objective
    tokenizer: Tokenizer

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns all parameters by name, the network's and the objective's."""
        found = {f"network.{name}": p for name, p in self.model.named_parameters()}
        return found | {f"objective.{name}": p for name, p in self.objective.named_parameters()}


class Bench:
    """Builds an objective as the trainer does.

    Args:
        request: which objective. ``extra`` may name an ``architecture`` (such as ``esm2:tiny``) and a ``batch``:
            a function ``(tokenizer, sequences, epoch) -> SequenceBatch`` for objectives that need batches of their own.

    Raises:
        UserError: it cannot be built on any architecture; says why not on each.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._make_batch: Callable[..., SequenceBatch] = request.extra.get("batch", batch_of)
        self.architecture, self._resolved = self._choose()

    def _choose(self) -> tuple[str, ResolvedRun]:
        """Returns the first architecture that the objective can be built on."""
        reasons: dict[str, list[str]] = {}
        for architecture in small_sizes(self._request.registry, self._request.extra.get("architecture")):
            try:
                resolved = self._resolve(architecture)
                self._build(resolved, SEED)
            except UserError as error:
                reason = str(error).removeprefix(f"{self._request.component.label}: ")
                reasons.setdefault(reason, []).append(architecture)
            else:
                return architecture, resolved
        told = "; ".join(f"{', '.join(architectures)}: {reason}" for reason, architectures in reasons.items())
        raise UserError(f"it cannot be built on any architecture ({told})")

    def _resolve(self, architecture: str, *others: str) -> ResolvedRun:
        from protloom import config

        request = self._request
        mine = {"name": request.component.full_name, "alias": ALIAS, **request.options}
        entries = [mine, *({"name": name, "alias": f"other{i}"} for i, name in enumerate(others))]
        overrides = [f"architecture={architecture}", f"objectives={json.dumps(entries)}", "data.corpus=none.fasta"]
        return config.load(None, overrides, request.registry)

    def _build(self, resolved: ResolvedRun, seed: int) -> list[Made]:
        """Returns the network with each objective of a run; the generators that everybody shares stay as they are."""
        with global_seeds(seed):
            return self._construct(resolved)

    def _construct(self, resolved: ResolvedRun) -> list[Made]:
        import torch

        from protloom import assembly, kernels

        ops = kernels.choose("auto", self._request.registry, torch.device("cpu"), torch.float32)
        tokenizer = assembly.make(resolved.tokenizer)
        model = assembly.build_network(resolved, tokenizer, ops)
        members = assembly.build_objectives(resolved, tokenizer, ops, model)
        return [Made(model, member.objective, tokenizer) for member in members]

    def make(self, seed: int = SEED) -> Made:
        """Returns a fresh network and objective; dropout is off."""
        made = self._build(self._resolved, seed)[0]
        made.model.eval()
        made.objective.eval()
        return made

    def footprint(self, seed: int) -> dict[str, object]:
        """Returns where the shared generators stand after all that a step does, begun with them seeded."""
        with global_seeds(seed):
            (made, *_) = self._construct(self._resolved)
            self.score(made, self.batch(made))
            made.objective.after_step(cast("Architecture", made.model), 0)
            return global_state()

    def beside(self, other: str) -> list[Made]:
        """Returns the objective and another one on one network; raises UserError if they do not fit."""
        return self._build(self._resolve(self.architecture, other), SEED)

    # ------------------------------------------------------------------------------------------------------- batches

    def batch(self, made: Made, *, epoch: int = 0, sequences: Sequence[str] | None = None) -> SequenceBatch:
        """Returns a batch, of sequences long enough for the objective."""
        if sequences is None:
            least = made.objective.least_residues
            sequences = [sequence * (1 + least // len(sequence)) for sequence in proteins()]
        return self._make_batch(made.tokenizer, sequences, epoch=epoch)

    def units(self, made: Made, batch: SequenceBatch) -> list[SequenceBatch]:
        """Returns a batch in its smallest parts: sequences, or groups where a term is a statistic of a batch."""
        if all(term.additive for term in made.objective.terms.values()) and "batch" not in self._request.extra:
            marks = np.arange(batch.packed.n, dtype=np.int32)
        else:
            marks = batch.group
        return [batch.take(marks == mark) for mark in dict.fromkeys(marks.tolist())]

    def rng(self, seed: int = SEED) -> CounterRNG:
        """Returns the objective's stream of randomness."""
        return CounterRNG(seed, "objective", ALIAS)

    def prepare(self, made: Made, batch: SequenceBatch, *, seed: int = SEED) -> Prepared:
        """Returns the corruption of a batch."""
        from protloom.contracts import Prepared

        prepared = made.objective.prepare(batch, self.rng(seed))
        if not isinstance(prepared, Prepared):
            raise Violation(f"prepare() returned a {type(prepared).__name__}, not a Prepared.")
        return prepared

    # -------------------------------------------------------------------------------------------------------- scoring

    def score(
        self, made: Made, batch: SequenceBatch, *, ranks: Any = None, validation: bool = False
    ) -> tuple[Losses, Mapping[str, int]]:
        """Returns the losses of a batch, and the counts that the trainer divides them by.

        Args:
            made: network and objective.
            batch: sequences.
            ranks: gives ``all_sum`` and ``all_gather``; None: one rank alone.
            validation: corrupt as for validation.
        """
        from protloom.contracts import Losses

        share, counts = self.share(made, batch, validation=validation)
        losses = self.losses(made, share, ranks=ranks)
        if not isinstance(losses, Losses):
            raise Violation(f"loss() returned a {type(losses).__name__}, not Losses.")
        return losses, counts

    def share(
        self, made: Made, batch: SequenceBatch, *, validation: bool = False
    ) -> tuple[DeviceShare, Mapping[str, int]]:
        """Returns a corrupted batch as the trainer gives it to the objective, and its counts."""
        import torch

        from protloom.mixture import Member, Mixture
        from protloom.settings import ObjectiveMix
        from protloom.step import to_device

        mixture = Mixture([Member(ALIAS, made.objective, ObjectiveMix())], "summed", SEED)
        if validation:
            host = mixture.prepare_validation(batch, ALIAS)
        else:
            host = mixture.prepare(batch, active=frozenset({ALIAS}))
        (share,) = to_device(host, torch.device("cpu"))
        return share, {term: host.counts[ALIAS, term] for term in made.objective.terms}

    def losses(self, made: Made, share: DeviceShare, *, ranks: Any = None, step: int = 0) -> Losses:
        """Returns what ``loss`` gives for a corrupted batch."""
        from protloom.contracts import StepContext
        from protloom.step import SharedPasses

        model = cast("Architecture", made.model)
        if ranks is None:
            ctx = StepContext(step, CounterRNG(SEED, "step", step), _same, _same)
        else:
            ctx = StepContext(step, CounterRNG(SEED, "step", step), ranks.all_sum, ranks.all_gather)
        return made.objective.loss(model, SharedPasses(model, share), share.arrays[ALIAS], ctx)

    def means(self, losses: Losses, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns each term as the trainer logs it: its total over its count."""
        return {term: total.float() / max(counts[term], 1) for term, total in losses.totals.items()}


def _same(x: Tensor) -> Tensor:
    return x


def streams(prepared: Prepared) -> list[tuple[bytes, bytes]]:
    """Returns what encoder and decoder read of each sequence, as bytes to compare."""
    decoder = prepared.decoder
    found = []
    for i in range(prepared.inputs.n):
        start, stop = prepared.inputs.cu[i : i + 2]
        encoder = prepared.inputs.tokens[start:stop].tobytes()
        if decoder is None or decoder.n != prepared.inputs.n:
            found.append((encoder, b""))
        else:
            start, stop = decoder.cu[i : i + 2]
            found.append((encoder, decoder.tokens[start:stop].tobytes()))
    return found
