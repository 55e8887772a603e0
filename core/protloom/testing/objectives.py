"""What every objective promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import Term
from protloom.errors import UserError
from protloom.testing.checks import Request, promise, require
from protloom.testing.imports import imports_no_torch
from protloom.testing.materials import Ranks, global_seeds, global_state
from protloom.testing.objective_bench import Bench, Made, streams

if TYPE_CHECKING:
    from torch import Tensor

    from protloom.contracts import Losses, Prepared

CLOSE = {"rtol": 2e-4, "atol": 2e-4}
"""How near two ways to compute a mean must be in fp32."""
EPOCHS = 20
"""Draws of the corruption that are compared; a slip at the end of a sequence shows in some of them only."""


@promise("objective")
def importing_it_is_light(request: Request) -> None:
    """The plugin and the options of a component import without torch, so that the command line starts at once."""
    imports_no_torch(request)


@promise("objective")
def it_is_an_objective_with_terms(request: Request) -> None:
    """The factory gives an Objective whose ``terms`` name every part of its loss."""
    from protloom.objective import Objective

    made = Bench(request).make()
    require(isinstance(made.objective, Objective), f"The factory returned a {type(made.objective).__name__}.")
    terms = getattr(made.objective, "terms", None)
    require(isinstance(terms, Mapping) and bool(terms), f"terms is {terms!r}, not a mapping with an entry a term.")
    for name, term in dict(terms or {}).items():
        require(isinstance(term, Term), f"terms[{name!r}] is a {type(term).__name__}, not a Term.")


@promise("objective")
def corruption_is_a_function_of_seed_epoch_and_sequence(request: Request) -> None:
    """``prepare`` gives the same for the same batch and stream, whatever the generators that everybody shares hold."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    found = []
    for seed in (1, 2):
        with global_seeds(seed):
            found.append(bench.prepare(made, batch))
    _require_equal(found[0], found[1], "Two calls on one batch")


@promise("objective")
def corruption_touches_no_global_generator(request: Request) -> None:
    """``prepare`` draws from the stream that it is given, never from random, numpy.random or torch's generator."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    before = global_state()
    bench.prepare(made, batch)
    after = global_state()
    for name, state in before.items():
        require(after[name] == state, f"That of {name} moved: hash positions with the stream (batch.keys(rng)).")


@promise("objective")
def nothing_seeds_a_global_generator(request: Request) -> None:
    """Building it, ``prepare``, ``loss`` and ``after_step`` seed no generator that others draw from too."""
    bench = Bench(request)
    one, other = bench.footprint(1), bench.footprint(2)
    for name, state in one.items():
        require(state != other[name], f"That of {name} stands at one place, however it was seeded before.")


@promise("objective")
def the_loss_draws_from_its_context(request: Request) -> None:
    """Without dropout, ``loss`` is the same whatever the shared generators hold: ``ctx.rng`` is there to draw from."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    found = []
    for seed in (1, 2):
        with global_seeds(seed):
            found.append(bench.score(made, batch)[0].totals)
    for term, total in found[0].items():
        one, other = float(total.detach()), float(found[1][term].detach())
        require(one == other, f"{term!r}: {one!r} and {other!r} for one batch.")


@promise("objective")
def corruption_leaves_its_batch_alone(request: Request) -> None:
    """``prepare`` does not write into the batch, which other objectives read too."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    fields = {
        "packed.tokens": batch.packed.tokens,
        "packed.cu": batch.packed.cu,
        "residue": batch.residue,
        "epoch": batch.epoch,
        "index": batch.index,
        "corpus": batch.corpus,
        "group": batch.group,
        **{f"metadata[{name!r}]": values for name, values in batch.metadata.items()},
    }
    before = {name: values.copy() for name, values in fields.items()}
    bench.prepare(made, batch)
    for name, values in fields.items():
        require(np.array_equal(values, before[name]), f"{name} changed: copy what you change.")


@promise("objective")
def corruption_does_not_depend_on_the_rest_of_the_batch(request: Request) -> None:
    """What becomes of a sequence (or a group, for statistics of a batch) is the same in every batch."""
    bench = Bench(request)
    made = bench.make()
    whole = bench.batch(made)
    for epoch in range(EPOCHS):  # what runs on past the end of a sequence does so in some draws only
        batch = replace(whole, epoch=np.full_like(whole.epoch, epoch))
        together = bench.prepare(made, batch)
        alone = [bench.prepare(made, part) for part in bench.units(made, batch)]
        parts = [stream for prepared in alone for stream in streams(prepared)]
        require(
            sorted(streams(together)) == sorted(parts),
            f"Corrupted with others (epoch {epoch}), sequences come out otherwise than alone: let every choice depend "
            "on batch.keys(rng) and the position within the sequence.",
        )


@promise("objective")
def counts_are_exact(request: Request) -> None:
    """``Prepared.counts`` are whole numbers, one a term, and those of a batch are the sum of its sequences'."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    whole = bench.prepare(made, batch).counts
    require(
        set(whole) == set(made.objective.terms), f"It counts {sorted(whole)}, terms are {sorted(made.objective.terms)}."
    )
    for term, count in whole.items():
        require(isinstance(count, int | np.integer) and count >= 0, f"The count of {term!r} is {count!r}.")
    require(any(whole.values()), "Nothing is scored in a batch of eight proteins.")
    parts = [bench.prepare(made, part).counts for part in bench.units(made, batch)]
    for term, declared in made.objective.terms.items():
        if declared.additive:
            total = sum(part[term] for part in parts)
            require(whole[term] == total, f"{term!r}: {whole[term]} in the batch, {total} in its parts.")


@promise("objective")
def the_loss_is_finite(request: Request) -> None:
    """Every total is one finite number, and metrics are too."""
    bench = Bench(request)
    made = bench.make()
    for validation in (False, True):
        losses, _ = bench.score(made, bench.batch(made), validation=validation)
        require(
            set(losses.totals) == set(made.objective.terms),
            f"loss() returned {sorted(losses.totals)}, terms are {sorted(made.objective.terms)}.",
        )
        for term, total in losses.totals.items():
            require(total.ndim == 0, f"The total of {term!r} has shape {list(total.shape)}.")
            require(bool(total.isfinite()), f"The total of {term!r} is {float(total.detach())}.")
        for name, metric in losses.metrics.items():
            numbers = _number(metric.total), _number(metric.count)
            require(all(map(math.isfinite, numbers)), f"The metric {name!r} is {numbers[0]} / {numbers[1]}.")


@promise("objective")
def totals_are_sums(request: Request) -> None:
    """An additive term's total is the sum over what it counts, so that micro-batches and ranks add up; never a mean."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    whole, _ = bench.score(made, batch)
    parts = [bench.score(made, part)[0] for part in bench.units(made, batch)]
    for term, declared in made.objective.terms.items():
        if declared.additive:
            total, added = (
                float(whole.totals[term].detach()),
                math.fsum(float(part.totals[term].detach()) for part in parts),
            )
            near = math.isclose(total, added, rel_tol=1e-3, abs_tol=1e-3)
            require(near, f"{term!r}: {total:.6g} for the batch, {added:.6g} for its parts added up.")


@promise("objective")
def gradients_reach_the_network(request: Request) -> None:
    """The loss depends on the network's parameters, its gradients are finite, and what is frozen gets none."""
    bench = Bench(request)
    made = bench.make()
    losses, counts = bench.score(made, bench.batch(made))
    _loss(bench, losses, counts).backward()
    grads = {name: p.grad for name, p in made.parameters().items()}
    for name, grad in grads.items():
        require(grad is None or bool(grad.isfinite().all()), f"The gradient of {name} is not finite.")
    moved = [name for name, grad in grads.items() if grad is not None and bool(grad.abs().sum() > 0)]
    ours = {name for name in moved if name.startswith("network.")}
    require(bool(ours), "No parameter of the network has a gradient.")
    beyond = ours - _of_the_head(made)
    require(bool(beyond), f"Of the network, only its head has a gradient ({', '.join(sorted(ours))}).")
    for name, parameter in made.parameters().items():
        require(parameter.requires_grad or parameter.grad is None, f"{name} is frozen and has a gradient.")
    for name, buffer in made.objective.named_buffers():
        require(not buffer.requires_grad, f"The buffer {name} of the objective requires a gradient.")


@promise("objective")
def no_sequences_give_a_zero_that_depends_on_the_network(request: Request) -> None:
    """A micro-batch without sequences gives totals of 0, counts of 0 and gradients of 0: other ranks may have some."""
    bench = Bench(request)
    made = bench.make()
    losses, counts = bench.score(made, bench.batch(made, sequences=[]))
    require(not any(counts.values()), f"The counts are {dict(counts)}.")
    for term, total in losses.totals.items():
        require(float(total.detach()) == 0, f"The total of {term!r} is {float(total.detach())}.")
        require(total.requires_grad, f"The total of {term!r} depends on no parameter: multiply what there is by 0.")
    sum(losses.totals.values()).backward()  # type: ignore[union-attr]
    for name, parameter in made.parameters().items():
        bad = parameter.grad is not None and not bool((parameter.grad == 0).all())
        require(not bad, f"The gradient of {name} is not 0.")


@promise("objective")
def ranks_agree_with_one_process(request: Request) -> None:
    """Spread over two ranks, a batch gives the same loss and gradients: statistics use the context's collectives."""
    import torch

    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    first = batch.group < max(1, int(batch.group.max()))  # all groups but the last: ranks rarely hold as much
    parts = [batch.take(first), batch.take(~first)]
    losses, counts = bench.score(made, batch)
    alone = _loss(bench, losses, counts)
    wanted = _gradients(made, alone)
    ranks = Ranks(2)
    shares = [bench.share(made, part)[0] for part in parts]
    found = ranks.run(lambda rank: bench.losses(made, shares[rank], ranks=ranks))
    spread = torch.stack([_loss(bench, of, counts) for of in found]).sum()
    require(
        _near(spread, alone),
        f"The loss is {float(spread.detach()):.6g} on two ranks, {float(alone.detach()):.6g} on one.",
    )
    for (name, one), other in zip(wanted.items(), _gradients(made, spread).values(), strict=True):
        near = (one is None and other is None) or (one is not None and other is not None and _near_arrays(one, other))
        require(near, f"The gradient of {name} differs.")


@promise("objective")
def its_state_survives_saving(request: Request) -> None:
    """After some steps, a fresh copy with the saved state gives the same loss, bit for bit, and goes on the same."""
    import torch

    bench = Bench(request)
    made, copy = bench.make(), bench.make(seed=77)
    share, counts = bench.share(made, bench.batch(made))
    for step in range(2):
        _train(bench, made, share, counts, step)
    for of, into in ((made.model, copy.model), (made.objective, copy.objective)):
        into.load_state_dict({name: value.clone() for name, value in of.state_dict().items()})
    for step in (2, 3):
        one, other = (bench.losses(which, share, step=step).totals for which in (made, copy))
        for term, total in one.items():
            same = torch.equal(total, other[term])
            numbers = f"{float(total.detach())!r}, from saved state {float(other[term].detach())!r}"
            require(same, f"{term!r} at step {step}: {numbers}.")
        for which in (made, copy):
            _train(bench, which, share, counts, step)


@promise("objective")
def validation_never_changes(request: Request) -> None:
    """``prepare_validation`` gives the same masks at every call, so that losses of two moments compare."""
    bench = Bench(request)
    made = bench.make()
    batch = bench.batch(made)
    one, other = (made.objective.prepare_validation(batch, bench.rng()) for _ in range(2))
    _require_equal(one, other, "Two calls")


@promise("objective")
def its_flops_are_a_number(request: Request) -> None:
    """``flops`` gives a finite number that is not negative."""
    found = Bench(request).make().objective.flops(1e9, 1e6, 100)
    require(math.isfinite(found) and found >= 0, f"It gave {found}.")


@promise("objective")
def it_trains_beside_the_built_in_ones(request: Request) -> None:
    """Summed with, or dealt beside, each built-in objective that the same network serves, the loss stays finite."""
    import torch

    from protloom.mixture import Member, Mixture
    from protloom.settings import ObjectiveMix
    from protloom.step import StepModule, to_device

    bench = Bench(request)
    for component in request.registry.components("objective"):
        if not component.builtin:
            continue
        try:
            made = bench.beside(component.name)
            made[1].objective.prepare(bench.batch(made[0]), bench.rng())
        except UserError:
            continue  # the other one needs another network, tokenizer or batch
        members = [Member(f"o{i}", each.objective, ObjectiveMix()) for i, each in enumerate(made)]
        for combine in ("summed", "dealt"):
            mixture = Mixture(members, combine, 0)
            host = mixture.prepare(bench.batch(made[0]), active=mixture.active(0))
            module = StepModule(made[0].model, mixture, precision=None)
            divisors = {key: float(count) for key, count in host.counts.items()}
            out = module(to_device(host, torch.device("cpu")), mixture.weights(0), divisors, _context())
            out.loss.backward()
            require(
                bool(out.loss.isfinite()), f"{combine} with {component.name!r} the loss is {float(out.loss.detach())}."
            )


# ------------------------------------------------------------------------------------------------------------- helpers


def _context() -> Any:
    from protloom.contracts import StepContext
    from protloom.rng import CounterRNG

    return StepContext(0, CounterRNG(0), lambda x: x, lambda x: x)


def _train(bench: Bench, made: Made, share: Any, counts: Mapping[str, int], step: int) -> None:
    """Does one plain step of gradient descent, with what the objective does after it."""
    import torch

    loss = _loss(bench, bench.losses(made, share, step=step), counts)
    gradients = _gradients(made, loss)
    with torch.no_grad():
        for name, parameter in made.parameters().items():
            gradient = gradients.get(name)
            if gradient is not None:
                parameter.add_(gradient / (1 + gradient.norm()), alpha=-1e-3)
    made.objective.after_step(made.model, step)  # type: ignore[arg-type]


def _loss(bench: Bench, losses: Losses, counts: Mapping[str, int]) -> Tensor:
    import torch

    return torch.stack(list(bench.means(losses, counts).values())).sum()


def _gradients(made: Made, loss: Any) -> dict[str, Tensor | None]:
    import torch

    trained = {name: p for name, p in made.parameters().items() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True)
    return dict(zip(trained, found, strict=True))


def _of_the_head(made: Made) -> set[str]:
    """Returns the names of the parameters that logits depend on where the states that they are made of are given."""
    import torch

    model: Any = made.model
    named = {f"network.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    total = model.logits(torch.ones(1, model.width)).sum()
    if not total.requires_grad:  # the objective froze the head
        return set()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def _number(value: Tensor | float) -> float:
    return value if isinstance(value, float | int) else float(value.detach())


def _near(one: Tensor, other: Tensor) -> bool:
    return math.isclose(_number(one), _number(other), rel_tol=CLOSE["rtol"], abs_tol=CLOSE["atol"])


def _near_arrays(one: Tensor, other: Tensor) -> bool:
    """Compares by the size of the whole array: single elements may be sums that cancel."""
    scale = float(one.abs().max()) + 1e-6
    return float((one - other).abs().max()) <= 5e-3 * scale


def _require_equal(one: Prepared, other: Prepared, what: str) -> None:
    require(dict(one.counts) == dict(other.counts), f"{what} count {dict(one.counts)} and {dict(other.counts)}.")
    require(streams(one) == streams(other), f"{what} give different inputs.")
    require(set(one.arrays) == set(other.arrays), f"{what} give different arrays.")
    for name, values in one.arrays.items():
        require(np.array_equal(values, other.arrays[name]), f"{what} give different arrays {name!r}.")
