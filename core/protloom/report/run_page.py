"""The page of one run, or of several side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protloom.metrics import clock
from protloom.report import figures, run_warnings, task_results
from protloom.report.figures import Drawn
from protloom.report.page import Listing, Page, Part, Section, Table, Words
from protloom.report.run_facts import VALIDATION, Run, corpora, number
from protloom.report.task_results import TaskFile
from protloom.report.wording import plural, short

ABSENT = "–"


def build(runs: Sequence[Run], tasks: Sequence[TaskFile] = ()) -> Page:
    """Puts a page together.

    Args:
        runs: with different names.
        tasks: results of tasks.
    """
    drawn = [Drawn(run, run.name, at) for at, run in enumerate(runs)]
    one = len(runs) == 1
    warned = run_warnings.by_run(runs)
    return Page(
        title=f"Run {runs[0].name}" if one else f"Runs {', '.join(run.name for run in runs)}",
        verdict=[*(_verdict(run, named=not one) for run in runs), *task_results.verdict(tasks)],
        warnings=[line if one else f"{name}: {line}" for name, lines in warned.items() for line in lines],
        sections=[
            Section("Results of tasks", list(task_results.parts(tasks))),
            Section("What was trained", list(_identity(runs))),
            Section("Loss", _known(figures.losses(drawn))),
            Section("Validation", [*_validation(runs), *_known(figures.further(drawn))]),
            Section("Latent states", _known(figures.collapse(drawn))),
            Section("Learning rate and gradient", _known(figures.rates(drawn))),
            Section("Speed, padding and memory", _known(figures.speed(drawn))),
            Section("Run files", [Listing(f"{run.name}: config.yaml", run.config_text) for run in runs]),
        ],
    )


def _known(*parts: Part | None) -> list[Part]:
    return [part for part in parts if part is not None]


def _verdict(run: Run, *, named: bool) -> str:
    """Returns in a sentence what a run did and what its last validation found."""
    seconds, tokens = run.spent("seconds"), run.spent("tokens")
    done = f"{plural(int(run.spent('steps')), 'step')}, {int(tokens):,} tokens in {clock(seconds)} of training"
    found = f"; on held-out sequences: {_found(run)}" if run.validation else ""
    return f"{run.name}: {done}{found}" if named else f"{done[0].upper()}{done[1:]}{found}"


def _found(run: Run) -> str:
    """Returns the losses of the last validation, beside what residue frequencies alone reach."""
    line = run.validation[-1]
    told = []
    for key in run_warnings.scored_losses(run):
        name = key.removeprefix("validation/loss").strip("/")
        # an objective that also scores other symbols tells its loss over residues apart
        apart = f"{VALIDATION}residue_loss/{name}"
        value, unit = (number(line, apart), "residue") if apart in line else (number(line, key), "token")
        frequencies = number(line, f"{VALIDATION}unigram_entropy/{name}")
        beside = f" (residue frequencies alone: {frequencies:.4f})" if math.isfinite(frequencies) else ""
        told.append(f"{name} {value:.4f} nats a scored {unit}{beside}" if name else f"loss {value:.4f}")
    return f"{'; '.join(told)}, after step {line['step']:,}"


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a line of validation found, with NaN for what was not finite."""
    return {key: number(line, key) for key in line if key.startswith(VALIDATION)}


# ---------------------------------------------------------------------------------------------------------- identity


def _identity(runs: Sequence[Run]) -> Iterator[Part]:
    facts = [identity(run) for run in runs]
    header = ["", *(run.name for run in runs)]
    yield Table(header, [[key, *(fact[key] for fact in facts)] for key in facts[0]], text_columns=len(header))
    if len(runs) > 1:
        rows = list(differing([run.config for run in runs]))
        if rows:
            yield Table(
                ["differs in", *header[1:]], rows, "Everything in the run files that is not equal.", len(header)
            )
        else:
            yield Words(["The run files are equal."])


def identity(run: Run) -> dict[str, str]:
    """Returns what a run is and what it used, as words by name."""
    config, trainer = run.config, run.config.get("trainer", {})
    hashes = [str(digest)[:12] for digest in run.state.get("corpora", ())]
    flops = number(run.state, "flops")
    return {
        "architecture": component(config.get("architecture")),
        "parameters": ABSENT if run.parameters is None else f"{run.parameters:,} numbers in the file of weights",
        "starts from": str(config.get("init") or "random weights"),
        "tokenizer": component(config.get("tokenizer")),
        "objectives": _objectives(config),
        "optimizer": component(config.get("optimizer")),
        "schedule": component(config.get("schedule")),
        "corpus": _corpora(run),
        "corpus content": ", ".join(f"{digest}…" for digest in hashes) or ABSENT,
        "steps": f"{int(run.spent('steps')):,}",
        "tokens": f"{int(run.spent('tokens')):,}",
        "training time": f"{clock(run.spent('seconds'))} ({run.spent('seconds'):.1f} seconds)",
        "FLOPs": short(flops),
        "tokens a step": str(trainer.get("tokens_per_step", ABSENT)),
        "precision": f"{trainer.get('precision', ABSENT)}, as the run file asks",
        "device": f"{trainer.get('device', ABSENT)}, parallel: {trainer.get('parallel', ABSENT)}, "
        f"kernels: {config.get('kernels', ABSENT)}, as the run file asks",
        "seed": str(config.get("seed", ABSENT)),
        "components": ", ".join(
            f"{part['kind']} {part['name']} ({part['distribution']} {part['version']})"
            for part in config.get("components", ())
        )
        or ABSENT,
    }


def component(section: Any) -> str:
    """Returns a component's name with those of its options that are plain numbers."""
    if not isinstance(section, Mapping):
        return str(section or ABSENT)
    numbers = [f"{k} {v:g}" for k, v in section.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return str(section.get("name", ABSENT)) + (f" ({', '.join(numbers)})" if numbers else "")


def _objectives(config: Mapping[str, Any]) -> str:
    several = config.get("objectives") or [config.get("objective")]
    words = []
    for part in several:
        said = part if isinstance(part, Mapping) else {"name": part}
        weight = said.get("weight", 1.0)
        words.append(str(said.get("alias") or said.get("name") or ABSENT) + (f" × {weight}" if weight != 1.0 else ""))
    combined = f", {config.get('combine', 'summed')}" if len(words) > 1 else ""
    return " + ".join(words) + combined


def _corpora(run: Run) -> str:
    return "; ".join(f"{path} (SIMULATED)" if path in run.simulated else path for path in corpora(run.config)) or ABSENT


def differing(configs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yields dotted keys whose values differ, each with the value in every configuration.

    Objectives are told apart by their names; one that a run lacks is a single row.
    """
    flat = [dict(_flat(_by_name(config), "")) for config in configs]
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key) for one in flat]
        if len(set(values)) > 1 and not _inside_absent(key, flat):
            yield [key, *(ABSENT if value is None else value for value in values)]


def _by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run file without what differs by itself, its objectives as a mapping by name."""
    several = config.get("objectives") or [config.get("objective")]
    named = {str(part.get("alias") or part.get("name")): part for part in several if isinstance(part, Mapping)}
    left_out = ("out", "components", "objective", "objectives")
    return {**{key: value for key, value in config.items() if key not in left_out}, "objectives": named}


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields every dotted key and its value as the run file would write it; a component's own key is its name."""
    if not isinstance(value, Mapping):
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)
        return
    if key.count(".") == 1 and key.startswith("objectives."):
        yield key, component(value)
    for name, inner in value.items():
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _inside_absent(key: str, flat: Sequence[Mapping[str, str]]) -> bool:
    """True for a key of an objective that one of the runs does not have at all."""
    words = key.split(".")
    return words[0] == "objectives" and len(words) > 2 and any(".".join(words[:2]) not in one for one in flat)


# -------------------------------------------------------------------------------------------------------- validation


def _validation(runs: Sequence[Run]) -> Iterator[Part]:
    """Yields what validations found: first, lowest loss and last."""
    keys = dict.fromkeys(key for run in runs for line in run.validation for key in _numbers(line))
    if not keys:
        return
    header = ["held-out sequences"]
    columns: list[list[str]] = []
    for run in runs:
        if not run.validation:
            header.append(f"{run.name}: none")
            columns.append([ABSENT] * len(keys))
            continue
        picked = {"first": run.validation[0], "last": run.validation[-1]} if len(run.validation) > 1 else {}
        for word, line in (picked or {"only": run.validation[0]}).items():
            where = f"{word}, after {short(run.positions([line], 'tokens')[0])} tokens"
            header.append(where if len(runs) == 1 else f"{run.name}: {where}")
            columns.append([f"{number(line, key):.6g}" if key in line else ABSENT for key in keys])
    rows = [[key.removeprefix(VALIDATION), *cells] for key, *cells in zip(keys, *columns, strict=True)]
    yield Table(header, rows, "Losses in nats where a perplexity is given, which is exp(loss).")
