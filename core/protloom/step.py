"""One forward over network and objectives: the only module that the trainer wraps in DDP or FSDP2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from protloom.contracts import Architecture, Encoded, Losses, Metric, Offsets, PassRequest, StepContext
from protloom.device import on_device
from protloom.errors import UserError
from protloom.rng import CounterRNG

if TYPE_CHECKING:
    from protloom.contracts import Packed
    from protloom.mixture import HostBatch, HostShare, Mixture, TermKey


class Stream(NamedTuple):
    """Packed tokens on the device."""

    tokens: Tensor
    cu: Offsets


@dataclass(frozen=True)
class DeviceShare:
    """One corrupted input on the device, with the arrays of each objective that reads it."""

    inputs: Stream
    decoder: Stream | None
    clean: Stream | None
    arrays: Mapping[str, Mapping[str, Tensor]]
    request: PassRequest


def to_device(batch: HostBatch, device: torch.device) -> tuple[DeviceShare, ...]:
    """Moves a micro-batch to the device; on CUDA through pinned memory, without waiting."""
    return tuple(_share_to_device(share, device) for share in batch.shares)


def _share_to_device(share: HostShare, device: torch.device) -> DeviceShare:
    return DeviceShare(
        inputs=_stream(share.inputs, device),
        decoder=None if share.decoder is None else _stream(share.decoder, device),
        clean=None if share.clean is None else _stream(share.clean, device),
        arrays={
            alias: {name: _tensor(values, device) for name, values in arrays.items()}
            for alias, arrays in share.arrays.items()
        },
        request=share.request,
    )


def _stream(packed: Packed, device: torch.device) -> Stream:
    bounds = tuple(packed.cu.tolist())
    return Stream(_tensor(packed.tokens, device), Offsets(_tensor(packed.cu, device), bounds))


def _tensor(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return on_device(torch.from_numpy(np.ascontiguousarray(values)), device)


class SharedPasses:
    """The passes over one corrupted input, each run when first asked for; meets ``protloom.objective.Forward``."""

    def __init__(self, model: Architecture, share: DeviceShare) -> None:
        self._model = model
        self._share = share

    @property
    def tokens(self) -> Tensor:
        """``[T]`` the corrupted input's ids."""
        return self._share.inputs.tokens

    @property
    def cu(self) -> Offsets:
        """Offsets of the corrupted input."""
        return self._share.inputs.cu

    @property
    def clean(self) -> tuple[Tensor, Offsets] | None:
        """The uncorrupted input, if an objective prepared it."""
        clean = self._share.clean
        return None if clean is None else (clean.tokens, clean.cu)

    @cached_property
    def encoded(self) -> Encoded:
        """The student pass, with all that the objectives of this input asked for."""
        request = self._share.request
        return self._model.encode(
            self.tokens, self.cu, layers=request.layers, stop_at=request.stop_at, attentions=request.attentions
        )

    @cached_property
    def decoded(self) -> Encoded:
        """The decoder's states over the encoder's final states."""
        decoder = self._share.decoder
        if decoder is None:
            raise RuntimeError("an objective asked for decoder states but prepared no decoder stream")
        decode = cast(Any, self._model).decode
        return cast(Encoded, decode(decoder.tokens, decoder.cu, self.encoded.last, self.cu))


class StepOutput(NamedTuple):
    """What a micro-batch gives: the loss to differentiate, and detached numbers to log."""

    loss: Tensor
    totals: Mapping[TermKey, Tensor]
    metrics: Mapping[tuple[str, str], Metric]


class StepModule(nn.Module):
    """Network and objectives as one module, whose forward is the loss of a micro-batch.

    Args:
        model: the network.
        mixture: the objectives.
        precision: dtype of autocast, or None for plain fp32.
        world_size: DDP and FSDP2 average gradients over ranks; the loss is multiplied by this, so that they add up.
    """

    def __init__(
        self, model: nn.Module, mixture: Mixture, *, precision: torch.dtype | None, world_size: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict({m.alias: m.objective for m in mixture.members})
        self._terms = {m.alias: tuple(m.objective.terms) for m in mixture.members}
        self._precision = precision
        self._world_size = world_size

    def forward(
        self,
        shares: tuple[DeviceShare, ...],
        weights: Mapping[TermKey, float],
        divisors: Mapping[TermKey, float],
        ctx: StepContext,
    ) -> StepOutput:
        """Scores one micro-batch.

        Args:
            shares: the corrupted inputs.
            weights: weight of each active term.
            divisors: global count of each term over micro-batches and ranks; where it is 0 the term is 0.
            ctx: step number, randomness, collectives.
        """
        model = cast(Architecture, self.model)
        device = shares[0].inputs.tokens.device
        loss: Tensor = torch.zeros((), device=device)
        totals: dict[TermKey, Tensor] = {}
        metrics: dict[tuple[str, str], Metric] = {}
        with torch.autocast(device.type, dtype=self._precision, enabled=self._precision is not None):
            for share in shares:
                passes = SharedPasses(model, share)
                for alias in (a for a in self._terms if a in share.arrays):
                    objective = cast(Any, self.objectives[alias])
                    losses = objective.loss(model, passes, share.arrays[alias], ctx)
                    _check_losses(alias, self._terms[alias], losses)
                    for term, total in losses.totals.items():
                        key = (alias, term)
                        # a divisor of 0 means that no rank has an item: the total is 0, but keeps the graph whole
                        loss = loss + total.float() * (weights[key] / max(divisors[key], 1.0))
                        totals[key] = total.detach()
                    metrics.update({(alias, name): metric for name, metric in losses.metrics.items()})
        if torch.is_grad_enabled() and not loss.requires_grad:
            names = ", ".join(dict.fromkeys(alias for alias, _ in totals))
            raise UserError(f"the loss of {names} does not depend on any parameter; tell the author of the objective")
        return StepOutput(loss * self._world_size, totals, metrics)

    def after_step(self, step: int) -> dict[tuple[str, str], Metric]:
        """Lets every objective react to an optimizer step, and returns what they measured."""
        found: dict[tuple[str, str], Metric] = {}
        for alias in self._terms:
            measured = cast(Any, self.objectives[alias]).after_step(self.model, step)
            found.update({(alias, name): metric for name, metric in (measured or {}).items()})
        return found


def _check_losses(alias: str, declared: Sequence[str], losses: Any) -> None:
    """Raises UserError if an objective returned no Losses, other terms than it declares, or no scalars."""
    if not isinstance(losses, Losses):
        raise UserError(
            f"objective {alias!r} returned a {type(losses).__name__}, not protloom.contracts.Losses; tell its author"
        )
    totals = losses.totals
    for term, total in totals.items():
        if term not in declared:
            raise UserError(
                f"objective {alias!r} returned the term {term!r}, which it does not declare "
                f"(it declares: {', '.join(declared)}); tell its author"
            )
        if total.ndim:
            shape = list(total.shape)
            raise UserError(
                f"objective {alias!r} returned a total of shape {shape} for its term {term!r}, not a scalar; "
                "tell its author"
            )
    for term in declared:
        if term not in totals:
            raise UserError(f"objective {alias!r} returned no total for its term {term!r}; tell its author")


def leaves_parameters_out(module: StepModule, batch: HostBatch, weights: Mapping[TermKey, float]) -> bool:
    """Tells whether a micro-batch gives some parameter no gradient (an unused head); changes nothing.

    Args:
        module: the unwrapped step module, on its device.
        batch: any micro-batch of training.
        weights: weight of each term.
    """
    ctx = StepContext(0, CounterRNG(0), _alone, _alone)
    parameters = [p for p in module.parameters() if p.requires_grad]
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    shares = to_device(batch, parameters[0].device)
    loss = module(shares, weights, {key: float(n) for key, n in batch.counts.items()}, ctx).loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for buffer, value in buffers.items():
            buffer.copy_(value)
    return any(gradient is None for gradient in gradients)


def _alone(x: Tensor) -> Tensor:
    return x


def first_bad_module(module: StepModule, shares: tuple[DeviceShare, ...], *args: Any) -> str:
    """Names the first submodule whose output is not finite, by running a micro-batch again; or the bad gradient.

    Args:
        module: the unwrapped step module.
        shares: the micro-batch.
        args: the remaining arguments of ``StepModule.forward``.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and any(not torch.isfinite(t).all() for t in _floats(output)):
                found.append(name)

        return hook

    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    handles = [m.register_forward_hook(watch(name)) for name, m in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(shares, *args)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"output of {found[0]}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"gradient of {name}"
    return "the loss itself"


def _floats(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, tuple | list):
        return [t for item in output for t in _floats(item)]
    return []
