"""Another program beside protloom: the same weights, the same sequences, the same corruption, but padded.

As shipped: fp32, the program's own attention, sequences in the order drawn, padded to the longest of a batch. At its
best: in the precision, with the attention, and in the order, drawn or sorted by length and cut into buckets, that are
fastest here. Before anything is timed both programs must compute the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protloom import memory
from protloom.bench.clock import Clock
from protloom.contracts import Peer, StepContext
from protloom.data.loader import Loader
from protloom.errors import UserError
from protloom.flops import FlopCounter, real_tokens
from protloom.memory import StepMemory
from protloom.phases import Phases
from protloom.precision import has_fast_bf16
from protloom.rng import CounterRNG
from protloom.specs import ArchitectureSpec
from protloom.step import to_device
from protloom.stepper import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.assembly import Assembly
    from protloom.config import ResolvedRun
    from protloom.mixture import HostBatch, HostShare
    from protloom.plugins import Registry

IGNORED = -100
BUCKETS, LEAST_ROWS = 4, 2
"""Batches of like lengths in a step at least, and rows of each."""
TRIALS, ENOUGH = 8, 1.0
"""Steps of a trial at most, and seconds after which there are no more."""
TOLERANCE = 1e-5
"""By which two losses in fp32 may differ, relative to the first."""


class Form(NamedTuple):
    """How the other program is used.

    Attributes:
        precision: ``fp32`` or ``bf16``.
        attention: one of the peer's.
        bucketed: sequences of like lengths share a batch.
    """

    precision: str
    attention: str
    bucketed: bool

    def words(self) -> str:
        """Returns the form as words."""
        return f"{self.precision}, {self.attention}, {'bucketed' if self.bucketed else 'as drawn'}"


@dataclass(frozen=True)
class Gate:
    """The losses of both programs on one batch."""

    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        """Relative to ours."""
        return abs(self.theirs - self.ours) / max(abs(self.ours), 1e-12)


def peer_of(resolved: ResolvedRun, program: str, registry: Registry) -> Peer:
    """Returns the peer that an architecture offers under a name.

    Raises:
        UserError: if it offers none of that name, or the program is not there.
    """
    component = resolved.architecture.component
    spec = component.spec
    assert isinstance(spec, ArchitectureSpec)
    if program not in spec.peers:
        offered = [c.name for c in registry.components("architecture") if program in getattr(c.spec, "peers", {})]
        others = f"; architectures that do: {', '.join(offered)}" if offered else ""
        known = f" but one with {', '.join(spec.peers)}" if spec.peers else ""
        raise UserError(
            f"--against {program}: architecture {component.name!r} offers no comparison with it{known}{others}"
        )
    peer: Peer = component.load(spec.peers[program])()
    if (reason := peer.unavailable()) is not None:
        raise UserError(f"--against {program}: {reason}")
    return peer


# --------------------------------------------------------------------------------------------------------------- rows


class Row(NamedTuple):
    """One sequence: what is read, and what is to be predicted (:data:`IGNORED` where nothing is)."""

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]


def rows(batch: HostBatch) -> list[Row]:
    """Returns the sequences of a micro-batch in their order.

    Raises:
        UserError: if its objective asks for more than symbols at given places.
    """
    return [row for share in batch.shares for row in _rows(share)]


def _rows(share: HostShare) -> Iterator[Row]:
    alias, arrays = next(iter(share.arrays.items()))
    if len(share.arrays) > 1 or "targets" not in arrays or (share.decoder is None and "index" not in arrays):
        raise UserError(
            f"--against: {' + '.join(share.arrays) or alias} is not a loss over symbols at given places, which is all "
            "that other programs compute: compare an objective such as masked LM or denoising"
        )
    tokens, cu = share.inputs.tokens.astype(np.int64), share.inputs.cu
    if share.decoder is None:
        labels, ends = np.full(len(tokens), IGNORED, dtype=np.int64), cu
        labels[arrays["index"]] = arrays["targets"]
    else:
        labels, ends = arrays["targets"].astype(np.int64), share.decoder.cu
    for (a, b), (c, d) in zip(pairwise(cu.tolist()), pairwise(ends.tolist()), strict=True):
        yield Row(tokens[a:b], labels[c:d])


def parts(found: Sequence[Row], batches: int, *, bucketed: bool) -> list[list[Row]]:
    """Cuts the rows of a step into batches that are padded each by itself.

    Args:
        found: the rows.
        batches: how many batches protloom makes of them.
        bucketed: sorted by length, and more batches if they are few; else shuffled, as a data loader gives them.
    """
    if bucketed:
        order = np.argsort([len(row.inputs) + len(row.labels) for row in found], kind="stable")
        batches = max(batches, min(BUCKETS, len(found) // LEAST_ROWS), 1)
    else:
        order = np.random.default_rng(len(found)).permutation(len(found))
    edges = np.linspace(0, len(found), batches + 1).astype(int).tolist()
    return [[found[i] for i in order[a:b]] for a, b in pairwise(edges) if b > a]


def padded(sequences: Sequence[NDArray[np.int64]], fill: int) -> Tensor:
    """Returns ``[n, longest]`` int64."""
    out = np.full((len(sequences), max(map(len, sequences))), fill, dtype=np.int64)
    for row, ids in zip(out, sequences, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


# ------------------------------------------------------------------------------------------------------------ training


class Theirs:
    """The other program's training of the steps of one of our runs.

    Args:
        program: its name.
        name: what makes the variant different from the program's others.
        peer: the program.
        form: how it is used.
        folder: the weights.
        run: whose steps; its network is not touched.
        first: number of the first step.
    """

    def __init__(
        self, program: str, name: str, peer: Peer, form: Form, folder: Path, run: Assembly, first: int
    ) -> None:
        self.program, self.name = f"{program} {peer.version()}", f"{program}{name}"
        self.form, self.run, self.first = form, run, first
        self.device = run.world.device
        self.model = peer.load(folder, form.attention).to(self.device)
        group = run.optimizer.param_groups[0]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=group["lr"], fused=True)
        self._peer = peer
        self._dtype = torch.bfloat16 if form.precision == "bf16" else None
        self._counter = FlopCounter(run.model)
        self._loader = Loader(run.host_step, threads=run.settings.data.threads, start=first)
        self._batches = iter(self._loader)

    def close(self) -> None:
        """Ends the threads."""
        self._loader.close()

    def next(self, phases: Phases) -> Work:
        """Takes the next step."""
        with phases("data"):
            _, batches = next(self._batches)
        return self.take(batches, phases)

    def take(self, batches: Sequence[HostBatch], phases: Phases) -> Work:
        """Takes an optimizer step: batch by batch, gradients added, clipped, AdamW."""
        try:
            positions = self._take(batches, phases)
        except RuntimeError as error:
            if not memory.is_exhausted(error):
                raise
            text = f"--against: {self.name} ({self.form.words()}) does not fit into memory: lower --tokens"
            raise UserError(text, exit_code=1) from None
        flops = self._counter.of_batches(batches, self.run.mixture.members)
        return Work(real_tokens(batches), positions, flops)

    def _take(self, batches: Sequence[HostBatch], phases: Phases) -> int:
        self.optimizer.zero_grad(set_to_none=True)
        positions = 0
        for inputs, mask, labels, share in self._prepared(batches, phases):
            positions += inputs.numel() + (labels.numel() if labels.shape != inputs.shape else 0)
            with phases("forward"):
                loss = self._loss(inputs, mask, labels) * share
            with phases("backward"):
                loss.backward()
        with phases("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.settings.trainer.clip_norm or math.inf)
            self.optimizer.step()
        return positions

    def _prepared(self, batches: Sequence[HostBatch], phases: Phases) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Yields padded ids, mask and labels of each batch, with its share of all that is scored."""
        with phases("data"):
            cut = parts([row for batch in batches for row in rows(batch)], len(batches), bucketed=self.form.bucketed)
            scored = [sum(int((row.labels != IGNORED).sum()) for row in part) for part in cut]
        for part, count in zip(cut, scored, strict=True):
            with phases("data"):
                pad = self.run.tokenizer.pad_id
                inputs = padded([row.inputs for row in part], pad)
                mask = padded([np.ones_like(row.inputs) for row in part], 0)
                labels = padded([row.labels for row in part], IGNORED)
                tensors = [tensor.to(self.device) for tensor in (inputs, mask, labels)]
            yield tensors[0], tensors[1], tensors[2], count / max(1, sum(scored))

    def _loss(self, inputs: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._peer.loss(self.model, inputs, mask, labels)

    def loss(self, batches: Sequence[HostBatch]) -> float:
        """Returns the mean loss over all that is scored."""
        with torch.no_grad():
            prepared = self._prepared(batches, Phases())
            return float(sum(self._loss(inputs, mask, labels) * share for inputs, mask, labels, share in prepared))

    def memory(self, batches: Sequence[HostBatch]) -> StepMemory:
        """Returns the memory of a step."""
        return memory.measure(lambda phases: self.take(batches, phases), self.model, self.optimizer, self.device)


def our_loss(run: Assembly, step: int, batches: Sequence[HostBatch]) -> float:
    """Returns the mean over everything that the objectives score, before any weight."""
    divisors: dict[Any, float] = {}
    for batch in batches:
        for key, count in batch.counts.items():
            divisors[key] = divisors.get(key, 0.0) + count
    ctx = StepContext(step, CounterRNG(run.settings.seed, "step"), run.world.all_sum, run.world.all_gather)
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            output = run.module(to_device(batch, run.world.device), run.mixture.weights(step), divisors, ctx)
            total += sum(float(value) for value in output.totals.values())
    return total / max(1.0, sum(divisors.values()))


def check(run: Assembly, theirs: Theirs, batches: Sequence[HostBatch]) -> Gate:
    """Compares the losses of both programs in fp32 before either has stepped.

    Raises:
        UserError: if they differ by more than :data:`TOLERANCE`: then a comparison of speed would say nothing.
    """
    gate = Gate(our_loss(run, theirs.first, batches[:1]), theirs.loss(batches[:1]))
    if not gate.difference <= TOLERANCE:
        raise UserError(
            f"--against: {theirs.name} computes another loss, {gate.theirs:.6f} where protloom computes "
            f"{gate.ours:.6f}, from the same weights and batch: nothing is compared",
            exit_code=1,
        )
    return gate


def shipped(peer: Peer) -> Form:
    """Returns the form that nobody has to ask for."""
    return Form("fp32", peer.attentions[0], False)


def best_of(
    peer: Peer, device: torch.device, make: Callable[[Form], Theirs], batches: Sequence[HostBatch], clock: Clock
) -> tuple[Theirs, dict[str, float]]:
    """Returns the fastest form by trial, and the seconds that a step of each took.

    With sequences of like lengths together every precision and attention is tried; the fastest of them then also with
    sequences as they are drawn, which is better where lengths hardly differ.

    Args:
        peer: the program.
        device: where.
        make: makes a form; at most two are there at once.
        batches: of the trial.
        clock: tells the time.
    """
    precisions = ("fp32", "bf16") if has_fast_bf16(device) else ("fp32",)
    seconds: dict[Form, float] = {}
    best: Theirs | None = None

    def consider(form: Form) -> None:
        nonlocal best
        candidate = make(form)
        seconds[form] = trial(candidate, batches, clock)
        slower: Theirs | None = candidate
        if best is None or seconds[form] < seconds[best.form]:
            slower, best = best, candidate
        if slower is not None:
            slower.close()

    for precision in precisions:
        for attention in peer.attentions:
            consider(Form(precision, attention, True))
    assert best is not None
    consider(best.form._replace(bucketed=False))
    return best, {form.words(): taken for form, taken in seconds.items()}


def trial(candidate: Theirs, batches: Sequence[HostBatch], clock: Clock) -> float:
    """Returns the least seconds of some steps, after one to warm up: what others do to the machine only adds."""
    candidate.take(batches, Phases())
    taken: list[float] = []
    while not taken or (len(taken) < TRIALS and sum(taken) < ENOUGH):
        begin = clock.now()
        candidate.take(batches, Phases())
        taken.append(clock.now() - begin)
    return min(taken)
