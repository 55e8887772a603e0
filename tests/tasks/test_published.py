"""Tables made of files in the forms that authors publish: small ones, written here by hand."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protloom.contracts import HasDownloads
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.task import suite as task_suite
from protloom_tasks.datasets.files import Source
from protloom_tasks.datasets.published import Fetch, convert, download_of


def made(recipe: dict[str, Any], files: list[Path], folder: Path) -> list[list[str]]:
    """Returns the cells of the table, the header line first."""
    fetch = Fetch.model_validate(recipe)
    target = folder / Path(fetch.file).name
    convert(fetch, target, files)
    text = gzip.decompress(target.read_bytes()).decode() if target.suffix == ".gz" else target.read_text()
    return list(csv.reader(text.splitlines()))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"https://host/{url}", **more}


def test_a_file_as_it_is(tmp_path: Path) -> None:
    published = write(tmp_path / "p", "seq,label\nMKT,1\n")
    recipe = {"file": "d/t.csv.gz", "parts": [part("t.csv")]}
    assert made(recipe, [published], tmp_path) == [["seq", "label"], ["MKT", "1"]]
    first = (tmp_path / "t.csv.gz").read_bytes()
    assert made(recipe, [published], tmp_path) == [["seq", "label"], ["MKT", "1"]]
    assert (tmp_path / "t.csv.gz").read_bytes() == first  # no time in it
    made({"file": "d/t.csv", "parts": [part("t.csv")]}, [published], tmp_path)
    assert (tmp_path / "t.csv").read_bytes() == published.read_bytes()


def test_columns_of_a_csv_and_of_a_member_of_a_zip(tmp_path: Path) -> None:
    text = ",peptide,length,HLA\n0,LFGRDLSY,8,HLA-A*01:01\n1,TDKKTHLY,8,HLA-A*01:01\n"
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("inner/set.csv", text)
    columns = {"peptide": "peptide", "allele": "HLA"}
    expected = [["peptide", "allele"], ["LFGRDLSY", "HLA-A*01:01"], ["TDKKTHLY", "HLA-A*01:01"]]
    zipped = {"file": "t.csv", "parts": [part("set.zip", member="inner/set.csv", columns=columns)]}
    assert made(zipped, [tmp_path / "z"], tmp_path) == expected
    packed = write(tmp_path / "g", gzip.compress(text.encode()))
    assert made({"file": "t.csv", "parts": [part("set.csv.gz", columns=columns)]}, [packed], tmp_path) == expected
    tabs = write(tmp_path / "t", text.replace(",", "\t"))
    assert made({"file": "u.csv", "parts": [part("set.tsv", columns=columns)]}, [tabs], tmp_path) == expected
    # FLIP's splits: every column by its name
    flip = write(tmp_path / "f.zip", b"")
    with zipfile.ZipFile(flip, "w") as archive:
        archive.writestr("splits/sampled.csv", "sequence,target,set,validation\nMQYK,1.0,train,\nMQYA,0.5,test,True\n")
    recipe = {"file": "t.csv", "parts": [part("splits.zip", member="splits/sampled.csv")]}
    assert made(recipe, [flip], tmp_path)[1:] == [["MQYK", "1.0", "train", ""], ["MQYA", "0.5", "test", "True"]]


def test_fasta_with_labels_in_its_headers(tmp_path: Path) -> None:
    published = write(
        tmp_path / "p",
        ">Q9H400 Cell.membrane-M test\nMGLP\nVSWA\n>P1 Cytoplasm-Nucleus-U new_test_set \nmkt\n>P2 Nucleus-S\nAC\n",
    )
    recipe = {
        "file": "t.csv",
        "replace": {"location": {"Cell.membrane": "Cell membrane"}},
        "parts": [part("x.fasta", header=r"(?P<id>\S+) (?P<location>\S+)-(?P<membrane>[MSU])(\s|$)")],
    }
    assert made(recipe, [published], tmp_path) == [
        ["id", "location", "membrane", "sequence"],
        ["Q9H400", "Cell membrane", "M", "MGLPVSWA"],
        ["P1", "Cytoplasm-Nucleus", "U", "MKT"],
        ["P2", "Nucleus", "S", "AC"],
    ]


def test_lists_are_replaced_one_by_one(tmp_path: Path) -> None:
    published = write(tmp_path / "p", ">26672 SET=val TARGET=999.0;1.5;-999.0 MASK=011\nMKT\n")
    recipe = {
        "file": "t.csv",
        "replace": {"split": {"val": "valid"}, "scores": {"999.0": "nan"}},
        "parts": [part("x.fasta", header=r"(?P<id>\S+) SET=(?P<split>\S+) TARGET=(?P<scores>\S+)")],
    }
    assert made(recipe, [published], tmp_path)[1] == ["26672", "valid", "nan;1.5;-999.0", "MKT"]


def test_files_that_belong_together_by_id(tmp_path: Path) -> None:
    archive = tmp_path / "z"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("s/sequences.fasta", ">a\nMKT\n>b\nWWWW\n>c\nAC\n")
        out.writestr("s/labels.fasta", ">b SET=test VALIDATION=False\nHHEC\n>a SET=train VALIDATION=True\nHEC\n")
    labels = part(
        "splits.zip",
        member="s/labels.fasta",
        header=r"(?P<id>\S+) SET=(?P<set>\S+) VALIDATION=(?P<validation>\S+)",
        columns={"id": "id", "split": ["set", "validation"], "ss3": "sequence"},
    )
    sequences = part("splits.zip", member="s/sequences.fasta", columns={"id": "id", "sequence": "sequence"})
    recipe = {
        "file": "t.csv",
        "join": "id",
        "replace": {"split": {"train/True": "valid", "test/False": "test"}},
        "parts": [labels, sequences],
    }
    assert made(recipe, [archive], tmp_path) == [
        ["id", "split", "ss3", "sequence"],
        ["b", "test", "HHEC", "WWWW"],
        ["a", "valid", "HEC", "MKT"],
    ]
    with pytest.raises(UserError, match="id 'c' is in one part only"):
        made({**recipe, "parts": [sequences, labels]}, [archive], tmp_path)


def test_files_that_belong_together_line_by_line(tmp_path: Path) -> None:
    sequences, labels = write(tmp_path / "s", "MKT\nWWW\n"), write(tmp_path / "l", "0\n1\n")
    recipe = {
        "file": "t.csv",
        "parts": [
            part("val_src", form="lines", columns={"sequence": "line"}),
            part("val_tgt", form="lines", columns={"label": "line"}),
        ],
    }
    assert made(recipe, [sequences, labels], tmp_path) == [["sequence", "label"], ["MKT", "0"], ["WWW", "1"]]
    write(labels, "0\n1\n1\n")
    with pytest.raises(UserError, match="do not have as many rows: https://host/val_src, https://host/val_tgt"):
        made(recipe, [sequences, labels], tmp_path)


@pytest.mark.parametrize(
    "document",
    [
        [{"Sequence": "MKT", "Value": 100.0, "More": [1, None]}, {"Sequence": "WW", "Value": 0.1, "More": []}],
        {"Sequence": ["MKT", "WW"], "Value": [100.0, 0.1], "More": [[1, None], []]},
        {
            "Sequence": {"0": "MKT", "1": "WW"},
            "Value": {"0": 100.0, "1": 0.1},
            "More": {"0": [1, None], "1": []},
        },
    ],
)
def test_json(document: Any, tmp_path: Path) -> None:
    published = write(tmp_path / "p", json.dumps(document))
    columns = {"sequence": "Sequence", "kcat": "Value", "log10_kcat": "Value", "more": "More"}
    recipe = {"file": "t.csv", "log10": ["log10_kcat"], "parts": [part("x.json", columns=columns)]}
    assert made(recipe, [published], tmp_path) == [
        ["sequence", "kcat", "log10_kcat", "more"],
        ["MKT", "100.0", "2.0", "1;"],
        ["WW", "0.1", "-1.0", ""],
    ]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a,b\n1,2,3\n", {"columns": {"x": "a"}}, r"cannot be read as csv \(a row has more or fewer cells"),
        ("a,b\n1,2\n", {"columns": {"x": "c"}}, "row 1: no field 'c'; it has a, b"),
        ("a,b\n", {"columns": {"x": "a"}}, "no rows for t.csv"),
        ("no zip", {"member": "m.csv"}, "cannot be read as csv"),
        (gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], {"columns": {"x": "a"}}, "cannot be read as csv"),
        (b"a\n\xff\n", {"columns": {"x": "a"}}, "cannot be read as csv"),
        ('{"a": [1', {"form": "json"}, "cannot be read as json"),
        ('{"a": [1], "b": [1, 2]}', {"form": "json"}, "cannot be read as json"),
        (">P1\nMKT\n", {"form": "fasta", "header": r"(?P<id>\S+) (?P<y>\d)"}, "the header '>P1' does not fit"),
        ('[{"a": 1}, {"b": 1}]', {"form": "json"}, "a row has the fields b, the first one a"),
    ],
)
def test_published_files_that_are_something_else(
    content: str | bytes, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published = write(tmp_path / "p", content)
    with pytest.raises(UserError, match=message) as caught:
        made({"file": "t.csv", "parts": [part("x.csv", **more)]}, [published], tmp_path)
    assert "https://host/x.csv" in str(caught.value)


def test_other_mistakes(tmp_path: Path) -> None:
    published = write(tmp_path / "p", "a\n0\n")
    with pytest.raises(UserError, match="its ending does not say what it is"):
        made({"file": "t.csv", "parts": [part("x.dat", columns={"a": "a"})]}, [published], tmp_path)
    with pytest.raises(UserError, match="a is '0', which has no logarithm"):
        made({"file": "t.csv", "log10": ["a"], "parts": [part("x.csv", form="csv")]}, [published], tmp_path)
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
    with pytest.raises(UserError, match=r"no b\.csv in it; it has a\.csv"):
        made({"file": "t.csv", "parts": [part("x.zip", member="b.csv")]}, [tmp_path / "z"], tmp_path)
    for wrong in (part("x.fasta", header="(?P<id"), part("x.csv", sha256="abc"), part("x.csv", column={})):
        with pytest.raises(ValidationError):
            Fetch.model_validate({"file": "t.csv", "parts": [wrong]})


def test_downloads_of_a_recipe(tmp_path: Path) -> None:
    source = Source("d/t.csv", "somewhere", "none", ("a",))
    assert download_of(source, []).urls == ()
    parts = [
        part("x.zip", member="a.csv", sha256="0" * 64, bytes=5),
        part("y.csv", form="csv"),
        part("x.zip", member="b.csv"),
    ]
    found = download_of(source, [Fetch.model_validate({"file": "d/t.csv", "parts": parts})])
    assert found.urls == ("https://host/x.zip", "https://host/y.csv")  # an archive is downloaded once
    assert found.sha256 == ("0" * 64, None)
    assert found.sizes == (5, None)
    assert (found.path, found.origin, found.licence, found.columns) == ("d/t.csv", "somewhere", "none", ("a",))


def test_the_shipped_recipes(registry: Registry) -> None:
    """Every address is that of one commit, with the hash and size of its content, and belongs to a file of the task."""
    seen = set()
    for name in task_suite.names(registry):
        task = task_suite.build(name, registry)
        if not isinstance(task, HasDownloads):
            continue
        for file in task.downloads():
            for url, sha256, size in zip(file.urls, file.sha256, file.sizes, strict=True):
                seen.add(url)
                host, repository, commit = url.split("/")[2], url.split("/")[3:5], url.split("/")[5]
                assert host == "raw.githubusercontent.com"
                assert len(commit) == 40
                assert "/".join(repository).lower() in file.origin.lower() or "CASP14" in file.path
                assert sha256 is not None
                assert size is not None
    assert len(seen) > 30
