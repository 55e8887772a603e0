"""Packed embedding against one sequence at a time and against formulas written out."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protloom.contracts import Encoded, Offsets, Subject
from protloom.embedding import WINDOW, Embedder
from protloom.errors import UserError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class Letters:
    """A tokenizer with one symbol in front and one behind (ids 0 and 1)."""

    name = "letters"
    vocab: Sequence[str] = ("<cls>", "<eos>", "<unk>", *LETTERS)
    prefix: tuple[int, ...] = (0,)
    suffix: tuple[int, ...] = (1,)
    pad_id, mask_id, unknown_id = 2, None, 2
    residue_ids = tuple(range(3, 23))
    fingerprint = "letters"

    def __init__(self, *, specials: bool = True) -> None:
        if not specials:
            self.prefix, self.suffix = (), ()
        self.table = np.full(256, 2, dtype=np.int32)
        self.table[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(3, 23)

    def encode(self, sequence: str) -> Any:
        return np.array([*self.prefix, *self.table[np.frombuffer(sequence.encode(), np.uint8)], *self.suffix], np.int32)

    def decode(self, ids: Any) -> str:
        return "".join(self.vocab[i] for i in ids)


class Toy(nn.Module):
    """Two blocks of plain softmax attention within each sequence, positions counted from its start."""

    capabilities = frozenset({"encode", "attentions"})

    def __init__(self, width: int = 12, depth: int = 2, heads: int = 3) -> None:
        super().__init__()
        self.width, self.depth, self.heads, self.config = width, depth, heads, None
        self.embedding = nn.Embedding(23, width)
        self.blocks = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[int, ...]] = []

    def encode(
        self,
        tokens: Tensor,
        cu: Offsets,
        *,
        layers: Sequence[int] = (),
        stop_at: int | None = None,
        attentions: bool = False,
    ) -> Encoded:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.calls.append(cu.lengths)
        states = [self._one(part, stop_at or self.depth) for part in tokens.split(cu.lengths)]
        chosen = {n: torch.cat([hidden[n] for hidden, _ in states]) for n in layers}
        maps = [torch.stack(found) for _, found in states] if attentions else None
        return Encoded(torch.cat([hidden[-1] for hidden, _ in states]), chosen, maps)

    def _one(self, tokens: Tensor, blocks: int) -> tuple[list[Tensor], list[Tensor]]:
        place = torch.arange(len(tokens), device=tokens.device)[:, None]
        x = self.embedding(tokens) + 0.3 * torch.sin(place / 3.0)
        hidden, maps = [x], []
        for block in list(self.blocks)[:blocks]:
            q, k, v = block(self.dropout(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [L, H, d]
            attention = torch.softmax(torch.einsum("ihd,jhd->hij", q, k), dim=-1)
            maps.append(attention)
            x = x + torch.einsum("hij,jhd->ihd", attention, v).reshape(x.shape)
            hidden.append(x)
        return hidden, maps


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(3)
    return Toy()


def plain(model: Toy, sequence: str, layer: int = 2) -> Any:
    """The states of one sequence, special symbols included, without any packing."""
    modes = model.training
    model.eval()
    with torch.no_grad():
        found = model._one(torch.from_numpy(Letters().encode(sequence)).long(), model.depth)[0][layer].numpy()
    model.train(modes)
    return found


def test_it_is_a_subject(toy: Toy) -> None:
    assert isinstance(Embedder(toy, Letters()), Subject)


def test_packed_residues_equal_single_ones_in_order(toy: Toy, random_proteins: Any) -> None:
    sequences = random_proteins(40, low=1, high=60)
    found = list(Embedder(toy, Letters(), tokens_per_batch=100).residues(sequences))
    assert len(found) == 40
    for sequence, states in zip(sequences, found, strict=True):
        assert states.shape == (len(sequence), toy.width)
        assert states.dtype == np.float32
        np.testing.assert_allclose(states, plain(toy, sequence)[1:-1], atol=2e-6)
    assert max(map(sum, toy.calls)) <= 100
    assert any(len(call) > 1 for call in toy.calls)


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_layers(toy: Toy, layer: int) -> None:
    found = next(Embedder(toy, Letters(), layer=layer).residues(["MKTAYIAK"]))
    np.testing.assert_allclose(found, plain(toy, "MKTAYIAK", layer)[1:-1], atol=1e-6)


def test_a_layer_that_is_not_there(toy: Toy) -> None:
    for layer in (3, -4):
        with pytest.raises(UserError, match=r"0 \(embedding\) to 2 \(final\)"):
            Embedder(toy, Letters(), layer=layer)


@pytest.mark.parametrize("include", [False, True])
def test_pooling_against_formulas(toy: Toy, random_proteins: Any, include: bool) -> None:
    sequences = random_proteins(15, low=1, high=30)
    embedder = Embedder(toy, Letters(), tokens_per_batch=64)
    reference = [plain(toy, s) for s in sequences]
    seen = reference if include else [states[1:-1] for states in reference]
    for pool, formula in (("mean", np.mean), ("max", np.max)):
        found = embedder.pooled(sequences, pool, include)
        np.testing.assert_allclose(found, np.stack([formula(s, axis=0) for s in seen]), atol=2e-6)
    np.testing.assert_allclose(
        embedder.pooled(sequences, "cls", include), np.stack([states[0] for states in reference]), atol=2e-6
    )


def test_duplicates_are_computed_once(toy: Toy) -> None:
    sequences = ["MKTA", "AAAA", "MKTA", "MKTA", "AAAA"]
    embedder = Embedder(toy, Letters())
    found = list(embedder.residues(sequences))
    assert sum(map(len, toy.calls)) == 2
    np.testing.assert_array_equal(found[0], found[3])
    np.testing.assert_array_equal(found[1], found[4])
    assert not np.array_equal(found[0], found[1])
    pooled = embedder.pooled(sequences)
    assert sum(map(len, toy.calls)) == 4
    np.testing.assert_array_equal(pooled[[0, 1]], pooled[[2, 4]])
    assert embedder.counts["sequences"] == 10
    assert embedder.counts["computed"] == 4


def test_residues_come_as_they_are_asked_for(toy: Toy, random_proteins: Any) -> None:
    sequences = random_proteins(WINDOW + 5, low=8, high=12)
    assert len(set(sequences)) == WINDOW + 5
    stream = Embedder(toy, Letters()).residues([*sequences, sequences[0]])
    next(stream)
    assert sum(map(len, toy.calls)) == WINDOW
    assert len(list(stream)) == WINDOW + 5
    assert sum(map(len, toy.calls)) == WINDOW + 5  # the first sequence was kept for its second use


def test_modes_are_restored_also_within_the_stream_and_after_an_error(toy: Toy) -> None:
    toy.train()
    toy.blocks[0].eval()
    before = [module.training for module in toy.modules()]
    stream = Embedder(toy, Letters()).residues(["MKTA"])
    next(stream)
    assert [module.training for module in toy.modules()] == before
    assert torch.is_grad_enabled()
    toy.embedding.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        Embedder(toy, Letters(), name="sick").pooled(["MKTA"])
    assert [module.training for module in toy.modules()] == before


def test_long_sequences(toy: Toy) -> None:
    long, short = "ACDEFGHIKLMNPQRSTVWYACD", "MKTA"
    for policy, length in (("crop", 8), ("skip", 0), ("window", 23), ("auto", 23)):
        embedder = Embedder(toy, Letters(), max_length=8, long_policy=policy)
        first, second = embedder.residues([long, short])
        assert first.shape == (length, toy.width)
        np.testing.assert_allclose(second, plain(toy, short)[1:-1], atol=1e-6)
        assert sum(embedder.counts[word] for word in ("cropped", "windowed", "skipped")) == 1
    crop = Embedder(toy, Letters(), max_length=8, long_policy="crop")
    np.testing.assert_allclose(next(crop.residues([long])), plain(toy, long[:8])[1:-1], atol=1e-6)
    for policy in ("crop", "auto"):
        pooled = Embedder(toy, Letters(), max_length=8, long_policy=policy).pooled([short, long])
        np.testing.assert_allclose(pooled[1], plain(toy, long[:8])[1:-1].mean(0), atol=1e-6)
    skipped = Embedder(toy, Letters(), max_length=8, long_policy="skip").pooled([long, short])
    assert np.isnan(skipped[0]).all()
    assert np.isfinite(skipped[1]).all()
    with pytest.raises(UserError, match="Did you mean 'crop'"):
        Embedder(toy, Letters(), long_policy="corp")  # type: ignore[arg-type]


def test_windows_take_each_residue_from_where_it_is_farthest_from_an_edge(toy: Toy) -> None:
    size, length = 8, 23
    sequence = "ACDEFGHIKLMNPQRSTVWYACD"
    embedder = Embedder(toy, Letters(), max_length=size, long_policy="window")
    found = next(embedder.residues([sequence]))
    starts = [0, 4, 8, 12, 15]  # stride of half a window, the last one at the end
    states = {start: plain(toy, sequence[start : start + size])[1:-1] for start in starts}
    for place in range(length):
        inside = [start for start in starts if start <= place < start + size]

        def margin(start: int, place: int = place) -> int:
            left = place - start if start > 0 else length
            right = start + size - 1 - place if start + size < length else length
            return min(left, right)

        best = max(map(margin, inside))
        allowed = [states[start][place - start] for start in inside if margin(start) >= best - 1]
        assert any(np.allclose(found[place], state, atol=1e-6) for state in allowed), place
    pooled = embedder.pooled([sequence])
    np.testing.assert_allclose(pooled[0], found.mean(0), atol=1e-6)
    np.testing.assert_allclose(embedder.pooled([sequence], "max")[0], found.max(0), atol=1e-6)


def test_contact_features_against_fair_esm(toy: Toy) -> None:
    from esm.modules import apc, symmetrize

    sequence = "MKTAYIAKQR"
    found = Embedder(toy, Letters()).contact_features(sequence)
    tokens = torch.from_numpy(Letters().encode(sequence)).long()
    with torch.no_grad():
        maps = torch.cat(toy.eval()._one(tokens, 2)[1])[None, :, 1:-1, 1:-1]  # [1, C, L, L]
        wanted = apc(symmetrize(maps))[0].permute(1, 2, 0).numpy()
    assert found.shape == (10, 10, 6)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found, found.transpose(1, 0, 2), atol=1e-6)


def test_what_cannot_be_done_is_told(toy: Toy) -> None:
    embedder = Embedder(toy, Letters())
    with pytest.raises(UserError, match="sequence 2 of 2 is empty"):
        list(embedder.residues(["MK", ""]))
    with pytest.raises(UserError, match="sequence 1 of 1 holds characters that are not ASCII"):
        embedder.pooled(["MÄ"])
    with pytest.raises(UserError, match="Did you mean 'mean'"):
        embedder.pooled(["MK"], "maen")
    with pytest.raises(UserError, match="puts no symbol in front"):
        Embedder(toy, Letters(specials=False)).pooled(["MK"], "cls")
    silent = SimpleNamespace(capabilities=frozenset({"encode"}), depth=2, width=12)
    embedder.model = silent  # type: ignore[assignment]
    with pytest.raises(UserError, match="no attention maps"):
        embedder.contact_features("MK")


def test_no_sequences(toy: Toy) -> None:
    embedder = Embedder(toy, Letters())
    assert list(embedder.residues([])) == []
    assert embedder.pooled([]).shape == (0, toy.width)


def test_a_tokenizer_without_special_symbols(toy: Toy) -> None:
    found = next(Embedder(toy, Letters(specials=False)).residues(["MKTA"]))
    tokens = torch.from_numpy(Letters(specials=False).encode("MKTA")).long()
    with torch.no_grad():
        np.testing.assert_allclose(found, toy.eval()._one(tokens, 2)[0][2].numpy(), atol=1e-6)
