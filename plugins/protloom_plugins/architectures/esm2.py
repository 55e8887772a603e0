"""The architecture ``esm2``: the encoder of ESM-2 (Lin et al. 2023, Science 379:1123) over packed sequences.

Differences from a plain pre-norm transformer: rotary positions that restart at every sequence, and *token dropout*:
``<mask>`` embeddings are zeroed and all others of the sequence rescaled, also at inference. Sizes and the order of
operations follow fair-esm, whose weights load (see :mod:`protloom_plugins.architectures.esm2_weights`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protloom.contracts import BuildContext, Offsets
from protloom_plugins.architectures.rotary import RotaryEncoder, Shared, rotary_attention

if TYPE_CHECKING:
    from protloom.ops import Ops
    from protloom_plugins.architectures.esm2_config import Esm2Config


class Norm(nn.Module):
    """A layer norm whose arithmetic comes from the run's kernels."""

    def __init__(self, width: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``[..., D]``."""
        return self.ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: Esm2Config, ops: Ops) -> None:
        super().__init__()
        width, inner = config.width, config.width * config.ffn_multiple
        self.heads = config.heads
        self.ops = ops
        self.attention_norm = Norm(width, config.norm_eps, ops)
        self.qkv = nn.Linear(width, 3 * width)  # rows: queries, keys, values
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = Norm(width, config.norm_eps, ops)
        self.mlp_in = nn.Linear(width, inner)
        self.mlp_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, shared: Shared) -> tuple[Tensor, list[Tensor]]:
        """Maps ``[T, D]`` to ``[T, D]``, and gives each sequence's ``[heads, L, L]`` attention if it is asked for."""
        # the rotation is linear, so scaling the scores equals ESM-2's scaling of the queries before it
        mixed, maps = rotary_attention(self.qkv(self.attention_norm(x)), self.heads, shared, self.ops)
        x = x + self.attention_out(mixed)
        return x + self.mlp_out(self.ops.gelu(self.mlp_in(self.mlp_norm(x)))), maps


class Head(nn.Module):
    """The language-model head: dense, GELU, norm, then the transposed embedding and a bias."""

    def __init__(self, config: Esm2Config, vocabulary: int, ops: Ops) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = Norm(config.width, config.norm_eps, ops)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.ops = ops

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Maps ``[M, D]`` to ``[M, vocabulary]``."""
        return F.linear(self.norm(self.ops.gelu(self.dense(hidden))), embedding, self.bias)


class Esm2(RotaryEncoder):
    """ESM-2 over packed sequences; see :class:`protloom.contracts.Architecture`.

    Args:
        config: size and options.
        build: gives the vocabulary, the kernels and whether blocks are recomputed in the backward pass.
    """

    capabilities = frozenset({"encode", "attentions", "contacts"})

    def __init__(self, config: Esm2Config, build: BuildContext) -> None:
        super().__init__(config, build)
        self.mask_id = build.tokenizer.mask_id
        self.pad_id = build.tokenizer.pad_id
        self._specials = len(build.tokenizer.prefix), len(build.tokenizer.suffix)
        self._suffix = tuple(build.tokenizer.suffix)
        vocabulary = len(build.tokenizer.vocab)
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, build.ops) for _ in range(config.layers))
        self.final_norm = Norm(config.width, config.norm_eps, build.ops)
        self.head = Head(config, vocabulary, build.ops)
        # fitted by logistic regression on known contacts, not by pretraining (Rao et al. 2021): no gradient
        self.contact_head = nn.Linear(config.layers * config.heads, 1).requires_grad_(False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws all parameters anew, by ``config.init``, from PyTorch's global generator."""
        for module in self.modules():
            if isinstance(module, Norm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Linear | nn.Embedding):
                if self.config.init == "esm2":
                    module.reset_parameters()
                else:
                    nn.init.normal_(module.weight, std=0.02)
                    if isinstance(module, nn.Linear):
                        module.bias.zero_()
        self.head.bias.zero_()
        self.embedding.weight[self.pad_id] = 0.0
        if self.config.init == "esm2":
            for block in self.blocks:
                for projection in block.qkv.weight.chunk(3):  # type: ignore[union-attr, operator]
                    nn.init.xavier_uniform_(projection, gain=1 / math.sqrt(2))
                nn.init.xavier_uniform_(block.attention_out.weight)  # type: ignore[arg-type, union-attr]
                block.attention_out.bias.zero_()  # type: ignore[union-attr, operator]

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps final states ``[M, D]`` to ``[M, vocabulary]``."""
        out: Tensor = self.head(hidden, self.embedding.weight)
        return out

    def contact_features(self, tokens: Tensor, cu: Offsets) -> list[Tensor]:
        """Returns what the contact head reads: symmetrised, corrected attention between residues.

        Rows and columns of ``<eos>`` are zeroed, the special symbols trimmed, A + Aᵀ taken, and the average product
        (row sum · column sum / total) subtracted (Rao et al. 2021, "Transformer protein language models are
        unsupervised structure learners").

        Returns:
            For each sequence ``[R, R, blocks · heads]`` fp32, with R residues; pair (i, j) is ``features[i, j]``.
        """
        encoded = self.encode(tokens, cu, attentions=True)
        front, back = self._specials
        features = []
        for ids, maps in zip(tokens.split(cu.lengths), encoded.attentions or (), strict=True):
            for symbol in self._suffix:
                present = (ids != symbol).to(maps.dtype)  # [L]
                maps = maps * present * present.unsqueeze(1)  # noqa: PLW2901 - one factor a symbol
            end = max(front, len(ids) - back)
            inner = maps[..., front:end, front:end].flatten(0, 1)  # [blocks · heads, R, R]
            inner = inner + inner.transpose(1, 2)
            rows, columns = inner.sum(-1, keepdim=True), inner.sum(-2, keepdim=True)
            total = inner.sum((-1, -2), keepdim=True)
            features.append((inner - rows * columns / total).permute(1, 2, 0))
        return features

    def contacts(self, tokens: Tensor, cu: Offsets) -> list[Tensor]:
        """Returns for each sequence ``[R, R]`` contact probabilities by the contact head's logistic regression."""
        head = self.contact_head
        return [
            torch.sigmoid(F.linear(features.to(head.weight.dtype), head.weight, head.bias).squeeze(-1))
            for features in self.contact_features(tokens, cu)
        ]

    def embed(self, tokens: Tensor, cu: Offsets, sequence: Tensor) -> Tensor:
        """Looks tokens up ``[T, D]`` and applies token dropout, each sequence by its own share of masks."""
        x: Tensor = self.embedding(tokens)
        if not self.config.token_dropout or self.mask_id is None:
            return x
        masked = tokens == self.mask_id
        lengths = cu.cu.diff().to(torch.float32)  # [n]
        count = torch.zeros_like(lengths).index_add_(0, sequence, masked.to(torch.float32))
        # a sequence of nothing but masks is all zeros anyway; the bound keeps its factor finite
        kept = (1.0 - count / lengths).clamp_min(1e-6)
        factor = (1.0 - self.config.train_mask_ratio) / kept  # [n]
        return x * factor[sequence].masked_fill(masked, 0.0).to(x.dtype).unsqueeze(1)

    def frequencies(self, device: torch.device) -> Tensor:
        """Returns the rotary frequencies ``[d/2]``, rounded as the weights were trained with."""
        exact = super().frequencies(device)
        return exact.half().to(exact.dtype) if self.config.rope_precision == "fp16" else exact
