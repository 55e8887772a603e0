"""The architecture ``proteinbert2``: a ProteinBERT2-like encoder over packed sequences.

A stem of depthwise-separable convolutions, then attention blocks that are by turns local (``|i - j| <= window``) and
global, with rotary positions, RMS norms, SwiGLU layers, no biases, and the transposed embedding as output head.

*Like*, because no code or weights of ProteinBERT2 were at hand. Its published outline (12 layers, width 512, 8 heads,
3 convolution layers, window 256, about 35 M parameters; the parts named above) leaves kernel sizes, the width of the
feed-forward layer, the order of local and global layers, biases, the place of the norms and the head open. They are
chosen here so that the number of parameters fits, and are options where they could be otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protloom.contracts import BuildContext, Offsets
from protloom_plugins.architectures.gated_layers import Projection, RMSNorm, RotaryBlock
from protloom_plugins.architectures.rotary import RotaryEncoder

if TYPE_CHECKING:
    from protloom.ops import Ops
    from protloom_plugins.architectures.proteinbert2_config import ProteinBert2Config


class Convolution(nn.Module):
    """One filter for each feature along each packed sequence; beyond a sequence's own ends lie zeros.

    Args:
        width: D.
        kernel: K, odd.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, kernel))

    def forward(self, x: Tensor, cu: Offsets, sequence: Tensor) -> Tensor:
        """Maps ``[T, D]`` to ``[T, D]``; ``sequence`` ``[T]`` is the number of each token's sequence."""
        width, kernel = self.weight.shape
        half = kernel // 2
        # a gap of zeros before each sequence keeps neighbours apart; behind the last one more row than the filter
        # needs, so that it also fits into a batch without any sequence
        places = torch.arange(cu.total, device=x.device) + half * (sequence + 1)  # [T]
        stream = x.new_zeros(cu.total + half * (cu.n + 2) + 1, width).index_copy(0, places, x)  # [S, D]
        # as an image one pixel wide: the layout [S, D] is its channels-last form, for which PyTorch's CPU kernels are
        # 3 to 5 times as fast as a convolution of [D, S]
        image = stream[None, :, None, :].permute(0, 3, 1, 2)  # [1, D, S, 1]
        mixed = F.conv2d(image, self.weight.view(width, 1, kernel, 1), groups=width)
        return mixed.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, places - half)


class StemLayer(nn.Module):
    """x += pointwise(gelu(depthwise(norm(x)))): a depthwise-separable convolution (Chollet 2017, Xception)."""

    def __init__(self, config: ProteinBert2Config, ops: Ops) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width, config.norm_eps, ops)
        self.depthwise = Convolution(config.width, config.kernel)
        self.pointwise = Projection(config.width, config.width)
        self.ops = ops

    def forward(self, x: Tensor, cu: Offsets, sequence: Tensor) -> Tensor:
        """Maps ``[T, D]`` to ``[T, D]``."""
        mixed: Tensor = self.pointwise(self.ops.gelu(self.depthwise(self.norm(x), cu, sequence)))
        return x + mixed


class ProteinBert2(RotaryEncoder):
    """A ProteinBERT2-like encoder; see :class:`protloom.contracts.Architecture`.

    State 0 is what the first attention block reads: the embedding after the stem.

    Args:
        config: size and options.
        build: gives the vocabulary, the kernels and whether layers are recomputed in the backward pass.
    """

    def __init__(self, config: ProteinBert2Config, build: BuildContext) -> None:
        super().__init__(config, build)
        self.embedding = nn.Embedding(len(build.tokenizer.vocab), config.width)
        self.stem = nn.ModuleList(StemLayer(config, build.ops) for _ in range(config.stem_layers))
        sizes = config.width, config.heads, config.inner, config.norm_eps
        local = 0 if config.first == "local" else 1
        self.encoder_blocks = nn.ModuleList(
            RotaryBlock(*sizes, build.ops, window=config.window if i % 2 == local else None)
            for i in range(config.layers)
        )
        self.final_norm = RMSNorm(config.width, config.norm_eps, build.ops)
        self.initialise()

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """All layers that every token passes: FSDP2 gathers them one at a time, and FLOPs are counted by them."""
        return nn.ModuleList([*self.stem, *self.encoder_blocks])

    @property
    def attention_blocks(self) -> nn.ModuleList:
        """The blocks by which hidden states are numbered: those behind the stem."""
        return self.encoder_blocks

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws all parameters anew from PyTorch's global generator; no source says how, see ``init_std``."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:  # norms
                parameter.fill_(1.0)
            elif name.endswith(".depthwise.weight"):
                parameter.normal_(std=self.config.kernel**-0.5)  # keeps the size of what it reads
            else:
                parameter.normal_(std=self.config.init_std)

    def embed(self, tokens: Tensor, cu: Offsets, sequence: Tensor) -> Tensor:
        """Looks tokens up and passes them through the stem, ``[T, D]``."""
        x: Tensor = self.embedding(tokens)
        recompute = self.recomputes()
        for layer in self.stem:
            x = checkpoint(layer, x, cu, sequence, use_reentrant=False) if recompute else layer(x, cu, sequence)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps final states ``[M, D]`` to ``[M, vocabulary]``."""
        return F.linear(hidden, self.embedding.weight)
