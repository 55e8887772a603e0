"""Makes what tasks score: the embedder of a model on disk, and of the same network with fresh weights."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, cast

import torch

from protloom import __version__, config, provenance
from protloom.contracts import BuildContext
from protloom.device import use_device
from protloom.embedding import Embedder, LongPolicy
from protloom.errors import UserError, did_you_mean
from protloom.specs import ArchitectureSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protloom.contracts import Subject, Tokenizer
    from protloom.embedding.cache import EmbeddingCache
    from protloom.plugins import Registry
    from protloom.plugins.loader import Component
    from protloom.weights import Pretrained

RANDOM_INIT = re.compile(r"(?:floor:)?random-init\((?P<architecture>[^()]+)\)")
"""A network that is made on the spot, with fresh weights: ``random-init(esm2:8M)``."""


def random_twin(pretrained: Pretrained, registry: Registry, *, seed: int) -> torch.nn.Module:
    """Builds the same architecture with the same options, freshly initialised, on the same device.

    Args:
        pretrained: the model to have a twin.
        registry: where kernels are found.
        seed: of its weights; nobody else's generator moves.
    """
    from protloom import kernels

    first = next(pretrained.model.parameters())
    ops = kernels.choose("auto", registry, first.device, first.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stored = pretrained.stored
        model: torch.nn.Module = stored.architecture.load_factory()(
            stored.config, BuildContext(pretrained.tokenizer, ops)
        )
    return model.to(device=first.device, dtype=first.dtype).eval()


def open_subjects(
    source: str,
    registry: Registry,
    *,
    layer: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    tokens_per_batch: int | None = None,
    max_length: int = 1024,
    long_policy: LongPolicy = "auto",
    prefix: str | None = None,
    twin: str | None = "random init",
    seed: int = 0,
    cache: EmbeddingCache | None = None,
) -> tuple[Embedder, Embedder | None, tuple[str, ...]]:
    """Opens a model as a subject, with its random initialisation.

    Args:
        source: a run, a checkpoint, a model folder, a foreign file, a hub id, or ``random-init(NAME:SIZE)``.
        registry: where components are found.
        layer: see :class:`protloom.embedding.Embedder`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, ``bf16`` or ``auto``, see :func:`protloom.precision.compute_dtype`.
        tokens_per_batch: see Embedder.
        max_length: see Embedder.
        long_policy: see Embedder.
        prefix: name of one of the tokenizer's prefixes; None: the one that it puts by default.
        twin: what tables call the random initialisation; None: make none.
        seed: of its weights.
        cache: of features, for both.

    Returns:
        (model, random initialisation or None, notes for the user).
    """
    from protloom.precision import compute_dtype
    from protloom.weights import load_pretrained

    where = use_device(device, "--device")
    options: dict[str, Any] = {"layer": layer, "max_length": max_length, "long_policy": long_policy, "cache": cache}
    options |= {"tokens_per_batch": tokens_per_batch, "dtype": compute_dtype(precision, where, "--precision")}
    made_here = RANDOM_INIT.fullmatch(source)
    if made_here is not None:
        network, tokenizer, component = fresh_network(made_here["architecture"], registry, device=where, seed=seed)
        model = _embedder(network, tokenizer, component, prefix, name=source, summary="untrained network", **options)
        model.provenance.update(weights=_fingerprint(network), seed=seed)
        return model, None, ()
    pretrained = load_pretrained(source, registry, device=where)
    component, tokenizer = pretrained.stored.architecture, pretrained.tokenizer
    model = _embedder(pretrained.model, tokenizer, component, prefix, name=source, summary="the model", **options)
    model.provenance.update(weights=pretrained.fingerprint, **_random_parts(pretrained))
    if twin is None:
        return model, None, pretrained.notes
    network = random_twin(pretrained, registry, seed=seed)
    other = _embedder(network, tokenizer, component, prefix, name=twin, summary="same network, untrained", **options)
    other.provenance.update(weights=_fingerprint(network), seed=seed)
    return model, other, pretrained.notes


def _embedder(
    model: torch.nn.Module, tokenizer: Tokenizer, component: Component, prefix: str | None, **options: Any
) -> Embedder:
    """Makes an embedder that states what its features depend on besides the weights."""
    made = Embedder(
        model,  # type: ignore[arg-type]
        tokenizer,
        prefix=None if prefix is None else prefix_ids(tokenizer, prefix),
        **options,
    )
    if prefix is not None:
        made.provenance["prefix"] = prefix
    made.provenance.update(
        architecture=f"{component.full_name} {component.version}",
        tokenizer=f"{tokenizer.name} {tokenizer_hash(tokenizer)}",
        precision="fp32" if made.dtype is None else str(made.dtype).removeprefix("torch."),
        code=_code(model),
    )
    return made


def _random_parts(pretrained: Pretrained) -> dict[str, tuple[str, ...]]:
    """Names a model's random parameters: those that its file lacks, and untrained ones on which residues depend."""
    from protloom.likelihood import untrained

    found = {
        "initialised": pretrained.stored.initialised,
        "untrained": untrained(pretrained.architecture, pretrained.stored.untrained),
    }
    return {name: parts for name, parts in found.items() if parts}


def fresh_network(
    name: str, registry: Registry, *, device: torch.device, seed: int
) -> tuple[torch.nn.Module, Tokenizer, Component]:
    """Builds an untrained network with the tokenizer that its architecture states.

    Args:
        name: of the architecture, ``NAME`` or ``NAME:SIZE``.
        registry: where components are found.
        device: where it shall compute.
        seed: of its weights; nobody else's generator moves.

    Raises:
        UserError: there is no such architecture, or it states no tokenizer.
    """
    from protloom import kernels
    from protloom.plugins import split_size

    chosen = config.choose("architecture", name, {}, registry)
    spec, size = cast("ArchitectureSpec", chosen.component.spec), split_size(name)[1]
    section = {**spec.defaults, **spec.size_defaults.get(size or "", {})}.get("tokenizer")
    if section is None:
        raise UserError(f"random-init({name}): this architecture does not say which tokenizer goes with it")
    options: dict[str, Any] = {"name": section} if isinstance(section, str) else dict(section)
    fitting = config.choose("tokenizer", options.pop("name"), options, registry)
    tokenizer: Tokenizer = fitting.component.load_factory()(fitting.config)
    ops = kernels.choose("auto", registry, device, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = chosen.component.load_factory()(chosen.config, BuildContext(tokenizer, ops))
    return model.to(device).eval(), tokenizer, chosen.component


def find_floor(name: str, registry: Registry) -> Subject:
    """Returns a floor by its name, ``floor:NAME``, whether or not a task offers it.

    Raises:
        UserError: there is no such floor.
    """
    bare = name.partition(":")[2]
    if bare not in registry.names("floor") and "/" not in bare:
        known = [f"floor:{other}" for other in (*registry.names("floor"), "random-init(ARCH)")]
        raise UserError(f"no floor {name!r}.{did_you_mean(name, known)}")
    chosen = config.choose("floor", bare, {}, registry)
    floor: Subject = chosen.component.load_factory()(chosen.config)
    return floor


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns a hash of what a tokenizer makes of letters: vocabulary, table, symbols before and behind."""
    digest = hashlib.sha256("\n".join(tokenizer.vocab).encode())
    digest.update(tokenizer.table.tobytes())
    digest.update(repr((tuple(tokenizer.prefix), tuple(tokenizer.suffix))).encode())
    return digest.hexdigest()[:16]


def _code(model: torch.nn.Module) -> str:
    """Returns a hash of the code that computes features: the core's and that of the architecture's package."""
    package = type(model).__module__.partition(".")[0]
    return f"{__version__} {provenance.code_hash((package, *provenance.FEATURES))}"


def _fingerprint(model: torch.nn.Module) -> str:
    from protloom.weights import fingerprint

    return fingerprint(model.state_dict())


def prefix_ids(tokenizer: Tokenizer, name: str) -> tuple[int, ...]:
    """Returns the ids of one of a tokenizer's prefixes.

    Raises:
        UserError: if the tokenizer has no such prefix.
    """
    prefixes: Mapping[str, tuple[int, ...]] = getattr(tokenizer, "prefixes", {})  # older tokenizers have none
    if name in prefixes:
        return tuple(prefixes[name])
    if not prefixes:
        raise UserError(f"--prefix {name}: tokenizer {tokenizer.name!r} of this model has no prefixes; leave it out")
    raise UserError(f"--prefix {name}: no such prefix.{did_you_mean(name, prefixes)}")


def is_random_init(source: str) -> bool:
    """Tells whether a model's name means a network that is made on the spot."""
    return RANDOM_INIT.fullmatch(source) is not None
