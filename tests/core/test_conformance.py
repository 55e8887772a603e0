"""The kit finds what is planted, and every installed component keeps its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.errors import UserError
from protloom.objective import Objective
from protloom.plugin_loader import Component, PluginInfo
from protloom.plugins import Registry
from protloom.settings import Section
from protloom.specs import ArchitectureSpec, ObjectiveSpec, OptimizerSpec, Spec, TaskSpec, TokenizerSpec
from protloom.testing import Violation, conformance
from protloom.testing.checks import KINDS

INSTALLED = Registry.discover()


def checks_of_everything() -> list[Any]:
    """One case for each promise of each built-in component: a new component is covered once it is registered."""
    found = []
    for kind in KINDS:
        for component in INSTALLED.components(kind):
            # tasks that need data, and those that simulate them, are in tests of their own
            if component.builtin and kind != "task":
                found += [
                    pytest.param(check, id=f"{kind}-{component.name}-{check}")
                    for check in conformance(kind, component.name, registry=INSTALLED)
                ]
    return found


@pytest.mark.parametrize("check", checks_of_everything())
def test_built_in_components_keep_their_contract(check: Callable[[], None]) -> None:
    check()


def complete_tasks() -> list[str]:
    """Tasks that need no options: not the one that is made of a user's own file."""
    found = []
    for component in INSTALLED.components("task"):
        model = component.load_config()
        needed = set() if model is None else {name for name, field in model.model_fields.items() if field.is_required()}
        assert isinstance(component.spec, TaskSpec)
        if needed <= set(component.spec.options):
            found.append(INSTALLED.shortest(component))
    return found


@pytest.mark.parametrize("name", complete_tasks())
def test_built_in_tasks_describe_themselves(name: str) -> None:
    for check in conformance("task", name, registry=INSTALLED)[:3]:
        check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sim-ss3", "sim-retrieval", "sim-contact"])
def test_simulated_tasks_keep_their_contract(name: str) -> None:
    options = {"proteome_size": 2000}
    for check in conformance("task", name, registry=INSTALLED, options=options):
        check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neuropeptide", "chezod-disorder", "scop-class", "ec-deepfri", "scope-retrieval"])
def test_tasks_on_real_data_keep_their_contract(name: str, shared_data: Path) -> None:
    limit = 1500 if name == "scope-retrieval" else 40  # of 40 domains none has a relative
    for check in conformance("task", name, registry=INSTALLED, data_dir=shared_data, limit=limit):
        check()


@pytest.mark.parametrize("preset", ["proteinjepa-v2", "all-position", "jepa-only"])
def test_objectives_with_a_teacher_keep_their_contract(preset: str) -> None:
    for check in conformance("objective", "jepa", registry=INSTALLED, options={"preset": preset})[1:]:
        check()


# ------------------------------------------------------------------------------------------------- planted violations


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
    "corruption-touches-no-global-generator": (SeedsEverybody, "One of them moved"),
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
        (Raises, "RuntimeError: no such file"),
        (not_an_objective, "The factory returned a Linear"),
    ],
)
def test_a_component_that_is_no_such_thing(factory: Any, says: str) -> None:
    found = broken("objective", ObjectiveSpec(name="bad", factory=factory))
    assert any(says in told for told in found.values()), found


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


def test_mistakes_of_other_kinds() -> None:
    sgd = OptimizerSpec(name="bad", factory=lambda config, groups: torch.optim.SGD(groups, lr=0.1), config=ForgetsRate)
    assert "have no 'lr'" in broken("optimizer", sgd)["it-is-an-optimizer-with-a-rate"]

    class TwoAlike:
        """The letters A and C have one id."""

        def __init__(self) -> None:
            from protloom_plugins.tokenizers.esm import EsmTokenizer

            whole = EsmTokenizer()
            self.__dict__.update({name: getattr(whole, name) for name in vars(type(self)).get("fields", ())})
            for name in ("name", "vocab", "prefix", "suffix", "pad_id", "mask_id", "unknown_id", "residue_ids"):
                setattr(self, name, getattr(whole, name))
            self.sentinels, self.prefixes, self.fingerprint = whole.sentinels, whole.prefixes, whole.fingerprint
            self.table = whole.table.copy()
            self.table[ord("C")] = self.table[ord("A")]
            self.encode, self.decode = whole.encode, whole.decode

    found = broken("tokenizer", TokenizerSpec(name="bad", factory=lambda config: TwoAlike()))
    assert "a-residue-is-a-token" in found


class Leaks(nn.Module):
    """A network whose attention does not stop at the end of a sequence."""

    capabilities = frozenset({"encode"})
    width, depth, heads = 8, 1, 1

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(build.tokenizer.vocab), 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])

    def encode(self, tokens: Any, cu: Any, *, layers: Any = (), stop_at: Any = None, attentions: bool = False) -> Any:
        from protloom.contracts import Encoded

        states = self.blocks[0](self.embedding(tokens))
        states = states + (states.mean(0) if len(states) else states.sum(0))
        return Encoded(states, dict.fromkeys(layers, states))

    def logits(self, hidden: Any) -> Any:
        return hidden @ self.embedding.weight.T


def test_a_network_that_mixes_sequences() -> None:
    defaults = {"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"}
    found = broken("architecture", ArchitectureSpec(name="bad", factory=Leaks, defaults=defaults))
    assert "other states in a batch than alone" in found["packed-equals-single"]


def test_what_has_no_checks() -> None:
    with pytest.raises(UserError, match="there are no checks for a corpus"):
        conformance("corpus", "demo")
    with pytest.raises(UserError, match="Did you mean 'mlm'"):
        conformance("objective", "mlmm")
