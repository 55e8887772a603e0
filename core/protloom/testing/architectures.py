"""What every architecture promises."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from protloom.testing.checks import Request, Violation, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import global_seeds, proteins, smallest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from protloom.config import ResolvedRun
    from protloom.contracts import Architecture, Encoded, Offsets, Tokenizer

LENGTHS = (30, 1, 57, 12)
RTOL, ATOL = 1e-4, 1e-5
"""Same numbers, added up in another order."""


class Bench:
    """Builds an architecture as the trainer does; ``extra`` may name a ``size``."""

    def __init__(self, request: Request) -> None:
        from protloom import assembly, config

        size = request.extra.get("size")
        name = smallest(request.component, request.registry) if size is None else f"{request.component.name}:{size}"
        bare, colon, tail = name.partition(":")
        full = request.component.full_name if bare == request.component.name else bare
        overrides = [f"architecture={full}{colon}{tail}", "data.corpus=none.fasta"]
        overrides += [f"architecture.{key}={value}" for key, value in request.options.items()]
        self.registry = request.registry
        self.resolved: ResolvedRun = config.load(None, overrides, request.registry)
        self.tokenizer: Tokenizer = assembly.make(self.resolved.tokenizer)

    def make(self, seed: int = 3, *, checkpointing: bool = False) -> Any:
        """Returns a fresh network, not in training; parameters are moved off their initial zeros and ones."""
        import torch

        with global_seeds(seed):
            model = self.build(checkpointing=checkpointing)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.is_floating_point():
                        parameter.add_(torch.randn(parameter.shape), alpha=0.02)
        return model.eval()

    def build(self, *, checkpointing: bool = False) -> nn.Module:
        """Returns what the factory gives."""
        import torch

        from protloom import kernels
        from protloom.contracts import BuildContext

        ops = kernels.choose("auto", self.registry, torch.device("cpu"), torch.float32)
        chosen = self.resolved.architecture
        context = BuildContext(self.tokenizer, ops, activation_checkpointing=checkpointing)
        model: nn.Module = chosen.component.load_factory()(chosen.config, context)
        return model

    def packed(self, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Offsets]:
        """Returns sequences end to end."""
        import torch

        from protloom.contracts import Offsets

        parts = [self.tokenizer.encode(sequence) for sequence in proteins(lengths)]
        tokens = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
        return torch.from_numpy(tokens), Offsets.of(len(part) for part in parts)


def _near(one: Tensor, other: Tensor) -> bool:
    import torch

    return one.shape == other.shape and torch.allclose(one, other, rtol=RTOL, atol=ATOL)


def _blocks_that_run(model: Any, work: Callable[[], object]) -> list[int]:
    """Returns the numbers of the network's blocks that some work calls, in order."""
    calls: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
        for number, block in enumerate(getattr(model, "blocks", ()))
    ]
    work()
    for handle in handles:
        handle.remove()
    return calls


@promise("architecture")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("architecture")
def it_is_a_network_that_says_what_it_is(request: Request) -> None:
    """The factory gives a torch module with ``width``, ``depth``, ``heads``, ``capabilities`` and ``config``."""
    from torch import nn

    from protloom.contracts import Architecture

    model = Bench(request).make()
    require(isinstance(model, nn.Module), f"The factory returned a {type(model).__name__}.")
    lacking = [name for name in ("width", "depth", "heads", "capabilities", "config") if not hasattr(model, name)]
    require(not lacking, f"It lacks {', '.join(lacking)}.")
    require(isinstance(model, Architecture), "It lacks encode() or logits().")
    require("encode" in model.capabilities, f"capabilities are {sorted(model.capabilities)}, without 'encode'.")


@promise("architecture")
def packed_equals_single(request: Request) -> None:
    """The states of a sequence are the same alone and among others, in any order."""
    import torch

    bench = Bench(request)
    model = bench.make()
    tokens, cu = bench.packed()
    with torch.inference_mode():
        together = model.encode(tokens, cu).last.split(cu.lengths)
        parts = tokens.split(cu.lengths)
        for length, part, states in zip(LENGTHS, parts, together, strict=True):
            alone = model.encode(part, type(cu).of([len(part)])).last
            require(_near(alone, states), f"A sequence of {length} residues has other states in a batch than alone.")
        turned = model.encode(torch.cat(parts[::-1]), type(cu).of(cu.lengths[::-1])).last.split(cu.lengths[::-1])
        for states, again in zip(together, turned[::-1], strict=True):
            require(_near(again, states), "The order of a batch changes the states.")


@promise("architecture")
def states_are_numbered(request: Request) -> None:
    """``layers`` gives the states asked for, 0 to ``depth``, each ``[T, D]``; number ``depth`` is the last one."""
    import torch

    bench = Bench(request)
    model = bench.make()
    tokens, cu = bench.packed()
    with torch.inference_mode():
        found = model.encode(tokens, cu, layers=tuple(range(model.depth + 1)))
    require(set(found.layers) == set(range(model.depth + 1)), f"It returned the layers {sorted(found.layers)}.")
    for number, states in found.layers.items():
        require(tuple(states.shape) == (cu.total, model.width), f"Layer {number} has shape {list(states.shape)}.")
    require(_near(found.layers[model.depth], found.last), f"Layer {model.depth} is not the last state.")


@promise("architecture")
def it_stops_where_it_is_told(request: Request) -> None:
    """``stop_at=k`` runs k blocks and gives state k, whose value is that of a full pass."""
    import torch

    bench = Bench(request)
    model = bench.make()
    tokens, cu = bench.packed()
    with torch.inference_mode():
        full = model.encode(tokens, cu, layers=tuple(range(model.depth + 1)))
        for stop in range(1, model.depth + 1):
            part = model.encode(tokens, cu, stop_at=stop, layers=(stop,))
            require(_near(part.last, full.layers[stop]), f"stop_at={stop} gives another state than a full pass.")
    full_pass = _blocks_that_run(model, lambda: model.encode(tokens, cu))
    first = _blocks_that_run(model, lambda: model.encode(tokens, cu, stop_at=1))
    saved = len(full_pass) - len(first)
    if hasattr(model, "blocks"):
        require(saved == model.depth - 1, f"stop_at=1 saves {saved} blocks of a full pass, not {model.depth - 1}.")


@promise("architecture")
def no_sequences_are_fine(request: Request) -> None:
    """A batch of no sequences gives states ``[0, D]``, logits ``[0, V]`` and gradients of 0."""
    bench = Bench(request)
    model = bench.make()
    encoded = model.encode(*bench.packed(()))
    require(tuple(encoded.last.shape) == (0, model.width), f"The states have shape {list(encoded.last.shape)}.")
    logits = model.logits(encoded.last)
    require(logits.shape[0] == 0, f"The logits have shape {list(logits.shape)}.")
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        bad = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        require(not bad, f"The gradient of {name} is not 0.")


@promise("architecture")
def logits_at_chosen_positions(request: Request) -> None:
    """``logits`` of some states are the rows of the logits of all, one column a symbol of the vocabulary at least."""
    import torch

    bench = Bench(request)
    model = bench.make()
    with torch.inference_mode():
        states = model.encode(*bench.packed()).last
        index = torch.tensor([3, 0, 17, 3])
        require(_near(model.logits(states[index]), model.logits(states)[index]), "They differ.")
        columns = model.logits(states[index]).shape[-1]
    require(columns >= len(bench.tokenizer.vocab), f"{columns} columns for {len(bench.tokenizer.vocab)} symbols.")


@promise("architecture")
def gradients_reach_the_blocks(request: Request) -> None:
    """A loss on the logits gives finite gradients to parameters of every block."""
    bench = Bench(request)
    model = bench.make().train()
    ran = _blocks_that_run(model, lambda: model.logits(model.encode(*bench.packed()).last).square().mean().backward())
    for name, parameter in model.named_parameters():
        require(
            parameter.grad is None or bool(parameter.grad.isfinite().all()), f"The gradient of {name} is not finite."
        )
    for number, block in enumerate(getattr(model, "blocks", ())):
        if number not in ran:
            continue  # a decoder's
        reached = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in block.parameters())
        require(reached, f"No parameter of block {number} has a gradient.")


@promise("architecture")
def recomputing_gives_the_same_gradients(request: Request) -> None:
    """With ``activation_checkpointing`` the gradients are those without it."""
    bench = Bench(request)
    plain, saving = bench.make().train(), bench.make(checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, saving):
        with global_seeds(1):
            model.logits(model.encode(*bench.packed()).last).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    require(set(found[0]) == set(found[1]), "Other parameters have gradients.")
    for name, gradient in found[0].items():
        require(_near(gradient, found[1][name]), f"The gradient of {name} differs.")


@promise("architecture")
def it_computes_in_float64(request: Request) -> None:
    """``double()`` moves the whole network: its states are float64 and near those in float32."""
    import torch

    bench = Bench(request)
    model = bench.make()
    tokens, cu = bench.packed()
    with torch.inference_mode():
        narrow = model.encode(tokens, cu).last
        wide = model.double().encode(tokens, cu).last
    require(wide.dtype == torch.float64, f"The states are {wide.dtype}.")
    require(torch.allclose(narrow.double(), wide, rtol=1e-3, atol=1e-3), "They differ by more than float32 explains.")


@promise("architecture")
def it_moves_as_a_whole(request: Request) -> None:
    """``to(device)`` takes along every tensor that it holds: they are parameters or buffers, not plain attributes."""
    import torch

    bench = Bench(request)
    model = bench.make().to("meta")  # a device that every machine has
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            items = value if isinstance(value, list | tuple) else [value]
            left = [item for item in items if isinstance(item, torch.Tensor) and item.device.type != "meta"]
            where = f"{place}.{name}" if place else name
            require(not left, f"{where} stays behind: register_buffer(..., persistent=False) takes it along.")
    if torch.cuda.is_available():
        tokens, cu = bench.packed()
        there = bench.make().to("cuda")
        with torch.inference_mode():
            alone = bench.make().encode(tokens, cu).last
            moved = there.encode(tokens.cuda(), type(cu).of(cu.lengths, "cuda")).last
        require(torch.allclose(moved.cpu(), alone, rtol=1e-2, atol=1e-2), "On the GPU it has other states.")


@promise("architecture")
def sizes_have_the_parameters_that_they_declare(request: Request) -> None:
    """A size that is called by a number of parameters, such as ``35M``, has as many, within a fifth."""
    import torch

    for size in getattr(request.component.spec, "sizes", {}):
        declared = _declared(size)
        if declared:
            bench = Bench(replace(request, extra={**request.extra, "size": size}))
            with torch.device("meta"):  # counts without making them
                found = sum(p.numel() for p in bench.build().parameters())
            require(abs(found - declared) <= 0.2 * declared, f"{size} has {found:,} parameters.")


def _declared(size: str) -> float:
    """Returns the number of parameters that the name of a size states; 0 where it states none."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", size)
    return float(number[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[number[2]] if number else 0.0


@promise("architecture")
def attention_maps_are_probabilities(request: Request) -> None:
    """Where ``attentions`` is a capability: ``[blocks, heads, L, L]`` a sequence, rows adding up to 1."""
    import torch

    bench = Bench(request)
    model = bench.make()
    if "attentions" not in model.capabilities:
        return
    tokens, cu = bench.packed()
    with torch.inference_mode():
        found: Encoded = model.encode(tokens, cu, attentions=True)
    if found.attentions is None:
        raise Violation("It returned none.")
    require(len(found.attentions) == cu.n, f"{len(found.attentions)} maps for {cu.n} sequences.")
    for length, maps in zip(cu.lengths, found.attentions, strict=True):
        wanted = (model.depth, model.heads, length, length)
        require(tuple(maps.shape) == wanted, f"Maps of shape {list(maps.shape)}, not {list(wanted)}.")
        require(torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-3), "Their rows do not add up to 1.")


@promise("architecture")
def a_model_folder_brings_it_back(request: Request) -> None:
    """Written as a model folder and read again, it has the same states, bit for bit."""
    import torch

    from protloom import weights

    bench = Bench(request)
    model = bench.make()
    tokens, cu = bench.packed()
    chosen, encoder = bench.resolved.architecture, bench.resolved.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        place.mkdir()
        weights.save_pretrained(
            place,
            component=chosen.component,
            config=chosen.config,
            state=model.state_dict(),
            tokenizer=bench.tokenizer,
            tokenizer_component=encoder.component,
            tokenizer_config=encoder.config,
        )
        again = cast("Any", weights.load_pretrained(str(place), bench.registry).model)
    with torch.inference_mode():
        one, other = (cast("Architecture", which).encode(tokens, cu).last for which in (model, again.eval()))
    require(torch.equal(one, other), "The states differ.")
