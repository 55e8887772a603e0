"""Pseudo-likelihoods against one residue hidden at a time, without packing, with the formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch

from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.likelihood import Reader
from protloom.plugins import Registry
from protloom.weights import Pretrained, load_pretrained

Proteins = Callable[..., list[str]]


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Pretrained:
    return load_pretrained(tiny_model.save(tmp_path_factory.mktemp("models") / "esm", registry), registry)


@pytest.fixture(scope="module")
def ankh(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Pretrained:
    folder = tmp_path_factory.mktemp("models") / "ankh"
    return load_pretrained(tiny_model.save(folder, registry, architecture="ankh:tiny", tokenizer="ankh3"), registry)


def masked(found: Pretrained, sequence: str, place: int) -> Any:
    """Log-probabilities ``[V]`` at one masked residue."""
    ids = torch.from_numpy(found.tokenizer.encode(sequence)).long()
    at = place + len(found.tokenizer.prefix)
    assert found.tokenizer.mask_id is not None
    ids[at] = found.tokenizer.mask_id
    with torch.no_grad():
        states = found.architecture.encode(ids, Offsets.of([len(ids)])).last
        logits = found.architecture.logits(states[at : at + 1])[0].double()
    return (logits - logits.exp().sum().log()).numpy()


def one_sentinel(found: Pretrained, sequence: str, place: int, prefix: tuple[int, ...]) -> Any:
    """Log-probabilities ``[V]`` of what stands behind the only sentinel."""
    model: Any = found.model
    tokenizer: Any = found.tokenizer
    sentinel = tokenizer.vocab.index("<extra_id_0>")
    residues = [tokenizer.vocab.index(letter) for letter in sequence]
    residues[place] = sentinel
    source = torch.tensor([*prefix, *residues, tokenizer.vocab.index("</s>")])
    asked = torch.tensor([tokenizer.vocab.index("<pad>"), sentinel])
    with torch.no_grad():
        memory = model.encode(source, Offsets.of([len(source)])).last
        states = model.decode(asked, Offsets.of([2]), memory, Offsets.of([len(source)])).last
        logits = model.logits(states[-1:])[0].double()
    return (logits - logits.exp().sum().log()).numpy()


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 8192])
def test_masked_model(esm: Pretrained, random_proteins: Proteins, tokens_per_batch: int) -> None:
    sequences = [*random_proteins(2, low=5, high=25), "M"]
    reader = Reader(esm.architecture, esm.tokenizer, tokens_per_batch=tokens_per_batch)
    tables, totals = list(reader.tables(sequences)), list(reader.residues(sequences))
    for sequence, table, total in zip(sequences, tables, totals, strict=True):
        expected = np.stack([masked(esm, sequence, i) for i in range(len(sequence))])
        assert table.shape == (len(sequence), len(esm.tokenizer.vocab))
        np.testing.assert_allclose(table, expected, atol=1e-5)
        of_residues = [expected[i, esm.tokenizer.vocab.index(letter)] for i, letter in enumerate(sequence)]
        np.testing.assert_allclose(total, of_residues, atol=1e-5)


def test_encoder_decoder(ankh: Pretrained, random_proteins: Proteins) -> None:
    tokenizer: Any = ankh.tokenizer
    sequences = [*random_proteins(2, low=5, high=25), "M"]
    for prefix in (None, tokenizer.prefixes["S2S"]):
        tables = Reader(ankh.architecture, tokenizer, prefix, tokens_per_batch=100).tables(sequences)
        for sequence, table in zip(sequences, tables, strict=True):
            front = tokenizer.prefix if prefix is None else prefix
            expected = np.stack([one_sentinel(ankh, sequence, i, front) for i in range(len(sequence))])
            np.testing.assert_allclose(table, expected, atol=1e-4)


def test_tokens_of_a_batch_on_a_cpu(esm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = esm.model
    encode, sizes = model.encode, []

    def counting(tokens: torch.Tensor, cu: Offsets) -> Any:
        sizes.append(cu.total)
        return encode(tokens, cu)

    monkeypatch.setattr(model, "encode", counting)
    sequence = "ACDEFGHIKL" * 7  # 70 passes over 72 tokens
    list(Reader(esm.architecture, esm.tokenizer).residues([sequence]))
    assert sizes == [56 * 72, 14 * 72]


def test_the_mode_of_the_network_comes_back(esm: Pretrained) -> None:
    esm.model.train()
    try:
        list(Reader(esm.architecture, esm.tokenizer).residues(["MKTAY"]))
        assert all(module.training for module in esm.model.modules())
    finally:
        esm.model.eval()


def test_one_line_for_what_cannot_be_done(esm: Pretrained, ankh: Pretrained) -> None:
    for sequence, words in (("", "is empty"), ("MKÄ", "not ASCII")):
        with pytest.raises(UserError, match=rf"sequence 2 of 2 .*{words}"):
            list(Reader(esm.architecture, esm.tokenizer).residues(["MK", sequence]))
    maskless: Any = SimpleNamespace(**{**vars(esm.tokenizer), "name": "plain", "mask_id": None})
    with pytest.raises(UserError, match="'plain' has no mask symbol"):
        next(Reader(esm.architecture, maskless).residues(["MK"]))
    with pytest.raises(UserError, match="'esm' has no sentinels"):
        next(Reader(ankh.architecture, esm.tokenizer).residues(["MK"]))
