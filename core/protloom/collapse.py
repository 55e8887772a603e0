"""The collapse watch: do latent states still tell tokens apart, or has a loss been met by making them all alike?

An objective with latent targets calls :func:`measure` and returns what it gives among its metrics; the trainer then
warns in plain words (:func:`warnings`). Sizes are per process and micro-batch, averaged over them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protloom.contracts import Metric

ROWS = 4096
"""Most rows that are looked at."""
DEAD = 1e-3
"""A dimension with a smaller standard deviation counts as dead."""


def measure(states: Tensor, name: str) -> dict[str, Metric]:
    """Describes how spread out states are.

    Args:
        states: ``[N, D]``, for example targets after their normalisation; of more than 4096 rows the first are taken.
        name: begins the names of the metrics.

    Returns:
        ``NAME_std`` and ``NAME_std_min``, mean and least standard deviation of a dimension; ``NAME_dead``, the share of
        dimensions that stand still; ``NAME_rank``, exp(entropy of the singular values' shares) of the centred states
        (effective rank; Roy and Vetterli 2007; RankMe, Garrido et al. 2023), and ``NAME_stable_rank`` = ‖·‖²_F / ‖·‖²₂;
        ``NAME_cosine``, the mean cosine of different rows. All NaN-free; counted 0 where there are fewer than 2 rows.
    """
    # autocast would round the Gram matrix, and CUDA has no eigenvalues of half matrices
    with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
        rows = states[:ROWS].float()
        n, width = rows.shape
        if n < 2:
            return {f"{name}_{what}": Metric(0.0, 0.0) for what in _NAMES}
        centred = rows - rows.mean(0)
        std = centred.square().mean(0).sqrt()
        # the smaller of the two Gram matrices has the same non-zero eigenvalues
        gram = centred.T @ centred if n > width else centred @ centred.T
        squared = torch.linalg.eigvalsh(gram).clamp(min=0.0)
        singular = squared.sqrt()
        share = singular / singular.sum().clamp(min=1e-30)
        rank = torch.exp(torch.special.entr(share).sum())
        stable = squared.sum() / squared.max().clamp(min=1e-30)
        unit = torch.nn.functional.normalize(rows, dim=1)
        # the mean over pairs of different rows, from the length of the sum
        cosine = (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))
        values = (std.mean(), std.min(), (std < DEAD).float().mean(), rank, stable, cosine)
        return {f"{name}_{what}": Metric(value, 1.0) for what, value in zip(_NAMES, values, strict=True)}


_NAMES = ("std", "std_min", "dead", "rank", "stable_rank", "cosine")


def warnings(record: Mapping[str, object]) -> list[str]:
    """Returns a sentence for every set of states in a logged line that has collapsed.

    Collapsed is: a mean cosine of rows above 0.95, an effective rank below 3, or more than half of the dimensions dead.
    """
    told = []
    for key in record:
        name, slash, alias = key.partition("/")
        if not slash or not name.endswith("_rank") or name.endswith("_stable_rank"):
            continue
        states = name.removesuffix("_rank")
        rank, cosine, dead = (_number(record, f"{states}_{what}/{alias}") for what in ("rank", "cosine", "dead"))
        signs = []
        if rank is not None and 0.0 < rank < 3.0:
            signs.append(f"they span {rank:.1f} directions")
        if cosine is not None and cosine > 0.95:
            signs.append(f"any two have a cosine of {cosine:.2f} on average")
        if dead is not None and dead > 0.5:
            signs.append(f"{100 * dead:.0f} % of the dimensions stand still")
        if signs:
            told.append(
                f"{alias}: the {states} states have collapsed ({', '.join(signs)}): they hardly depend on the sequence "
                "any more; give a masked-LM loss or the regulariser more weight, or stop"
            )
    return told


def _number(record: Mapping[str, object], key: str) -> float | None:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else None
