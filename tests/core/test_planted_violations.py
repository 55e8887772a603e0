"""The kit finds what is planted: components that break one promise each, beside a correct one of their kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from protloom.contracts import Encoded, Losses, Metric, Packed, Prepared, TaskResult, Term
from protloom.objective import Objective
from protloom.plugins import Registry
from protloom.plugins.loader import Component, PluginInfo
from protloom.settings import Section
from protloom.specs import (
    ArchitectureSpec,
    GeneratorSpec,
    KernelSpec,
    ObjectiveSpec,
    OptimizerSpec,
    Spec,
    TaskSpec,
    TokenizerSpec,
)
from protloom.testing import Violation, conformance
from protloom.testing.tasks import Noise

INSTALLED = Registry.discover()


def planted(kind: str, spec: Spec) -> Registry:
    """The installed components and one more, of a distribution ``acme``."""
    component = Component(kind, spec.name, "acme", "1", "acme", spec)
    return Registry([*INSTALLED.plugins, PluginInfo("acme", "acme", "1", "MIT", "json", components=(component,))])


def broken(kind: str, spec: Spec, **extra: Any) -> dict[str, str]:
    """Name of each promise that does not hold, and what the kit says."""
    found = {}
    for check in conformance(kind, spec.name, registry=planted(kind, spec), **extra):
        try:
            check()
        except Violation as violation:
            found[str(check)] = str(violation)
    return found


class Plain(Objective):
    """A masked LM as a newcomer writes it, correct: what the planted mistakes differ from."""

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.terms = {"loss": Term()}

    def chosen(self, batch: Any, rng: Any) -> Any:
        bits = rng.positions(batch.keys(rng), batch.packed.cu)
        return np.flatnonzero(batch.residue & (bits % np.uint64(5) == 0)).astype(np.int64)

    def prepare(self, batch: Any, rng: Any) -> Any:
        index = self.chosen(batch, rng)
        tokens = batch.packed.tokens.copy()
        tokens[index] = self.tokenizer.mask_id
        targets = batch.packed.tokens[index].astype(np.int64)
        arrays = {"index": index, "targets": targets}
        return Prepared(inputs=Packed(tokens, batch.packed.cu), counts={"loss": len(index)}, arrays=arrays)

    def each(self, model: Any, passes: Any, prepared: Any) -> Any:
        logits = model.logits(passes.encoded.last[prepared["index"]])
        return nn.functional.cross_entropy(logits, prepared["targets"], reduction="none")

    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        return Losses({"loss": self.each(model, passes, prepared).sum()})


class Mean(Plain):
    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        return Losses({"loss": self.each(model, passes, prepared).mean()})


class WritesIntoItsBatch(Plain):
    def prepare(self, batch: Any, rng: Any) -> Any:
        prepared = super().prepare(batch, rng)
        batch.packed.tokens[prepared.arrays["index"]] = self.tokenizer.mask_id
        return prepared


class DrawsFromNumpy(Plain):
    def chosen(self, batch: Any, rng: Any) -> Any:
        return np.flatnonzero(batch.residue & (np.random.random(len(batch.residue)) < 0.2)).astype(np.int64)


class SeedsEverybody(Plain):
    def chosen(self, batch: Any, rng: Any) -> Any:
        torch.manual_seed(0)
        return super().chosen(batch, rng)


class SeedsWhenBuilt(Plain):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        np.random.seed(1)


class DrawsInItsLoss(Plain):
    def each(self, model: Any, passes: Any, prepared: Any) -> Any:
        each = super().each(model, passes, prepared)
        return each * (torch.rand(len(each)) < 0.9)


class DependsOnThePlaceInTheBatch(Plain):
    def chosen(self, batch: Any, rng: Any) -> Any:
        bits = rng.at(np.arange(len(batch.residue)))
        return np.flatnonzero(batch.residue & (bits % np.uint64(5) == 0)).astype(np.int64)


class CountsSequences(Plain):
    def prepare(self, batch: Any, rng: Any) -> Any:
        prepared = super().prepare(batch, rng)
        longest = int(np.diff(batch.packed.cu).max(initial=0))
        return Prepared(prepared.inputs, {"loss": longest}, prepared.arrays)


class ReturnsANumber(Plain):
    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        return super().loss(model, passes, prepared, ctx).totals["loss"]


class DividesByZero(Plain):
    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        total = self.each(model, passes, prepared).sum()
        return Losses({"loss": total}, {"share": Metric(float("nan"), 1.0)})


class Detached(Plain):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.head = nn.Linear(build.architecture.width, 40)

    def each(self, model: Any, passes: Any, prepared: Any) -> Any:
        states = passes.encoded.last[prepared["index"]].detach()
        return nn.functional.cross_entropy(self.head(states), prepared["targets"], reduction="none")


class TrainsTheHeadAlone(Plain):
    def each(self, model: Any, passes: Any, prepared: Any) -> Any:
        logits = model.logits(passes.encoded.last[prepared["index"]].detach())
        return nn.functional.cross_entropy(logits, prepared["targets"], reduction="none")


class NothingFromNothing(Plain):
    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        if not len(prepared["index"]):
            return Losses({"loss": torch.zeros(())})
        return super().loss(model, passes, prepared, ctx)


class ForgetsOtherRanks(Plain):
    """A statistic of the batch that every rank takes over its own rows."""

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.terms = {"loss": Term(), "spread": Term(additive=False)}

    def prepare(self, batch: Any, rng: Any) -> Any:
        prepared = super().prepare(batch, rng)
        return Prepared(prepared.inputs, {**prepared.counts, "spread": prepared.counts["loss"]}, prepared.arrays)

    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        rows = passes.encoded.last[prepared["index"]]
        centre = rows.mean(0, keepdim=True) if len(rows) else rows.sum(0, keepdim=True)
        spread = (rows - centre).square().sum()
        return Losses({"loss": self.each(model, passes, prepared).sum(), "spread": spread})


class ForgetsItsState(Plain):
    """Keeps what it learns outside of its ``state_dict``."""

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.scale = 1.0

    def loss(self, model: Any, passes: Any, prepared: Any, ctx: Any) -> Any:
        return Losses({"loss": self.each(model, passes, prepared).sum() * self.scale})

    def after_step(self, model: Any, step: int) -> None:
        self.scale *= 0.9


class ValidatesAnew(Plain):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.calls = 0

    def prepare_validation(self, batch: Any, rng: Any) -> Any:
        self.calls += 1
        return self.prepare(batch, rng.stream(self.calls))


class NegativeFlops(Plain):
    def flops(self, forward: float, head: float, scored: int) -> float:
        return -1.0


class WrongTerms(Plain):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.terms = {"loss": 1.0}  # type: ignore[dict-item]


class Raises(Plain):
    def __init__(self, config: Any, build: Any) -> None:
        raise RuntimeError("no such file")


def not_an_objective(config: Any, build: Any) -> Any:
    return nn.Linear(2, 2)


PLANTED: Mapping[str, tuple[Any, str]] = {
    "totals-are-sums": (Mean, "for its parts added up"),
    "corruption-leaves-its-batch-alone": (WritesIntoItsBatch, "packed.tokens changed"),
    "corruption-is-a-function-of-seed-epoch-and-sequence": (DrawsFromNumpy, "different inputs"),
    "corruption-touches-no-global-generator": (SeedsEverybody, "That of torch moved"),
    "nothing-seeds-a-global-generator": (SeedsWhenBuilt, "That of numpy.random stands at one place"),
    "the-loss-draws-from-its-context": (DrawsInItsLoss, "for one batch"),
    "corruption-does-not-depend-on-the-rest-of-the-batch": (DependsOnThePlaceInTheBatch, "otherwise than alone"),
    "counts-are-exact": (CountsSequences, "in its parts"),
    "the-loss-is-finite": (DividesByZero, "The metric 'share' is nan"),
    "gradients-reach-the-network": (Detached, "No parameter of the network"),
    "no-sequences-give-a-zero-that-depends-on-the-network": (NothingFromNothing, "depends on no parameter"),
    "ranks-agree-with-one-process": (ForgetsOtherRanks, "on two ranks"),
    "its-state-survives-saving": (ForgetsItsState, "from saved state"),
    "validation-never-changes": (ValidatesAnew, "Two calls count"),
    "its-flops-are-a-number": (NegativeFlops, "It gave -1"),
}


def test_a_correct_objective_breaks_nothing() -> None:
    assert broken("objective", ObjectiveSpec(name="bad", factory=Plain)) == {}


@pytest.mark.parametrize("promise", PLANTED)
def test_the_kit_finds_a_planted_mistake(promise: str) -> None:
    factory, says = PLANTED[promise]
    found = broken("objective", ObjectiveSpec(name="bad", factory=factory))
    assert says in found[promise]
    assert "objective 'acme/bad' (acme 1) breaks a promise" in found[promise]


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (ReturnsANumber, "loss() returned a Tensor, not Losses"),
        (WrongTerms, "terms['loss'] is a float, not a Term"),
        (Raises, "its factory failed: RuntimeError: no such file"),
        (not_an_objective, "its factory returned a Linear, not an Objective"),
    ],
)
def test_a_component_that_is_no_such_thing(factory: Any, says: str) -> None:
    found = broken("objective", ObjectiveSpec(name="bad", factory=factory))
    assert any(says in told for told in found.values()), found


def test_a_loss_that_trains_the_head_alone_is_found() -> None:
    found = broken("objective", ObjectiveSpec(name="bad", factory=TrainsTheHeadAlone))
    assert "only its head has a gradient (network." in found["gradients-reach-the-network"]


def test_a_heavy_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_heavy.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ObjectiveSpec(name="bad", factory=Plain)
    component = Component("objective", "bad", "acme", "1", "acme", spec)
    plugin = PluginInfo("acme", "acme", "1", "MIT", "acme_heavy", components=(component,))
    checks = conformance("objective", "bad", registry=Registry([*INSTALLED.plugins, plugin]))
    with pytest.raises(Violation, match="acme_heavy imports torch"):
        checks[0]()


def test_a_config_that_is_no_pydantic_model() -> None:
    found = broken("objective", ObjectiveSpec(name="bad", factory=Plain, config=dict))
    assert any("is not a pydantic model; tell its author" in told for told in found.values())


class ForgetsRate(Section):
    speed: float = Field(default=0.1)


class Rate(Section):
    lr: float = Field(default=0.1)


def sgd(config: Any, groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=getattr(config, "lr", 0.1))


class Uphill(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = -abs(group["lr"])
        return super().step(closure)


class DeafToSchedules(torch.optim.SGD):
    """Moves everything at the rate that it was made with."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 0.1
        return super().step(closure)


class Forgetful(torch.optim.Adam):
    """Counts its steps outside of its state."""

    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.taken
        return super().step(closure)


BAD_OPTIMIZERS: Mapping[str, tuple[OptimizerSpec, str]] = {
    "it-is-an-optimizer-with-a-rate": (OptimizerSpec(name="bad", factory=sgd, config=ForgetsRate), "have no 'lr'"),
    "a-quadratic-converges": (
        OptimizerSpec(name="bad", factory=lambda config, groups: Uphill(groups, lr=config.lr), config=Rate),
        "From ",
    ),
    "the-rate-of-a-group-counts": (
        OptimizerSpec(name="bad", factory=lambda config, groups: DeafToSchedules(groups, lr=config.lr), config=Rate),
        "They moved",
    ),
    "its-state-survives-saving": (
        OptimizerSpec(name="bad", factory=lambda config, groups: Forgetful(groups, lr=config.lr), config=Rate),
        "differ",
    ),
}


@pytest.mark.parametrize("promise", BAD_OPTIMIZERS)
def test_the_kit_finds_a_mistake_of_an_optimizer(promise: str) -> None:
    spec, says = BAD_OPTIMIZERS[promise]
    assert says in broken("optimizer", spec)[promise]


def letters(**changes: Callable[[Any], Any]) -> TokenizerSpec:
    """The tokenizer of ESM with some attributes replaced by what functions make of them."""
    from protloom_plugins.tokenizers.esm import EsmTokenizer, EsmTokenizerConfig

    def make(config: Any) -> Any:
        made = EsmTokenizer(EsmTokenizerConfig())
        changed = {name: change(getattr(made, name)) for name, change in changes.items()}
        for name, value in changed.items():
            setattr(made, name, value)
        return made

    return TokenizerSpec(name="bad", factory=make)


def mapped(table: Any, letter: str, like: str) -> Any:
    changed = np.array(table)
    changed[ord(letter)] = changed[ord(like)]
    return changed


BAD_TOKENIZERS: Mapping[str, tuple[TokenizerSpec, str]] = {
    "it-says-what-it-is": (letters(vocab=lambda vocab: (*vocab[:-1], "A")), "holds a symbol twice"),
    "every-id-is-in-the-vocabulary": (letters(pad_id=lambda _: 99), "pad_id holds [99]"),
    "a-residue-is-a-token": (letters(table=lambda table: mapped(table, "C", "A")), "by the table"),
    "an-unusual-letter-is-no-residue": (letters(table=lambda table: mapped(table, "U", "C")), "'U' becomes the resid"),
    "decoding-undoes-encoding": (letters(decode=lambda _: lambda ids: "A" * len(ids)), "comes back as"),
    "special-symbols-are-no-residues": (letters(mask_id=lambda _: 5), "is both"),
    "its-fingerprint-is-its-own": (letters(fingerprint=lambda _: np.random.bytes(4).hex()), " and "),
}


@pytest.mark.parametrize("promise", BAD_TOKENIZERS)
def test_the_kit_finds_a_mistake_of_a_tokenizer(promise: str) -> None:
    spec, says = BAD_TOKENIZERS[promise]
    assert says in broken("tokenizer", spec)[promise]


def scaled(x: Any, weight: Any, *, eps: float) -> Any:
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def detached(x: Any, weight: Any, *, eps: float) -> Any:
    return scaled(x, weight, eps=eps) if weight is None else scaled(x, weight.detach(), eps=eps) + 0 * weight


def across(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, *, scale: float, **_: Any) -> Any:
    """Attention over the whole batch, whatever sequence a residue belongs to."""
    rows = [x.transpose(0, 1) for x in (q, k, v)]
    return nn.functional.scaled_dot_product_attention(*rows, scale=scale).transpose(0, 1)


def kernel(name: str = "bad", reason: str | None = None, **functions: Any) -> KernelSpec:
    """A backend of some functions."""

    class Made:
        priority = 0

        def unavailable(self, device: Any) -> str | None:
            return reason

        def functions(self, device: Any, dtype: Any) -> Any:
            return functions

    Made.name = name  # type: ignore[attr-defined]
    return KernelSpec(name="bad", factory=lambda config: Made())


BAD_KERNELS: Mapping[str, tuple[KernelSpec, str]] = {
    "it-says-whether-it-runs": (kernel(reason="two\nlines", rms_norm=scaled), "it says 'two\\nlines'"),
    "it-offers-functions-that-exist": (kernel(rms_normal=scaled), "no function ['rms_normal']"),
    "norms-are-exact": (kernel(rms_norm=detached), "The gradient of rms_norm by its argument 1"),
    "activations-are-exact": (kernel(gelu=nn.functional.silu), "gelu differs by"),
    "attention-stays-within-sequences": (kernel(attention=across), "attention differs by"),
    "cross-entropy-is-exact": (kernel(cross_entropy=nn.functional.cross_entropy), "cross_entropy gives []"),
    "clipping-scales-all-gradients-alike": (
        kernel(clip_grad_norm=lambda parameters, most: max(float(p.grad.norm()) for p in parameters)),
        "The norm is",
    ),
    "optimizers-follow-their-rules": (
        # Adam with the decay in the gradient, which is not AdamW
        kernel(adamw=torch.optim.Adam),
        "After 4 steps of adamw a parameter differs by",
    ),
}


def test_a_correct_backend_breaks_nothing() -> None:
    assert broken("kernel", kernel(rms_norm=scaled)) == {}


@pytest.mark.parametrize("promise", BAD_KERNELS)
def test_the_kit_finds_a_mistake_of_a_backend(promise: str) -> None:
    spec, says = BAD_KERNELS[promise]
    found = broken("kernel", spec)
    assert says in found[promise], found


class Network(nn.Module):
    """The smallest network that keeps its contract: what the planted mistakes differ from."""

    capabilities = frozenset({"encode"})
    width, depth, heads = 8, 2, 1

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(build.tokenizer.vocab), 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def after(self, block: Any, states: Any) -> Any:
        return block(states)

    def encode(self, tokens: Any, cu: Any, *, layers: Any = (), stop_at: Any = None, attentions: bool = False) -> Any:
        states = self.embedding(tokens)
        kept = {0: states}
        for number, block in enumerate(self.blocks, start=1):
            if stop_at is None or number <= stop_at:
                states = kept[number] = self.after(block, states)
        return Encoded(states, {number: kept[number] for number in layers})

    def logits(self, hidden: Any) -> Any:
        return hidden @ self.embedding.weight.T


class Leaks(Network):
    """Its attention does not stop at the end of a sequence."""

    def after(self, block: Any, states: Any) -> Any:
        return block(states) + (states.mean(0) if len(states) else states.sum(0))


class RunsOn(Network):
    """Computes all blocks although it was told to stop."""

    def encode(self, tokens: Any, cu: Any, *, layers: Any = (), stop_at: Any = None, attentions: bool = False) -> Any:
        found = super().encode(tokens, cu, layers=range(self.depth + 1))
        last = found.last if stop_at is None else found.layers[stop_at]
        return Encoded(last, {number: found.layers[number] for number in layers})


class CountsLayersFromOne(Network):
    def encode(self, tokens: Any, cu: Any, *, layers: Any = (), stop_at: Any = None, attentions: bool = False) -> Any:
        found = super().encode(tokens, cu, layers=range(self.depth + 1), stop_at=None)
        return Encoded(found.last, {number: found.layers[max(0, number - 1)] for number in layers})


class MixesItsLogits(Network):
    def logits(self, hidden: Any) -> Any:
        return super().logits(hidden) - super().logits(hidden).mean(0)


class SkipsABlock(Network):
    def after(self, block: Any, states: Any) -> Any:
        return states.detach() + 0 * block(states) if block is self.blocks[0] else block(states)


class ComputesInFloat32(Network):
    def after(self, block: Any, states: Any) -> Any:
        return nn.functional.linear(states.float(), block.weight.float(), block.bias.float())


class KeepsATensorBeside(Network):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.scale = torch.ones(8)

    def after(self, block: Any, states: Any) -> Any:
        return block(states) * self.scale


class ForgetsAWeight(Network):
    """One of its weights is no part of its state."""

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def after(self, block: Any, states: Any) -> Any:
        return block(states) * self.scale


BAD_NETWORKS: Mapping[str, tuple[Any, str]] = {
    "packed-equals-single": (Leaks, "other states in a batch than alone"),
    "states-are-numbered": (CountsLayersFromOne, "is not the last state"),
    "it-stops-where-it-is-told": (RunsOn, "saves 0 blocks"),
    "logits-at-chosen-positions": (MixesItsLogits, "They differ"),
    "gradients-reach-the-blocks": (SkipsABlock, "No parameter of block 0"),
    "it-computes-in-float64": (ComputesInFloat32, "The states are torch.float32"),
    "it-moves-as-a-whole": (KeepsATensorBeside, "scale stays behind"),
    "a-model-folder-brings-it-back": (ForgetsAWeight, "The states differ"),
    "it-is-a-network-that-says-what-it-is": (lambda config, build: nn.Linear(2, 2), "It lacks width, depth, heads"),
}
FITTING = {"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"}


def test_a_correct_network_breaks_nothing() -> None:
    assert broken("architecture", ArchitectureSpec(name="bad", factory=Network, defaults=FITTING)) == {}


@pytest.mark.parametrize("promise", BAD_NETWORKS)
def test_the_kit_finds_a_mistake_of_a_network(promise: str) -> None:
    factory, says = BAD_NETWORKS[promise]
    found = broken("architecture", ArchitectureSpec(name="bad", factory=factory, defaults=FITTING))
    assert says in found[promise], found


def test_a_size_with_other_parameters_than_it_says() -> None:
    class Sized(Section):
        size: int = 1

    sizes = {"1M": {"size": 1}, "tiny": {"size": 2}}
    spec = ArchitectureSpec(name="bad", factory=Network, config=Sized, sizes=sizes, defaults=FITTING)
    found = broken("architecture", spec)
    assert "1M has 408 parameters" in found["sizes-have-the-parameters-that-they-declare"]


class PlainTask:
    """A task that keeps its contract, on random sequences: what the planted mistakes differ from."""

    def __init__(self, config: Any) -> None:
        pass

    def card(self) -> dict[str, Any]:
        said = dict.fromkeys(("title", "metric", "definition", "splits", "probe", "licence"), "a test")
        return {**said, "simulated": True}

    def check(self) -> None:
        pass

    def sequences(self, split: str) -> list[str]:
        return {"train": ["ACDE"], "valid": ["FGHI"]}.get(split, [])

    def floors(self) -> dict[str, Any]:
        return {"floor:noise": Noise(3)}

    def items(self, seed: int) -> str:
        return f"items of seed {seed}"

    def value(self, subject: Any, seed: int) -> float:
        return float(1 / (1 + np.exp(subject.pooled(["ACDE"])[0, 0])))

    def run(self, subject: Any, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        value = self.value(subject, seed)
        details = {"simulated": {"n": 1}, "seed": seed}
        each = np.full(3, value)
        items = self.items(seed)
        return TaskResult(
            "accuracy", value, (value, value), 3, "proteins", {"accuracy": value}, each, each, items, details
        )


class SharesSplits(PlainTask):
    def sequences(self, split: str) -> list[str]:
        return ["ACDE"]


class WithoutProvenance(PlainTask):
    def run(self, subject: Any, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        return replace(super().run(subject, seed=seed, limit=limit), details={})


class WithFiles(PlainTask):
    def card(self) -> dict[str, Any]:
        return {**super().card(), "data": {"a.csv": {"licence": "MIT"}}}


class OverOne(PlainTask):
    def value(self, subject: Any, seed: int) -> float:
        return 100 * super().value(subject, seed)


class DrawsAtRandom(PlainTask):
    def value(self, subject: Any, seed: int) -> float:
        return float(np.random.random())


class SameItemsAlways(PlainTask):
    def items(self, seed: int) -> str:
        return "items"


class ItemsOfASubject(PlainTask):
    def run(self, subject: Any, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        return replace(super().run(subject, seed=seed, limit=limit), items=f"{subject.name} {seed}")


class KeepsObjects(PlainTask):
    """Its numbers are rounded when they are written, for they are no plain floats."""

    def run(self, subject: Any, *, seed: int = 0, limit: int | None = None) -> TaskResult:
        found = super().run(subject, seed=seed, limit=limit)
        return replace(found, replicates=np.full(3, math.inf))


class WithoutLicence(PlainTask):
    def card(self) -> dict[str, Any]:
        return {key: value for key, value in super().card().items() if key != "licence"}


BAD_TASKS: Mapping[str, tuple[Any, str]] = {
    "its-card-says-what-it-is": (WithoutLicence, "It says no licence"),
    "validation-is-kept-apart-from-training": (SharesSplits, "1 stand in both, such as ACDE"),
    "a-result-says-what-it-was-made-of": (WithFiles, "The card names files, details['files'] is None"),
    "a-result-survives-writing": (KeepsObjects, "The replicates differ"),
    "a-metric-stays-in-its-bounds": (OverOne, "accuracy is "),
    "a-result-is-a-function-of-subject-and-seed": (DrawsAtRandom, " and "),
    "another-seed-is-another-draw": (SameItemsAlways, "the same for seeds 0 and 1"),
    "results-of-two-subjects-pair": (ItemsOfASubject, "items differ between subjects"),
}


def test_a_correct_task_breaks_nothing() -> None:
    assert broken("task", TaskSpec(name="bad", factory=PlainTask)) == {}


@pytest.mark.parametrize("promise", BAD_TASKS)
def test_the_kit_finds_a_mistake_of_a_task(promise: str) -> None:
    factory, says = BAD_TASKS[promise]
    found = broken("task", TaskSpec(name="bad", factory=factory))
    assert says in found[promise], found


def test_a_simulated_task_that_does_not_say_what_of() -> None:
    found = broken("task", TaskSpec(name="bad", factory=WithoutProvenance))
    assert "details['simulated'] does not say how" in found["a-result-says-what-it-was-made-of"]


class Hashing:
    """A generator that keeps its contract, without asking the network: what the planted mistakes differ from."""

    needs = frozenset({"encode"})
    letters = "ACDEFGHIKLMNPQRSTVWY"

    def write(self, model: Any, tokenizer: Any, lengths: Any, numbers: Any, rng: Any) -> Any:
        return [self.one(length, number, rng) for length, number in zip(lengths, numbers, strict=True)]

    def one(self, length: int, number: int, rng: Any) -> str:
        return "".join(self.letters[int(draw)] for draw in rng.at(number, np.arange(length)) % np.uint64(20))


class Lower(Hashing):
    letters = "acdefghiklmnpqrstvwy"


class FromNumpy(Hashing):
    def one(self, length: int, number: int, rng: Any) -> str:
        return "".join(np.random.choice(list(self.letters), length))


class ByPlace(Hashing):
    def write(self, model: Any, tokenizer: Any, lengths: Any, numbers: Any, rng: Any) -> Any:
        return super().write(model, tokenizer, lengths, range(len(lengths)), rng)


class Unseeded(Hashing):
    def one(self, length: int, number: int, rng: Any) -> str:
        return "ACDEFGHIKL"[number] * length


class TooLong(Hashing):
    def one(self, length: int, number: int, rng: Any) -> str:
        return super().one(length + 1, number, rng)


BAD_GENERATORS: Mapping[str, tuple[Any, str]] = {
    "it-writes-what-is-asked-for": (Lower, "It wrote ['a']"),
    "a-sequence-is-a-function-of-the-seed": (Unseeded, "Another seed gives the same"),
    "a-sequence-does-not-depend-on-its-batch": (ByPlace, "Sequence 1 is another one alone"),
    "no-global-generator-moves": (FromNumpy, "That of numpy.random moved"),
}


def test_a_correct_generator_breaks_nothing() -> None:
    assert broken("generator", GeneratorSpec(name="bad", factory=lambda config: Hashing())) == {}


@pytest.mark.parametrize("promise", BAD_GENERATORS)
def test_the_kit_finds_a_mistake_of_a_generator(promise: str) -> None:
    factory, says = BAD_GENERATORS[promise]
    found = broken("generator", GeneratorSpec(name="bad", factory=lambda config: factory()))
    assert says in found[promise], found


def test_a_generator_that_gives_something_else() -> None:
    found = broken("generator", GeneratorSpec(name="bad", factory=lambda config: TooLong()))
    assert "it can write with no architecture" in found["it-writes-what-is-asked-for"]
    assert "wrote [4] residues where [3] were asked for; tell its author" in found["it-writes-what-is-asked-for"]
    found = broken("generator", GeneratorSpec(name="bad", factory=lambda config: 7))
    assert "its factory returned an int, not a Generator" in found["it-writes-what-is-asked-for"]
