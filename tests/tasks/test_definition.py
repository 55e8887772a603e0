"""Definitions: what a file may say, variants, and a clear line for everything that is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from protloom.contracts import HasSequences, Task
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.task import suite as task_suite
from protloom_tasks import definition, listing
from protloom_tasks.definition import ENGINES, HOME, load, load_as
from protloom_tasks.definition_kinds import ResidueDefinition, SequenceDefinition
from protloom_tasks.definition_task import DefinitionConfig, make

TEXT = """
title: melting points
kind: regression
sequence: sequence
label: tm
splits:
  train: {file: t.csv, where: {part: train}}
  test: t.csv
origin: our laboratory
licence: unpublished
"""


def written(folder: Path, text: str = TEXT, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_short_forms_mean_long_ones(tmp_path: Path) -> None:
    found = load(written(tmp_path, TEXT.replace("part: train", "part: [train, 3]")))
    said = found.definition
    assert isinstance(said, SequenceDefinition)
    assert found.name == "mine"
    assert found.folder == tmp_path
    assert said.sequence == ["sequence"]
    assert said.label.column == "tm"
    assert said.splits["train"][0].where == {"part": ["train", "3"]}
    assert said.splits["test"][0].file == "t.csv"
    assert said.main == "Spearman"
    assert load(written(tmp_path, TEXT + "metric: MAE\n")).definition.main == "MAE"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label: tm", "lable: tm", r"mine\.yaml: lable: unknown key. Did you mean 'label'"),
        ("label: tm", "label: {colum: tm}", r"label\.colum: unknown key. Did you mean 'label.column'"),
        ("kind: regression", "kind: regresion", r"mine\.yaml: kind: found 'regresion'. Did you mean 'regression'"),
        ("kind: regression\n", "", r"kind: is needed and missing; one of regression, binary"),
        ("title: melting points\n", "", r"mine\.yaml: title: is needed and missing"),
        ("origin: our laboratory\n", "", "origin: is needed and missing"),
        ("  test: t.csv\n", "", "splits: no test split, and none is carved"),
        ("test: t.csv", "tset: t.csv", "splits.tset: found 'tset', should be 'train', 'valid' or 'test'"),
        ("splits:", "carve: [{split: test, share: 0.1}]\nsplits:", "carve: there is a test split already"),
        (
            "splits:",
            "carve: [{split: valid, share: 1.5}]\nsplits:",
            r"carve\.0\.share: found 1\.5, should be less than 1",
        ),
        (
            "splits:",
            "carve: [{split: valid, share: 0.1, from: valid}]\nsplits:",
            "there is no valid split to take valid",
        ),
        (
            "splits:",
            "carve: [{split: valid, share: 0.1, partners: true}]\nsplits:",
            "'partners' is for pairs; name the",
        ),
        (
            "splits:",
            "partner: b\ncarve: [{split: valid, share: 0.1, partners: true, by: b}]\nsplits:",
            "'by' and 'partners' are two ways to choose",
        ),
        ("sequence: sequence", "sequence: []", "sequence: found .*, should"),
        ("file: t.csv", "flie: t.csv", r"splits\.train\.flie: unknown key\. Did you mean 'splits\.train\.file'"),
        ("part: train}", "part: train}, columns: {tm: null}", "t.csv cannot do without 'tm'"),
        ("label: tm", "label: [", r"mine\.yaml: line \d+, column \d+"),
        ("title: melting points", "title: melting points\ntitle: twice", r"mine\.yaml: .*title"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError, match=message) as caught:
        load(written(tmp_path, TEXT.replace(old, new, 1)))
    assert all("mine.yaml" in line for line in str(caught.value).splitlines())  # a key misspelt is a key missing too
    assert len(str(caught.value).splitlines()) <= 2


def test_files_that_are_no_definition(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match=r"definition 'solubilty': cannot be read .* Did you mean 'solubility'"):
        load("solubilty")
    with pytest.raises(UserError, match=r"mine\.yaml: should hold keys and values .* found 'just words'"):
        load(written(tmp_path, "just words"))
    (tmp_path / "mine.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(UserError, match=r"mine\.yaml: cannot be read \(not UTF-8 text\)"):
        load(str(tmp_path / "mine.yaml"))


VARIANTS = """variants:
  near: {word: close, title: "points of {word} relatives", note: "{word}, in short"}
  far:
    word: wide
    splits: {test: {file: "{word}.csv", where: {part: far}}}
    label: {column: tm, below: 90}
"""


def test_variants_fill_words_and_lay_keys_over(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT.replace("t.csv, where", '"{word}-{variant}.csv", where') + VARIANTS)
    near, far = (load(path, variant) for variant in ("near", "far"))
    assert [found.name for found in (near, far)] == ["mine:near", "mine:far"]
    for found in (near, far):
        assert isinstance(found.definition, SequenceDefinition)
    assert near.definition.title == "points of close relatives"
    assert (near.definition.note, far.definition.note) == ("close, in short", "")  # a key that the file itself lacks
    assert near.definition.splits["train"][0].file == "close-near.csv"  # type: ignore[attr-defined]
    assert near.definition.splits["test"][0].file == "t.csv"  # type: ignore[attr-defined]
    assert far.definition.title == "melting points"
    assert far.definition.splits["test"][0].model_dump()["where"] == {"part": ["far"]}  # type: ignore[attr-defined]
    assert far.definition.splits["test"][0].file == "wide.csv"  # type: ignore[attr-defined]
    assert far.definition.label.below == 90  # type: ignore[attr-defined]
    assert load(f"{path}:far").definition == far.definition


def test_a_variant_is_named_behind_its_file(tmp_path: Path, registry: Registry) -> None:
    path = written(tmp_path, TEXT.replace("t.csv, where", '"{word}-{variant}.csv", where') + VARIANTS)
    near, far = task_suite.select([f"{path}:near", f"{path}:far"], registry).choices
    assert (near.name, far.name) == (f"{path}:near", f"{path}:far")  # so they do not meet in a folder of results
    assert near.file == far.file == Path(path)
    task = task_suite.build(near.component, registry, options=near.options)
    assert task.card()["title"] == "points of close relatives"
    with pytest.raises(UserError, match=r"nowhere\.yaml:near: there is no such file"):
        task_suite.select([str(tmp_path / "nowhere.yaml:near")], registry)


def test_variants_that_are_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + VARIANTS)
    with pytest.raises(UserError, match=r"mine\.yaml: has variants, choose one: near, far"):
        load(path)
    with pytest.raises(UserError, match=r"mine\.yaml: no variant 'fra'\. Did you mean 'far'"):
        load(path, "fra")
    with pytest.raises(UserError, match=r"no variant 'x'\. There are none"):
        load(written(tmp_path), "x")
    with pytest.raises(UserError, match=r"\{wrod\} has no value in this variant; it has variant, word"):
        load(written(tmp_path, (TEXT + VARIANTS).replace("melting points", '"{wrod}"')), "far")
    with pytest.raises(UserError, match="variants: each is a name with a mapping"):
        load(written(tmp_path, TEXT + "variants: [near]\n"))


def test_a_file_is_read_anew(tmp_path: Path) -> None:
    assert load(written(tmp_path)).definition.title == "melting points"
    assert load(written(tmp_path, TEXT.replace("melting", "boiling"))).definition.title == "boiling points"


def test_every_kind_has_an_example_that_is_run() -> None:
    """test_docs runs the page; what it defines there has every kind."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "task_definitions.md").read_text()
    assert set(re.findall(r"\bkind: ([a-z-]+)", text)) >= set(ENGINES)
    run = " ".join(re.findall(r"^protloom task run (.*(?:(?<=\\)\n.*)?)$", text, re.M))
    for name in re.findall(r"^# file: (\S+)$", text, re.M):
        assert name in run, f"{name} is defined and not run"


def test_all_keys_are_told(tmp_path: Path) -> None:
    """A key that resembles none: what is meant may be any of them, so none is cut."""
    text = TEXT.replace("kind: regression", "kind: retrieval")
    with pytest.raises(UserError, match=r"splits: unknown key\. Known: .*") as caught:
        load(written(tmp_path, text))
    (line,) = [line for line in str(caught.value).splitlines() if "splits" in line]
    assert {"rows", "levels", "level", "item", "id", "title"} <= set(re.findall(r"\w+", line.partition("Known")[2]))
    assert "more)" not in line


def test_a_kind_needs_its_own_task(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of the kind residue-multiclass: run it by the task 'definition'"):
        load_as(SequenceDefinition, "ss3", "casp12")
    assert load_as(ResidueDefinition, "ss3", "casp12").name == "ss3:casp12"


def test_every_kind_has_an_engine_that_exists() -> None:
    for engine in ENGINES.values():
        model, config, task = (definition.named(path) for path in (engine.definition, engine.config, engine.task))
        assert issubclass(model, definition.Definition)
        assert {"definition", "variant", "data_dir"} <= set(config.model_fields)
        assert callable(task)


def every_variant() -> list[str]:
    found = []
    for path in sorted(HOME.glob("*.yaml")):
        variants = definition.config_source.parse(path.read_text(), path.stem).get("variants")
        found += [f"{path.stem}:{variant}" for variant in variants] if variants else [path.stem]
    return found


def test_shipped_definitions_are_valid_and_registered(registry: Registry) -> None:
    names = set(registry.names("task"))
    for name in every_variant():
        assert load(name).name == name
        assert name in names
    for name in (*listing.SEQUENCES, *listing.RESIDUES, *listing.RETRIEVAL):
        task = registry.resolve("task", name)
        options = dict(task.spec.options)  # type: ignore[attr-defined]
        built = task.load_factory()(task.load_config()(**options))  # type: ignore[misc]
        assert built.name == name
        assert isinstance(built, Task)
        assert isinstance(built, HasSequences)
        card = built.card()
        assert {"title", "metric", "definition", "splits", "probe", "data", "floors", "options"} <= set(card)
        assert all(entry["licence"] for entry in card["data"].values())


# ------------------------------------------------------------------------------------------------------ the task


def test_one_factory_for_all_kinds(tmp_path: Path) -> None:
    made = {name: make(DefinitionConfig(definition=name)) for name in ("stability", "ss3:casp12", "scope-retrieval")}
    assert [type(task).__name__ for task in made.values()] == ["SequenceTask", "ResidueTask", "RetrievalTask"]
    assert [task.name for task in made.values()] == list(made)  # type: ignore[attr-defined]
    task: Any = make(DefinitionConfig(definition=written(tmp_path), split="test", rows=7))
    assert (task.config.split, task.config.rows, task.config.train_rows) == ("test", 7, 5000)
    other: Any = make(DefinitionConfig(definition="ss3", variant="ts115", train_residues=None))
    assert other.config.train_residues is None


def test_options_of_another_kind_are_told(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(UserError, match=r"mine: a regression task has no option 'train_proteins'\."):
        make(DefinitionConfig(definition=path, train_proteins=5))
    with pytest.raises(UserError, match=r"ss3:casp12: probe: found 'lbfgs', should be"):
        make(DefinitionConfig(definition="ss3:casp12", probe="lbfgs"))
    with pytest.raises(UserError, match=r"mine: rows: found 1, should be greater than or equal to 2"):
        make(DefinitionConfig(definition=path, rows=1))
    # what the command line gives to all tasks is no mistake where a kind has no such choice, nor is "no cap"
    make(DefinitionConfig(definition="scope-retrieval", split="test", data_dir="x", train_rows=None))
    make(DefinitionConfig(definition="ss3:casp12", pool="max"))


def test_the_options_tell_caps_from_others() -> None:
    fields = DefinitionConfig.model_fields
    assert {"definition", "variant", "data_dir", "split", "pool", "level", "train_rows", "window"} <= set(fields)
    for cap in ("train_rows", "rows", "train_proteins", "train_residues", "proteins"):
        assert fields[cap].annotation == int | None
    assert all(info.description for info in fields.values())
