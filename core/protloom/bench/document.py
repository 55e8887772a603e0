"""The result of a measurement as one document, for people's tables and for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import machine
from protloom.bench.against import Theirs
from protloom.bench.figures import ratio, spread
from protloom.bench.rounds import OTHER, WARM_UP, Sample
from protloom.errors import UserError
from protloom.memory import facts
from protloom.metrics import peak_memory
from protloom.phases import PARTS

if TYPE_CHECKING:
    from protloom.bench.measured import Measured, Ours
    from protloom.bench.variants import Asked

FORMAT, VERSION = "protloom-bench", 1
"""A reader refuses another version."""
BUSY = 0.1
"""Cores that others may keep busy before it is told."""


def build(asked: Asked, found: Measured, *, corpus: str | None) -> dict[str, Any]:
    """Returns plain values, without any path or name of a host.

    Args:
        asked: what was asked for.
        found: what was measured.
        corpus: what was drawn, None if a corpus was read.
    """
    first = found.ours[0]
    settings = first.run.settings
    described = machine.describe(found.world.device)
    result = {
        "format": FORMAT,
        "version": VERSION,
        "machine": described,
        "settings": {
            "architecture": _architecture(first),
            "parameters": sum(p.numel() for p in first.run.model.parameters()),
            "corpus": corpus or " + ".join(store.name for store in first.run.stores),
            "simulated": any(bool(store.manifest["simulated"]) for store in first.run.stores),
            "lengths": asked.lengths,
            "tokens_per_step": settings.trainer.tokens_per_step,
            "tokens_per_microbatch": settings.trainer.tokens_per_microbatch,
            "max_length": settings.data.max_length,
            "keep_freed_memory": settings.trainer.keep_freed_memory,
            "seed": settings.seed,
            "warm_up_steps": WARM_UP,
            "rounds": len(found.samples[first.name]),
            "steps_per_round": found.steps,
        },
        "foreign_cores": found.foreign,
        "matmul_flops_per_second": {name: max(values) for name, values in found.peaks.items()},
        "process_peak_bytes": round(peak_memory() * 2**20),
        "variants": [_variant(one, found) for one in found.everyone],
    }
    if found.gate is not None:
        result["against"] = {
            "program": asked.against,
            "loss": found.gate.theirs,
            "loss_of_protloom": found.gate.ours,
            "relative_difference": found.gate.difference,
            "seconds_of_forms_tried": found.tried,
        }
    if found.sweep:
        result["sweep"] = {name: _sweep(lengths, found, name) for name, lengths in found.sweep.items()}
    result["notes"] = notes(result)
    return result


def _architecture(one: Ours) -> str:
    chosen = one.variant.resolved.architecture
    section = one.variant.resolved.settings.architecture
    size = section.get("size") if isinstance(section, dict) else str(section).partition(":")[2]
    return f"{chosen.component.name}:{size}" if size else chosen.component.name


def precision(one: Ours | Theirs) -> str:
    """Returns in which precision a variant multiplies."""
    if isinstance(one, Theirs):
        return one.form.precision
    return "fp32" if one.run.precision is None else "bf16"


def _variant(one: Ours | Theirs, found: Measured) -> dict[str, Any]:
    samples, first = found.samples[one.name], found.samples[found.ours[0].name]
    work = [s.work for s in samples]
    peak = max(found.peaks[precision(one)])
    tokens = sum(w.tokens for w in work)
    return {
        "name": one.name,
        **_identity(one, found),
        "precision": precision(one),
        "tokens_per_second": spread([s.work.tokens / s.seconds for s in samples])._asdict(),
        "step_seconds": spread([s.seconds / s.steps for s in samples])._asdict(),
        "start_seconds": found.first[one.name],
        "times_the_first": ratio([s.seconds for s in first], [s.seconds for s in samples])._asdict(),
        "mfu": statistics.median(s.work.flops / s.seconds for s in samples) / peak,
        "padding_share": 1.0 - tokens / sum(w.positions for w in work),
        "tokens_per_step": tokens / sum(s.steps for s in samples),
        "memory": facts(found.memory[one.name]),
        "breakdown": breakdown(samples),
        "rounds": [{"seconds": s.seconds, "tokens": s.work.tokens} for s in samples],
    }


def _identity(one: Ours | Theirs, found: Measured) -> dict[str, Any]:
    if isinstance(one, Theirs):
        return {
            "program": one.program,
            "form": one.form.words(),
            "objective": found.ours[0].variant.told["objective"],
        }
    return {
        "program": "protloom",
        "objective": one.variant.told["objective"],
        "kernels": dict(one.run.ops.chosen),
        "compiled": one.run.settings.trainer.compile,
    }


def breakdown(samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the mean seconds of each part of a step; they add up to the mean step."""
    steps = sum(s.steps for s in samples)
    return {part: sum(s.parts[part] for s in samples) / steps for part in (*PARTS, OTHER)}


def _sweep(lengths: dict[int, Sequence[Sample]], found: Measured, name: str) -> list[dict[str, float]]:
    """Returns what a token costs at each length, also relative to the shortest, and so by FLOPs."""
    peak = max(found.peaks[next(precision(one) for one in found.ours if one.name == name)])
    rows: list[dict[str, float]] = []
    for length, samples in sorted(lengths.items()):
        seconds = statistics.median(s.seconds / s.work.tokens for s in samples)
        flops = sum(s.work.flops for s in samples) / sum(s.work.tokens for s in samples)
        begin = rows[0] if rows else {"seconds_per_token": seconds, "flops_per_token": flops}
        rows.append(
            {
                "length": length,
                "seconds_per_token": seconds,
                "flops_per_token": flops,
                "times_the_shortest": seconds / begin["seconds_per_token"],
                "times_by_flops": flops / begin["flops_per_token"],
                "mfu": statistics.median(s.work.flops / s.seconds for s in samples) / peak,
            }
        )
    return rows


def notes(result: dict[str, Any]) -> list[str]:
    """Returns what one must know to believe the numbers, and what makes one doubt them."""
    rounds = result["settings"]["rounds"]
    told = [
        "tokens are those that encoders and decoders read, padding not counted; a ratio is that of the times which two "
        "variants take for the same sequences",
        "memory is that of tensors in a step; the interpreter and its libraries come on top",
    ]
    if result["settings"]["simulated"]:
        told.append(f"sequences are simulated: {result['settings']['corpus']}")
    if "against" in result:
        told.append(
            f"{result['against']['program']} is given our token ids, so its tokenizer takes no time; its loss in fp32 "
            f"differs from ours by {result['against']['relative_difference']:.1e}"
        )
    foreign = result["foreign_cores"]
    if foreign is None:
        told.append("whether other programs used the machine meanwhile is not known on this system")
    elif foreign > BUSY:
        told.append(f"CAUTION: other programs kept {foreign:.1f} of {result['machine']['cores']} cores busy meanwhile")
    if len(result["variants"]) > 1 and rounds < 6:
        confidence = result["variants"][1]["times_the_first"]["confidence"]
        many = "1 round" if rounds == 1 else f"{rounds} rounds"
        told.append(f"{many}: intervals of ratios hold with {confidence:.0%} confidence only")
    return told


def read(path: Path) -> dict[str, Any]:
    """Reads a document from a file; raises UserError if it is another kind of file or of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}: not written by protloom bench --json")
    if found.get("version") != VERSION:
        raise UserError(f"{path}: version {found.get('version')} is not {VERSION}: written by another version")
    return found
