"""Comparisons: plans that are refused, stretches that go on after a kill, and what the numbers become."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kept_results import found as result_of
from kept_results import keep, path_of

from protloom import provenance
from protloom.cli import main
from protloom.compare import analysis, plan, tables
from protloom.compare.claim import CODE, RECIPES, claim, keep_recipes
from protloom.compare.evaluation import FAILURES
from protloom.compare.plan import ComparisonConfig, Plan
from protloom.compare.runner import Part, Runner, parts
from protloom.errors import UserError
from protloom.plain_data import plain
from protloom.plugins import Registry

SHARED = [
    "architecture=esm2:tiny",
    "trainer.tokens_per_step=600",
    "trainer.precision=fp32",
    "trainer.log_every=1",
    "trainer.tensorboard=false",
    "trainer.validation_tokens=600",
    "schedule.name=constant",
]


def document(fasta: Path, **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "recipes": {
            "plain": {"set": ["objective=mlm"]},
            "latent": {"set": ["objectives=[{name: mlm}, {name: jepa, corruption: mlm}]"]},
        },
        "shared": [*SHARED, f"data.corpus={fasta}", f"data.cache_dir={fasta.parent / 'cache'}"],
        "budget": {"steps": 4},
        "checkpoints": [2],
        "seeds": [0, 1],
        "tasks": ["sim-retrieval"],
        "limit": 40,
    }
    return {**whole, **changes}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def load(folder: Path, fasta: Path, registry: Registry, *overrides: str, **changes: Any) -> Plan:
    return plan.load(written(folder, document(fasta, **changes)), overrides, registry)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": {"minutes": 3}}, "budget: give one of steps, seconds, tokens, flops"),
        ({"budget": {"seconds": 3, "steps": 1}}, "budget: give one of"),
        ({"budget": {"tokens": 100}}, "100 tokens are too few for one step of recipe 'plain' (600 tokens)"),
        ({"checkpoints": [9]}, "checkpoints lie above 0 and up to the budget (4)"),
        ({"baseline": "plian"}, "no recipe 'plian'. Did you mean 'plain'?"),
        ({"recipes": {"one": "recipe:demo"}}, "recipes"),
        ({"recipes": {"one": "recipe:demo", "two": "recipe:demmo"}}, "recipe 'two'"),
        ({"task": ["x"]}, "task: unknown key. Did you mean 'tasks'?"),
        ({"allow": ["data"]}, "allow"),
    ],
)
def test_plans_that_make_no_sense(
    changes: dict[str, Any], says: str, small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, small_fasta, registry, **changes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("option", "key", "word"),
    [
        ("data.corpus=demo:", "data.corpus", "corpus"),
        ("data.validation_fraction=0.3", "data.validation_fraction", "corpus"),
        ("trainer.tokens_per_step=700", "trainer.tokens_per_step", "batch"),
        ("data.max_length=80", "data.max_length", "batch"),
    ],
)
def test_recipes_that_would_not_see_the_same_are_refused(
    option: str, key: str, word: str, small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    recipes = {"plain": {"set": ["objective=mlm"]}, "other": {"set": ["objective=mlm", option]}}
    with pytest.raises(UserError, match=f"differ in {key} .*allow: .{word}. if it is meant"):
        load(tmp_path, small_fasta, registry, recipes=recipes)
    assert load(tmp_path, small_fasta, registry, recipes=recipes, allow=[word]).arms == ("plain", "other")


def test_recipes_with_different_tokenizers_are_refused(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    recipes = {"esm": {"set": []}, "ankh": {"set": ["architecture=ankh:tiny"]}}
    with pytest.raises(UserError, match="differ in tokenizer"):
        load(tmp_path, small_fasta, registry, recipes=recipes)
    assert load(tmp_path, small_fasta, registry, recipes=recipes, allow=["tokenizer"]).baseline == "esm"


def test_stretches_are_interleaved_and_nobody_is_always_first(
    small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    order = list(parts(load(tmp_path, small_fasta, registry)))
    assert [part.point for part in order] == [2] * 4 + [4] * 4
    assert sorted((p.arm, p.seed) for p in order[:4]) == sorted((p.arm, p.seed) for p in order[4:])
    firsts = [order[i].arm for i in range(0, 8, 2)]
    assert firsts.count("plain") == firsts.count("latent") == 2


def test_rounds_interleave_more_finely_than_what_is_evaluated(
    small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    found = load(tmp_path, small_fasta, registry, rounds=3, checkpoints=[], seeds=[0])
    assert (found.points, found.turns) == ((4,), (1, 2, 4))  # a third of four steps, as whole steps
    assert [(part.point, part.arm) for part in parts(found)] == [
        (1, "plain"),
        (1, "latent"),
        (2, "latent"),
        (2, "plain"),
        (4, "plain"),
        (4, "latent"),
    ]
    by_seconds = load(tmp_path, small_fasta, registry, rounds=4, checkpoints=[20], budget={"seconds": 30})
    assert by_seconds.turns == (7.5, 15, 20, 22.5, 30)
    # more rounds than steps: none of no length
    assert load(tmp_path, small_fasta, registry, rounds=9, checkpoints=[]).turns == (1, 2, 3, 4)


@pytest.mark.parametrize("split", [None, "valid", "test"])
def test_tasks_score_validation_unless_told_otherwise(
    small_fasta: Path, tmp_path: Path, registry: Registry, split: str | None
) -> None:
    changes = {"tasks": ["suite:demo"], **({} if split is None else {"split": split})}
    tasks = Runner(load(tmp_path, small_fasta, registry, **changes), tmp_path, registry, print).tasks()
    assert {"sim-ss3", "sim-retrieval", "sim-contact"} <= set(tasks)
    for name in ("sim-ss3", "sim-retrieval"):
        assert tasks[name].split == (split or "valid")


def test_the_split_of_a_comparison_is_fixed(small_fasta: Path, tmp_path: Path, registry: Registry) -> None:
    out = tmp_path / "out"
    claim(out, load(tmp_path, small_fasta, registry))
    with pytest.raises(UserError, match=r"with another split \(valid, now test\)"):
        claim(out, load(tmp_path, small_fasta, registry, split="test"))
    # one that was begun before comparisons had a split scored what was the tasks' default then
    stated = yaml.safe_load((out / "comparison.yaml").read_text())
    del stated["split"]
    (out / "comparison.yaml").write_text(yaml.safe_dump(stated))
    with pytest.raises(UserError, match=r"with another split \(test, now valid\)"):
        claim(out, load(tmp_path, small_fasta, registry))
    claim(out, load(tmp_path, small_fasta, registry, split="test"))
    # and one from before there was a choice of precision asked its tasks in fp32
    stated = yaml.safe_load((out / "comparison.yaml").read_text())
    del stated["precision"]
    (out / "comparison.yaml").write_text(yaml.safe_dump(stated))
    with pytest.raises(UserError, match=r"with another precision \(fp32, now auto\)"):
        claim(out, load(tmp_path, small_fasta, registry, split="test"))
    claim(out, load(tmp_path, small_fasta, registry, split="test", precision="fp32"))


@pytest.mark.parametrize("changed", [{"other": {}}, {"plain": {}, "other": {}, "third": {}}, {"plain": {}}])
def test_another_set_of_recipes_does_not_go_on(
    changed: dict[str, Any], small_fasta: Path, tmp_path: Path, registry: Registry
) -> None:
    out = tmp_path / "out"
    latent = {"latent": {"set": ["objective=mlm"]}}
    claim(out, load(tmp_path, small_fasta, registry, recipes={"plain": {}, "other": {}, **latent}, baseline="latent"))
    with pytest.raises(UserError, match="another set of recipes"):
        claim(out, load(tmp_path, small_fasta, registry, recipes={**changed, **latent}, baseline="latent"))


def test_an_edited_recipe_does_not_go_on(
    small_fasta: Path, tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "plain.yaml", tmp_path / "out"
    both = {"recipes": {"plain": str(recipe), "latent": {"set": ["objective=mlm"]}}}

    def again(text: str) -> None:
        recipe.write_text(text)
        planned = load(tmp_path, small_fasta, registry, **both)
        claim(out, planned)
        keep_recipes(out, planned, registry)

    again("objective: {name: mlm, mask_rate: 0.2}\n")
    kept = (out / RECIPES).read_text()
    assert yaml.safe_load(kept)["plain"]["objective"]["mask_rate"] == 0.2
    again("objective: {name: mlm, mask_rate: 0.2}\ndata: {threads: 1}\n")  # changes nothing that is trained
    for text, says in (
        ("objective: {name: mlm, mask_rate: 0.3}\n", r"objective\.mask_rate of recipe 'plain' \(0\.2, now 0\.3\)"),
        ("objectives: [{name: mlm, mask_rate: 0.2}, {name: jepa, corruption: mlm}]\n", "objective.* of recipe 'plain'"),
        ("{objective: {name: mlm, mask_rate: 0.2}, optimizer: {lr: 0.5}}\n", r"optimizer\.lr of recipe 'plain'"),
    ):
        with pytest.raises(UserError, match=f"^{out} holds a comparison with another {says}.*: choose another --out"):
            again(text)
    assert (out / RECIPES).read_text() == kept
    both["recipes"]["latent"] = {"set": ["objective=mlm", "optimizer.lr=0.002"]}
    with pytest.raises(UserError, match=r"another recipes\.latent\.set\.1 \(unset, now optimizer\.lr=0\.002\)"):
        again("objective: {name: mlm, mask_rate: 0.2}\n")
    both["recipes"]["latent"] = {"set": ["objective=mlm"]}
    recipe.write_text("{objective: {name: mlm, mask_rate: 0.2}, optimizer: {lr: 0.5}}\n")
    load(tmp_path, small_fasta, registry, **both)
    words = ["compare", str(tmp_path / "compare.yaml"), "--out", str(out)]
    assert main(words) == 2  # before anything is trained
    assert capsys.readouterr().err.count("\n") == 1
    assert not (out / "runs").exists()
    assert main([*words, "--report-only"]) == 0  # of what was trained, whatever the file says now
    # kept by a version that did not have an option yet, which has its default now
    older = yaml.safe_load(kept)
    del older["plain"]["trainer"]["clip_norm"]
    (out / RECIPES).write_text(yaml.safe_dump(older))
    again("objective: {name: mlm, mask_rate: 0.2}\n")


def test_changed_code_of_a_plugin_does_not_go_on(
    small_fasta: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that were trained by another state of an objective are not averaged with those of now."""
    out = tmp_path / "out"
    planned = load(tmp_path, small_fasta, registry)
    claim(out, planned)
    monkeypatch.setattr(type(registry.resolve("objective", "mlm")), "builtin", False)  # as if a third party's
    keep_recipes(out, planned, registry)
    kept = yaml.safe_load((out / CODE).read_text())
    assert list(kept) == ["protloom_plugins"]
    keep_recipes(out, planned, registry)
    monkeypatch.setattr(provenance, "code_hash", lambda modules: "another")
    with pytest.raises(UserError, match=r"earlier state of package 'protloom_plugins' trained: its code has changed"):
        keep_recipes(out, planned, registry)
    assert yaml.safe_load((out / CODE).read_text()) == kept


@pytest.mark.slow
def test_a_comparison_from_the_command_line(
    small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path, document(small_fasta)), tmp_path / "out"
    # a kill after the third stretch
    whole, done = Runner._train, []

    def killed(self: Runner, part: Part) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(part)
        whole(self, part)

    monkeypatch.setattr(Runner, "_train", killed)
    assert main(["compare", str(path), "--out", str(out)]) == 130
    monkeypatch.setattr(Runner, "_train", whole)
    kept = {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    assert len(kept) == 3
    kept |= {p: p.stat().st_mtime_ns for p in (out / "results").glob("*/*.json")}
    assert len(kept) > 3
    assert main(["compare", str(path), "--out", str(out)]) == 0
    assert all(p.stat().st_mtime_ns == before for p, before in kept.items())
    said = capsys.readouterr().out
    assert "latent against plain, 1 task:" in said
    report = json.loads((out / "report.json").read_text())
    assert [(t["arm"], t["seed"], t["point"], t["steps"]) for t in report["training"]] == [
        (arm, seed, point, point) for point in (2, 4) for arm in ("plain", "latent") for seed in (0, 1)
    ]
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert {(row["point"], row["arm"]) for row in rows} == {(p, a) for p in ("2.0", "4.0") for a in ("plain", "latent")}
    # the weights of the first point are those of the middle of the run, not of its end
    early, late = (out / "models" / f"plain-s0@{p}" / "model.safetensors" for p in (2, 4))
    assert early.read_bytes() != late.read_bytes()
    # what tasks found is kept as 'task run' keeps it
    assert main(["task", "compare", f"{out}#plain-s0@4", f"{out}#latent-s0@4"]) == 0
    assert "A: plain-s0@4\nB: latent-s0@4\n" in capsys.readouterr().out
    # nothing is left to do, and another comparison does not fit into the folder
    assert main(["compare", str(path), "--out", str(out)]) == 0
    assert main(["compare", str(path), "--out", str(out), "budget.steps=5"]) == 2
    assert "holds a comparison with another budget" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_that_fails_in_the_middle_stops_nobody(
    small_fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from protloom_tasks.contacts import SimContact

    changes = {"tasks": ["sim-contact", "sim-retrieval"], "seeds": [0], "checkpoints": [], "budget": {"steps": 1}}
    path, out = written(tmp_path, document(small_fasta, **changes)), tmp_path / "out"

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of\nluck")

    with monkeypatch.context() as patched:
        patched.setattr(SimContact, "run", broken)
        assert main(["compare", str(path), "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert "error: sim-contact: plain-s0@1: RuntimeError: out of luck, at " in told.err
    assert " in protloom (a bug in protloom/sim-contact" in told.err
    assert "latent against plain, 1 task:" in told.out
    assert "## Failed" in (out / "report.md").read_text()
    assert main(["compare", str(path), "--out", str(out)]) == 0  # tried again
    assert "2 tasks" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- the numbers

CARD: dict[str, Any] = {"better": "higher", "simulated": False}
Items = dict[str, np.ndarray[Any, Any]]


def fabricated(folder: Path, results: dict[str, Items], card: dict[str, Any] = CARD) -> Plan:
    """Writes results of tasks whose metric is the mean over items, with their bootstrap replicates."""
    config = ComparisonConfig.model_validate(
        {
            "recipes": {"a": {}, "b": {}},
            "budget": {"steps": 3},
            "tasks": ["x"],
            "seeds": [0, 1],
            "margins": [0.005, 0.2],
        }
    )
    for task, models in results.items():
        n = len(next(iter(models.values())))
        draws = np.random.default_rng(7).integers(0, n, (400, n))
        for who, items in models.items():
            result = result_of(float(items.mean()), items[draws].mean(1), metric="mean", n=n, unit="items")
            keep(folder, who, task, result, card)
    return Plan(config, "a", plan.Amount("steps", 3.0), (3.0,), (3.0,), {"a": (None, ()), "b": (None, ())}, None, {})


def analysed(planned: Plan, folder: Path) -> dict[str, Any]:
    unreadable: list[str] = []
    found = analysis.analyse(planned, folder, unreadable.append)
    assert not unreadable
    return found


def test_a_task_that_was_taken_out_leaves_no_row(tmp_path: Path) -> None:
    kept = {f"{arm}-s{seed}@3": np.arange(9.0) for arm in "ab" for seed in (0, 1)}
    planned = fabricated(tmp_path, {"kept": kept, "gone": {"start": np.arange(9.0)}})
    error = {"who": "floor:length", "task": "gone", "error": "gone: out of luck"}
    (tmp_path / FAILURES).write_text(json.dumps([error]))
    found = analysed(planned, tmp_path)
    assert list(found["tasks"]) == ["kept"]
    assert found["failures"] == []


def test_a_seed_that_was_taken_out_refuses_nothing(tmp_path: Path) -> None:
    models = {f"{arm}-s{seed}@3": np.arange(9.0) for arm in "ab" for seed in (0, 1)}
    planned = fabricated(tmp_path, {"t": models})
    gone = result_of(0.5, np.zeros(400), metric="mean", n=9, unit="items")
    keep(tmp_path, "a-s2@3", "t", gone, CARD, key={"options": {"rows": 6}})
    assert analysed(planned, tmp_path)["points"][0]["arms"]["b"]["decided"]["undecided"] == 1


def test_a_result_from_before_a_failure_is_not_used(tmp_path: Path) -> None:
    models = {f"{arm}-s{seed}@3": np.arange(9.0) for arm in "ab" for seed in (0, 1)}
    planned = fabricated(tmp_path, {"t": models})
    (tmp_path / FAILURES).write_text(json.dumps([{"who": "b-s1@3", "task": "t", "error": "t: b-s1@3: out of luck"}]))
    found = analysed(planned, tmp_path)
    assert list(found["points"][0]["arms"]["b"]["values"]["t"]["seeds"]) == ["0"]
    assert found["failures"] == ["t: b-s1@3: out of luck"]


def test_undefined_numbers_are_told_and_in_no_mean(tmp_path: Path) -> None:
    items = np.linspace(0, 1, 50)
    planned = fabricated(tmp_path, {"t": {"a-s0@3": items, "b-s0@3": items, "a-s1@3": items, "floor:one": items}})
    no_interval = (math.nan, math.nan)
    undefined = result_of(math.nan, np.full(400, math.nan), metric="mean", n=50, unit="items")
    for who in ("b-s1@3", "floor:one"):
        keep(tmp_path, who, "t", replace(undefined, interval=no_interval), CARD)
    for arm in "ab":
        one = result_of(0.5, np.array([0.5]), metric="mean", n=1, unit="items")
        keep(tmp_path, f"{arm}-s0@3", "few", replace(one, interval=no_interval), CARD)
    found = analysed(planned, tmp_path)
    arms = found["points"][0]["arms"]
    assert list(arms["b"]["values"]["t"]["seeds"]) == ["0"]
    assert found["undefined"] == ["t: mean of b-s1@3 is undefined, so it is in no mean and no difference"]
    assert arms["b"]["differences"]["few"]["verdict"] == "undecided"
    text = tables.markdown(found)
    assert f"- caution: {found['undefined'][0]}" in text
    assert "| few | mean | 1 | 0.5000 | +0.0000 no interval undecided {+0.0000} |" in text
    assert "| t | floor:one | undefined | no interval |" in text
    assert "few,mean,0.5,0.0,,,undecided," in tables.csv_text(found)
    assert json.loads(json.dumps(plain(found), allow_nan=False))["tasks"]["t"]["references"] == {
        "floor:one": {"value": None, "interval95": [None, None]}
    }


def test_differences_intervals_and_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {seed: rng.normal(0.5, 0.1, 200) for seed in (0, 1)}
    noise = rng.normal(0, 0.02, (2, 200))
    tasks = {
        "wins": {f"a-s{s}@3": base[s] for s in base} | {f"b-s{s}@3": base[s] + 0.05 + noise[s] for s in base},
        "loses": {f"a-s{s}@3": base[s] for s in base} | {f"b-s{s}@3": base[s] - 0.05 + noise[s] for s in base},
        "open": {f"a-s{s}@3": base[s] for s in base} | {f"b-s{s}@3": rng.permutation(base[s]) for s in base},
    }
    planned = fabricated(tmp_path, tasks)
    found = analysed(planned, tmp_path)
    entry = found["points"][0]["arms"]["b"]
    for task, models in tasks.items():
        each = [float((models[f"b-s{s}@3"] - models[f"a-s{s}@3"]).mean()) for s in (0, 1)]
        assert entry["differences"][task]["delta"] == pytest.approx(np.mean(each))
        assert entry["differences"][task]["seeds"] == pytest.approx(each)
        assert entry["differences"][task]["seed_std"] == pytest.approx(np.std(each, ddof=1))
        draws = np.random.default_rng(7).integers(0, 200, (400, 200))
        both = np.mean([(models[f"b-s{s}@3"] - models[f"a-s{s}@3"])[draws].mean(1) for s in (0, 1)], axis=0)
        assert entry["differences"][task]["interval95"] == pytest.approx(np.quantile(both, [0.025, 0.975]).tolist())
    assert {task: d["verdict"] for task, d in entry["differences"].items()} == {
        "wins": "better",
        "loses": "worse",
        "open": "undecided",
    }
    strict, loose = entry["counts"]
    assert (strict["wins"], strict["losses"], strict["ties"]) == (1, 1, 1)
    assert (loose["wins"], loose["losses"], loose["ties"], loose["sign_test_p"]) == (0, 0, 3, None)
    assert strict["sign_test_p"] == pytest.approx(0.75)
    text = tables.markdown(found)
    assert "- scored: the validation split" in text
    assert text.index("1 better, 1 worse, 1 undecided") < text.index("## After")  # the verdict first


def test_where_lower_is_better_a_fall_is_a_win(tmp_path: Path) -> None:
    items = np.linspace(0, 1, 50)
    models = {"a-s0@3": items + 1, "b-s0@3": items, "a-s1@3": items + 1, "b-s1@3": items}
    found = analysed(fabricated(tmp_path, {"t": models}, {**CARD, "better": "lower"}), tmp_path)
    assert found["points"][0]["arms"]["b"]["differences"]["t"]["delta"] == pytest.approx(1.0)


@pytest.mark.parametrize("key", ["items", "metric", "n"])
def test_results_about_different_things_are_not_compared(tmp_path: Path, key: str) -> None:
    planned = fabricated(tmp_path, {"t": {"a-s0@3": np.ones(5), "b-s0@3": np.ones(5)}})
    path = path_of(tmp_path, "b-s0@3", "t")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, key: "other"}))
    with pytest.raises(UserError, match=f"is about other {key} than"):
        analysed(planned, tmp_path)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("data", {"key": {"data": {"x.csv": "def"}}}),
        ("options", {"key": {"options": {"rows": 6}}}),
        ("code", {"key": {"code": {"protloom": "0", "task": "def"}}}),
        ("precision", {"precision": "bfloat16"}),
    ],
)
def test_results_under_different_conditions_are_not_compared(tmp_path: Path, what: str, other: dict[str, Any]) -> None:
    planned = fabricated(tmp_path, {"t": {"a-s0@3": np.ones(5)}})
    keep(tmp_path, "b-s0@3", "t", result_of(1.0, np.ones(400), metric="mean", n=5, unit="items"), CARD, **other)
    with pytest.raises(UserError, match=f"is about other {what} than"):
        analysed(planned, tmp_path)


def test_a_result_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    planned = fabricated(tmp_path, {"t": {"a-s0@3": np.ones(5), "b-s0@3": np.ones(5)}})
    path = path_of(tmp_path, "b-s0@3", "t")
    record = json.loads(path.read_text())
    for damaged in ({"who": "b-s0@3", "task": "t", "value": 1.0}, {**record, "replicates": "x"}):
        path.write_text(json.dumps(damaged))
        told: list[str] = []
        found = analysis.analyse(planned, tmp_path, told.append)
        assert len(told) == 1
        assert not found["points"][0]["arms"]["b"]["values"]


def test_a_missing_seed_is_left_out_of_the_pairs(tmp_path: Path) -> None:
    models = {"a-s0@3": np.zeros(5), "a-s1@3": np.ones(5) * 9, "b-s0@3": np.ones(5)}
    found = analysed(fabricated(tmp_path, {"t": models}), tmp_path)
    assert found["points"][0]["arms"]["b"]["differences"]["t"]["seeds"] == [1.0]
