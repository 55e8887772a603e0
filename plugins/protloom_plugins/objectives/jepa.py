"""Latent prediction: the states of the uncorrupted sequence are predicted from the corrupted one (ProteinJEPA).

The student pass is shared with a masked language model whose corruption is shared (``corruption: mlm``). The clean pass
stops at the target layer, has no gradient and never reaches the language-model head.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protloom import collapse
from protloom.contracts import Losses, Metric, Packed, PassRequest, Prepared, Term
from protloom.device import on_device
from protloom.errors import UserError
from protloom.objective import Objective
from protloom_plugins.objectives import regularisers
from protloom_plugins.objectives.mlm import MaskedLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.ops import GatedMLP
    from protloom.rng import CounterRNG
    from protloom_plugins.objectives.jepa_config import JepaConfig, PredictorConfig, TeacherConfig


class Predictor(nn.Module):
    """Gated blocks without biases that map states to predictions of the same width.

    Args:
        width: D.
        config: number of blocks and their hidden size.
        gated_mlp: the kernel.
    """

    def __init__(self, width: int, config: PredictorConfig, gated_mlp: GatedMLP) -> None:
        super().__init__()
        self._gated_mlp = gated_mlp
        hidden = round(config.expansion * width)
        self.gate = nn.ParameterList(_drawn(hidden, width) for _ in range(config.depth))
        self.up = nn.ParameterList(_drawn(hidden, width) for _ in range(config.depth))
        self.down = nn.ParameterList(_drawn(width, hidden) for _ in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[M, D]`` to ``[M, D]``."""
        for gate, up, down in zip(self.gate, self.up, self.down, strict=True):
            x = self._gated_mlp(x, gate, up, down, activation="silu")
        return x


def _drawn(rows: int, columns: int) -> nn.Parameter:
    """Returns a weight that keeps the size of what passes through it."""
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(columns))


class Jepa(Objective):
    """Predicts latent states; terms ``jepa``, summed over positions, and the regulariser's own.

    Args:
        config: see :class:`~protloom_plugins.objectives.jepa_config.JepaConfig`.
        build: gives the network, which a teacher is a copy of.

    Raises:
        UserError: if a layer is beyond the network's depth.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encode"})
    config: JepaConfig

    def __init__(self, config: JepaConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        network = cast("Architecture", build.architecture)
        self._masking = MaskedLM(config.corruption_options, build) if build.tokenizer.mask_id is not None else None
        self.student_layer = _layer(config.student_layer, network.depth, "student_layer")
        self.target_layer = _layer(config.target.layer, network.depth, "target.layer")
        self.scored_as = f"layer {self.target_layer}"
        self._depth = network.depth
        self.predictor = Predictor(network.width, config.predictor, build.ops.gated_mlp)
        self.teacher: nn.Module | None = None
        if config.target.network == "ema":
            # a network that is loaded later would leave the copy behind: the trainer loads weights before this
            self.teacher = copy.deepcopy(cast(nn.Module, network)).requires_grad_(False)
        self.terms: Mapping[str, Term] = {"jepa": Term(weight=config.weight_jepa)}
        if config.regulariser.name != "none":
            self.terms = {**self.terms, config.regulariser.name: Term(False, weight=config.regulariser.weight)}

    def request(self) -> PassRequest:
        """Asks for the student's states; the pass may stop there if nobody needs more."""
        return PassRequest(layers=(self.student_layer,), stop_at=self.student_layer)

    # ------------------------------------------------------------------------------------------------ on the host

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Corrupts as ``mlm`` does with ``corruption_options``."""
        return self.prepare_shared(batch, self._own_masking().prepare(batch, rng), rng)

    def prepare_validation(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Corrupts as ``mlm`` does in validation."""
        return self.prepare_shared(batch, self._own_masking().prepare_validation(batch, rng), rng)

    def prepare_shared(self, batch: SequenceBatch, base: Prepared, rng: CounterRNG) -> Prepared:
        """Predicts where ``base`` corrupted; ``index`` is ``[M]`` int64, places in input and clean sequence alike."""
        if not np.array_equal(base.inputs.cu, batch.packed.cu):
            raise UserError(
                "jepa predicts the state of each hidden residue at that residue's place, but the corruption that it "
                "shares changes the length of the input (merged sentinels): use sentinels: unmerged, or share mlm's"
            )
        index = _positions(batch, base) if self.config.positions == "masked" else np.arange(len(batch.residue))
        # what stands in front (a mode) is the input's own
        clean = np.where(batch.residue, batch.packed.tokens, base.inputs.tokens)
        counts = dict.fromkeys(self.terms, len(index))
        return Prepared(base.inputs, counts, {"index": index}, clean=Packed(clean, batch.packed.cu))

    def _own_masking(self) -> MaskedLM:
        if self._masking is None:
            raise UserError(
                f"jepa has nothing to corrupt with: tokenizer {self.tokenizer.name!r} has no mask symbol; let it share "
                "another objective's corruption (corruption: NAME)"
            )
        return self._masking

    # ---------------------------------------------------------------------------------------------- on the device

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the summed distance of predictions and targets, the regulariser times the count, and metrics."""
        index = prepared["index"]  # [M]
        # the student first: autocast keeps its cast weights for the clean pass, not the other way round, where they
        # would have no gradient
        student = passes.encoded.layers[self.student_layer][index]  # [M, D]
        target = self._target(model, passes, index)  # [M, D]
        raw = self.predictor(student)
        predicted, wanted = self._normalised(raw), self._normalised(target)
        each = self._distance(predicted, wanted)  # [M]
        totals = {"jepa": each.sum()}
        metrics: dict[str, Metric] = {}
        name = self.config.regulariser.name
        if name != "none":
            states = {"pred": raw, "pred_ln": predicted, "student": student}[self.config.regulariser.place]
            value = self._regulariser(states, ctx)
            totals[name] = value * len(index)
        if ctx.logging:
            # predicting the mean of the targets is what is left to a network that knows nothing
            mean = self._distance(wanted.mean(0, keepdim=True).expand_as(wanted), wanted) if len(index) else each
            metrics["mean_target_loss"] = Metric(mean.detach().sum(), float(len(index)))
            metrics |= collapse.measure(wanted, "target") | collapse.measure(predicted, "predicted")
        return Losses(totals, metrics)

    def _target(self, model: Architecture, passes: Forward, index: Tensor) -> Tensor:
        """Runs the clean pass up to the target layer; no gradient, no head."""
        assert passes.clean is not None
        network = cast("Architecture", self.teacher) if self.teacher is not None else model
        tokens, cu = passes.clean
        with torch.no_grad():
            encoded = network.encode(tokens, cu, layers=(self.target_layer,), stop_at=self.target_layer)
            return encoded.layers[self.target_layer][index]

    def _normalised(self, x: Tensor) -> Tensor:
        x = x.float()
        return F.layer_norm(x, x.shape[-1:]) if self.config.normalise else x

    def _distance(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Returns ``[M]``."""
        if self.config.loss == "mse":
            return (predicted - wanted).square().mean(-1)
        return 1.0 - F.cosine_similarity(predicted, wanted, dim=-1)

    def _regulariser(self, states: Tensor, ctx: StepContext) -> Tensor:
        """Returns the regulariser of a random subset of rows, of all processes together."""
        config = self.config.regulariser
        with torch.autocast(states.device.type, enabled=False):
            rows = states.float()
            if len(rows) > config.rows:
                generator = torch.Generator().manual_seed(ctx.rng.stream("rows").draw(0))
                chosen = torch.randperm(len(rows), generator=generator)[: config.rows]
                rows = rows[on_device(chosen, rows.device)]
            axes = regularisers.directions(rows.shape[1], config.directions, ctx.rng.stream("axes").draw(0), rows)
            if config.name == "visreg":
                return regularisers.visreg(rows, axes, all_gather=ctx.all_gather)
            return regularisers.sigreg(rows, axes, scale_by_n=config.scale_by_n, all_sum=ctx.all_sum)

    def flops(self, forward: float, head: float, scored: int) -> float:
        """Adds the blocks of the clean pass, forward only, and the predictor; the output head is not used."""
        weights = sum(p.numel() for p in self.predictor.parameters())
        return forward * self.target_layer / self._depth + 6.0 * weights * scored

    # ------------------------------------------------------------------------------------------------ the teacher

    def after_step(self, model: Architecture, step: int) -> Mapping[str, Metric] | None:
        """Moves the teacher towards the student; ``teacher_distance`` is their squared distance over ‖student‖²."""
        if self.teacher is None:
            return None
        keep = decay_at(self.config.target.teacher, step)
        own = cast(nn.Module, model)
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), own.parameters(), strict=True)
            mine, theirs = zip(*((_local(a), _local(b).to(a.dtype)) for a, b in pairs), strict=True)
            torch._foreach_lerp_(mine, theirs, 1.0 - keep)  # not one by one: a network has hundreds of them
            for buffer, current in zip(self.teacher.buffers(), own.buffers(), strict=True):
                buffer.copy_(current)
        return {"teacher_distance": Metric(*self._apart(own))}

    def _apart(self, student: nn.Module) -> tuple[Tensor, Tensor]:
        """Returns ‖θ' - θ‖² and ‖θ‖² of what this process holds; here both are sharded alike, in a forward not."""
        assert self.teacher is not None
        with torch.no_grad():
            mine, theirs = ([_local(p).float() for p in of.parameters()] for of in (self.teacher, student))
            apart, size = (
                torch.stack(torch._foreach_norm(tensors)).square().sum()
                for tensors in (torch._foreach_sub(mine, theirs), theirs)
            )
        return apart, size


def decay_at(config: TeacherConfig, step: int) -> float:
    """Returns the share of itself that the teacher keeps after optimizer step ``step``, counted from 0."""
    done = min(1.0, step / config.ramp_steps) if config.ramp_steps else 1.0
    if config.ramp == "cosine":
        done = 0.5 * (1.0 - math.cos(math.pi * done))
    return config.start + (config.decay - config.start) * done


def _layer(choice: str | int, depth: int, key: str) -> int:
    """Returns the number of a layer."""
    number = {"last": depth, "half": depth // 2}.get(choice, choice) if isinstance(choice, str) else choice
    assert isinstance(number, int)
    if number > depth:
        raise UserError(
            f"objective.{key}: layer {number} is beyond the network's {depth} blocks: last, half or 0 … {depth}"
        )
    return number


def _positions(batch: SequenceBatch, base: Prepared) -> NDArray[np.int64]:
    """Returns where a corruption hides residues: its ``index``, or wherever the input differs from the sequence."""
    if "index" in base.arrays:
        return base.arrays["index"]
    return np.flatnonzero(batch.residue & (base.inputs.tokens != batch.packed.tokens))


def _local(x: Any) -> Tensor:
    """Returns this process's part of a parameter that may be sharded."""
    return cast(Tensor, x.to_local() if hasattr(x, "to_local") else x)
