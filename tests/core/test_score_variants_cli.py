"""``protloom score --wild-type`` against the library, and every mistake in one line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from scipy.stats import spearmanr

from protloom.cli import main
from protloom.likelihood import Reader
from protloom.plugins import Registry
from protloom.variants import make_variants
from protloom.variants.scores import score_variants
from protloom.variants.table import rank_correlation
from protloom.weights import load_pretrained

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
ROWS = [("A4G", "0.5"), ("K2R:Y5F", "-1"), ("M1V", ""), ("F19W", "2"), ("A4G", "0.5")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "esm": str(tiny_model.save(folder / "esm", registry)),
        "ankh": str(tiny_model.save(folder / "ankh", registry, architecture="ankh:tiny", tokenizer="ankh3")),
    }


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    (tmp_path / "wt.fasta").write_text(f">protein\n{WILD_TYPE}\n")
    with (tmp_path / "variants.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("mutant", "DMS_score", "note"), *((*row, "a, b") for row in ROWS)])
    return [str(tmp_path / "variants.csv"), "--wild-type", str(tmp_path / "wt.fasta")]


def expected(model: str, registry: Registry, method: str, rows: Any = ROWS, **options: Any) -> list[float]:
    found = load_pretrained(model, registry)
    reader = Reader(found.architecture, found.tokenizer, **options)
    values: list[float] = score_variants(
        reader, WILD_TYPE, make_variants([(row[0], None) for row in rows], WILD_TYPE), method
    ).values.tolist()
    return values


@pytest.mark.parametrize(
    ("name", "method"),
    [("esm", None), ("esm", "wt-marginals"), ("esm", "pll"), ("ankh", "masked-marginals"), ("ankh", "sentinel-pll")],
)
def test_the_table_comes_back_with_scores(
    name: str,
    method: str | None,
    models: dict[str, str],
    inputs: list[str],
    tmp_path: Path,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["score", *inputs, "--model", models[name], *([] if method is None else ["--method", method])]
    out = tmp_path / "scores.csv"
    assert main([*words, "-o", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    values = expected(models[name], registry, method or "masked-marginals")
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == ["mutant", "DMS_score", "note", "score"]
    assert [(row["mutant"], row["DMS_score"], row["note"]) for row in rows] == [(*row, "a, b") for row in ROWS]
    assert [float(row["score"]) for row in rows] == pytest.approx(values, abs=1e-4)
    measured = [i for i, row in enumerate(ROWS) if row[1]]
    rho = spearmanr([values[i] for i in measured], [float(ROWS[i][1]) for i in measured]).statistic
    assert f"5 variants of protein (22 residues): {method or 'masked-marginals'}, " in told.err
    assert f"Spearman with DMS_score {rho:.3f} (4 rows)" in told.err
    assert main(words) == 0
    assert capsys.readouterr().out == out.read_text()


def test_json(
    models: dict[str, str], inputs: list[str], capsys: pytest.CaptureFixture[str], registry: Registry
) -> None:
    assert main(["score", *inputs, "--model", models["esm"], "--json", "--max-length", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = expected(models["esm"], registry, "masked-marginals", max_length=9)
    assert found["scores"] == pytest.approx(values, abs=1e-5)
    assert (found["variants"], found["passes"], found["windowed"]) == (5, 5, 5)
    assert found["mutations"] == {"1": 4, "2": 1}
    assert found["score"]["median"] == pytest.approx(np.median(values), abs=1e-5)


def test_json_of_sequences(
    models: dict[str, str], inputs: list[str], capsys: pytest.CaptureFixture[str], registry: Registry
) -> None:
    assert main(["score", inputs[2], "--model", models["esm"], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    found = load_pretrained(models["esm"], registry)
    values = next(Reader(found.architecture, found.tokenizer).residues([WILD_TYPE]))
    assert (row["id"], row["length"]) == ("protein", 22)
    assert row["pseudo_log_likelihood"] == pytest.approx(float(values.sum()), abs=1e-4)
    assert row["perplexity"] == pytest.approx(float(np.exp(-values.mean())), rel=1e-5)


def test_windows_are_told(models: dict[str, str], inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *inputs, "--model", models["esm"], "--max-length", "9", "--score-column", "tiny"]) == 0
    told = capsys.readouterr()
    rows = list(csv.DictReader(told.out.splitlines()))
    assert list(rows[0]) == ["mutant", "DMS_score", "note", "tiny", "window"]
    assert [row["window"] for row in rows] == ["1-9", "1-9:1-9", "1-9", "14-22", "1-9"]
    assert "5 variants seen in windows of 9 residues" in told.err


def test_whole_sequences_of_any_length(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], registry: Registry
) -> None:
    (tmp_path / "wt.fasta").write_text(f">protein\n{WILD_TYPE}\n")
    with gzip.open(tmp_path / "indels.tsv.gz", "wt") as file:
        file.write(f"mutated_sequence\tx\n{WILD_TYPE[:-2]}\t1\n{WILD_TYPE.replace('A', 'G', 1)}\t2\n")
    words = ["score", str(tmp_path / "indels.tsv.gz"), "--wild-type", str(tmp_path / "wt.fasta")]
    assert main([*words, "--model", models["esm"], "--method", "pll"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = load_pretrained(models["esm"], registry)
    sums = [
        float(of.sum())
        for of in Reader(found.architecture, found.tokenizer).residues(
            [WILD_TYPE, WILD_TYPE[:-2], WILD_TYPE.replace("A", "G", 1)]
        )
    ]
    assert [float(row["score"]) for row in rows] == pytest.approx([sums[1] - sums[0], sums[2] - sums[0]], abs=1e-4)
    assert main([*words, "--model", models["esm"]]) == 2
    told = capsys.readouterr().err
    assert "indels.tsv.gz, line 2: 'MKTAYIAKQRQISFVKSHFS' has 20 residues, the wild type 22" in told
    assert "masked-marginals compares position by position; --method pll" in told


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ("mutant,DMS_score\nA4G,1\nQ4G,2\n", [], "line 3: Q4G: expected Q at position 4, but the wild type has A"),
        ("mutant,DMS_score\nM0V,1\nK1A,1\nT2A,2\n", [], "first residue were number 0: --first-residue 0"),
        ("mutant\nT3A\nT3B\n", [], "line 3: T3B: B stands for D or N, which is no variant: leave the row out"),
        ("mutation_name,y\nA4G,1\n", [], "has no column 'mutant' (A24G:L30P) and none 'mutated_sequence'"),
        ("mutant,score\nA4G,1\n", [], "has a column 'score': give another name by --score-column"),
        ("mutant\n", [], "holds a header and no variant"),
        (None, ["--column", "mutnt"], "has no column 'mutnt'. Did you mean 'mutant'?"),
        (
            None,
            ["--method", "masked-marg"],
            "no method 'masked-marg' to score variants. Did you mean 'masked-marginals'?",
        ),
        (None, ["--method", "sentinel-pll"], "it can do: masked-marginals, wt-marginals, pll"),
        (None, ["--residues"], "--residues is for sequences"),
        (None, ["--max-length", "0"], "--max-length 0: must be at least 1"),
    ],
)
def test_mistakes(
    change: str | None,
    words: list[str],
    says: str,
    models: dict[str, str],
    inputs: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        Path(inputs[0]).write_text(change)
    assert main(["score", *inputs, "--model", models["esm"], *words]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_mistakes_in_the_wild_type(
    models: dict[str, str], inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", models["esm"]]
    assert main(["score", inputs[0], "--method", "pll", *model]) == 2
    assert "--method pll compares variants with a wild type: give its FASTA by --wild-type" in capsys.readouterr().err
    assert main(["score", inputs[2], "--max-length", "9", *model]) == 2
    assert "--max-length is for variants: give their protein by --wild-type" in capsys.readouterr().err
    Path(inputs[2]).write_text(f">one\n{WILD_TYPE}\n>two\nMKT\n")
    assert main(["score", *inputs, *model]) == 2
    assert "holds more than one sequence (one, two …)" in capsys.readouterr().err


def test_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.integers(6, size=(2, 30)).astype(float).tolist()
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation([1, 1], [1, 2]))


def test_a_real_assay(models: dict[str, str], shared_data: Path, tmp_path: Path) -> None:
    """Every 50th variant of a beta-lactamase scan, by both kinds of network."""
    folder = shared_data / "proteingym_like_dms"
    if not folder.is_dir():
        pytest.skip(f"no deep mutational scans at {folder}")
    assay = "BLAT_ECOLX_Stiffler_2015"
    with gzip.open(folder / f"{assay}.csv.gz", "rt") as file:
        header, *rows = file.readlines()
    (tmp_path / "some.csv").write_text("".join([header, *rows[::50]]))
    (tmp_path / "wt.fasta").write_text(f">blat\n{json.loads((folder / 'wild_types.json').read_text())[assay]}\n")
    for name, method in (("esm", "wt-marginals"), ("esm", "masked-marginals"), ("ankh", "sentinel-pll")):
        out = tmp_path / f"{name}-{method}.csv"
        words = ["score", str(tmp_path / "some.csv"), "--wild-type", str(tmp_path / "wt.fasta"), "-o", str(out)]
        assert main([*words, "--model", models[name], "--method", method]) == 0
        scores = np.array([float(row["score"]) for row in csv.DictReader(out.open())])
        assert len(scores) == len(rows[::50])
        assert np.isfinite(scores).all()
        assert scores.std() > 0
