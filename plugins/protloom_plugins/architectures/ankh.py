"""The architecture ``ankh``: the encoder-decoder of Ankh and Ankh3 over packed sequences on both sides.

It is T5 v1.1 (Raffel et al. 2020, section 2.1; Shazeer 2020 for the gated layers): pre-norm blocks with RMS norms,
attention that is *not* divided by √d, one bias by relative position for each stack and none between the stacks, gated
feed-forward layers, no biases anywhere, and an output head of its own. Released weights load (see
:mod:`protloom_plugins.architectures.ankh_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protloom.contracts import BuildContext, Encoded, Offsets
from protloom.errors import UserError
from protloom_plugins.architectures.ankh_cache import AnkhCache, BlockCache
from protloom_plugins.architectures.ankh_layers import Attention, relative_buckets
from protloom_plugins.architectures.encoding import last_layer, run_blocks
from protloom_plugins.architectures.gated_layers import GatedMLP, Projection, RMSNorm

if TYPE_CHECKING:
    from protloom.ops import Ops
    from protloom_plugins.architectures.ankh_config import AnkhConfig


@dataclass(frozen=True)
class Shared:
    """What the blocks of one pass share.

    A data class, not a tuple: FSDP2 casts every tensor it finds in a block's arguments, and the bias stays as it is.

    Attributes:
        cu: offsets of the sequences.
        bias: ``[H, 2R - 1]`` added to the scores by distance.
        memory_cu: offsets of the encoder's states, for decoder blocks.
        attentions: whether encoder blocks return their attention maps.
    """

    cu: Offsets
    bias: Tensor
    memory_cu: Offsets
    attentions: bool = False


class EncoderBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: AnkhConfig, ops: Ops) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps, ops)
        self.attention = Attention(config, ops)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps, ops)
        self.mlp = GatedMLP(config.width, config.inner, config.activation, ops)

    def forward(self, x: Tensor, shared: Shared) -> tuple[Tensor, list[Tensor]]:
        """Maps ``[T, D]`` to ``[T, D]``, and gives each sequence's ``[H, L, L]`` attention if it is asked for."""
        normed = self.attention_norm(x)
        maps = self.attention.maps(normed, shared.cu, shared.bias) if shared.attentions else []
        x = x + self.attention(normed, normed, shared.cu, shared.cu, bias=shared.bias, causal=False)
        return x + self.mlp(self.mlp_norm(x)), maps


class DecoderBlock(nn.Module):
    """x += attention(norm(x)), looking back only; x += attention(norm(x), memory); x += mlp(norm(x))."""

    def __init__(self, config: AnkhConfig, ops: Ops) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps, ops)
        self.attention = Attention(config, ops)
        self.cross_norm = RMSNorm(config.width, config.norm_eps, ops)
        self.cross = Attention(config, ops)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps, ops)
        self.mlp = GatedMLP(config.width, config.inner, config.activation, ops)

    def forward(self, x: Tensor, memory: Tensor, shared: Shared) -> Tensor:
        """Maps ``[T, D]`` to ``[T, D]``; ``memory`` ``[M, D]`` is what the encoder made."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, shared.cu, shared.cu, bias=shared.bias, causal=True)
        x = x + self.cross(self.cross_norm(x), memory, shared.cu, shared.memory_cu, bias=None, causal=False)
        return x + self.mlp(self.mlp_norm(x))

    def remember(self, memory: Tensor, cu: Offsets) -> BlockCache:
        """Begins a cache with keys and values of the encoder's states ``[M, D]``."""
        return BlockCache(self.cross.split(self.cross.k(memory)), self.cross.split(self.cross.v(memory)), cu)

    def step(self, x: Tensor, bias: Tensor, cache: BlockCache, length: int, hidden: Tensor | None) -> Tensor:
        """Maps new tokens ``[n, m, D]`` to ``[n, m, D]`` and adds them to the cache.

        Args:
            x: states of the new tokens.
            bias: ``[H, m, S]`` of positions, −inf for later tokens.
            cache: what came before.
            length: tokens in it.
            hidden: ``[n, 1, 1, M']``, −inf where the encoder's states are padding; None without padding.
        """
        normed, own = self.attention_norm(x), self.attention
        new_keys = own.split(own.k(normed)).transpose(1, 2)  # [n, H, m, d]
        new_values = own.split(own.v(normed)).transpose(1, 2)
        keys, values = cache.append(new_keys, new_values, length)
        x = x + own.step(normed, keys, values, bias)
        x = x + self.cross.step(self.cross_norm(x), cache.memory_keys, cache.memory_values, hidden)
        return x + self.mlp(self.mlp_norm(x))


class Ankh(nn.Module):
    """Ankh over packed sequences; see :class:`protloom.contracts.Architecture`.

    ``depth`` counts encoder blocks. The decoder begins with the padding symbol and ends with the tokenizer's suffix.

    Args:
        config: size and options.
        build: gives the vocabulary, the kernels and whether blocks are recomputed in the backward pass.
    """

    capabilities = frozenset({"encode", "decode", "complete", "attentions"})

    def __init__(self, config: AnkhConfig, build: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.width, self.depth, self.heads = config.width, config.layers, config.heads
        self.activation_checkpointing = build.activation_checkpointing
        vocabulary = len(build.tokenizer.vocab)
        self.embedding = Projection(config.width, vocabulary)  # [V, D], read by rows: one for both stacks
        # T5's first blocks own these; here the network does, since all blocks read them and FSDP2 takes blocks apart
        self.encoder_bias = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.decoder_bias = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.encoder_blocks = nn.ModuleList(EncoderBlock(config, build.ops) for _ in range(config.layers))
        self.encoder_norm = RMSNorm(config.width, config.norm_eps, build.ops)
        self.decoder_blocks = nn.ModuleList(DecoderBlock(config, build.ops) for _ in range(config.decoder_layers))
        self.decoder_norm = RMSNorm(config.width, config.norm_eps, build.ops)
        self.head = Projection(config.width, vocabulary)
        self.initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated parts of both stacks, which FSDP2 gathers one at a time."""
        return nn.ModuleList([*self.encoder_blocks, *self.decoder_blocks])

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws all parameters anew, by :func:`initial_std`, from PyTorch's global generator."""
        for name, parameter in self.named_parameters():
            std = initial_std(name, self.config)
            if std is None:
                parameter.fill_(self.config.init_factor)
            else:
                parameter.normal_(std=std)

    def encode(
        self,
        tokens: Tensor,
        cu: Offsets,
        *,
        layers: Sequence[int] = (),
        stop_at: int | None = None,
        attentions: bool = False,
    ) -> Encoded:
        """Maps ``tokens`` ``[T]`` to states ``[T, D]``; see :meth:`protloom.contracts.Architecture.encode`.

        Raises:
            ValueError: if a layer is asked for that does not exist or lies beyond ``stop_at``.
            UserError: in fp16.
        """
        return run_blocks(
            self._embed(tokens),
            self.encoder_blocks,
            self.encoder_norm,
            Shared(cu, self._bias(self.encoder_bias, cu.longest, both=True), cu, attentions),
            layers=layers,
            stop_at=stop_at,
            heads=self.heads,
            recompute=self._recomputes(),
        )

    def decode(
        self,
        tokens: Tensor,
        cu: Offsets,
        memory: Tensor,
        memory_cu: Offsets,
        *,
        layers: Sequence[int] = (),
        cache: AnkhCache | None = None,
    ) -> Encoded:
        """Maps the decoder's tokens ``[T]`` to states ``[T, D]``; a token sees itself and those before it.

        Args:
            tokens: ``[T]`` ids, shifted right by the caller: the state of a token predicts the next one.
            cu: offsets of the decoder's sequences; sequence i reads sequence i of the encoder.
            memory: ``[M, D]`` the encoder's final states.
            memory_cu: offsets of them.
            layers: numbers of the states to return beside the last, 0 (embedding) to ``decoder_layers`` (final).
            cache: from :meth:`start_cache`: ``tokens`` are then those that follow what it holds, equally many of each
                sequence; it is brought forward, and read instead of ``memory``.

        Raises:
            ValueError: if the streams or layers do not fit.
            UserError: in fp16.
        """
        depth = self.config.decoder_layers
        last_layer(layers, depth, None)
        if cache is not None:
            return self._continue(tokens, cu, layers, cache)
        if cu.n != memory_cu.n:
            raise ValueError(f"the decoder has {cu.n} sequences, the encoder {memory_cu.n}")
        x = self._embed(tokens)
        shared = Shared(cu, self._bias(self.decoder_bias, cu.longest, both=False), memory_cu)
        kept = {0: x} if 0 in layers else {}
        recompute = self._recomputes()
        for number, block in enumerate(self.decoder_blocks, start=1):
            x = checkpoint(block, x, memory, shared, use_reentrant=False) if recompute else block(x, memory, shared)
            if number in layers and number < depth:
                kept[number] = x
        x = self.decoder_norm(x)
        if depth in layers:
            kept[depth] = x
        return Encoded(x, kept)

    def start_cache(self, memory: Tensor, memory_cu: Offsets) -> AnkhCache:
        """Returns what :meth:`decode` needs to go on token by token after the encoder's states ``[M, D]``."""
        blocks = [block.remember(memory, memory_cu) for block in self.decoder_blocks]  # type: ignore[operator]
        return AnkhCache(blocks, memory_cu)

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps final states ``[M, D]`` to ``[M, vocabulary]``; not scaled, since the head is not the embedding."""
        out: Tensor = self.head(hidden)
        return out

    def _continue(self, tokens: Tensor, cu: Offsets, layers: Sequence[int], cache: AnkhCache) -> Encoded:
        """Decodes new tokens behind those in the cache."""
        new = cu.longest
        if cu.n != cache.rows or cu.total != cu.n * new or new == 0:
            raise ValueError(f"a cache of {cache.rows} sequences wants as many, all with equally many new tokens")
        total = cache.length + new
        line = self._bias(self.decoder_bias, total, both=False)  # [H, 2S − 1], S = total
        # the token at position i sees key j at distance j − i, the entry S − 1 + j − i
        bias = torch.stack([line[:, total - 1 - i : 2 * total - 1 - i] for i in range(cache.length, total)], dim=1)
        later = torch.arange(total, device=line.device) > torch.arange(cache.length, total, device=line.device)[:, None]
        bias = bias.masked_fill(later, -math.inf)  # [H, m, S]
        hidden = None
        if cache.seen is not None:
            hidden = bias.new_zeros(cache.seen.shape).masked_fill(~cache.seen, -math.inf)
        x = self._embed(tokens).view(cu.n, new, self.width)
        kept = {0: x.flatten(0, 1)} if 0 in layers else {}
        for number, (block, own) in enumerate(zip(self.decoder_blocks, cache.blocks, strict=True), start=1):
            x = block.step(x, bias, own, cache.length, hidden)  # type: ignore[operator]
            if number in layers and number < self.config.decoder_layers:
                kept[number] = x.flatten(0, 1)
        cache.length = total
        last = self.decoder_norm(x).flatten(0, 1)
        if self.config.decoder_layers in layers:
            kept[self.config.decoder_layers] = last
        return Encoded(last, kept)

    def _recomputes(self) -> bool:
        return self.activation_checkpointing and self.training and torch.is_grad_enabled()

    def _embed(self, tokens: Tensor) -> Tensor:
        """Looks tokens up ``[T, D]``."""
        x = F.embedding(tokens, self.embedding.weight)
        kind = x.device.type
        if x.dtype == torch.float16 or (
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        ):
            raise UserError(
                "ankh cannot compute in fp16: states of T5 networks exceed its largest number, 65504; use bf16 or fp32"
            )
        return x

    def _bias(self, table: Tensor, longest: int, *, both: bool) -> Tensor:
        """Spreads a table ``[buckets, H]`` over distances −(R−1) … R−1: ``[H, 2R - 1]``, made once a pass."""
        reach = max(longest, 1)
        distance = torch.arange(1 - reach, reach, device=table.device)
        found = relative_buckets(distance, self.config.buckets, self.config.max_distance, both=both)
        return F.embedding(found, table).T


def initial_std(name: str, config: AnkhConfig) -> float | None:
    """Returns the standard deviation of a parameter's first values, or None for norms, which start as constants.

    The numbers are those of transformers' T5 (unscaled attention needs small queries), but for ``head_init: scaled``.
    """
    if name.endswith("norm.weight"):
        return None
    width, joined = config.width, config.heads * config.head_size
    if name == "embedding.weight" or (name == "head.weight" and config.head_init == "t5"):
        square = 1.0
    elif name.endswith(".q.weight"):
        square = 1.0 / (width * config.head_size)
    elif name.endswith(".out.weight"):
        square = 1.0 / joined
    elif name.endswith(".down.weight"):
        square = 1.0 / config.inner
    else:  # keys, values, gate, up, relative positions, a scaled head
        square = 1.0 / width
    return config.init_factor * math.sqrt(square)
