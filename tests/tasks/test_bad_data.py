"""Data that are wrong, through the command line: one clear line or a count in the result, never a silent cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_model

from protloom.cli import main
from protloom.plugins import Registry

Capture = pytest.CaptureFixture[str]
HEAD = "title: t\nsequence: s\nlabel: y\norigin: here\nlicence: none\n"
SPLITS = "splits:\n  train: {file: t.csv, where: {p: train}}\n  test: {file: t.csv, where: {p: test}}\n"
STATES = HEAD.replace("label: y", "label: {column: y, classes: HEC}") + "kind: residue-multiclass\n" + SPLITS
NUMBERS = HEAD.replace("label: y", "label: {column: y, separator: ';'}") + "kind: residue-regression\n" + SPLITS
SEQUENCES = [f"MKTA{a}{b}IAKQ" for a in "ACDEFG" for b in "HIKL"]


def write(folder: Path, text: str, rows: Sequence[Sequence[str]]) -> str:
    """Writes a task on rows of (sequence, label, part)."""
    (folder / "t.csv").write_text("s,y,p\n" + "".join(f"{','.join(row)}\n" for row in rows))
    (folder / "t.yaml").write_text(text)
    return str(folder / "t.yaml")


def parts(labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Gives every third row to the test split."""
    return [(s, y, "train" if i % 3 else "test") for i, (s, y) in enumerate(zip(SEQUENCES, labels, strict=True))]


def run(capsys: Capture, task: str, *words: str, model: str = "floor:composition") -> tuple[Any, str]:
    """Runs one task that must work; returns its first result, and what was told on stderr."""
    capsys.readouterr()
    assert main(["task", "run", task, "--model", model, "--test", "--json", *words]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["tasks"][0]["results"][0], err


def refused(capsys: Capture, task: str, *words: str, model: str = "floor:composition") -> str:
    """Runs one task that must be refused; returns the line that says why."""
    capsys.readouterr()
    assert main(["task", "run", task, "--model", model, "--test", *words]) == 1
    out, err = capsys.readouterr()
    assert "metric" not in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> str:
    return str(tiny_model.save(tmp_path_factory.mktemp("models") / "esm", registry))


@pytest.fixture(scope="module")
def maskless(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> str:
    """A network that reads residues, with a tokenizer that has sentinels and no mask."""
    return str(tiny_model.save(tmp_path_factory.mktemp("models") / "maskless", registry, tokenizer="ankh"))


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("text", "short"), [(STATES, "HEC"), (NUMBERS, "1;2;3")])
def test_labels_shorter_than_the_sequence(text: str, short: str, tmp_path: Path, capsys: Capture) -> None:
    whole = "HECH" if text == STATES else "1;2;3;4"
    task = write(tmp_path, text, [("MKTA", whole, "train"), ("MKVA", short, "train"), ("MKWA", whole, "test")])
    line = refused(capsys, task, model="floor:onehot")
    assert "t.csv, line 3: 4 residues, 3 labels in y; they must be as many" in line


@pytest.mark.parametrize(("kind", "unseen"), [("multiclass", "rare"), ("multiclass", "")])
def test_a_class_unseen_in_training(kind: str, unseen: str, tmp_path: Path, capsys: Capture) -> None:
    rows = parts(["ab"[i // 12] for i in range(24)])
    rows[3] = (rows[3][0], unseen, "test")
    found, _ = run(capsys, write(tmp_path, HEAD + f"kind: {kind}\n" + SPLITS, rows))
    if unseen:
        assert found["details"]["rows_of_classes_unseen_in_training"] == 1
        assert found["details"]["rows"] == 8
        assert found["value"] <= 7 / 8
    else:
        assert found["details"]["left_out"] == {"no label": 1}
        assert found["details"]["rows"] == 7


def test_a_state_unseen_in_training(tmp_path: Path, capsys: Capture) -> None:
    rows = [("MKTA", "HEHE", "train"), ("MKVA", "HEEH", "train"), ("MKWA", "HECC", "test")]
    found, _ = run(capsys, write(tmp_path, STATES, rows), model="floor:onehot")
    assert found["details"]["test_residues"] == 4
    assert found["value"] <= 0.5  # what training lacks can only be missed


def test_labels_that_are_no_numbers(tmp_path: Path, capsys: Capture) -> None:
    labels = [str(i % 7) for i in range(24)]
    labels[0], labels[1], labels[2] = "NaN", "", "nan"
    found, _ = run(capsys, write(tmp_path, HEAD + "kind: regression\n" + SPLITS, parts(labels)))
    assert found["details"]["left_out"] == {"no label": 3}
    assert (found["details"]["train_rows"], found["details"]["rows"]) == (14, 7)
    labels[5] = "inf"
    found, _ = run(capsys, write(tmp_path, HEAD + "kind: regression\n" + SPLITS, parts(labels)))
    assert found["details"]["left_out"] == {"no label": 4}
    labels[5] = "five"
    task = write(tmp_path, HEAD + "kind: regression\n" + SPLITS, parts(labels))
    assert "t.csv, line 7: y is 'five', which is not a number" in refused(capsys, task)
    rows = [("MKTA", "1;nan;3;4", "train"), ("MKVA", "3;2;1;", "train"), ("MKWA", "1;NaN;2;5", "test")]
    found, _ = run(capsys, write(tmp_path, NUMBERS, rows), model="floor:onehot")
    assert found["details"]["test_residues"] == 3
    assert found["details"]["train_residues"] == 6


def test_a_table_that_is_nowhere(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTLOOM_DATA", raising=False)
    task = write(tmp_path, HEAD + "kind: binary\n" + SPLITS, [])
    (tmp_path / "t.csv").unlink()
    assert f"needs t.csv: put it into {tmp_path}, or give the data folder by --data-dir" in refused(capsys, task)
    (tmp_path / "data").mkdir()
    line = refused(capsys, task, "--data-dir", str(tmp_path / "data"))
    assert f"no file {tmp_path}/data/t.csv, and no file {tmp_path}/t.csv: put t.csv into" in line


# -------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("text", [HEAD + "kind: regression\n" + SPLITS, STATES, NUMBERS])
def test_an_empty_split(text: str, part: str, tmp_path: Path, capsys: Capture) -> None:
    label = {STATES: "HECH", NUMBERS: "1;2;3;4"}.get(text, "1")
    other = "test" if part == "train" else "train"
    task = write(tmp_path, text, [("MKTA", label, other), ("MKVA", label, other)])
    line = refused(capsys, task, model="floor:onehot" if "residue" in text else "floor:composition")
    assert f"no row is selected: 'where' wants p = {part}; it is {other}" in line
    # rows that are there, but have no label
    nothing = {STATES: "----", NUMBERS: "nan;nan;nan;nan"}.get(text, "nan")
    rows = [("MKTA", label, other), ("MKVA", nothing, part), ("MKWA", nothing, part)]
    task = write(tmp_path, text.replace("classes: HEC", "classes: HEC, unknown: '-'"), rows)
    line = refused(capsys, task, model="floor:onehot" if "residue" in text else "floor:composition")
    proteins = {"train": "training", "test": "test"}[part]
    residues = f"no residue of the {proteins} proteins is labelled and has features"
    assert (residues if "residue" in text else f"the {part} split is empty: left out were no label (2)") in line


# ------------------------------------------------------------------------------------------------------------ variants


def scan(folder: Path, rows: Sequence[str]) -> tuple[str, list[str]]:
    """Writes a scan; returns the task, and what ``score`` takes."""
    (folder / "wt.fasta").write_text(">mine\nMKTAYIAKQRQISFVKSHFSRQ\n")
    (folder / "scan.csv").write_text("mutant,DMS_score\n" + "".join(f"{row}\n" for row in rows))
    text = "title: t\nkind: variant-effect\nfile: scan.csv\nwild_type: wt.fasta\norigin: here\nlicence: none\n"
    (folder / "scan.yaml").write_text(text)
    return str(folder / "scan.yaml"), [str(folder / "scan.csv"), "--wild-type", str(folder / "wt.fasta")]


def test_a_wild_type_that_disagrees(esm: str, tmp_path: Path, capsys: Capture) -> None:
    task, words = scan(tmp_path, ["K2R,1", "A4G,2", "Q5G,3"])
    says = "line 4: Q5G: expected Q at position 5, but the wild type has Y"
    assert says in refused(capsys, task, model="floor:substitution")
    assert main(["score", *words, "--model", esm]) == 2
    assert says in capsys.readouterr().err


def test_a_model_without_masks_is_asked_for_masked_marginals(maskless: str, tmp_path: Path, capsys: Capture) -> None:
    task, words = scan(tmp_path, ["K2R,1", "A4G,2", "Y5G,3"])
    says = (
        "this model cannot do masked-marginals: tokenizer 'ankh' has no mask symbol to hide a residue behind;"
        " it can do: wt-marginals"
    )
    assert main(["score", *words, "--model", maskless]) == 2
    out, err = capsys.readouterr()
    assert (out, says in err) == ("", True)
    assert says in refused(capsys, task, model=maskless)
    assert main(["score", *words, "--model", maskless, "--method", "wt-marginals"]) == 0
    found, _ = run(capsys, task, "--set", "method=wt-marginals", model=maskless)
    assert found["details"]["rows"] == 3


def test_a_scan_with_numbers_that_are_none(tmp_path: Path, capsys: Capture) -> None:
    task, _ = scan(tmp_path, ["K2R,1", "A4G,nan", "Y5G,", "I6L,0"])
    found, _ = run(capsys, task, model="floor:substitution")
    assert found["details"]["rows"] == 2
    assert sum(found["details"]["left_out"].values()) == 2


# ------------------------------------------------------------------------------------------------------ long sequences


@pytest.mark.parametrize("text", [HEAD + "kind: regression\n" + SPLITS, NUMBERS])
@pytest.mark.parametrize("policy", ["crop", "window", "skip", "auto"])
def test_a_sequence_over_the_limit(policy: str, text: str, esm: str, tmp_path: Path, capsys: Capture) -> None:
    long = "MKTAYIAKQRQISFVKSHFSRQLEE"
    label = ";".join(map(str, range(25))) if text == NUMBERS else "3"
    short = [(s, ";".join("8642975310") if text == NUMBERS else str(i % 5)) for i, s in enumerate(SEQUENCES)]
    rows = [(s, y, "train" if i % 3 else "test") for i, (s, y) in enumerate(short)]
    task = write(tmp_path, text, [*rows, (long, label, "test")])
    words = ("--max-length", "12", "--long", policy, "--no-random-init", "--no-floors")
    found, _ = run(capsys, task, *words, model=esm)
    effective = {"auto": "window" if text == NUMBERS else "crop"}.get(policy, policy)
    word = {"crop": "cropped", "window": "windowed", "skip": "skipped"}[effective]
    counts = {name: found["counts"].get(name, 0) for name in ("cropped", "windowed", "skipped")}
    assert counts == {"cropped": 0, "windowed": 0, "skipped": 0, word: 1}
    if text == NUMBERS:
        lost = {"crop": 13, "window": 0, "skip": 25}[effective]
        assert found["details"]["test_residues_without_features"] == lost
    else:
        assert found["details"]["without_features"]["scored"] == (1 if effective == "skip" else 0)
    assert main(["task", "run", task, "--model", esm, "--test", *words]) == 0
    assert f"note: sequences over 12 residues: 1 {word}" in capsys.readouterr().out


@pytest.mark.parametrize("text", [HEAD + "kind: regression\n" + SPLITS, NUMBERS])
@pytest.mark.parametrize("policy", ["crop", "skip"])
def test_floors_are_scored_on_what_the_model_is_scored_on(
    policy: str, text: str, esm: str, tmp_path: Path, capsys: Capture
) -> None:
    def label(sequence: str, i: int) -> str:
        return ";".join(str((i + j) % 7) for j in range(len(sequence))) if text == NUMBERS else str(i % 5)

    long = ["MKTAYIAKQRQISFVKSHFSRQLEE", "GSHMKTAYIAKQRQISFVK", "MSTNPKPQRKTKRNTNRRPQ", "MAHHHHHHGSLVPRGSD"]
    sequences = [*SEQUENCES, *long]
    rows = [(s, label(s, i), "train" if i % 3 else "test") for i, s in enumerate(sequences)]
    rows += [(long[0] + "A", label(long[0] + "A", 5), "train"), (long[0] + "C", label(long[0] + "C", 2), "test")]
    task, out = write(tmp_path, text, rows), tmp_path / "out"
    words = ["--max-length", "12", "--long", policy, "--out", str(out)]
    assert main(["task", "run", task, "--model", esm, "--test", "--json", *words]) == 0
    results = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    told = [name for name in results[0]["details"] if name.startswith(("train_", "test_", "rows", "without"))]
    assert any(results[0]["details"][name] for name in told if "without" in name) or text != NUMBERS
    for result in results[1:]:
        assert {name: result["details"][name] for name in told} == {name: results[0]["details"][name] for name in told}
        assert (result["items"], result["n"]) == (results[0]["items"], results[0]["n"])
    scored = [row for row in rows if row[2] == "test" and (policy != "skip" or len(row[0]) <= 12)]
    assert results[0]["n"] == len(scored) if text != NUMBERS else results[0]["details"]["test_proteins"] == len(scored)
    # a floor alone is asked as it is beside a model
    floor = next(result for result in results if result["role"] == "floor")
    assert main(["task", "run", task, "--model", floor["subject"], "--test", "--json", *words]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    assert (alone["value"], alone["items"]) == (floor["value"], floor["items"])
    folders = [path.parent.name for path in out.rglob("*.json")]
    assert any(policy in name and "floor" in name for name in folders), folders


@pytest.mark.parametrize("text", [HEAD + "kind: regression\n" + SPLITS, NUMBERS])
@pytest.mark.parametrize(
    "options",
    [("--set", "probe=lora", "--set", "epochs=1"), ("--set", "probe=lora", "--set", "epochs=1", "--long", "skip")],
)
def test_a_floor_is_compared_with_a_network_that_is_tuned(
    options: tuple[str, ...], text: str, esm: str, tmp_path: Path, capsys: Capture
) -> None:
    long = "MKTAYIAKQRQISFVKSHFSRQLEE"
    label = ";".join(map(str, range(25))) if text == NUMBERS else "3"
    short = [(s, ";".join("8642975310") if text == NUMBERS else str(i % 5)) for i, s in enumerate(SEQUENCES)]
    rows = [(s, y, "train" if i % 3 else "test") for i, (s, y) in enumerate(short)]
    task = write(tmp_path, text, [*rows, (long, label, "test")])
    words = ("--max-length", "12", *options, "--no-random-init", "--test", "--json")
    assert main(["task", "run", task, "--model", esm, *words]) == 0
    model, *floors = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    assert floors
    assert {floor["items"] for floor in floors} == {model["items"]}
    assert all(floor["model_minus_this"] is not None for floor in floors)


def test_skip_leaves_long_sequences_out_of_every_pooling(esm: str, tmp_path: Path, capsys: Capture) -> None:
    rows = [(s, str(i % 5), "train" if i % 3 else "test") for i, s in enumerate(SEQUENCES)]
    task = write(tmp_path, HEAD + "kind: regression\n" + SPLITS, [*rows, ("MKTAYIAKQRQISFVKSHFSRQLEE", "3", "test")])
    words = ("--max-length", "12", "--long", "skip", "--no-random-init", "--test", "--json")
    assert main(["task", "run", task, "--model", esm, "--set", "pool=cls", *words]) == 0
    model, *floors = json.loads(capsys.readouterr().out)["tasks"][0]["results"]
    assert {floor["items"] for floor in floors} == {model["items"]}


def test_results_of_two_policies_are_not_compared(esm: str, tmp_path: Path, capsys: Capture) -> None:
    rows = [(s, ";".join("8642975310"), "train" if i % 3 else "test") for i, s in enumerate(SEQUENCES)]
    long = "MKTAYIAKQRQISFVKSHFSRQLEE"
    task = write(tmp_path, NUMBERS, [*rows, (long, ";".join(map(str, range(25))), "test")])
    folders = {policy: tmp_path / policy for policy in ("skip", "crop")}
    for policy, folder in folders.items():
        words = ("--max-length", "12", "--long", policy, "--no-random-init", "--no-floors", "--out", str(folder))
        assert main(["task", "run", task, "--model", esm, "--test", *words]) == 0
    capsys.readouterr()
    both = tmp_path / "both"
    for policy in folders:
        words = ("--max-length", "12", "--long", policy, "--no-random-init", "--out", str(both))
        assert main(["task", "run", task, "--model", esm, "--test", *words]) == 0
    rows_of = [line for line in (both / "results.md").read_text().splitlines() if line.startswith(f"| {task}")]
    assert len(rows_of) == 2
    assert all(line.count("–") == 1 and "floor:" in line for line in rows_of), rows_of
    assert ["skip" in line for line in rows_of] != ["crop" in line for line in rows_of]
    capsys.readouterr()
    assert main(["task", "compare", *map(str, folders.values())]) != 0
    assert "about other items" in "".join(capsys.readouterr())


# ----------------------------------------------------------------------------------------------------------- the cache

ALONE = ("--no-random-init", "--no-floors")


def regression(folder: Path) -> str:
    return write(folder, HEAD + "kind: regression\n" + SPLITS, parts([str(i * i % 11) for i in range(24)]))


def test_a_damaged_entry_of_the_cache(esm: str, tmp_path: Path, capsys: Capture) -> None:
    task, words = regression(tmp_path), (*ALONE, "--cache-dir", str(tmp_path / "cache"))
    first, _ = run(capsys, task, *words, model=esm)
    path = max((tmp_path / "cache").glob("*/*.emb"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4  # one bit of one number
    path.write_bytes(content)
    again, err = run(capsys, task, *words, model=esm)
    assert "warning: 1 cached embedding was damaged: dropped and computed again" in err
    assert again["metrics"] == first["metrics"]
    assert again["counts"]["cached"] == 23
    last, err = run(capsys, task, *words, model=esm)
    assert "warning" not in err
    assert (last["metrics"], last["counts"]["cached"]) == (first["metrics"], 24)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "protloom", "task", "run", *words]


def test_two_processes_on_one_cache(esm: str, tmp_path: Path, capsys: Capture) -> None:
    task = regression(tmp_path)
    alone, _ = run(capsys, task, *ALONE, "--no-cache", model=esm)
    words = command(task, "--model", esm, "--test", "--json", *ALONE, "--cache-dir", str(tmp_path / "cache"))
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "warning" not in err
        assert json.loads(out)["tasks"][0]["results"][0]["metrics"] == pytest.approx(alone["metrics"])
    found, err = run(capsys, task, *ALONE, "--cache-dir", str(tmp_path / "cache"), model=esm)
    assert found["metrics"] == pytest.approx(alone["metrics"])
    assert found["counts"]["cached"] == 24
    assert "warning" not in err


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_full_disk(esm: str, tmp_path: Path) -> None:
    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    task = regression(tmp_path)
    folders = ("--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "results"))
    words = command(task, "--model", esm, "--test", *ALONE, *folders)
    # the system refuses to let any file grow beyond 2 kB, as a full disk would
    done = subprocess.run(
        words, capture_output=True, text=True, preexec_fn=limited, timeout=600, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 1
    assert done.stderr.count("warning: embeddings cannot be kept in ") == 1
    assert f"error: {task}: no space left to write {tmp_path / 'results'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "cache").rglob("*.emb")) == []
    assert subprocess.run(words, capture_output=True, timeout=600, check=False, env=ENVIRONMENT).returncode == 0
    assert len(list((tmp_path / "results" / "results").glob("*/*.json"))) == 1
