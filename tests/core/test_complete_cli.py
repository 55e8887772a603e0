"""``protloom complete``: cutting, floors by brute force, a network whose writing is known, Ankh on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from torch import Tensor, nn

from protloom.cli import main
from protloom.completion import Comparison, Completion, complete, cut
from protloom.contracts import Encoded, Offsets
from protloom.data.fasta import read_fasta
from protloom.data.records import Entry
from protloom.errors import UserError
from protloom.generation import Decoding
from protloom.plugins import Registry

Proteins = Callable[..., list[str]]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def ankh(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ankh"
    return tiny_model.save(folder, registry, architecture="ankh:tiny", tokenizer="ankh3")


# ------------------------------------------------------------------------------------------------- cutting and floors


@pytest.mark.parametrize(
    ("length", "keep", "at"), [(12, 0.5, 6), (13, 0.5, 6), (100, 0.29, 29), (10, 0.7, 7), (3, 0.3, 0), (1, 0.99, 0)]
)
def test_cut(length: int, keep: float, at: int) -> None:
    sequence = ("ACDEFGHIKL" * 10)[:length]
    assert cut(sequence, keep) == (sequence[:at], sequence[at:])


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_what_cannot_be_kept(keep: float) -> None:
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        cut("MKTAY", keep)


def test_comparison_by_brute_force(random_proteins: Proteins) -> None:
    rng = np.random.default_rng(5)
    comparison = Comparison()
    given = []
    for i, sequence in enumerate(random_proteins(30, low=4, high=50)):
        kept, truth = cut(sequence, 0.3)
        written = "".join(rng.choice(list("AC" + truth[:1]), size=rng.integers(0, 2 * len(truth))))
        given.append((kept, truth, written))
        comparison.add(Completion(f"p{i}", kept, truth, written, ended=i % 3 == 0))
    beginnings = "".join(kept for kept, _, _ in given)
    commonest = max(LETTERS, key=beginnings.count)
    equal = {"model": 0, "unigram": 0, "copy": 0}
    for kept, truth, written in given:
        for i, residue in enumerate(truth):
            equal["model"] += i < len(written) and written[i] == residue
            equal["unigram"] += residue == commonest
            equal["copy"] += kept[i % len(kept)] == residue
    positions = sum(len(truth) for _, truth, _ in given)
    found = comparison.result(seed=1)
    assert {name: one.equal for name, one in found.items()} == equal
    assert {one.positions for one in found.values()} == {positions}
    assert (comparison.sequences, comparison.ended, comparison.commonest) == (30, 10, commonest)
    for name in ("unigram", "copy"):
        gap, interval = found[name].ahead, found[name].interval
        assert gap is not None
        assert interval is not None
        assert gap == pytest.approx((equal["model"] - equal[name]) / positions)
        assert interval[0] < gap < interval[1]
    assert comparison.result(seed=1) == found


# ------------------------------------------------------------------------------------- a network that copies its source


class Letters:
    """Residues between a mode symbol and an end symbol."""

    name = "letters"
    vocab = ("<pad>", "</s>", "<unk>", "[A]", "[B]", *LETTERS, "<x0>")
    prefix: tuple[int, ...] = (3,)
    suffix: tuple[int, ...] = (1,)
    pad_id, mask_id, unknown_id = 0, None, 2

    def __init__(self) -> None:
        self.table = np.full(256, 2, dtype=np.int32)
        self.table[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(5, 25)

    def decode(self, ids: Any) -> str:
        return "".join(self.vocab[i] for i in ids)


class Copier(nn.Module):
    """Writes the residues of its source and the end symbol; likes a sentinel even better, which must not pass."""

    capabilities = frozenset({"encode", "decode", "complete"})

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.sizes: list[int] = []  # tokens of each batch

    def encode(self, tokens: Tensor, cu: Offsets) -> Encoded:
        assert not self.training
        self.sizes.append(cu.total)
        self.seen += [part.tolist() for part in tokens.split(cu.lengths)]
        return Encoded(tokens[:, None].float(), {})

    def start_cache(self, memory: Tensor, memory_cu: Offsets) -> Any:
        sources = [part[1:, 0].long().tolist() for part in memory.split(memory_cu.lengths)]
        cache = SimpleNamespace(sources=sources, position=0)
        cache.select = lambda rows: cache.__setattr__("sources", [cache.sources[i] for i in rows.tolist()])
        return cache

    def decode(self, tokens: Tensor, cu: Offsets, memory: Tensor, memory_cu: Offsets, *, cache: Any) -> Encoded:
        following = [source[cache.position] for source in cache.sources]
        cache.position += 1
        return Encoded(torch.tensor(following)[:, None].float(), {})

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.nn.functional.one_hot(hidden[:, 0].long(), len(Letters.vocab)).float() * 9
        logits[:, -1] = 20
        return logits


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_a_copier_is_the_copy_floor(random_proteins: Proteins, tokens_per_batch: int) -> None:
    tokenizer: Any = Letters()
    model: Any = Copier().train()
    entries = [Entry(f"p{i}", sequence) for i, sequence in enumerate(random_proteins(12, low=2, high=40))]
    comparison = Comparison()
    for entry, done in zip(
        entries,
        complete(model, tokenizer, entries, 0.5, Decoding(), prefix=(4,), tokens_per_batch=tokens_per_batch),
        strict=True,
    ):
        assert (done.id, done.kept, done.truth) == (entry.id, *cut(entry.sequence, 0.5))
        assert done.written == done.kept
        assert done.ended
        comparison.add(done)
    assert model.training
    assert model.seen == [[4, *tokenizer.table[list(cut(e.sequence, 0.5)[0].encode())].tolist(), 1] for e in entries]
    # halves of odd length: the copy floor goes round, the copier stops
    result = comparison.result()
    assert 0 <= result["copy"].equal - result["model"].equal <= sum(len(e.sequence) % 2 for e in entries)


@pytest.mark.parametrize(
    ("residues", "number", "tokens_per_batch", "sizes"),
    [
        (4, 10, 12, [12, 12, 12, 4]),  # beginnings of two residues between two symbols
        (4, 3, 3, [4, 4, 4]),
        (2000, 10, None, [4 * 1002, 4 * 1002, 2 * 1002]),  # 4,096 on CPU
    ],
)
def test_tokens_of_a_batch(residues: int, number: int, tokens_per_batch: int | None, sizes: list[int]) -> None:
    tokenizer: Any = Letters()
    model: Any = Copier().eval()
    entries = [Entry(f"p{i}", "AC" * (residues // 2)) for i in range(number)]
    found = complete(model, tokenizer, entries, 0.5, Decoding(), max_length=1, tokens_per_batch=tokens_per_batch)
    assert [done.written for done in found] == ["A"] * number
    assert model.sizes == sizes


def test_the_most_that_is_written() -> None:
    tokenizer: Any = Letters()
    model: Any = Copier().eval()
    entries = [Entry("a", "ACDEFGHIKL" * 2)]
    (done,) = complete(model, tokenizer, entries, 0.5, Decoding(), max_length=4)
    assert (done.written, done.ended) == ("ACDE", False)
    # a tenth is to follow: twice 2 and 16 more are more than the 18 that are copied
    (done,) = complete(model, tokenizer, entries, 0.9, Decoding())
    assert (done.written, done.ended) == (done.kept, True)


# --------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def fasta(tmp_path: Path, random_proteins: Proteins) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(random_proteins(9, low=6, high=30))))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["complete", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_ankh_completes(fasta: Path, ankh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.fasta"
    code, printed, _ = run(capsys, fasta, "--keep", "0.5", "--model", ankh, "-o", out)
    assert code == 0
    given = {record.id: record.residues.decode() for record in read_fasta(fasta)}
    found = {record.id: record.residues.decode() for record in read_fasta(out)}
    assert list(found) == list(given)
    equal = positions = 0
    for name, sequence in found.items():
        kept, truth = cut(given[name], 0.5)
        assert sequence.startswith(kept)
        assert sequence.isalpha()
        equal += sum(a == b for a, b in zip(sequence[len(kept) :], truth, strict=False))
        positions += len(truth)
    model_row = next(line for line in printed.splitlines() if line.startswith("model "))
    assert f"{equal:,} of {positions:,}" in model_row
    assert {line.split()[0] for line in printed.splitlines()} >= {"model", "unigram", "copy"}
    # the same again, on standard output and one at a time
    code, printed, report = run(capsys, fasta, "--keep", "0.5", "--model", ankh, "--tokens-per-batch", "1")
    assert code == 0
    lines = printed.splitlines()
    assert dict(zip((line[1:].split()[0] for line in lines[::2]), lines[1::2], strict=True)) == found
    assert "unigram" in report


def test_drawing_depends_on_the_seed_alone(fasta: Path, ankh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(seed: int, *options: str) -> str:
        code, out, _ = run(
            capsys, fasta, "--keep", "0.4", "--model", ankh, "--temperature", "1", "--seed", seed, *options
        )
        assert code == 0
        return out

    first = drawn(1)
    assert drawn(1, "--tokens-per-batch", "1") == first
    assert drawn(2) != first


def test_the_mode_is_s2s(fasta: Path, ankh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        run(capsys, fasta, "--keep", "0.5", "--model", ankh, "--max-length", "9", *options)[1]
        for options in ((), ("--prefix", "S2S"), ("--prefix", "NLU"))
    ]
    assert results[0] == results[1] != results[2]


def test_too_short_sequences_are_left_out_and_named(
    tmp_path: Path, ankh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "x.fasta"
    source.write_text(">short\nM\n>long\nMKTAYIAKQR\n")
    code, out, err = run(capsys, source, "--keep", "0.5", "--model", ankh, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["sequences"], document["too_short"]) == (1, 1)
    assert "'short'" in err
    source.write_text(">short\nM\n")
    code, _, err = run(capsys, source, "--keep", "0.5", "--model", ankh)
    assert code == 2
    assert "no sequence is long enough" in err


def test_one_line_for_each_mistake(
    fasta: Path, ankh: Path, tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    esm = tiny_model.save(tmp_path / "esm", registry)
    out = tmp_path / "out.fasta"
    for words, arguments in (
        ("must lie between 0 and 1", ("--keep", "1.0", "--model", ankh)),
        ("must lie between 0 and 1", ("--keep", "0", "--model", ankh)),
        ("cannot complete", ("--keep", "0.5", "--model", esm)),
        ("no such prefix. Did you mean 'S2S'?", ("--keep", "0.5", "--model", ankh, "--prefix", "S2")),
        ("has no prefixes", ("--keep", "0.5", "--model", esm, "--prefix", "S2S")),
        ("must be at least 1", ("--keep", "0.5", "--model", ankh, "--max-length", "0")),
        (
            "--device: no device 'meta'; use auto, cpu, cuda or cuda:N",
            ("--keep", "0.5", "--model", ankh, "--device=meta"),
        ),
        ("--tokens-per-batch 0: must be at least 1", ("--keep", "0.5", "--model", ankh, "--tokens-per-batch", "0")),
        ("give a temperature", ("--keep", "0.5", "--model", ankh, "--top-k", "3")),
    ):
        code, printed, err = run(capsys, fasta, "-o", out, *arguments)
        assert code == 2
        assert printed == ""
        assert words in err
        assert err.count("\n") == 1
        assert not out.exists()
    out.write_text("precious")
    code, _, err = run(capsys, fasta, "-o", out, "--keep", "0.5", "--model", ankh)
    assert code == 2
    assert "exists" in err
    assert out.read_text() == "precious"
