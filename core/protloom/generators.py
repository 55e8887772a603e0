"""Writes new sequences with a trained network, by the way that a plugin offers for its objective.

The core knows no such way: it finds out how a model was trained, takes the generator that is for that, and gives it
lengths in batches. Sequence *i* is a function of the network, the seed, *i* and its length, up to the rounding that
differs between batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import yaml

from protloom import config, weights
from protloom.contracts import Generator
from protloom.errors import UserError
from protloom.plugins.loader import normalise
from protloom.rng import CounterRNG
from protloom.run.folder import CONFIG
from protloom.specs import GeneratorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from protloom.config import Chosen
    from protloom.contracts import Architecture, Tokenizer
    from protloom.plugins import Component, Registry

KIND = "generator"


def trained_with(source: str) -> tuple[str, ...]:
    """Returns the full names of the objectives that a model was trained with; none where that is not written down.

    Args:
        source: as :func:`protloom.weights.read` takes it.

    Raises:
        UserError: there is no such model.
    """
    file = weights.locate(source).parent / CONFIG
    if not file.is_file():
        return ()
    try:
        whole = yaml.safe_load(file.read_text(encoding="utf-8"))
        used = [part for part in whole["components"] if part["kind"] == "objective"]
        return tuple(f"{normalise(part['distribution'])}/{part['name']}" for part in used)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}): name a way to write with --generator") from None


def choose(source: str, name: str | None, options: Mapping[str, Any], registry: Registry) -> Chosen:
    """Returns how to write with a model.

    Args:
        source: the model.
        name: of a generator; None: the one for the objective that the model was trained with.
        options: of the generator.
        registry: where generators are found.

    Raises:
        UserError: none fits, several do, or an option is wrong.
    """
    if name is None:
        name = _fitting(source, registry).full_name
    return config.choose(KIND, name, options, registry)


def _fitting(source: str, registry: Registry) -> Component:
    objectives = trained_with(source)
    known = registry.names(KIND)
    offer = f"--generator NAME takes one of {', '.join(known)}" if known else "no generator is installed"
    if not objectives:
        raise UserError(f"{source} does not say which objective it was trained with: {offer}")
    found = [c for c in registry.components(KIND) if set(objectives) & set(_serves(c))]
    if not found:
        absent = [
            plugin for plugin in (name.partition("/")[0] for name in objectives) if not _is_there(plugin, registry)
        ]
        advice = f"; install {', '.join(dict.fromkeys(absent))}, if it brings one" if absent else ""
        raise UserError(
            f"{source} was trained with {', '.join(objectives)}, and no installed plugin writes sequences with that"
            f"{advice} ({offer})"
        )
    if len(found) > 1:
        raise UserError(f"{source}: say which with --generator: {', '.join(c.full_name for c in found)}")
    return found[0]


def _serves(component: Component) -> tuple[str, ...]:
    """Returns the full names of the objectives that a generator is for."""
    names = cast(GeneratorSpec, component.spec).objectives
    return tuple(name if "/" in name else f"{component.distribution}/{name}" for name in names)


def _is_there(distribution: str, registry: Registry) -> bool:
    return any(plugin.distribution == distribution for plugin in registry.plugins)


def generate(
    chosen: Chosen,
    model: Architecture,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    *,
    seed: int = 0,
    tokens_per_batch: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[str]:
    """Yields a sequence of each length, in order.

    Args:
        chosen: the generator with its options.
        model: the network.
        tokenizer: the one that it was trained with.
        lengths: residues of each, at least 1.
        seed: of every random choice.
        tokens_per_batch: memory: as many sequences are written at once as have so many tokens, at least one. None: see
            :func:`protloom.inference.batch_tokens`.
        dtype: compute in this precision by autocast; None: the network's own.

    Raises:
        UserError: the network cannot do what the generator needs, or what came back is not what was asked for.
    """
    from protloom.inference import batch_tokens, batches, device_of, frozen

    generator: Generator = chosen.component.build(chosen.config, of=Generator)
    lacking = sorted(generator.needs - model.capabilities)
    if lacking:
        able = ", ".join(sorted(model.capabilities))
        raise UserError(f"{chosen.component.label} needs {', '.join(lacking)}, which this network cannot do ({able})")
    rng = CounterRNG(seed, "generate")
    network, specials = cast("nn.Module", model), len(tokenizer.prefix) + len(tokenizer.suffix)
    budget = batch_tokens(device_of(network), tokens_per_batch)
    for part in batches(range(len(lengths)), lambda number: lengths[number] + specials, budget):
        wanted = [lengths[number] for number in part]
        with frozen(network, dtype):
            written = list(generator.write(model, tokenizer, wanted, part, rng))
        _check(written, wanted, chosen.component)
        yield from written


def _check(written: Sequence[str], wanted: Sequence[int], component: Component) -> None:
    """Raises UserError unless there is a sequence for each length, and none is longer or empty."""
    lengths = [len(text) for text in written]
    fits = len(lengths) == len(wanted) and all(0 < n <= most for n, most in zip(lengths, wanted, strict=True))
    if not fits:
        raise UserError(
            f"{component.label} wrote {lengths[:5]} residues where {list(wanted[:5])} were asked for; tell its author"
        )
