"""Scores of variants against loops over transformers' networks with random weights, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ankh_referee
import numpy as np
import pytest
import tiny_model
import torch
import transformers

from protloom.cli import main
from protloom.contracts import Offsets, VariantScorer
from protloom.embedding import Embedder
from protloom.errors import UserError
from protloom.likelihood import Reader, untrained, window
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom.variants import METHODS, Variant, make_variants
from protloom.variants.scores import check_method, possible_methods, score_variants
from protloom.weights import load_pretrained
from protloom_plugins.tokenizers.ankh import Ankh3Tokenizer, Ankh3TokenizerConfig

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
MUTANTS = ("A4G", "A4G:Q9Q", "K2R:Y5F:F19W", "F19W", "WT", "M1V:Q22E", "K2R:Y5F")
LogP = Callable[[str, int], Any]
"""Log-probabilities ``[V]`` at a position of a sequence, from 0."""


class Case(NamedTuple):
    """A network here and what transformers says of it."""

    reader: Reader
    hidden: LogP
    visible: LogP | None
    folder: Path


def log_softmax(logits: torch.Tensor) -> Any:
    return torch.log_softmax(logits.double(), dim=-1).numpy()


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Case:
    torch.manual_seed(6)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
        emb_layer_norm_before=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    theirs = transformers.EsmForMaskedLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("models") / "esm"
    theirs.save_pretrained(folder)
    found = load_pretrained(folder, registry)
    vocab = {letter: number for number, letter in enumerate(found.tokenizer.vocab)}

    def ask(ids: torch.Tensor, at: int) -> Any:
        with torch.no_grad():
            return log_softmax(theirs(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, at])

    def ids_of(sequence: str) -> torch.Tensor:
        return torch.tensor([vocab["<cls>"], *(vocab[letter] for letter in sequence), vocab["<eos>"]])

    def hidden(sequence: str, position: int) -> Any:
        ids = ids_of(sequence)
        ids[position + 1] = vocab["<mask>"]
        return ask(ids, position + 1)

    return Case(Reader(found.architecture, found.tokenizer), hidden, lambda s, i: ask(ids_of(s), i + 1), folder)


@pytest.fixture(scope="module")
def ankh(tmp_path_factory: pytest.TempPathFactory) -> Case:
    pair = ankh_referee.make_pair(tmp_path_factory.mktemp("models") / "t5")
    tokenizer = Ankh3Tokenizer(Ankh3TokenizerConfig())
    vocab = {letter: number for number, letter in enumerate(tokenizer.vocab)}

    def hidden(sequence: str, position: int) -> Any:
        residues = [vocab[letter] for letter in sequence]
        residues[position] = vocab["<extra_id_0>"]
        source = torch.tensor([[vocab["[NLU]"], *residues, vocab["</s>"]]])
        target = torch.tensor([[vocab["<pad>"], vocab["<extra_id_0>"]]])
        with torch.no_grad():
            return log_softmax(pair.theirs(input_ids=source, decoder_input_ids=target).logits[0, -1])

    return Case(Reader(pair.ours, tokenizer), hidden, None, pair.folder)


@pytest.fixture(params=["esm", "ankh"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def variants(*mutants: str) -> list[Variant]:
    return make_variants([(mutant, None) for mutant in mutants], WILD_TYPE)


def changes(variant: Variant) -> list[tuple[int, str, str]]:
    """Positions where a variant differs, by comparing letters."""
    both = zip(WILD_TYPE, variant.sequence, strict=True)
    return [(i, a, b) for i, (a, b) in enumerate(both) if a != b]


def pll(case: Case, sequence: str, *positions: int) -> float:
    ids = case.reader.tokenizer.table
    return sum(case.hidden(sequence, i)[ids[ord(sequence[i])]] for i in positions or range(len(sequence)))


def with_batch(reader: Reader, tokens: int) -> Reader:
    return Reader(reader.model, reader.tokenizer, tokens_per_batch=tokens)


@pytest.mark.parametrize("tokens", [1, 60, 8192])
def test_masked_marginals(case: Case, tokens: int) -> None:
    asked = variants(*MUTANTS)
    found = score_variants(with_batch(case.reader, tokens), WILD_TYPE, asked, "masked-marginals")
    ids = case.reader.tokenizer.table
    expected = []
    for variant in asked:
        rows = [(case.hidden(WILD_TYPE, i), a, b) for i, a, b in changes(variant)]
        expected.append(sum(row[ids[ord(b)]] - row[ids[ord(a)]] for row, a, b in rows))
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    assert found.passes == len({i for variant in asked for i, _, _ in changes(variant)})
    assert found.windowed == 0


def test_marginals_of_several_mutations_are_sums(case: Case) -> None:
    methods = ["masked-marginals"] + ["wt-marginals"] * (case.visible is not None)
    for method in methods:
        found = score_variants(case.reader, WILD_TYPE, variants("K2R:Y5F:F19W", "K2R", "Y5F", "F19W"), method).values
        assert found[0] == pytest.approx(found[1:].sum(), abs=1e-5)


def test_wild_type_marginals(esm: Case) -> None:
    asked = variants(*MUTANTS)
    found = score_variants(esm.reader, WILD_TYPE, asked, "wt-marginals")
    ids = esm.reader.tokenizer.table
    assert esm.visible is not None
    expected = []
    for variant in asked:
        rows = [(esm.visible(WILD_TYPE, i), a, b) for i, a, b in changes(variant)]
        expected.append(sum(row[ids[ord(b)]] - row[ids[ord(a)]] for row, a, b in rows))
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    assert found.passes == 1


def test_pll_is_a_loop_over_all_residues_and_takes_other_lengths(case: Case) -> None:
    longer, shorter = WILD_TYPE[:5] + "GG" + WILD_TYPE[5:], WILD_TYPE[:-3]
    asked = make_variants([("A4G", None), ("K2R:Y5F", None), (None, longer), (None, shorter), ("WT", None)], WILD_TYPE)
    found = score_variants(with_batch(case.reader, 300), WILD_TYPE, asked, "pll")
    wild = pll(case, WILD_TYPE)
    np.testing.assert_allclose(found.values, [pll(case, v.sequence) - wild for v in asked], atol=1e-3)
    assert found.values[4] == 0
    assert found.passes == 3 * len(WILD_TYPE) + len(longer) + len(shorter)


def test_sentinel_pll_hides_mutated_residues_beside_the_others(ankh: Case) -> None:
    asked = variants(*MUTANTS)
    found = score_variants(with_batch(ankh.reader, 60), WILD_TYPE, asked, "sentinel-pll")
    expected = []
    for variant in asked:
        places = [i for i, _, _ in changes(variant)]
        expected.append(pll(ankh, variant.sequence, *places) - pll(ankh, WILD_TYPE, *places) if places else 0.0)
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    single = [i for i, variant in enumerate(asked) if len(changes(variant)) == 1]
    marginals = score_variants(ankh.reader, WILD_TYPE, asked, "masked-marginals").values
    np.testing.assert_allclose(found.values[single], marginals[single], atol=1e-5)
    several = [i for i, variant in enumerate(asked) if len(changes(variant)) > 1]
    assert np.abs(found.values[several] - marginals[several]).min() > 1e-3


@pytest.mark.parametrize("method", ["masked-marginals", "wt-marginals", "pll", "sentinel-pll"])
def test_windows_of_a_long_protein(method: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue("ankh" if method == "sentinel-pll" else "esm")
    size, asked = 9, variants("K2R:F19W", "A7V")
    reader = Reader(case.reader.model, case.reader.tokenizer, max_length=size)
    found = score_variants(reader, WILD_TYPE, asked, method)
    ids = case.reader.tokenizer.table
    look = case.visible if method == "wt-marginals" else case.hidden
    assert look is not None
    stride = 2 if method == "wt-marginals" else 1

    def log_p(sequence: str, position: int, letter: str) -> float:
        first, last = window(len(sequence), position, size, stride)
        assert last - first == size
        row = look(sequence[first:last], position - first)
        return float(row[ids[ord(letter)]])

    for variant, score in zip(asked, found.values, strict=True):
        wild = mutant = 0.0
        for i in range(len(WILD_TYPE)) if method == "pll" else [i for i, _, _ in changes(variant)]:
            beside = variant.sequence if "pll" in method else WILD_TYPE
            mutant += log_p(beside, i, variant.sequence[i])
            wild += log_p(WILD_TYPE, i, WILD_TYPE[i])
        assert score == pytest.approx(mutant - wild, abs=1e-3)
    assert found.windowed == 2
    if method == "masked-marginals":
        assert list(found.windows) == ["1-9:14-22", "3-11"]


def test_window() -> None:
    assert window(5, 3, None) == window(5, 3, 5) == (0, 5)
    for stride in (1, 3):
        for position in range(40):
            first, last = window(40, position, 12, stride)
            assert 0 <= first <= position < last <= 40
            assert last - first == 12
            assert first % stride == 0 or last == 40
            # away from the ends, no edge is nearer than the stride allows
            if first > 0 and last < 40:
                assert abs(position - (first + 6)) <= stride // 2


@pytest.mark.parametrize("architecture", ["amplify:tiny", "proteinbert2:tiny"])
def test_the_other_masked_models(architecture: str, tmp_path: Path, registry: Registry) -> None:
    tokenizer = "amplify" if architecture.startswith("amplify") else "esm"
    found = load_pretrained(
        tiny_model.save(tmp_path / "model", registry, architecture=architecture, tokenizer=tokenizer), registry
    )
    reader = Reader(found.architecture, found.tokenizer)
    assert possible_methods(reader) == ("masked-marginals", "wt-marginals", "pll")
    tokens = found.tokenizer
    assert tokens.mask_id is not None
    ids = torch.from_numpy(tokens.encode(WILD_TYPE)).long()
    at = len(tokens.prefix) + 3
    for method, symbol in (("masked-marginals", tokens.mask_id), ("wt-marginals", int(ids[at]))):
        asked = ids.clone()
        asked[at] = symbol
        with torch.no_grad():
            states = found.architecture.encode(asked, Offsets.of([len(ids)])).last
            row = log_softmax(found.architecture.logits(states[at : at + 1])[0])
        expected = row[tokens.table[ord("G")]] - row[tokens.table[ord("A")]]
        score = score_variants(reader, WILD_TYPE, variants("A4G"), method).values[0]
        assert score == pytest.approx(expected, abs=1e-4)


def test_an_embedder_scores_variants(esm: Case) -> None:
    subject = Embedder(esm.reader.model, esm.reader.tokenizer, max_length=9)
    assert isinstance(subject, VariantScorer)
    asked = variants(*MUTANTS)
    short = Reader(esm.reader.model, esm.reader.tokenizer, max_length=9)
    expected = score_variants(short, WILD_TYPE, asked, "wt-marginals")
    np.testing.assert_allclose(subject.score_variants(WILD_TYPE, asked, "wt-marginals"), expected.values, atol=1e-6)
    assert subject.counts["variants"] == len(MUTANTS)
    assert subject.counts["variants_windowed"] == len(MUTANTS) - 1  # the wild type asks nothing
    assert subject.counts["variant_passes"] == expected.passes > 1


def test_a_network_without_a_head_is_refused(
    esm: Case, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of an EsmModel holds no language-model head: features are fine, probabilities are not."""
    folder = str(tmp_path / "headless")
    transformers.EsmModel.from_pretrained(esm.folder, add_pooling_layer=False).save_pretrained(folder)
    found = load_pretrained(folder, registry)
    head = {name for name in found.stored.initialised if name.startswith("head.")}
    assert set(untrained(found.architecture, found.stored.initialised)) == head != set()
    # contacts are read elsewhere: a random contact head does no harm
    contacts = [name for name, _ in found.model.named_parameters() if name.startswith("contact_head.")]
    assert contacts
    assert untrained(found.architecture, contacts) == ()
    model, _, _ = open_subjects(folder, registry, twin=None)
    with pytest.raises(UserError, match=r"cannot score variants: its weights hold no head\."):
        model.score_variants(WILD_TYPE, variants("A4G"), "masked-marginals")
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    capsys.readouterr()
    assert main(["score", str(tmp_path / "one.fasta"), "--model", folder]) == 2
    assert "cannot score: model.safetensors has no language-model head" in capsys.readouterr().err


def test_one_line_for_what_cannot_be_done(esm: Case, ankh: Case) -> None:
    assert possible_methods(ankh.reader) == ("masked-marginals", "pll", "sentinel-pll")
    with pytest.raises(
        UserError, match=r"no method 'masked-marginal' to score variants\. Did you mean 'masked-marginals'"
    ):
        check_method("masked-marginal", esm.reader)
    with pytest.raises(UserError, match=r"no decoder.*can do: masked-marginals, wt-marginals, pll"):
        check_method("sentinel-pll", esm.reader)
    with pytest.raises(UserError, match=r"cannot do wt-marginals.*can do: masked-marginals, pll, sentinel-pll"):
        check_method("wt-marginals", ankh.reader)
    maskless: Any = SimpleNamespace(**{**vars(esm.reader.tokenizer), "name": "plain", "mask_id": None})
    with pytest.raises(UserError, match=r"masked-marginals: tokenizer 'plain' has no mask.*can do: wt-marginals$"):
        check_method("masked-marginals", Reader(esm.reader.model, maskless))
    other = make_variants([(None, WILD_TYPE[:-1])], WILD_TYPE)
    for method in set(METHODS) - {"pll", "sentinel-pll"}:
        with pytest.raises(UserError, match=r"21 residues, the wild type 22.*--method pll"):
            score_variants(esm.reader, WILD_TYPE, other, method)
    for method in ("masked-marginals", "pll"):
        with pytest.raises(UserError, match="variant 1: A4J: J stands for I or L, which is no variant"):
            score_variants(esm.reader, WILD_TYPE, variants("A4J"), method)
