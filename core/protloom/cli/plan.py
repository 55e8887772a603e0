"""``protloom plan``: hours, memory and disk that a run will take, before it is started."""

from __future__ import annotations

import argparse
from typing import Any

from protloom.cli import common
from protloom.cli.bench import positive
from protloom.cli.train import resolve, run_arguments


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.description = (
        "Takes some steps of a run and tells what the whole of it will take: hours, tokens, epochs, memory, disk. Says "
        "what would fit where a batch does not. Writes nothing but the store of the corpus, which the run then finds."
    )
    run_arguments(parser)
    parser.add_argument("--steps", metavar="N", type=positive, default=20, help="probe steps at most (20)")
    parser.add_argument("--seconds", metavar="S", type=positive, default=20, help="time for them (20; 3 at least)")
    common.json_option(parser)
    common.example(
        parser,
        "protloom plan run.yaml",
        "protloom plan run.yaml trainer.tokens_per_step=65536 --seconds 60",
        "protloom plan --data proteins.fasta --arch esm2:35M trainer.max_tokens=1e9 --json",
    )


def run(args: argparse.Namespace) -> int:
    """Takes the steps and prints what follows."""
    registry = common.registry(args)
    resolved = resolve(args, registry)
    from protloom import planning  # PyTorch takes seconds: not before a mistake is told

    found = planning.plan(resolved, registry, steps=args.steps, seconds=args.seconds)
    if args.json:
        common.print_json({**found, "cautions": planning.cautions(found)})
        return 0
    common.print_table(("what", "how much"), rows(found))
    for line in planning.cautions(found):
        print(f"caution: {line}")
    return 0


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a plan as lines for a person."""
    from protloom import machine
    from protloom.memory import readable

    network, probe, whole = found["network"], found["probe"], found["run"]
    memory, disk = found["memory"], found["disk"]
    low, high = probe["step_seconds_range"]
    parts = ", ".join(
        f"{name} {readable(memory[f'{name}_bytes'])}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    end = "its last step" if whole["ends_by"] == "steps" else f"trainer.max_{whole['ends_by']}"
    about = "reckoned from smaller batches, about " if memory["estimated"] else ""
    free = "" if memory["free_bytes"] is None else f"; {readable(memory['free_bytes'])} were free"
    return [
        ("machine", machine.words(found["machine"])),
        (
            "network",
            f"{network['architecture']}, {network['parameters'] / 1e6:,.2f} M parameters; "
            f"{' + '.join(network['objectives'])}; {network['precision']}",
        ),
        (
            "speed",
            f"{probe['tokens_per_second']:,.0f} tokens/s: {probe['step_seconds']:.3g} s a step ({low:.3g} to "
            f"{high:.3g} in {probe['steps']} steps) of {probe['tokens_per_step']:,.0f} tokens",
        ),
        (
            "run",
            f"{hours(whole['seconds'])} to {end}: {whole['steps']:,} steps, {whole['tokens']:,.0f} tokens, "
            f"{whole['epochs']:.2f} epochs, {whole['flops']:.2g} FLOPs",
        ),
        ("validation", f"about {hours(whole['validation_seconds'])} more ({whole['validations']:,} times)"),
        ("memory", f"{about}{readable(memory['peak_bytes'])} of tensors at the peak ({parts}){free}"),
        ("", f"the whole process: {readable(memory['process_peak_bytes'])} of main memory so far"),
        (
            "disk",
            f"{readable(disk['bytes'])}: up to {disk['checkpoints']} checkpoints of "
            f"{readable(disk['checkpoint_bytes'])} at a time; {readable(disk['free_bytes'])} are free",
        ),
    ]


def hours(seconds: float) -> str:
    """Writes a duration in the unit that one would use."""
    for least, unit, name in ((172800.0, 86400.0, "days"), (3600.0, 3600.0, "hours"), (60.0, 60.0, "minutes")):
        if seconds >= least:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"
