"""The architecture ``amplify``: the encoder of AMPLIFY (Fournier et al. 2024) over packed sequences.

A pre-norm transformer with RMS norms, rotary positions, SwiGLU layers and no biases but that of the output head, which
is a matrix of its own. Released weights load (see :mod:`protloom_plugins.architectures.amplify_weights`).

AMPLIFY turns neighbouring features (2i, 2i + 1) of a head by the same angle, the kernels here the features
(i, i + d/2). Scores do not change if queries and keys are permuted alike, so the rows of their matrices lie here in the
kernels' order, and reading released weights puts them there: the network computes what AMPLIFY computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from protloom.contracts import BuildContext
from protloom_plugins.architectures.gated_layers import RMSNorm, RotaryBlock
from protloom_plugins.architectures.rotary import RotaryEncoder

if TYPE_CHECKING:
    from protloom_plugins.architectures.amplify_config import AmplifyConfig


class Amplify(RotaryEncoder):
    """AMPLIFY over packed sequences; see :class:`protloom.contracts.Architecture`.

    Args:
        config: size and options.
        build: gives the vocabulary, the kernels and whether blocks are recomputed in the backward pass.
    """

    def __init__(self, config: AmplifyConfig, build: BuildContext) -> None:
        super().__init__(config, build)
        vocabulary = len(build.tokenizer.vocab)
        sizes = config.width, config.heads, config.inner, config.norm_eps
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(RotaryBlock(*sizes, build.ops) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.width, config.norm_eps, build.ops)
        self.head = nn.Linear(config.width, vocabulary)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws all parameters anew from PyTorch's global generator: matrices uniform, norms 1, the bias 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                parameter.uniform_(-self.config.init_range, self.config.init_range)
            else:
                parameter.fill_(0.0 if name == "head.bias" else 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps final states ``[M, D]`` to ``[M, vocabulary]``."""
        out: Tensor = self.head(hidden)
        return out
