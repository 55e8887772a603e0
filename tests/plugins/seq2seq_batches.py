"""Batches, a tiny encoder-decoder and plain-Python references for the tests of sequence-to-sequence objectives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from protloom.cli import main
from protloom.contracts import BuildContext, Encoded, Offsets, Packed, Prepared, SequenceBatch, StepContext
from protloom.objective import Objective
from protloom.rng import CounterRNG
from protloom_plugins.tokenizers.ankh import Ankh3Tokenizer, Ankh3TokenizerConfig

RNG = CounterRNG(0, "seq2seq")
CARD = "MKAYVLINSRGP"
END, PAD = 1, 0


def tokenizer_of(sentinels: int | None = None, **options: Any) -> Ankh3Tokenizer:
    """Ankh3's tokenizer, with fewer or more sentinels than its own 225 if asked."""
    tokenizer = Ankh3Tokenizer(Ankh3TokenizerConfig.model_validate(options))
    if sentinels is not None:
        extra = max(0, sentinels - 225)
        tokenizer.vocab = [*tokenizer.vocab, *(f"<extra_id_{225 + i}>" for i in range(extra))]
        tokenizer.sentinels = (*tokenizer.sentinels, *range(256, 256 + extra))[:sentinels]
    return tokenizer


def build(tokenizer: Any, architecture: Any = None) -> BuildContext:
    def cross_entropy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(x, y, reduction="none")

    return BuildContext(
        tokenizer=tokenizer,
        ops=cast("Any", SimpleNamespace(cross_entropy=cross_entropy)),
        architecture=architecture,
    )


def batch_of(
    tokenizer: Any,
    lengths: Sequence[int],
    *,
    numbers: Sequence[int] | None = None,
    epoch: int = 0,
    corpus: int = 0,
    text: str | None = None,
) -> SequenceBatch:
    """Random residues of sequences ``numbers`` (a sequence's residues depend on its number alone), or ``text``."""
    numbers = range(len(lengths)) if numbers is None else numbers
    before, after = list(tokenizer.prefix), list(tokenizer.suffix)
    bodies = [
        np.random.default_rng(i).choice(tokenizer.residue_ids, length).tolist()
        for i, length in zip(numbers, lengths, strict=True)
    ]
    if text is not None:
        bodies = [tokenizer.table[np.frombuffer(text.encode(), dtype=np.uint8)].tolist()]
    n = len(bodies)
    pieces = [[*before, *body, *after] for body in bodies]
    inside = [[False] * len(before) + [True] * len(body) + [False] * len(after) for body in bodies]
    return SequenceBatch(
        packed=Packed(
            np.array([t for piece in pieces for t in piece], dtype=np.int32),
            np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int32),
        ),
        residue=np.array([t for piece in inside for t in piece], dtype=np.bool_),
        epoch=np.full(n, epoch, dtype=np.int64),
        index=np.array(numbers, dtype=np.int64)[:n],
        corpus=np.full(n, corpus, dtype=np.int32),
        group=np.arange(n, dtype=np.int32),
    )


def split(packed: Packed) -> list[list[int]]:
    """The sequences of a packed stream."""
    assert packed.tokens.dtype == packed.cu.dtype == np.int32
    assert (packed.cu[0], packed.cu[-1]) == (0, len(packed.tokens))
    return [packed.tokens[a:b].tolist() for a, b in pairwise(packed.cu.tolist())]


def originals(tokenizer: Any, batch: SequenceBatch) -> list[list[int]]:
    """The residues of every sequence."""
    a, b = len(tokenizer.prefix), len(tokenizer.suffix)
    return [piece[a : len(piece) - b] for piece in split(batch.packed)]


def streams(prepared: Prepared) -> list[tuple[list[int], list[int], list[int]]]:
    """(encoder input, decoder input, target) of every sequence; checks what holds of every objective."""
    assert prepared.decoder is not None
    targets = prepared.arrays["targets"]
    assert targets.dtype == np.int64
    assert len(targets) == len(prepared.arrays["kinds"]) == len(prepared.decoder.tokens)
    asked = split(Packed(targets.astype(np.int32), prepared.decoder.cu))
    rows = list(zip(split(prepared.inputs), split(prepared.decoder), asked, strict=True))
    for encoder, decoder, target in rows:
        assert encoder[-1] == target[-1] == END
        assert decoder == [PAD, *target[:-1]]
    return rows


def words(tokenizer: Any, ids: Sequence[int]) -> str:
    """Symbols with blanks between them, sentinels as <0>, <1>, …"""
    return " ".join(tokenizer.vocab[i] for i in ids).replace("extra_id_", "")


class Tiny(torch.nn.Module):
    """An encoder-decoder that meets the contract; the decoder sees the mean of its own sequence's memory."""

    width, depth, heads = 8, 1, 1
    capabilities = frozenset({"encode", "decode"})

    def __init__(self, vocabulary: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(rows: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(rows, self.width, generator=generator, dtype=torch.float64))

        self.reads, self.writes, self.head = parameter(vocabulary), parameter(vocabulary), parameter(vocabulary)

    def encode(self, tokens: torch.Tensor, cu: Offsets, **_: Any) -> Encoded:
        assert cu.total == len(tokens)
        return Encoded(self.reads[tokens], {})

    def decode(
        self, tokens: torch.Tensor, cu: Offsets, memory: torch.Tensor, memory_cu: Offsets, *, cache: Any = None
    ) -> Encoded:
        assert cu.n == memory_cu.n
        means = [
            part.mean(0, keepdim=True).expand(k, -1)
            for part, k in zip(memory.split(memory_cu.lengths), cu.lengths, strict=True)
        ]
        return Encoded(self.writes[tokens] + torch.cat([*means, memory[:0]]), {})

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.head.T


def loss_of(model: Tiny, objective: Objective, prepared: Prepared) -> Any:
    """The objective's losses over a prepared batch."""
    tokens = torch.from_numpy(prepared.inputs.tokens.astype(np.int64))
    cu = Offsets.from_bounds(prepared.inputs.cu.tolist())
    encoded = model.encode(tokens, cu)
    decoded = None
    if prepared.decoder is not None:
        asked = torch.from_numpy(prepared.decoder.tokens.astype(np.int64))
        decoded = model.decode(asked, Offsets.from_bounds(prepared.decoder.cu.tolist()), encoded.last, cu)
    passes = SimpleNamespace(encoded=encoded, decoded=decoded, tokens=tokens, cu=cu, clean=None)
    arrays = {name: torch.from_numpy(array) for name, array in prepared.arrays.items()}
    ctx = StepContext(0, RNG, lambda x: x, lambda x: x)
    return objective.loss(cast("Any", model), cast("Any", passes), arrays, ctx)


def log_probabilities(model: Tiny, prepared: Prepared) -> tuple[list[float], list[bool], list[int]]:
    """(−log p, right, target) at every decoder position, computed in numpy one sequence at a time."""
    reads, writes, head = (p.detach().numpy() for p in (model.reads, model.writes, model.head))
    nats, right, asked = [], [], []
    for encoder, decoder, target in streams(prepared):
        mean = reads[encoder].mean(0)
        for token, answer in zip(decoder, target, strict=True):
            scores = head @ (writes[token] + mean)
            nats.append(float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[answer]))
            right.append(int(scores.argmax()) == answer)
            asked.append(answer)
    return nats, right, asked


def previewed(capsys: Any, monkeypatch: Any, *words: str) -> dict[str, str]:
    """What ``protloom preview`` prints, row by row, sentinels as <0>, <1>, …"""
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["preview", *words]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    cells = [line.split("  ", 1) for line in printed]
    return {name: " ".join(rest.split()).replace("extra_id_", "") for name, rest in cells}


def close_to(successes: float, trials: float, rate: float) -> bool:
    """Within 6 standard deviations of a binomial."""
    return bool(abs(successes - trials * rate) <= 6 * np.sqrt(trials * rate * (1 - rate)) + 1e-9)


def layouts(model: Tiny, prepared: Prepared, tokenizer: Any) -> list[float]:
    """−log p(a residue, whichever) at every decoder position, computed in numpy one sequence at a time."""
    reads, writes, head = (p.detach().numpy() for p in (model.reads, model.writes, model.head))
    others = [*tokenizer.sentinels, END]
    found = []
    for encoder, decoder, _ in streams(prepared):
        for token in decoder:
            p = np.exp(head @ (writes[token] + reads[encoder].mean(0)))
            found.append(-np.log(np.delete(p, others).sum() / p.sum()))
    return found
