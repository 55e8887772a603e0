"""A third party's objective that owns parameters: a trained predictor, a kept teacher, and a statistic of the batch."""

from __future__ import annotations

from pathlib import Path

from plugin_files import Site

PLUGIN = """
    import os
    import time

    from protloom import ArchitectureSpec, ObjectiveSpec, hookimpl

    if "ACME_CLOCK_OF_EACH_RANK" in os.environ:
        time.strftime = lambda *_: "second-" + os.environ["RANK"]

    @hookimpl
    def protloom_objectives():
        return [
            ObjectiveSpec(name="twin", factory="acme_twin_loss:Twin", config="acme_twin_loss:TwinOptions"),
            ObjectiveSpec(name="liar", factory="acme_twin_loss:Liar", config="acme_twin_loss:LiarOptions"),
            ObjectiveSpec(name="needy", factory="acme_twin_loss:Needy"),
        ]

    @hookimpl
    def protloom_architectures():
        return [
            ArchitectureSpec(
                name="other",
                factory="protloom_plugins.architectures.esm2:Esm2",
                config="protloom_plugins.architectures.esm2_config:Esm2Config",
                defaults={"tokenizer": "esm", "objective": "mlm", "optimizer": "adamw"},
            )
        ]
"""

LOSS = '''
import copy

import numpy as np
import torch
from protloom.contracts import Losses, Metric, Prepared, Term
from protloom.objective import Objective
from protloom.settings import Section
from torch import nn


class TwinOptions(Section):
    dropout: float = 0.0
    momentum: float = 0.9


class Twin(Objective):
    """Predicts what an averaged copy of the network makes of the same tokens; spreads the pooled states."""

    def __init__(self, config, build):
        super().__init__(config, build)
        self.terms = {"predict": Term(), "spread": Term(additive=False)}
        self.predictor = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(build.architecture.width, 8))
        self.target = nn.Linear(build.architecture.width, 8).requires_grad_(False)
        self.teacher = copy.deepcopy(build.architecture).requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def prepare(self, batch, rng):
        return Prepared(batch.packed, self._counts(batch.packed), {})

    def prepare_shared(self, batch, base, rng):
        return Prepared(base.inputs, self._counts(base.inputs), {})

    def _counts(self, packed):
        return {"predict": len(packed.tokens), "spread": packed.n}

    def loss(self, model, passes, prepared, ctx):
        states = passes.encoded.last  # [T, D]
        with torch.no_grad():
            goal = self.target(self.teacher.encode(passes.tokens, passes.cu).last)
        error = (self.predictor(states) - goal).square().sum()
        # the mean state of the whole batch, on all ranks: a statistic, not a sum over items
        total = ctx.all_sum(states.sum(dim=0))
        number = ctx.all_sum(torch.tensor(float(len(states))))
        value = (total / number.clamp(min=1)).square().sum()
        return Losses({"predict": error, "spread": value * passes.cu.n}, {"error": Metric(error.detach(), len(states))})

    def after_step(self, model, step):
        m = self.config.momentum
        with torch.no_grad():
            for kept, moved in zip(self.teacher.parameters(), model.parameters()):
                kept.mul_(m).add_(moved, alpha=1 - m)
            self.seen += 1


class LiarOptions(Section):
    lie: str


class Liar(Objective):
    """Breaks the contract in the way that it is told to."""

    def __init__(self, config, build):
        super().__init__(config, build)
        self.terms = {"real": Term()}

    def prepare(self, batch, rng):
        counts = {"no-count": {}, "odd-count": {"real": 1, "made-up": 1}}.get(self.config.lie, {"real": 1})
        return Prepared(batch.packed, counts, {"targets": np.ones(3, dtype=np.float32)})

    def prepare_shared(self, batch, base, rng):
        return Prepared(batch.packed, {"real": 1}, {})

    def loss(self, model, passes, prepared, ctx):
        total = passes.encoded.last.sum()
        return Losses({
            "undeclared": {"real": total, "made-up": total},
            "missing": {},
            "detached": {"real": total.detach()},
            "vector": {"real": total.expand(3)},
        }.get(self.config.lie, {"real": total}))


class Needy(Objective):
    """Needs what no network can do."""

    needs = frozenset({"encode", "levitate"})
'''


def install(folder: Path) -> None:
    """Writes the distribution into a folder that stands for ``site-packages``."""
    folder.mkdir(exist_ok=True)
    Site(folder).add("acme-twin", "acme_twin", PLUGIN)
    (folder / "acme_twin_loss.py").write_text(LOSS, encoding="utf-8")
