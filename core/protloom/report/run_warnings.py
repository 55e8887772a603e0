"""What a person should look at in a run, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from protloom import collapse
from protloom.report.run_facts import Line, Run, number
from protloom.report.wording import plural, short

FALL = 1e-3
"""A validation loss that falls by a smaller share than this has not fallen."""
FLAT_SHARE = 0.2
"""Share of a run that a loss must not have fallen for to be worth a word."""
CLIPPED = 10.0
"""Median gradient norm over the clipping norm from which on clipping sets the size of nearly every step."""
PADDED = 0.2
"""Share of padding worth a word."""
SLOWER = 0.5
"""Throughput of the last quarter over the first below which a run has slowed down."""


def warnings(run: Run) -> list[str]:
    """Returns a sentence for everything in a run that is worth a look; empty where there is nothing."""
    found = (_simulated, _unfinished, _skipped, _flat, _frequencies, _rising, _collapsed, _clipped, _padded, _slower)
    return [*(sentence for look in found for sentence in look(run)), *run.notes]


def _simulated(run: Run) -> Iterator[str]:
    if run.simulated:
        named = ", ".join(run.simulated)
        yield f"SIMULATED corpus ({named}): a program made its sequences, they are no natural proteins"


def _unfinished(run: Run) -> Iterator[str]:
    trainer = run.config.get("trainer", {})
    limits = {"steps": trainer.get("steps"), "seconds": trainer.get("max_seconds"), "tokens": trainer.get("max_tokens")}
    shares = {unit: run.spent(unit) / limit for unit, limit in limits.items() if limit}
    if trainer.get("max_flops"):
        flops = number(run.state, "flops")
        shares["flops"] = flops / trainer["max_flops"] if math.isfinite(flops) else 0.0
        limits["flops"] = trainer["max_flops"]
    if not shares:
        return
    unit = max(shares, key=lambda key: shares[key])
    if shares[unit] < 1.0:
        done, limit = shares[unit] * limits[unit], limits[unit]
        yield f"the run has not ended: {short(done)} of {short(limit)} {unit}; protloom resume goes on"


def _skipped(run: Run) -> Iterator[str]:
    counts = [number(line, "skipped") for line in (*run.training, run.state)]
    skipped = int(max((count for count in counts if math.isfinite(count)), default=0))
    if skipped:
        steps = int(run.spent("steps"))
        yield f"{plural(skipped, 'step')} of {steps:,} skipped: a loss or a gradient was not finite"


def scored_losses(run: Run) -> list[str]:
    """Returns the keys of validation losses whose level means something: those in nats, else their weighted sum."""
    prefix = "validation/perplexity/"
    names = dict.fromkeys(key.removeprefix(prefix) for line in run.lines for key in line if key.startswith(prefix))
    found = [key for key in (f"validation/loss/{name}" for name in names) if any(key in line for line in run.lines)]
    return found or ["validation/loss"]


def _flat(run: Run) -> Iterator[str]:
    """Tells since when a validation loss has not fallen; one sentence a loss."""
    for key in scored_losses(run):
        lines = [line for line in run.validation if math.isfinite(number(line, key))]
        values = [number(line, key) for line in lines]
        at = next((i for i, v in enumerate(values) if not any(w < v - FALL * abs(v) for w in values[i + 1 :])), None)
        if at is None or len(values) - 1 - at < 2:
            continue
        tokens = run.positions(lines, "tokens")
        if tokens[-1] - tokens[at] >= FLAT_SHARE * run.spent("tokens") > 0:
            yield (
                f"{_titled(key)} has not fallen since {short(tokens[at])} tokens "
                f"({values[at]:.4f} then, {values[-1]:.4f} at {short(tokens[-1])})"
            )


def _titled(key: str) -> str:
    name = key.removeprefix("validation/loss").strip("/")
    return f"{name}: validation loss" if name else "validation loss"


def _frequencies(run: Run) -> Iterator[str]:
    """Tells of objectives whose validation loss is that of residue frequencies alone."""
    if not run.validation:
        yield "no validation was run: nothing here tells what the network does on sequences that it has not seen"
        return
    last = run.validation[-1]
    for key in last if number(last, "step") > 0 else ():
        name, _, alias = key.removeprefix("validation/").partition("/")
        if name != "unigram_entropy":
            continue
        apart = number(last, f"validation/residue_loss/{alias}")
        loss = number(last, f"validation/loss/{alias}") if math.isnan(apart) else apart
        entropy = number(last, key)
        if loss >= entropy:
            yield (
                f"{alias}: {loss:.4f} nats a residue at the last validation, no better than residue frequencies alone "
                f"({entropy:.4f}): the sequence around a residue does not help yet"
            )


def _rising(run: Run) -> Iterator[str]:
    """Tells of training losses in nats that end above where they began."""
    names = dict.fromkeys(
        key.removeprefix("perplexity/") for line in run.training for key in line if key.startswith("perplexity/")
    )
    for name in names:
        values = _finite(run.training, f"loss/{name}")
        if len(values) >= 8 and (late := median(values[-len(values) // 4 :])) > values[0]:
            yield f"{name}: the training loss is higher at the end ({late:.4f}) than at the start ({values[0]:.4f})"


def _collapsed(run: Run) -> Iterator[str]:
    """Tells of latent states that collapsed, from when on, and whether they recovered."""
    told = [(line, collapse.warnings(line)) for line in run.training]
    bad = [i for i, (_, sentences) in enumerate(told) if sentences]
    if not bad:
        return
    if bad[-1] < len(told) - 1:
        first, last = (int(number(told[i][0], "step")) for i in (bad[0], bad[-1]))
        when = f"at step {first}" if first == last else f"at some of the steps {first} to {last}"
        for sentence in told[bad[-1]][1]:
            yield f"collapse {when}, not at the end: {sentence}"
        return
    first_bad = next(i for i in bad if all(sentences for _, sentences in told[i:]))
    for sentence in told[-1][1]:
        yield f"collapse from step {int(number(told[first_bad][0], 'step'))} to the end: {sentence}"


def _clipped(run: Run) -> Iterator[str]:
    limit = run.config.get("trainer", {}).get("clip_norm")
    norms = _finite(run.training, "grad_norm")
    if limit and norms and median(norms) > CLIPPED * limit:
        yield (
            f"the gradient norm is {short(median(norms))} in the median, clipping begins at {limit:g}: clipping sets "
            "the size of nearly every step, and the largest loss its direction"
        )


def _padded(run: Run) -> Iterator[str]:
    shares = _finite(run.training, "padding_share")
    if shares and (mean := math.fsum(shares) / len(shares)) > PADDED:
        yield f"{100 * mean:.0f} % of the tokens that were computed are padding"


def _slower(run: Run) -> Iterator[str]:
    speeds = _finite(run.training, "tokens_per_second")
    quarter = len(speeds) // 4
    if quarter < 2:
        return
    first, last = median(speeds[:quarter]), median(speeds[-quarter:])
    if last < SLOWER * first:
        yield f"the run has slowed down, from {short(first)} tokens/s in its first quarter to {short(last)} in its last"


def _finite(lines: Sequence[Line], key: str) -> list[float]:
    return [value for value in (number(line, key) for line in lines) if math.isfinite(value)]


def by_run(runs: Sequence[Run]) -> Mapping[str, list[str]]:
    """Returns the sentences of each run that has some, by its name."""
    return {run.name: found for run in runs if (found := warnings(run))}
