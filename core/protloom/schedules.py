"""Learning-rate schedules: the factor on the peak rate as a pure function of the step."""

from __future__ import annotations

import math

from protloom.errors import UserError
from protloom.settings import ScheduleConfig


def factor(config: ScheduleConfig, step: int, total: int, *, share: float | None = None) -> float:
    """Returns the factor on the peak learning rate at a step.

    Args:
        config: the schedule. Every form rises linearly from ``1 / (warmup + 1)`` and reaches 1 at ``warmup_steps``.
            ``constant`` stays; ``cosine`` and ``linear`` fall to ``final_fraction`` at the last step;
            ``inverse_sqrt`` falls as √(warmup / step) (Vaswani et al. 2017, section 5.3) but not below the final
            fraction; ``wsd`` (warm-up, stable, decay) stays at 1 and falls linearly over the last ``decay_steps``.
        step: optimizer step, from 0.
        total: optimizer steps of the run.
        share: of the run that is behind, where it ends by time, tokens or FLOPs: forms that fall towards the last step
            then fall with it, and ``wsd`` decays over the last tenth.
    """
    warmup, final = config.warmup_steps, config.final_fraction
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "inverse_sqrt":
        return max(final, math.sqrt(max(warmup, 1) / max(step, 1, warmup)))
    if config.name == "wsd":
        decay = config.decay_steps or max(1, total // 10)
        done = _progress(step, total - decay, total) if share is None else max(0.0, 10.0 * share - 9.0)
        return 1.0 - (1.0 - final) * done
    done = _progress(step, warmup, total) if share is None else share
    if config.name == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 - (1.0 - final) * done


def _progress(step: int, begin: int, total: int) -> float:
    """Returns how far ``step`` is from ``begin`` (0) to the last step (1)."""
    return min(1.0, max(0.0, (step - begin) / max(1, total - 1 - begin)))


def check(config: ScheduleConfig, total: int) -> None:
    """Refuses a schedule that does not fit into the run.

    Raises:
        UserError: if the warm-up, or warm-up and decay together, are longer than the run.
    """
    wsd = config.name == "wsd"
    decay = (config.decay_steps or max(1, total // 10)) if wsd else 0
    needed = config.warmup_steps + decay
    if needed > total or config.warmup_steps >= total:
        raise UserError(
            f"schedule: warm-up{' and decay take' if wsd else ' takes'} {needed} of trainer.steps={total} "
            f"steps: lower schedule.warmup_steps{' or schedule.decay_steps' if wsd else ''}, or train for longer"
        )
