"""The functions that fused kernels replace: one typed signature each, whatever backend runs.

A *backend* (``reference``, ``torch``, ``apex`` …) is a plugin that offers some of these functions and says whether it
can run on this machine. :func:`select` makes one :class:`Ops` table of a run from the choice ``kernels:`` of its
config; networks receive it when they are built and call ``self.ops.layer_norm(...)``. Parameters keep one layout
whatever the backend, so checkpoints move freely between backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
class Ops:
    """The functions that a run uses, one backend's each.

    Attributes:
        chosen: function name -> backend name.
        rejected: backend name -> why it cannot run here.
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


class Backend(Protocol):
    """A kernel backend as its plugin builds it.

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
    ranked = sorted((name for name in own if name not in reasons), key=lambda name: -own[name].priority)
    table: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    for function in NAMES:
        named = wanted.get(function)
        candidates = [named] if named else list(ranked)
        if named and not isinstance(choice, Mapping):
            # a backend named for everything may offer only some functions: the others are auto's
            candidates += ranked
        found = next((name for name in candidates if function in everyone[name].functions(device, dtype)), None)
        if found is None:
            raise UserError(f"kernels: backend {named or 'auto'!r} does not offer {function!r} on {device}")
        table[function], chosen[function] = everyone[found].functions(device, dtype)[function], found
    return Ops(**table, chosen=chosen, rejected=reasons)


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
            raise UserError(f"kernels: backend {name!r} cannot run on {device}: {reasons[name]}")
    return wanted
