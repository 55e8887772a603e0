"""Masked diffusion: every sequence is hidden at a rate t of its own, drawn from U(0, 1]; its loss is weighted by 1 / t.

The sum is a bound, in nats, on −log p(sequence) (Sahoo et al. 2024, "Simple and effective masked diffusion language
models", eq. 10 with a linear schedule; for proteins: Wang et al. 2024, DPLM). Divided by the number of residues it is a
bound a residue, which compares across models and lengths; the plain cross entropy of masked LM does not. A network
trained so writes proteins: see :mod:`protloom_masked_diffusion.sampler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.contracts import Losses, Metric, Packed, Prepared, Term
from protloom.errors import UserError
from protloom.objective import Objective
from protloom.rng import threshold, uniform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from protloom.contracts import Architecture, BuildContext, SequenceBatch, StepContext
    from protloom.objective import Forward
    from protloom.rng import CounterRNG
    from protloom_masked_diffusion.masked_diffusion_config import MaskedDiffusionConfig


class MaskedDiffusion(Objective):
    """Predicts hidden residues; the loss of a sequence hidden at rate t is Σ −log p(residue) / t.

    Args:
        config: smallest t.
        build: gives tokenizer and kernels.

    Raises:
        UserError: if the tokenizer has no mask symbol.
    """

    config: MaskedDiffusionConfig

    def __init__(self, config: MaskedDiffusionConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        if build.tokenizer.mask_id is None:
            raise UserError(f"masked-diffusion needs a mask symbol; tokenizer {build.tokenizer.name!r} has none")
        self.terms: Mapping[str, Term] = {"bound": Term(nats=True)}
        self._mask_id = build.tokenizer.mask_id
        self._cross_entropy = build.ops.cross_entropy

    def prepare(self, batch: SequenceBatch, rng: CounterRNG) -> Prepared:
        """Hides each sequence at its own rate.

        ``index`` and ``targets`` ``[M]``: what is hidden; ``weights`` ``[M]``: 1 / t of its sequence. What is counted
        is residues, hidden or not: the weighted sum stands for all of them.
        """
        cu = batch.packed.cu
        least = self.config.least_time
        # a stream for the rates, one for the positions: otherwise they would be the same hash
        time = least + (1 - least) * (1 - uniform(batch.keys(rng.stream("time"))))  # [n] in (least, 1]
        lengths = np.diff(cu)
        bits = rng.positions(batch.keys(rng), cu)  # [T]
        hidden = batch.residue & (bits < threshold(np.repeat(time, lengths)))
        index = np.flatnonzero(hidden).astype(np.int64)
        tokens = batch.packed.tokens.copy()
        tokens[index] = self._mask_id
        return Prepared(
            inputs=Packed(tokens, cu),
            counts={"bound": int(batch.residue.sum())},
            arrays={
                "index": index,
                "targets": batch.packed.tokens[index].astype(np.int64),
                "weights": np.repeat(1 / time, lengths)[index].astype(np.float32),
            },
        )

    def loss(self, model: Architecture, passes: Forward, prepared: Mapping[str, Tensor], ctx: StepContext) -> Losses:
        """Returns the weighted sum over hidden residues, and the plain cross entropy and accuracy there."""
        index, targets = prepared["index"], prepared["targets"]
        logits = model.logits(passes.encoded.last[index])
        each = self._cross_entropy(logits, targets)
        right = (logits.detach().argmax(dim=-1) == targets).sum()
        hidden = float(len(targets))
        metrics = {"cross_entropy": Metric(each.detach().sum(), hidden), "accuracy": Metric(right, hidden)}
        return Losses({"bound": (each * prepared["weights"]).sum()}, metrics)
