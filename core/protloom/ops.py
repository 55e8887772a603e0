"""The functions that fused kernels replace: one typed signature each, whatever backend runs.

A *backend* (``reference``, ``torch``, ``apex`` …) is a plugin that offers some of these functions and says whether it
can run on this machine. :func:`select` makes one :class:`Ops` table of a run from the choice ``kernels:`` of its
config; networks receive it when they are built and call ``self.ops.layer_norm(...)``. Parameters keep one layout
whatever the backend, so checkpoints move freely between backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from protloom.contracts import Offsets


class LayerNorm(Protocol):
    """Normalises the last dimension to zero mean and unit variance, then scales and shifts."""

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; ``weight`` and ``bias`` are ``[D]`` or None; statistics in fp32."""


class RMSNorm(Protocol):
    """Divides by the root mean square of the last dimension, then scales; no mean is subtracted."""

    def __call__(self, x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; statistics in fp32 (T5, Zhang and Sennrich 2019)."""


class Gelu(Protocol):
    """The exact GELU, x · ½ · (1 + erf(x / √2))."""

    def __call__(self, x: Tensor) -> Tensor:
        """Maps each element."""


class GatedMLP(Protocol):
    """down(activation(gate(x)) ⊙ up(x)), without biases (Shazeer 2020, "GLU variants improve Transformer")."""

    def __call__(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; ``gate`` and ``up`` are ``[F, D]``, ``down`` ``[D, F]``;

        ``activation`` is ``"silu"``, ``"gelu"`` (exact) or ``"gelu_tanh"`` (the approximation that T5 v1.1 uses).
        """


class Rotary(Protocol):
    """Rotates pairs of features by an angle that grows with the position (RoPE, rotate-half form)."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps ``[T, H, d]``; ``cos`` and ``sin`` are ``[T, d/2]``, feature i is paired with i + d/2."""


class Attention(Protocol):
    """Softmax attention within each packed sequence."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Offsets,
        cu_k: Offsets,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Returns ``[Tq, H, d]``.

        Args:
            q: ``[Tq, H, d]``.
            k: ``[Tk, H, d]``.
            v: ``[Tk, H, d]``.
            cu_q: offsets of the queries' sequences; sequence i attends to sequence i of the keys.
            cu_k: offsets of the keys' sequences.
            scale: factor on the scores; required, since T5 uses 1 and most others d^-½.
            causal: a query sees keys up to its own position.
            window: a query sees keys with ``|i - j| <= window``.
            bias: ``[H, 2R - 1]`` added to the scores; entry ``R - 1 + (j - i)`` for query i and key j, with R at
                least the longest sequence. Gets a gradient.
        """


class CrossEntropy(Protocol):
    """−log softmax at the target, in fp32, one value a row."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Maps ``[M, V]`` and int64 ``[M]`` to ``[M]``; zero rows are allowed, and there is no ignored index."""


class ClipGradNorm(Protocol):
    """Scales gradients so that their joint 2-norm is at most ``max_norm``."""

    def __call__(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Returns the norm before clipping, a 0-dimensional tensor (no host synchronisation)."""


class AdamW(Protocol):
    """Makes the AdamW optimizer (Loshchilov and Hutter 2019) in this backend's form."""

    def __call__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> Optimizer:
        """Returns an optimizer whose ``state_dict`` has the layout of ``torch.optim.AdamW``."""


class Lamb(Protocol):
    """Makes the LAMB optimizer (You et al. 2020) in this backend's form."""

    def __call__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float | None,
    ) -> Optimizer:
        """Returns an optimizer whose ``state_dict`` has the layout of ``torch.optim.AdamW``.

        Groups without weight decay move as in Adam. Where the joint norm of all gradients is above ``max_grad_norm``,
        they are divided so that it is that; None: never.
        """


@dataclass(frozen=True)
class Choice:
    """Which backend a function got.

    Attributes:
        backend: its name.
        why: what decided: the run's word, a measurement, or the order of priority.
        others: every other backend of the run -> why not that one.
    """

    backend: str
    why: str
    others: Mapping[str, str]


@dataclass(frozen=True)
class Ops:
    """The functions that a run uses, one backend's each.

    Attributes:
        chosen: function name -> backend name.
        rejected: backend name -> why it cannot run here.
        choices: function name -> its backend, with the reasons.
    """

    layer_norm: LayerNorm
    rms_norm: RMSNorm
    gelu: Gelu
    gated_mlp: GatedMLP
    rotary: Rotary
    attention: Attention
    cross_entropy: CrossEntropy
    clip_grad_norm: ClipGradNorm
    adamw: AdamW
    lamb: Lamb
    chosen: Mapping[str, str]
    rejected: Mapping[str, str]
    choices: Mapping[str, Choice]


NAMES = (
    "layer_norm",
    "rms_norm",
    "gelu",
    "gated_mlp",
    "rotary",
    "attention",
    "cross_entropy",
    "clip_grad_norm",
    "adamw",
    "lamb",
)
"""Every function of :class:`Ops`."""


class Timing(NamedTuple):
    """How long a function took in a backend's form when the forms were measured side by side.

    Attributes:
        cost: a time, in a unit that all backends share which were measured together.
        said: the figures, and on what they were taken, in words.
    """

    cost: float
    said: str


class Backend(Protocol):
    """A kernel backend as its plugin builds it.

    It may have two more methods. ``measured(function: str, device: torch.device, dtype: torch.dtype) -> Timing | None``
    tells what a measurement on this kind of device says of one of its functions: ``auto`` prefers one backend to
    another of higher priority only where both were measured. ``installation() -> tuple[bool, str]`` tells, for
    ``protloom doctor``, whether a package that it needs is there as it should be, and what to do if it is not.

    Attributes:
        name: the component's name.
        priority: among the usable backends ``auto`` takes the highest.
    """

    name: str
    priority: int

    def unavailable(self, device: torch.device) -> str | None:
        """Returns None if the backend runs on ``device``, else why not and what to do, in one line."""

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        """Returns the functions it offers for a device and a compute dtype, by names of :data:`NAMES`."""


NOISE = 0.03
"""A backend is faster only if its time is less by more than this share."""


def select(
    choice: str | Mapping[str, str],
    own: Mapping[str, Backend],
    others: Mapping[str, Backend],
    device: torch.device,
    dtype: torch.dtype,
) -> Ops:
    """Chooses a backend for every function.

    Args:
        choice: ``"auto"``, a backend's name, or function name -> backend name (the rest is ``auto``).
        own: the backends that protloom ships, by name: all that ``auto`` considers.
        others: further backends, by the name that the user wrote.
        device: where the run computes.
        dtype: in which precision.

    Raises:
        UserError: if a named backend or function is unknown, cannot run here, or does not offer the function.
    """
    everyone = {**own, **others}
    reasons = {name: reason for name, b in everyone.items() if (reason := b.unavailable(device)) is not None}
    wanted = _wanted(choice, everyone, reasons, device)
    offered = {name: b.functions(device, dtype) for name, b in everyone.items() if name not in reasons}
    ranked = sorted((name for name in own if name in offered), key=lambda name: -own[name].priority)
    choices: dict[str, Choice] = {}
    for function in NAMES:
        named = wanted.get(function)
        found: Choice | None
        if named is not None and (function in offered[named] or isinstance(choice, Mapping)):
            if function not in offered[named]:
                raise UserError(f"kernels: {_not_offered(named, function, offered, device)}")
            found, rest = Choice(named, "the run names it", {}), "the run names another"
        else:
            # a backend named for everything may offer only some functions: the others are auto's
            found = _fastest(function, [name for name in ranked if function in offered[name]], own, device, dtype)
            rest = "auto takes only what protloom ships"
        if found is None:
            raise UserError(f"kernels: {_not_offered(named or 'auto', function, offered, device)}")
        others_why = {
            name: found.others.get(name) or _absence(name, function, reasons, offered) or rest
            for name in everyone
            if name != found.backend
        }
        choices[function] = replace(found, others=others_why)
    table = {function: offered[one.backend][function] for function, one in choices.items()}
    chosen = {function: one.backend for function, one in choices.items()}
    return Ops(**table, chosen=chosen, rejected=reasons, choices=choices)


def _absence(
    name: str, function: str, reasons: Mapping[str, str], offered: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Returns why a backend could not be taken for a function at all, None if it could."""
    return reasons.get(name) or (None if function in offered[name] else "has no form of its own")


def _not_offered(name: str, function: str, offered: Mapping[str, Mapping[str, Any]], device: torch.device) -> str:
    there = [other for other, functions in offered.items() if function in functions]
    advice = f"{' and '.join(there)} offer{'s' * (len(there) == 1)} it" if there else "no backend does"
    return f"backend {name!r} does not offer {function!r} on {device}; {advice}"


def _fastest(
    function: str, candidates: Sequence[str], own: Mapping[str, Backend], device: torch.device, dtype: torch.dtype
) -> Choice | None:
    """Returns what ``auto`` takes of backends in order of priority: the first, or one measured to be faster."""
    if not candidates:
        return None
    first = candidates[0]
    timings: dict[str, Timing] = {}
    for name in candidates:
        measured = getattr(own[name], "measured", None)
        timing = None if measured is None else measured(function, device, dtype)
        if timing is not None:
            timings[name] = timing
    best, why = first, "first by priority"
    if first in timings:
        fastest = min(timings, key=lambda name: timings[name].cost)
        why = f"by a measurement: {timings[first].said}"
        if timings[fastest].cost < (1 - NOISE) * timings[first].cost:
            best, why = fastest, f"by a measurement: {timings[fastest].said}"
    others = {
        name: f"by a measurement: {timings[name].said}"
        if first in timings and name in timings
        else f"after {first} by priority, and not measured on this kind of device"
        for name in candidates
        if name != best
    }
    return Choice(best, why, others)


def _wanted(
    choice: str | Mapping[str, str], known: Mapping[str, Backend], reasons: Mapping[str, str], device: torch.device
) -> dict[str, str]:
    """Returns function -> backend where the user names one, after checking that it exists and can run."""
    if isinstance(choice, Mapping):
        for function in choice:
            if function not in NAMES:
                raise UserError(f"kernels: no function {function!r}.{did_you_mean(function, NAMES)}")
        wanted = {function: name for function, name in choice.items() if name != "auto"}
    else:
        wanted = {} if choice == "auto" else dict.fromkeys(NAMES, choice)
    for name in dict.fromkeys(wanted.values()):
        if name not in known:
            raise UserError(f"kernels: no backend {name!r}.{did_you_mean(name, known)}")
        if name in reasons:
            raise UserError(
                f"kernels: backend {name!r} cannot run on {device}: {reasons[name]}; kernels: auto takes what runs here"
            )
    return wanted
