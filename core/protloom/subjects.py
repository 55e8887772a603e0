"""Makes what tasks score: the embedder of a model on disk, and of the same network with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from protloom.contracts import BuildContext
from protloom.embedding import Embedder, LongPolicy
from protloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protloom.contracts import Tokenizer
    from protloom.plugins import Registry
    from protloom.weights import Pretrained


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
    tokens_per_batch: int = 8192,
    max_length: int = 1024,
    long_policy: LongPolicy = "auto",
    prefix: str | None = None,
    twin: str | None = "random init",
    seed: int = 0,
) -> tuple[Embedder, Embedder | None, tuple[str, ...]]:
    """Opens a model as a subject, with its random initialisation.

    Args:
        source: a run, a checkpoint, a model folder, a foreign file or a hub id.
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

    Returns:
        (model, random initialisation or None, notes for the user).
    """
    from protloom.precision import compute_dtype
    from protloom.weights import load_pretrained

    where = find_device(device)
    dtype = compute_dtype(precision, where)
    pretrained = load_pretrained(source, registry, device=where)
    front = None if prefix is None else prefix_ids(pretrained.tokenizer, prefix)

    def embedder(model: torch.nn.Module, name: str, summary: str) -> Embedder:
        return Embedder(
            model,  # type: ignore[arg-type]
            pretrained.tokenizer,
            layer=layer,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            long_policy=long_policy,
            prefix=front,
            dtype=dtype,
            name=name,
            summary=summary,
        )

    model = embedder(pretrained.model, source, "the model")
    if prefix is not None:
        model.provenance["prefix"] = prefix
    model.provenance.update(weights=pretrained.fingerprint, architecture=pretrained.stored.architecture.full_name)
    if pretrained.stored.initialised:
        model.provenance["initialised"] = pretrained.stored.initialised
    if twin is None:
        return model, None, pretrained.notes
    other = embedder(random_twin(pretrained, registry, seed=seed), twin, "same network, untrained")
    other.provenance.update(architecture=pretrained.stored.architecture.full_name, seed=seed)
    return model, other, pretrained.notes


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


def find_device(name: str) -> torch.device:
    """Returns the device that ``--device`` means: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; UserError without it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: no device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device
