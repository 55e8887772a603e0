"""``protloom data overlap`` and ``duplicates`` as a user calls them; a program that checks its orders plays MMseqs2."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protloom.cli import main
from protloom.data.build import build_store
from protloom.data.layout import Store

Capture = pytest.CaptureFixture[str]


def fasta(path: Path, sequences: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{s}\n" for name, s in sequences.items()))
    return path


def definition(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Writes a task on (sequence, split) rows."""
    table = path.with_suffix(".csv")
    table.write_text("sequence,part,y\n" + "".join(f"{s},{p},{i}\n" for i, (s, p) in enumerate(rows)))
    path.write_text(
        "title: t\nkind: regression\nsequence: sequence\nlabel: y\norigin: here\nlicence: none\nsplits:\n"
        f"  train: {{file: {table.name}, where: {{part: train}}}}\n"
        f"  test: {{file: {table.name}, where: {{part: test}}}}\n"
    )
    return path


@pytest.fixture
def proteins(random_proteins: Callable[..., list[str]]) -> list[str]:
    return random_proteins(40, seed=7, low=60, high=90)


def lines_of(text: str) -> dict[str, list[str]]:
    """Returns the cells of each line of a printed table by its first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_from_a_corpus_to_a_clean_one(tmp_path: Path, proteins: list[str], capsys: Capture) -> None:
    corpus = {f"p{i}": s for i, s in enumerate(proteins[:20])}
    corpus["fusion"] = proteins[20] + proteins[25]
    path = fasta(tmp_path / "c.fasta", corpus)
    # two copies, one of them twice, one inside a longer protein, one that is a stranger
    tested = [(s, "test") for s in (proteins[3], proteins[4], proteins[4], proteins[25], proteins[30])]
    task = str(definition(tmp_path / "t.yaml", [*tested, (proteins[31], "train"), (proteins[5], "train")]))
    mine = str(fasta(tmp_path / "mine.fasta", {"m": proteins[3], "n": proteins[33]}))
    out = str(tmp_path / "drop.tsv")
    words = ["data", "overlap", str(path), "--tasks", task, "--against", mine, "--out", out]
    assert main(words) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    table = lines_of(printed)
    assert table[task] == [task, "5", "3", "(60.0%)", "4", "(80.0%)", "3"]
    assert table[mine] == [mine, "2", "1", "(50.0%)", "1", "(50.0%)", "1"]
    assert "3 of 21 sequences of the corpus overlap with a test sequence (by 6-mers)" in printed
    assert (tmp_path / "drop.tsv").read_text() == (
        "id\tshare\texact\ttested_in\tcorpus\n"
        f"p3\t1.000\tyes\t{task} {mine}\t{path}\n"
        f"p4\t1.000\tyes\t{task}\t{path}\n"
        f"fusion\t1.000\tno\t{task}\t{path}\n"
    )
    assert f"protloom data prepare {path} --drop {out} --out CLEANED" in printed
    assert main(["data", "prepare", str(path), "--drop", out, "--out", str(tmp_path / "clean")]) == 0
    capsys.readouterr()
    assert sorted(Store.open(tmp_path / "clean").ids()) == sorted(set(corpus) - {"p3", "p4", "fusion"})
    assert main(["data", "overlap", str(tmp_path / "clean"), "--tasks", task, "--against", mine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == {
        task: {"tested": 5, "exact": 0, "above": 0, "corpus": 0},
        mine: {"tested": 2, "exact": 0, "above": 0, "corpus": 0},
    }
    assert (found["k"], found["share"], found["read"]) == (6, 0.3, 18)


def test_several_corpora_of_any_kind(tmp_path: Path, proteins: list[str], capsys: Capture) -> None:
    first = fasta(tmp_path / "a.fasta", {"a": proteins[0], "a2": proteins[1]})
    build_store(fasta(tmp_path / "b.fasta", {"b": proteins[2]}), tmp_path / "store")
    (tmp_path / "t.csv").write_text(f"name,primary,x\nc,{proteins[3].lower()},1\nd,{proteins[3]}*,1\n")
    mine = str(fasta(tmp_path / "mine.fasta", {"x": proteins[0], "y": proteins[2], "z": proteins[3]}))
    sources = [str(first), str(tmp_path / "store"), str(tmp_path / "t.csv")]
    assert main(["data", "overlap", *sources, "--against", mine, "--json", "--out", str(tmp_path / "l")]) == 0
    printed, errors = capsys.readouterr()
    found = json.loads(printed)
    assert found["tasks"] == {mine: {"tested": 3, "exact": 3, "above": 3, "corpus": 4}}
    assert [found["corpora"][source]["overlapping"] for source in sources] == [1, 1, 2]
    rows = [line.split("\t") for line in (tmp_path / "l").read_text().splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == list(zip("abcd", [*sources, sources[2]], strict=True))
    assert "1 record of 2: lower-case letters become upper case (first: " in errors


def test_share_and_k(tmp_path: Path, proteins: list[str], capsys: Capture) -> None:
    path = fasta(tmp_path / "c.fasta", {"c": "A" + proteins[0][1:30] + proteins[1][30:]})
    mine = str(fasta(tmp_path / "mine.fasta", {"x": proteins[0]}))

    def above(*words: str) -> int:
        assert main(["data", "overlap", str(path), "--against", mine, "--json", *words]) == 0
        count: int = json.loads(capsys.readouterr().out)["tasks"][mine]["above"]
        return count

    # 29 residues in a row are left: 24 of some 60 to 80 6-mers, 18 12-mers
    assert [above("--share", share) for share in ("0.2", "0.5")] == [1, 0]
    assert above("--k", "12", "--share", "0.2") == 1
    for words, message in (
        (("--share", "0"), "must lie above 0"),
        (("--share", "1.5"), "must lie above 0"),
        (("--k", "13"), "choose 1 to 12"),
        (("--identity", "0.5"), "say --mmseqs too"),
        (("--mmseqs", "--k", "5"), "--k is about k-mers"),
        (("--mmseqs", "--coverage", "2"), "--coverage 2: must lie above 0"),
        (("--out", str(tmp_path)), "name a file in a folder that exists"),
        (("--tasks", "solubilty"), "Did you mean 'solubility'?"),
    ):
        assert main(["data", "overlap", str(path), "--against", mine, *words]) == 2
        printed, errors = capsys.readouterr()
        assert message in errors
        assert len(errors.splitlines()) == 1
        assert printed == ""


def test_data_that_are_missing(tmp_path: Path, proteins: list[str], capsys: Capture) -> None:
    path = str(fasta(tmp_path / "c.fasta", {"c": proteins[0]}))
    task = str(definition(tmp_path / "t.yaml", [(proteins[0], "test"), (proteins[1], "train"), (proteins[2], "train")]))
    empty = tmp_path / "empty"
    empty.mkdir()
    # one that was named fails, the other one is told all the same
    words = ["data", "overlap", path, "--tasks", task, "solubility", "--data-dir", str(empty)]
    assert main(words) == 1
    printed, errors = capsys.readouterr()
    assert lines_of(printed)[task][1:3] == ["1", "1"]
    assert "error: solubility: no file" in errors
    # a task that has no test set, although it may run without one
    text = (tmp_path / "t.yaml").read_text()
    (tmp_path / "u.yaml").write_text(text.replace("test: {file: t.csv", "test: {file: gone.csv"))
    assert main(["data", "overlap", path, "--tasks", str(tmp_path / "u.yaml"), task]) == 1
    printed, errors = capsys.readouterr()
    assert "gone.csv" in errors
    assert lines_of(printed)[task][1:3] == ["1", "1"]
    # without names, what has no data is left out, and nothing at all is a mistake
    assert main(["data", "overlap", path, "--data-dir", str(empty)]) == 2
    errors = capsys.readouterr().err
    assert "no test sequences to compare with: give --data-dir, or --against FILE" in errors
    assert "solubility" in errors


def test_duplicates_of_a_task(tmp_path: Path, proteins: list[str], capsys: Capture) -> None:
    near = proteins[0][:50] + proteins[9][50:]
    rows = [(s, "test") for s in (proteins[0], proteins[1], proteins[2], proteins[1])]
    rows += [(s, "train") for s in (near, proteins[1], proteins[5])]
    task = str(definition(tmp_path / "t.yaml", rows))
    assert main(["data", "duplicates", task]) == 0
    table = lines_of(capsys.readouterr().out)
    assert table[task] == [task, "3", "4", "2", "(50.0%)", "3", "(75.0%)", "1"]
    assert main(["data", "duplicates", task, "--share", "0.9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"][task] == {"training": 3, "test": 4, "exact": 2, "above": 2, "repeated_in_test": 1}
    assert main(["data", "duplicates", task, "solubility", "--data-dir", str(tmp_path)]) == 1
    assert "error: solubility: no file" in capsys.readouterr().err
    assert main(["data", "duplicates", task, "--share", "2"]) == 2


# -------------------------------------------------------------------------------------------------------------- MMseqs2

FAKE = """#!{python}
import json, sys
from pathlib import Path
assert sys.argv[1] == "easy-search", sys.argv
query, target, out, work = map(Path, sys.argv[2:6])
options = dict(zip(sys.argv[6::2], sys.argv[7::2], strict=True))
Path({log!r}).write_text(json.dumps(options))
assert not work.exists()
mode = {mode!r}
if mode == "fails":
    print("some words\\nInput database has no sequences", file=sys.stderr)
    sys.exit(3)
def read(path):
    words = path.read_text().split("\\n")
    assert words[0::2][-1] == "" and all(word.startswith(">") for word in words[0:-1:2])
    return {{word[1:]: s for word, s in zip(words[0::2], words[1::2])}}
tested, corpus = read(query), read(target)
lines = []
for q, a in tested.items():
    for t, b in corpus.items():
        same = sum(x == y for x, y in zip(a, b)) / len(a)
        if same >= float(options["--min-seq-id"]):
            lines.append(f"{{q}}\\t{{t}}\\t{{same:.3f}}\\n")
if mode == "strange":
    lines.append("7\\t99\\t0.5\\n")
out.write_text("".join(lines))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> Path:
    """Puts a program mmseqs on the PATH that compares position by position; returns where it notes its options."""
    log = folder / "options.json"
    program = folder / "bin" / "mmseqs"
    program.parent.mkdir(exist_ok=True)
    program.write_text(FAKE.format(python=sys.executable, log=str(log), mode=mode))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
def test_mmseqs_is_asked_for_identity_and_coverage(
    tmp_path: Path, proteins: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    log = install(tmp_path, monkeypatch, "works")
    # every third residue is another one: no 6-mer is left, but two thirds of the residues
    far = "".join("W" if i % 3 == 0 else c for i, c in enumerate(proteins[0]))
    path = fasta(tmp_path / "c.fasta", {"far|x": far, "same y": proteins[1], "other": proteins[2]})
    mine = str(fasta(tmp_path / "mine.fasta", {"x": proteins[0], "y": proteins[1]}))
    out = str(tmp_path / "drop.tsv")
    words = ["data", "overlap", str(path), "--against", mine]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][mine] == {"tested": 2, "exact": 1, "above": 1, "corpus": 1}
    assert main([*words, "--mmseqs", "--identity", "0.6", "--coverage", "0.75", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert lines_of(printed)[mine] == [mine, "2", "1", "(50.0%)", "2", "(100.0%)", "2"]
    assert "2 of 3 sequences of the corpus overlap with a test sequence (by alignment)" in printed
    options = json.loads(log.read_text())
    assert options == {
        "--min-seq-id": "0.6",
        "-c": "0.75",
        "--cov-mode": "2",
        "--max-seqs": "1000000",
        "--format-output": "query,target,fident",
        "-v": "1",
    }
    rows = [line.split("\t")[:3] for line in Path(out).read_text().splitlines()[1:]]
    identity = sum(a == b for a, b in zip(far, proteins[0], strict=True)) / len(far)
    assert rows == [["far|x", f"{identity:.3f}", "no"], ["same", "1.000", "yes"]]
    assert main([*words, "--mmseqs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mmseqs"] == {"identity": 0.3, "coverage": 0.8, "threads": None}
    assert json.loads(log.read_text())["--min-seq-id"] == "0.3"


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
@pytest.mark.parametrize(
    ("mode", "message"),
    [("fails", "failed with code 3: Input database has no sequences"), ("strange", "wrote no table of (query, target")],
)
def test_mmseqs_fails(
    mode: str, message: str, tmp_path: Path, proteins: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    install(tmp_path, monkeypatch, mode)
    path = str(fasta(tmp_path / "c.fasta", {"c": proteins[0]}))
    assert main(["data", "overlap", path, "--against", path, "--mmseqs"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_mmseqs_is_not_there(
    tmp_path: Path, proteins: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = str(fasta(tmp_path / "c.fasta", {"c": proteins[0]}))
    assert main(["data", "overlap", path, "--against", path, "--mmseqs"]) == 2
    assert "install MMseqs2, or leave --mmseqs out" in capsys.readouterr().err
