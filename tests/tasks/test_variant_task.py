"""Effects of mutations as a task: from the rows of a scan to a result, by a definition and no code."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from protloom.cli import main
from protloom.contracts import VariantScorer
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.subjects import open_subjects
from protloom.task.suite import build
from protloom.variants import Variant, make_variants
from protloom_tasks.floors import Kmer2
from protloom_tasks.variant_floors import BLOSUM62, HYDROPHOBICITY, Hydrophobicity, Substitution
from protloom_tasks.variant_task import VariantConfig, VariantTask

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
DEFINITION = """
title: a scan of my protein
kind: variant-effect
file: scan.csv
wild_type: wt.fasta
origin: made for a test
licence: none
"""


class Weights:
    """A subject that gives every letter a weight."""

    name, summary = "weights", "for tests"

    def __init__(self) -> None:
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.asked: list[str] = []

    def score_variants(self, wild_type: str, variants: Sequence[Variant], method: str) -> Any:
        self.asked.append(method)
        return np.array([sum(LETTERS.index(m.mutant) for m in v.mutations or ()) for v in variants], dtype=np.float64)


def write(folder: Path, rows: Sequence[Sequence[object]], header: str = "mutant,DMS_score", more: str = "") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "wt.fasta").write_text(f">mine\n{WILD_TYPE}\n")
    with (folder / "scan.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    (folder / "scan.yaml").write_text(DEFINITION + more)
    return str(folder / "scan.yaml")


def scan(seed: int = 0) -> list[tuple[str, float]]:
    """Every single mutant with a number that follows its letter."""
    rng = np.random.default_rng(seed)
    return [
        (f"{wild}{place}{letter}", round(LETTERS.index(letter) + 6 * rng.normal(), 3))
        for place, wild in enumerate(WILD_TYPE, start=1)
        for letter in LETTERS
        if letter != wild
    ]


def test_a_definition_becomes_a_result(tmp_path: Path) -> None:
    rows = scan()
    task = VariantTask(VariantConfig(definition=write(tmp_path, rows), rows=None))
    subject: Any = Weights()
    found = task.run(subject)
    truth = [value for _, value in rows]
    scores = [LETTERS.index(mutant[-1]) for mutant, _ in rows]
    assert subject.asked == ["masked-marginals"]
    assert found.metric == "Spearman"
    assert found.value == pytest.approx(spearmanr(truth, scores).statistic)
    assert found.metrics["AUC"] == pytest.approx(roc_auc_score(truth >= np.median(truth), scores))
    assert set(found.metrics) == set(found.intervals) == {"Spearman", "AUC", "MCC", "NDCG@10%", "recall@10%"}
    for name, (low, high) in found.intervals.items():
        assert low < found.metrics[name] < high
    # one resample: every position with all its variants
    assert (found.n, found.unit) == (22, "sets of mutated positions")
    assert (len(found.replicates), found.per_item.shape) == (2000, (22,))
    assert found.predictions["mutant"][:2] == ["M1A", "M1C"]
    assert found.predictions["score"] == scores
    assert found.details["functional_at"] == pytest.approx(np.median(truth))
    assert found.details["mutations"] == {"1": 22 * 19}
    again = task.run(Weights())  # type: ignore[arg-type]
    assert np.array_equal(again.replicates, found.replicates)
    assert again.items == found.items != task.run(subject, seed=1).items


def test_the_interval_is_that_of_whole_positions(tmp_path: Path) -> None:
    """The replicates against resamples written out row by row, of positions drawn alike."""
    from protloom_tasks import intervals

    rows = scan()[: 5 * 19]
    found = VariantTask(VariantConfig(definition=write(tmp_path, rows))).run(Weights())  # type: ignore[arg-type]
    places = sorted({mutant[1:-1] for mutant, _ in rows}, key=lambda place: str(int(place) - 1))
    drawn = next(intervals.draws(5, seed=0))
    for i in (0, 1, 7):
        chosen = [row for j in drawn[i] for row in rows if row[0][1:-1] == places[j]]
        expected = spearmanr([value for _, value in chosen], [LETTERS.index(name[-1]) for name, _ in chosen]).statistic
        assert found.replicates[i] == pytest.approx(expected)


def test_rows_are_drawn_by_seed(tmp_path: Path) -> None:
    path = write(tmp_path, scan())
    task = VariantTask(VariantConfig(definition=path, rows=50))
    mutants = [task.run(Weights(), seed=seed).predictions["mutant"] for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert [len(names) for names in mutants] == [50, 50, 50]
    assert mutants[0] == mutants[1] != mutants[2]
    few = task.run(Weights(), limit=10)  # type: ignore[arg-type]
    assert (few.details["rows"], few.details["available"], few.details["limit"]) == (10, 418, 10)


def test_what_is_joined_or_left_out_is_counted(tmp_path: Path) -> None:
    rows = [("K2R", 1), ("K2R", 3), ("T3A", 5), ("WT", 9), ("A4*", 2), ("A4G", ""), ("Y5F:I6L", 0), ("I6L:Y5F", 1)]
    path = write(tmp_path, rows, more="cutoff: 2\n")
    found = VariantTask(VariantConfig(definition=path)).run(Weights())  # type: ignore[arg-type]
    assert found.predictions["mutant"] == ["K2R", "T3A", "Y5F:I6L"]
    assert found.predictions["DMS_score"] == [2, 5, 0.5]
    assert found.predictions["functional"] == [1, 1, 0]
    assert found.details["left_out"] == {
        "repeated variants, averaged": 2,
        "the wild type itself": 1,
        "with a stop": 1,
        "without a score": 1,
    }


def test_a_column_says_what_is_functional_and_lower_may_be_better(tmp_path: Path) -> None:
    rows = [("K2R", 1, 1), ("T3A", 5, 0), ("A4G", 7, 0)]
    path = write(tmp_path, rows, "mutant,DMS_score,DMS_score_bin", "better: lower\n")
    found = VariantTask(VariantConfig(definition=path)).run(Weights())  # type: ignore[arg-type]
    assert found.predictions["functional"] == [1, 0, 0]
    assert found.details["functional_at"] is None
    assert found.value == pytest.approx(spearmanr([-1, -5, -7], [LETTERS.index(x) for x in "RAG"]).statistic)
    # without the column, what is at most the median is functional
    other = write(tmp_path / "b", [row[:2] for row in rows], more="better: lower\n")
    found = VariantTask(VariantConfig(definition=other)).run(Weights())  # type: ignore[arg-type]
    assert found.predictions["functional"] == [1, 1, 0]


def test_other_lengths_need_pll(tmp_path: Path) -> None:
    rows = [(WILD_TYPE[:-1], 1), (WILD_TYPE + "G", 0), (WILD_TYPE.replace("A", "G", 1), 2)]
    path = write(tmp_path, rows, "mutated_sequence,DMS_score")
    found = VariantTask(VariantConfig(definition=path, method="pll")).run(Substitution())
    assert found.details["mutations"] == {"1": 1, "other length": 2}
    assert found.predictions["score"] == [-12, -12, BLOSUM62["A", "G"] - 4]
    found = VariantTask(VariantConfig(definition=path)).run(Substitution())
    assert found.details["left_out"] == {"of another length than the wild type": 2}


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([("K2R", 1), ("Q4G", 2)], "", r"scan\.csv, line 3: Q4G: expected Q at position 4, but the wild type has A"),
        ([("M0V", 1), ("K1R", 1), ("T2G", 2)], "", r"set first_residue to 0$"),
        ([("K2R", "high")], "", r"scan\.csv, line 2: DMS_score is 'high', which is not a number"),
        ([("WT", 1)], "", r"no variant is left: .*the wild type itself"),
        ([("K2R", 1)], "mutant: variants\n", r"no column 'variants'"),
        ([("K2R", 1)], "score: fitness\n", r"no column 'fitness'"),
        ([("K2R", 1)], "wild_type: {file: wt.fasta, name: yours}\n", r"no sequence 'yours'\..*mine"),
        ([("K2R", 1)], "wild_type: lower\n", r"wild_type"),
        ([("K2R", 1)], "wild_type: {name: mine}\n", r"give either a sequence or a file"),
        ([("K2R", 1)], "better: worse\n", r"better"),
    ],
)
def test_mistakes(rows: list[tuple[str, object]], more: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, rows)
    keys = {line.partition(":")[0] for line in more.splitlines()}
    kept = [line for line in DEFINITION.splitlines() if line.partition(":")[0] not in keys]
    Path(path).write_text("\n".join(kept) + "\n" + more)
    with pytest.raises(UserError, match=says) as caught:
        VariantTask(VariantConfig(definition=path)).run(Weights())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_subject_without_scores_is_refused(tmp_path: Path) -> None:
    task = VariantTask(VariantConfig(definition=write(tmp_path, scan())))
    with pytest.raises(UserError, match=r"floor:kmer2 has no scores of variants: use a network, floor:substitution, "):
        task.run(Kmer2())


def test_floors_by_hand() -> None:
    variants = make_variants([(name, None) for name in ("A4G", "K2R:Y5F", "WT")], WILD_TYPE)
    substitution, hydrophobicity = Substitution(), Hydrophobicity()
    assert isinstance(substitution, VariantScorer)
    assert substitution.score_variants(WILD_TYPE, variants, "any").tolist() == [0 - 4, 2 - 4 + 3 - 4, 0]
    assert hydrophobicity.score_variants(WILD_TYPE, variants, "any") == pytest.approx([-2.2, -0.6 - 4.1, 0])
    assert len(BLOSUM62) == 400
    assert all(BLOSUM62[b, a] == value for (a, b), value in BLOSUM62.items())
    assert sum(BLOSUM62[a, a] for a in LETTERS) == 116
    assert (BLOSUM62["W", "C"], BLOSUM62["I", "V"], BLOSUM62["D", "E"], BLOSUM62["H", "Y"]) == (-2, 3, 2, 2)
    assert sum(HYDROPHOBICITY.values()) == pytest.approx(-9.8)


def test_cards_of_the_shipped_scans(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in registry.names("task") if name.startswith("variant-effect:")]
    assert len(names) == 7
    assert main(["task", "show", "variant-effect", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert sorted(cards) == sorted(names)
    for card in cards.values():
        assert card["metric"] == "Spearman"
        assert {"Activity", "Binding", "Expression", "OrganismalFitness"} >= {card["selection"]}
        assert card["protein"]
        assert sum(file.startswith("proteingym_like_dms/") for file in card["data"]) == 2
        assert "median" in card["note"]
        assert "{" not in json.dumps([card[key] for key in ("title", "citation", "differs", "splits")])


@pytest.mark.parametrize("scan_name", ["blat-ecolx", "dlg4-2022-binding"])
def test_real_scans_by_floors(scan_name: str, registry: Registry, shared_data: Path) -> None:
    if not (shared_data / "proteingym_like_dms").is_dir():
        pytest.skip("no deep mutational scans there")
    name = f"variant-effect:{scan_name}"
    task = build(name, registry, data_dir=str(shared_data))
    found = task.run(task.floors()["floor:substitution"])
    assert found.details["left_out"] == {}
    assert found.details["available"] == {"blat-ecolx": 4996, "dlg4-2022-binding": 8251}[scan_name]
    scores, truth = found.predictions["score"], found.predictions["DMS_score"]
    assert found.value == pytest.approx(spearmanr(scores, truth).statistic)
    assert found.interval[0] > 0.2


def test_a_network_on_a_real_scan(registry: Registry, shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "proteingym_like_dms").is_dir():
        pytest.skip("no deep mutational scans there")
    folder = str(tiny_model.save(tmp_path / "esm", registry))
    model, twin, _ = open_subjects(folder, registry)
    assert twin is not None
    options = {"rows": 100, "method": "wt-marginals"}
    task = build("variant-effect:blat-ecolx", registry, data_dir=str(shared_data), options=options)
    results = [task.run(subject) for subject in (model, twin)]
    for found in results:
        assert np.isfinite(found.predictions["score"]).all()
        assert found.details["rows"] == 100
    assert results[0].items == results[1].items
    assert results[0].predictions["score"] != results[1].predictions["score"]


def test_a_definition_runs_by_its_path(tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, scan())
    folder = str(tiny_model.save(tmp_path / "esm", registry))
    words = ["--limit", "40", "--no-random-init", "--json"]
    assert main(["task", "run", path, "--model", folder, *words]) == 0
    task = json.loads(capsys.readouterr().out)["tasks"][0]
    assert [entry["subject"] for entry in task["results"]][1:] == ["floor:substitution", "floor:hydrophobicity"]
    assert all(entry["details"]["rows"] == 40 for entry in task["results"])
