"""Puts a resolved run together: tokenizer, kernels, network, objectives, optimizer and data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from protloom import allocator, compiling, kernels, schedules, training_state, weights
from protloom.contracts import Architecture, BuildContext, Callback, Tokenizer
from protloom.data.batches import BatchMaker
from protloom.data.sampler import Sampler, ValidationSet
from protloom.data.store import Store, open_corpus
from protloom.distributed import World, wrap
from protloom.errors import UserError, did_you_mean
from protloom.evaluate import Validator
from protloom.metrics import say
from protloom.mixture import HostBatch, Member, Mixture
from protloom.objective import Objective
from protloom.ops import Ops
from protloom.precision import compute_dtype
from protloom.step import StepModule, leaves_parameters_out

if TYPE_CHECKING:
    from protloom.config import Chosen, ResolvedRun
    from protloom.plugins import Registry
    from protloom.settings import DataConfig, RunConfig

DEFAULT_MICROBATCH = 16384
"""Tokens at once where the run file states none: enough to keep a device busy, small enough for a laptop."""
NETWORK = "model."
"""What the names of the network's parameters begin with in a :class:`protloom.step.StepModule`."""


@dataclass
class Assembly:
    """Everything a :class:`protloom.trainer.Trainer` needs.

    Attributes:
        resolved: the run file with its components.
        world: the processes.
        tokenizer: the tokenizer.
        ops: the chosen kernels.
        model: the network.
        module: network and objectives.
        wrapped: ``module`` in DDP or FSDP2, or itself.
        mixture: how objectives share batches.
        optimizer: its groups carry ``names`` and ``lr_scale``.
        peak_rate: the learning rate that the schedule multiplies.
        precision: dtype of autocast, None for fp32.
        stores: the corpora.
        sampler: what each step sees.
        maker: makes token batches.
        validator: None if nothing is held out.
        random: names of the network's tensors that were random, not read, when the run began.
    """

    resolved: ResolvedRun
    world: World
    tokenizer: Tokenizer
    ops: Ops
    model: nn.Module
    module: StepModule
    wrapped: nn.Module
    mixture: Mixture
    optimizer: Optimizer
    peak_rate: float
    precision: torch.dtype | None
    stores: Sequence[Store]
    sampler: Sampler
    maker: BatchMaker
    validator: Validator | None
    random: frozenset[str]

    @property
    def settings(self) -> RunConfig:
        """The core's sections of the run file."""
        return self.resolved.settings

    def host_step(self, step: int) -> list[HostBatch]:
        """Prepares this rank's micro-batches of a step; runs in the loader's threads."""
        return _host_step(self.settings, self.world.size, self.sampler, self.mixture, self.maker, step, self.world.rank)

    def trainable(self) -> list[Tensor]:
        """Returns the parameters that the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def write_model(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes whole weights as a folder that other programs read."""
        chosen = self.resolved.architecture
        weights.save_pretrained(
            folder,
            component=chosen.component,
            config=chosen.config,
            state=state,
            tokenizer=self.tokenizer,
            tokenizer_component=self.resolved.tokenizer.component,
            tokenizer_config=self.resolved.tokenizer.config,
            untrained=self.untrained(),
        )

    def why_native(self) -> str | None:
        """Returns why other programs will not read the weights; see :func:`protloom.model_folder.why_native`."""
        chosen = self.resolved.architecture
        return weights.why_native(chosen.component, chosen.config, self.model.state_dict(), self.tokenizer)

    def untrained(self) -> tuple[str, ...]:
        """Returns the network's parameters that no step has reached so far and that were random before.

        An optimizer has state for what had a gradient; nothing can be told of one that keeps no state.
        """
        state, named = self.optimizer.state, training_state.named_parameters(self.optimizer)
        reached = {name for name, parameter in named if state.get(parameter)}
        names = [name.removeprefix(NETWORK) for name, _ in named if name.startswith(NETWORK) and name not in reached]
        return tuple(name for name in names if name in self.random) if reached else ()

    def callbacks(self, run_dir: Path) -> list[Callback]:
        """Builds the callbacks that the run file names."""
        return [c.component.build(c.config, run_dir) for c in self.resolved.callbacks]


def _microbatch_tokens(settings: RunConfig) -> int | None:
    """Returns how many tokens are processed at once; None: a whole step."""
    stated = settings.trainer.tokens_per_microbatch
    if stated is None and settings.trainer.tokens_per_step <= DEFAULT_MICROBATCH:
        return None  # a step may be a sequence longer than tokens_per_step: no second micro-batch for that alone
    return stated or DEFAULT_MICROBATCH


def assemble(resolved: ResolvedRun, registry: Registry, world: World, *, initial: Path | str | None) -> Assembly:
    """Builds a run.

    Args:
        resolved: the validated run file.
        registry: where kernels and corpora are found.
        world: the processes.
        initial: weights to start from (a run, folder, file or hub id), or None for random ones.

    Raises:
        UserError: if parts do not fit together, or data or weights cannot be read.
    """
    settings = resolved.settings
    if settings.trainer.keep_freed_memory and world.device.type == "cpu" and (why := allocator.keep_freed_memory()):
        say(f"note     trainer.keep_freed_memory: {why}; memory is freed as usual")
    schedules.check(settings.schedule, settings.trainer.steps)
    precision = compute_dtype(settings.trainer.precision, world.device, "trainer.precision")
    ops = kernels.choose(settings.kernels, registry, world.device, precision or torch.float32)
    if settings.trainer.compile:
        ops = compiling.opaque(ops)
    tokenizer: Tokenizer = make(resolved.tokenizer)
    stores, shares = open_corpora(settings.data, registry, world)
    module, mixture, random = _learner(resolved, tokenizer, ops, precision, world, registry, initial)
    sampler, maker, validator = _sampling(settings, stores, shares, tokenizer, mixture, world, registry)
    wrapped = _wrapped(module, mixture, world, partial(_host_step, settings, world.size, sampler, mixture, maker))
    # after the wrapping, which may replace parameters by their shards
    optimizer, peak = _optimizer(resolved.optimizer, module, ops)
    return Assembly(
        resolved=resolved,
        world=world,
        tokenizer=tokenizer,
        ops=ops,
        model=module.model,
        module=module,
        wrapped=wrapped,
        mixture=mixture,
        optimizer=optimizer,
        peak_rate=peak,
        precision=precision,
        stores=stores,
        sampler=sampler,
        maker=maker,
        validator=validator,
        random=random,
    )


def _learner(
    resolved: ResolvedRun,
    tokenizer: Tokenizer,
    ops: Ops,
    precision: torch.dtype | None,
    world: World,
    registry: Registry,
    initial: Path | str | None,
) -> tuple[StepModule, Mixture, frozenset[str]]:
    """Builds network and objectives on their device.

    Returns:
        Both as one module, how objectives share batches, and the names of the network's tensors that are random.
    """
    settings = resolved.settings
    # the seed decides the initial weights; objectives draw from the same generator, after the network
    torch.manual_seed(settings.seed)
    model = build_network(resolved, tokenizer, ops)
    random = frozenset(model.state_dict())
    if initial is not None:
        # before the objectives are built: one of them may copy the network
        random = weights.load_into(model, resolved.architecture, tokenizer, initial, registry).random
    objectives = build_objectives(resolved, tokenizer, ops, model)
    model.to(world.device)
    mixture = Mixture(objectives, settings.combine, settings.seed, settings.reduction)
    mixture.refuse_idle_steps()
    module = StepModule(model, mixture, precision=precision, world_size=world.size).to(world.device)
    module.train()
    if settings.trainer.compile:
        compiling.compile_blocks(module)
    return module, mixture, random


def _sampling(
    settings: RunConfig,
    stores: Sequence[Store],
    shares: Sequence[float],
    tokenizer: Tokenizer,
    mixture: Mixture,
    world: World,
    registry: Registry,
) -> tuple[Sampler, BatchMaker, Validator | None]:
    """Decides what each step sees, and what is held out."""
    cropping = {
        "specials": len(tokenizer.prefix) + len(tokenizer.suffix),
        "max_length": settings.data.max_length,
        "min_length": max(settings.data.min_length, *(m.objective.least_residues for m in mixture.members)),
    }
    sampler = Sampler(
        stores,
        shares,
        tokens_per_step=settings.trainer.tokens_per_step,
        validation_fraction=settings.data.validation_fraction if settings.data.validation is None else 0.0,
        seed=settings.seed,
        **cropping,
    )
    maker = BatchMaker(stores, tokenizer, max_length=settings.data.max_length, seed=settings.seed)
    return sampler, maker, _validator(settings, registry, world, stores, shares, tokenizer, mixture, cropping)


def _host_step(
    settings: RunConfig, ranks: int, sampler: Sampler, mixture: Mixture, maker: BatchMaker, step: int, rank: int
) -> list[HostBatch]:
    """Prepares the micro-batches of a step for one rank."""
    most = _microbatch_tokens(settings)
    members = sampler.microbatches(step, rank=rank, world=ranks, tokens_per_microbatch=most)
    active = mixture.active(step)
    return [mixture.prepare(maker.make(part, step), active=active) for part in members]


def _wrapped(
    module: StepModule, mixture: Mixture, world: World, host_step: Callable[[int, int], list[HostBatch]]
) -> nn.Module:
    """Spreads the module; for DDP finds out first whether a step leaves parameters without a gradient."""
    repeated = getattr(module.model, "blocks", None)
    blocks = list(repeated) if isinstance(repeated, nn.ModuleList) else []
    unused = not mixture.always_active
    if world.parallel == "ddp" and not unused:
        # rank 0's first micro-batch, so that every rank comes to the same answer
        unused = leaves_parameters_out(module, host_step(0, 0)[0], mixture.weights(0))
    return wrap(module, world, blocks=blocks, unused=unused)


def make(chosen: Chosen) -> Any:
    """Builds a component that needs its options alone, such as a tokenizer."""
    return chosen.component.build(chosen.config)


def open_corpora(data: DataConfig, registry: Registry, world: World) -> tuple[list[Store], list[float]]:
    """Opens (or first builds) the corpora of a run and returns them with their weights."""
    parts = data.parts()
    return [_open(part.path, part.column, data, registry, world) for part in parts], [part.weight for part in parts]


def _open(path: str, column: str | None, data: DataConfig, registry: Registry, world: World) -> Store:
    """Opens one corpus; the main process builds its store first, then the others find it."""
    opening = partial(
        open_corpus,
        path,
        cache_dir=None if data.cache_dir is None else Path(data.cache_dir),
        strict=data.strict,
        column=column,
        registry=registry,
    )
    store = opening() if world.main else None
    world.barrier()
    return store if store is not None else opening()


def build_network(resolved: ResolvedRun, tokenizer: Tokenizer, ops: Ops) -> nn.Module:
    """Builds the network of a run, with weights from torch's generator."""
    trainer, chosen = resolved.settings.trainer, resolved.architecture
    build = BuildContext(
        tokenizer, ops, activation_checkpointing=trainer.activation_checkpointing, total_steps=trainer.steps
    )
    model: nn.Module = chosen.component.build(chosen.config, build, of=nn.Module)
    return model


def build_objectives(resolved: ResolvedRun, tokenizer: Tokenizer, ops: Ops, model: nn.Module) -> list[Member]:
    """Builds the objectives, and checks that the network can do what they need."""
    trainer, network = resolved.settings.trainer, cast(Architecture, model)
    members = []
    for entry in resolved.objectives:
        component = entry.chosen.component
        lacking = sorted(getattr(component.load_factory(), "needs", frozenset()) - network.capabilities)
        if lacking:
            raise UserError(
                f"objective {entry.alias!r} needs {', '.join(lacking)}, which architecture "
                f"{resolved.architecture.component.name!r} cannot do (it can {', '.join(sorted(network.capabilities))})"
            )
        if hasattr(nn.ModuleDict(), entry.alias):
            raise UserError(f"objective {entry.alias!r}: PyTorch keeps this name for itself; give another with 'alias'")
        context = BuildContext(tokenizer, ops, network, trainer.activation_checkpointing, trainer.steps)
        members.append(Member(entry.alias, component.build(entry.chosen.config, context, of=Objective), entry.mix))
        _check_terms(members[-1])
    return members


def _check_terms(member: Member) -> None:
    """Refuses weights for terms that the objective does not have."""
    if isinstance(member.mix.weight, dict):
        for term in member.mix.weight:
            if term not in member.objective.terms:
                advice = did_you_mean(term, member.objective.terms)
                raise UserError(f"objective {member.alias!r}: weight names the unknown term {term!r}.{advice}")


def _optimizer(chosen: Chosen, module: StepModule, ops: Ops) -> tuple[Optimizer, float]:
    """Builds the optimizer over all trainable parameters; biases and norms are not decayed."""
    peak = getattr(chosen.config, "lr", None)
    if not isinstance(peak, float | int):
        raise UserError(f"optimizer {chosen.component.full_name}: its config has no 'lr'; tell its author")
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for decay in (True, False):
        members = [(name, p) for name, p in named if (p.ndim >= 2) == decay]
        if members:
            groups.append(
                {
                    "params": [p for _, p in members],
                    "names": [name for name, _ in members],
                    "lr_scale": 1.0,
                    "weight_decay_scale": float(decay),
                }
            )
    factory = chosen.component.load_factory()
    # an optimizer may come in the form of the run's kernels; most have one form
    more = {"ops": ops} if "ops" in inspect.signature(factory).parameters else {}
    optimizer: Optimizer = factory(chosen.config, groups, **more)
    training_state.note_initial(optimizer)
    return optimizer, float(peak)


def _validator(
    settings: RunConfig,
    registry: Registry,
    world: World,
    stores: Sequence[Store],
    shares: Sequence[float],
    tokenizer: Tokenizer,
    mixture: Mixture,
    cropping: Mapping[str, int],
) -> Validator | None:
    data = settings.data
    fraction: float | None = data.validation_fraction
    if data.validation is not None:
        stores, shares, fraction = [_open(data.validation, None, data, registry, world)], [1.0], None
    elif fraction == 0:
        return None
    held_out = ValidationSet(
        stores, shares, tokens=settings.trainer.validation_tokens, validation_fraction=fraction, **cropping
    )
    if held_out.members.n == 0:
        if data.validation is not None:
            raise UserError(
                f"data.validation: {data.validation} has no sequence of at least {cropping['min_length']} residues "
                "(data.min_length, or what the objective needs): name another corpus, or none to hold out a share of "
                "data.corpus"
            )
        return None
    # windows of validation sequences must not move with the run's seed
    maker = BatchMaker(stores, tokenizer, max_length=data.max_length, seed=0)
    most = _microbatch_tokens(settings) or settings.trainer.tokens_per_step
    parts = held_out.microbatches(rank=world.rank, world=world.size, tokens_per_microbatch=most)
    batches = [maker.make(part, 0) for part in parts]
    return Validator(batches, mixture, world, settings.seed, tokenizer=tokenizer)
