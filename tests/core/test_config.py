from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_files import Site

from protloom import config
from protloom.config import ResolvedRun
from protloom.config.source import dump, parse, recipes
from protloom.errors import UserError
from protloom.plugins import Registry

Load = Callable[..., ResolvedRun]


@pytest.fixture
def load(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a run file of the given text, called run.yaml."""
    monkeypatch.chdir(tmp_path)

    def call(text: str, *overrides: config.Override, using: Registry | None = None, **options: Any) -> ResolvedRun:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return config.load(Path("run.yaml"), overrides, using or registry, **options)

    return call


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site-packages on sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def options(chosen: config.Chosen) -> dict[str, Any]:
    assert chosen.config is not None
    return chosen.config.model_dump()


# --------------------------------------------------------------------------------------------------------- choosing


def test_an_architecture_fills_in_what_is_left_out(load: Load) -> None:
    run = load("architecture: esm2:8M")
    assert run.tokenizer.component.full_name == "protloom/esm"
    assert run.optimizer.component.full_name == "protloom/adamw"
    assert [(o.alias, o.chosen.component.full_name) for o in run.objectives] == [("mlm", "protloom/mlm")]
    assert run.source == "run.yaml"
    assert run.warnings == ()


def test_the_preset_of_a_size_comes_first_then_the_options(load: Load) -> None:
    sizes = {"layers": 6, "width": 320, "heads": 20}
    for text in ("architecture: esm2:8M", "architecture: {name: esm2, size: 8M}", "architecture: {name: 'esm2:8M'}"):
        assert options(load(text).architecture).items() >= sizes.items()
    changed = load("architecture: {name: esm2, size: 8M, layers: 7}")
    assert options(changed.architecture).items() >= {**sizes, "layers": 7}.items()


def test_a_size_on_the_command_line_replaces_what_a_resolved_file_spells_out(load: Load) -> None:
    written = dump(load("architecture: {name: esm2, size: 8M, token_dropout: false}").as_dict())
    for override in ("architecture=esm2:35M", "architecture.size=35M"):
        found = options(load(written, override, "architecture.layers=3").architecture)
        assert (found["layers"], found["width"], found["token_dropout"]) == (3, 480, False)
    # a mapping that is written out is taken as it is
    whole = load(written, "architecture={name: esm2, size: 35M, width: 40}")
    assert (options(whole.architecture)["width"], options(whole.architecture)["layers"]) == (40, 12)


def test_base_holds_where_file_and_overrides_are_silent(load: Load) -> None:
    base = {"seed": 1, "trainer": {"steps": 5, "log_every": 3}, "architecture": {"name": "esm2", "layers": 9}}
    run = load("seed: 2\ntrainer: {steps: 6}", "trainer.steps=7", base=base)
    assert (run.settings.seed, run.settings.trainer.steps, run.settings.trainer.log_every) == (2, 7, 3)
    assert options(run.architecture)["layers"] == 9
    assert base["seed"] == 1
    assert options(load("architecture: esm2:8M", base=base).architecture)["layers"] == 9
    assert config.load(None, [], Registry.discover(), base=base).source is None


def test_several_objectives_with_what_the_trainer_needs_to_know(load: Load) -> None:
    run = load(
        """
        architecture: esm2:tiny
        objectives:
          - mlm
          - {name: mlm, alias: hard, mask_rate: 0.4, weight: {mlm: 2}, start_step: 10, corruption: mlm}
        """
    )
    first, second = run.objectives
    assert (first.alias, first.mix.weight) == ("mlm", 1.0)
    assert (second.alias, second.mix.weight, second.mix.start_step) == ("hard", {"mlm": 2.0}, 10)
    assert options(second.chosen)["mask_rate"] == 0.4
    assert options(first.chosen)["mask_rate"] != 0.4


# -------------------------------------------------------------------------------------------------------- overrides


def test_overrides(load: Load) -> None:
    run = load(
        "architecture: esm2:tiny\nobjective: {name: mlm, mask_rate: 0.3}",
        "trainer.steps=20",
        "objective.mask_rate=0.2",
        "optimizer.lr=1e-5",
        "data.corpus=demo:",
        "out=runs/2024-01-01",
        "trainer.clip_norm=null",
        'kernels={gelu: "reference"}',
        ("init", "no: yaml # here"),
    )
    assert run.settings.trainer.steps == 20
    assert options(run.objectives[0].chosen)["mask_rate"] == 0.2
    assert options(run.optimizer)["lr"] == 1e-5
    assert run.settings.data.corpus == "demo:"
    assert run.settings.out == "runs/2024-01-01"
    assert run.settings.trainer.clip_norm is None
    assert run.settings.kernels == {"gelu": "reference"}
    assert run.settings.init == "no: yaml # here"


def test_a_name_on_the_command_line_keeps_the_options_of_the_same_component_only(load: Load, site: Site) -> None:
    site.good("acme", "acme_override", "span")
    both = Registry.discover()
    text = "architecture: esm2:tiny\nobjective: {name: mlm, mask_rate: 0.3}"
    assert options(load(text, "objective=mlm").objectives[0].chosen)["mask_rate"] == 0.3
    other = load(text, "objective=span", using=both)
    assert other.objectives[0].chosen.component.full_name == "acme/span"
    assert options(other.objectives[0].chosen) == {"rate": 0.5}
    again = load(text, "objective=span", "objective.rate=0.1", using=both)
    assert options(again.objectives[0].chosen) == {"rate": 0.1}
    # an option without a name means the default of the architecture
    assert (
        options(load("architecture: esm2:tiny", "objective.mask_rate=0.25").objectives[0].chosen)["mask_rate"] == 0.25
    )


def test_overrides_reach_into_lists(load: Load) -> None:
    text = "architecture: esm2:tiny\nobjectives: [mlm, {name: mlm, alias: b}]"
    run = load(
        text, "objectives.0.weight=2", "objectives.1.start_step=3", "objectives.2.alias=c", "objectives.2.name=mlm"
    )
    assert [(o.alias, o.mix.weight, o.mix.start_step) for o in run.objectives] == [
        ("mlm", 2.0, 0),
        ("b", 1.0, 3),
        ("c", 1.0, 0),
    ]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("trainer.steps", "not of the form key=value"),
        (".steps=3", "not of the form key=value"),
        ("seed.x=3", "seed holds 4, so nothing can be set inside it"),
        ("objectives.5.weight=1", "objectives is a list of 1: '5' is not a number from 0 to 1"),
        ("objectives.mlm.weight=1", "'mlm' is not a number"),
        ("kernels={a: b: c}", "line 1"),
        ("trainer.steps=abc", "command line: trainer.steps: found 'abc', should be a valid integer"),
        ("trainer.stps=3", "command line: trainer.stps: unknown key. Did you mean 'trainer.steps'?"),
        (
            "objectives.0.mask_rat=0.1",
            "objectives.0.mask_rat: unknown key. Did you mean 'objectives.0.mask_rate'?",
        ),
        (
            "objectives.0.wight=0.1",
            "objectives.0.wight: unknown key. Did you mean 'objectives.0.weight'?",
        ),
        ("optimizer=adamv", "command line: optimizer: no optimizer 'adamv'. Did you mean 'adamw'?"),
    ],
)
def test_wrong_overrides_are_explained(override: str, text: str, load: Load) -> None:
    told = message(lambda: load("architecture: esm2:tiny\nseed: 4\nobjectives: [mlm]", override))
    assert text in told
    assert "\n" not in told


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml: architecture: a run needs one: architecture=NAME or NAME:SIZE (known: "),
        ("architecture: esm3", "run.yaml: architecture: no architecture 'esm3'. Did you mean 'esm2'?"),
        ("architecture: esm2:9M", "run.yaml: architecture.size: esm2 has no size '9M'. Known: 150M, 15B,"),
        ("architecture: 'esm2:'", "not of the form NAME or NAME:SIZE"),
        ("architecture: 7", "run.yaml: architecture: found 7, should be a valid string or a valid dictionary"),
        ("architecture: {name: 7}", "run.yaml: architecture: found 7, should be the name of a component"),
        ("architecture: {layers: 7}", "run.yaml: architecture: needs a name"),
        (
            "architecture: {name: esm2, layer: 7}",
            "architecture.layer: unknown key. Did you mean 'architecture.layers'?",
        ),
        (
            "architecture: {name: esm2, layers: x}",
            "run.yaml: architecture.layers: found 'x', should be a valid integer",
        ),
        ("a: 1\nb: 2\na: 3", "run.yaml: line 3, column 1: the key 'a' stands twice, first in line 1"),
        ("a: [1,\nb: 2", "run.yaml: line 2"),
        ("- a", "run.yaml: a run file is a mapping of keys to values, this one is a list"),
        ("seed: !!python/object/apply:os.getcwd []", "run.yaml: line 1, column 7: could not determine a constructor"),
        ("trainr: {steps: 3}", "run.yaml: trainr: unknown key. Did you mean 'trainer'?"),
        ("trainer: {precision: bf17}", "should be 'auto', 'fp32' or 'bf16'. Did you mean 'bf16'?"),
        ("trainer: {steps: 0}", "run.yaml: trainer.steps: found 0, should be greater than or equal to 1"),
        ("data: {corpus: [{weight: 2}]}", "run.yaml: data.corpus.0.path: is needed and missing"),
        ("data: {corpus: {a: 1}}", "run.yaml: data.corpus: found {'a': 1}, should be a valid string or a valid list"),
        ("objective: mlm\nobjectives: [mlm]", "give 'objective' (one) or 'objectives' (several), not both"),
        ("schedule: cosin", "run.yaml: schedule.name: found 'cosin', should be"),
        (
            "trainer: {tokens_per_step: 8, tokens_per_microbatch: 9}",
            "run.yaml: trainer: tokens_per_microbatch (9) is above tokens_per_step (8)",
        ),
        ("architecture: esm2:tiny\ncallbacks: [wandb]", "run.yaml: callbacks.0: no callback 'wandb'"),
        ("architecture: esm2:tiny\nobjectives: []", "objectives: is empty"),
        ("architecture: esm2:tiny\nobjectives: [mlm, mlm]", "objectives.1: the alias 'mlm' is taken"),
        (
            "architecture: esm2:tiny\nobjectives: [{name: mlm, corruption: mlm}]",
            "objectives.0.corruption: no earlier objective is called 'mlm'",
        ),
        (
            "architecture: esm2:tiny\nobjective: {name: mlm, keep_rate: 2}",
            "run.yaml: objective.keep_rate: found 2, should be less than or equal to 1",
        ),
        ("components: 3", "run.yaml: components: should be a list of kind, name"),
    ],
)
def test_errors_name_file_key_what_was_found_and_what_to_do(text: str, expected: str, load: Load) -> None:
    told = message(lambda: load(text))
    assert expected in told
    assert "\n" not in told


def test_several_problems_are_told_at_once_a_line_each(load: Load) -> None:
    told = message(lambda: load("architecture: esm2\ntrainer: {stps: 3, precision: no}\nsed: 2"))
    lines = told.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("run.yaml: ") for line in lines)


def test_files_that_cannot_be_read(load: Load, tmp_path: Path, registry: Registry) -> None:
    load("architecture: esm2")
    assert "rn.yaml: no such run file. Did you mean 'run.yaml'?" in message(
        lambda: config.load("rn.yaml", [], registry)
    )
    assert "is a folder" in message(lambda: config.load(tmp_path, [], registry))
    (tmp_path / "weights.yaml").write_bytes(b"a: \xff\xfe")
    assert "not a text file" in message(lambda: config.load(tmp_path / "weights.yaml", [], registry))


def test_yaml_means_what_it_looks_like() -> None:
    text = "{a: 1e-4, b: no, c: 2024-01-01, d: 1:30, e: 010, f: true, g: ~, h: 1_000, i: .5, j: 1., k: .inf, l: -3}"
    found = parse(text, "x")
    assert found == {
        "a": 1e-4,
        "b": "no",
        "c": "2024-01-01",
        "d": "1:30",
        "e": "010",
        "f": True,
        "g": None,
        "h": 1000,
        "i": 0.5,
        "j": 1.0,
        "k": float("inf"),
        "l": -3,
    }


def test_dump_and_parse_are_inverse() -> None:
    values = ["1e-4", "no", "true", "null", "~", "", " a ", "a: b", "# x", "é", "1_000", "0x1F", "<<", "=", "-", "8M"]
    tree = {"text": values, "numbers": [1e-4, 1e300, 0.1, -0.0, 3, 10**20, float("inf")], "none": None, "bool": [True]}
    assert parse(dump(tree), "x") == tree


# ---------------------------------------------------------------------------------------- third parties' components

PLUGIN = """
    from protloom import ArchitectureSpec, ObjectiveSpec, hookimpl

    @hookimpl
    def protloom_objectives():
        return [
            ObjectiveSpec(name="greedy", factory="{m}:made", config="{m}:Greedy"),
            ObjectiveSpec(name="named", factory="{m}:made", config="{m}:Named"),
            ObjectiveSpec(name="lax", factory="{m}:made", config="{m}:Lax"),
            ObjectiveSpec(name="bare", factory="{m}:made"),
            ObjectiveSpec(name="lost", factory="{m}:made", config="no_such_package:Config"),
        ]

    @hookimpl
    def protloom_architectures():
        return [ArchitectureSpec(
            name="net", factory="{m}:made", config="{m}:Lax",
            defaults={
                "tokenizer": {"name": "esm"}, "optimizer": {"name": "adamw", "lr": 0.5, "weight_decay": 0.0},
                "objective": {"name": "lax", "rate": 0.7}, "schedule": {"name": "linear", "warmup_steps": 7},
            },
        ), ArchitectureSpec(name="plain", factory="{m}:made")]

    def made(*arguments):
        return arguments

    from pydantic import BaseModel

    class Greedy(BaseModel):
        weight: float = 1.0

    class Named(BaseModel):
        name: str = "x"

    class Lax(BaseModel):
        rate: float = 0.5
"""


@pytest.fixture
def acme(site: Site, request: pytest.FixtureRequest) -> Registry:
    """A registry with a third party's components."""
    module = f"acme_config_{abs(hash(request.node.name))}"
    site.add("acme", module, PLUGIN.replace("{m}", module))
    return Registry.discover()


def test_defaults_may_bring_options_and_the_run_overrides_them(load: Load, acme: Registry) -> None:
    run = load("architecture: net\noptimizer: {weight_decay: 0.1}\nschedule: {warmup_steps: 9}", using=acme)
    assert (options(run.optimizer)["lr"], options(run.optimizer)["weight_decay"]) == (0.5, 0.1)
    assert (run.settings.schedule.name, run.settings.schedule.warmup_steps) == ("linear", 9)
    assert options(run.objectives[0].chosen) == {"rate": 0.7}
    other = load("architecture: net\nschedule: cosine\nobjective: mlm\noptimizer: adamw", using=acme)
    assert (other.settings.schedule.name, other.settings.schedule.warmup_steps) == ("cosine", 0)
    assert options(other.optimizer)["lr"] == 0.5
    assert other.objectives[0].alias == "mlm"


def test_without_a_default_the_run_has_to_say(load: Load, acme: Registry) -> None:
    told = message(lambda: load("architecture: plain", using=acme))
    assert "run.yaml: tokenizer: needs a name" in told
    assert "esm" in told


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("greedy", "has an option 'weight', a name that the trainer keeps for itself; tell its author"),
        ("named", "has an option 'name', which is reserved; tell its author"),
        ("{name: lax, rat: 1}", "run.yaml: objective.rat: unknown key. Did you mean 'rate'?"),
        ("{name: bare, rate: 1}", "run.yaml: objective.rate: objective 'bare' takes no options"),
        ("lost", "cannot load 'no_such_package:Config': ModuleNotFoundError"),
    ],
)
def test_faults_of_a_plugin_name_it(section: str, text: str, load: Load, acme: Registry) -> None:
    told = message(lambda: load(f"architecture: esm2:tiny\nobjective: {section}", using=acme))
    assert text in told
    if "tell" in text or "cannot load" in text:
        assert "acme 1.0" in told


# --------------------------------------------------------------------------------------------- the resolved config


def test_the_resolved_config_means_the_same_run(load: Load, acme: Registry) -> None:
    text = """
        architecture: {name: esm2, size: 8M, layers: 7}
        data: {corpus: [{path: a.fasta, weight: 2}, {path: 'demo:'}]}
        objectives: [{name: acme/lax, weight: {x: 0.5}}, {name: mlm, mask_rate: 0.2, alias: b}]
        schedule: {name: wsd, warmup_steps: 10}
        optimizer: {lr: 1e-5}
    """
    run = load(text, "trainer.steps=44", using=acme)
    plain = run.as_dict()
    again = load(dump(plain), using=acme)
    assert again.as_dict() == plain
    assert again.warnings == ()
    assert [options(c) for c in again.chosen] == [options(c) for c in run.chosen]
    assert [o.mix for o in again.objectives] == [o.mix for o in run.objectives]
    assert {"kind": "objective", "name": "lax", "distribution": "acme", "version": "1.0"} in plain["components"]
    assert plain["objectives"][0]["name"] == "acme/lax"


def test_a_changed_version_is_a_warning_and_a_missing_distribution_an_error(
    load: Load, acme: Registry, registry: Registry
) -> None:
    plain = load("architecture: esm2:tiny\nobjective: lax", using=acme).as_dict()
    told = message(lambda: load(dump(plain), using=registry))
    assert (
        "used objective 'acme/lax' of acme 1.0, which is not installed: install that version (pip install acme==1.0,"
        in told
    )
    # what is not used any more need not be there
    assert load(dump(plain), "objective=mlm", using=registry).objectives[0].alias == "mlm"
    for item in plain["components"]:
        item["version"] = "0.0.1"
    changed = load(dump(plain), using=acme)
    assert len(changed.warnings) == 4
    assert "objective 'acme/lax': the run was made with version 0.0.1, installed is 1.0" in changed.warnings


def test_choose_resolves_one_component(registry: Registry) -> None:
    chosen = config.choose("objective", "mlm", {"mask_rate": 0.3}, registry)
    assert options(chosen)["mask_rate"] == 0.3
    assert options(config.choose("architecture", "esm2:8M", {"layers": 3}, registry))["width"] == 320
    assert "mask_rat: unknown key" in message(lambda: config.choose("objective", "mlm", {"mask_rat": 1}, registry))


# ---------------------------------------------------------------------------------------------------------- recipes


def test_recipes_are_found_beside_plugins(site: Site, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for distribution in ("acme", "bio"):
        package = site.folder / f"{distribution}_pack"
        (package / "recipes").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "recipes" / "both.yaml").write_text("architecture: esm2:tiny\nseed: 5")
        (package / "recipes" / f"{distribution}-only.yaml").write_text("architecture: esm2:tiny\nsed: 5")
        source = "from protloom import hookimpl\n@hookimpl\ndef protloom_tasks(): return []\n"
        (package / "plugin.py").write_text(source)
        site.add(distribution, f"{distribution}_unused", "", points={"main": f"{distribution}_pack.plugin"})
    site.good("cytos", "cytos_single_module", "span")
    found = Registry.discover()
    assert {"acme/both", "bio/both", "acme/acme-only"} <= set(recipes(found))
    assert config.load("recipe:acme/both", ["seed=6"], found).settings.seed == 6
    assert "recipe:acme/both, recipe:bio/both" in message(lambda: config.load("recipe:both", [], found))
    assert "no recipe 'acme-onl'" in message(lambda: config.load("recipe:acme-onl", [], found))
    assert "recipe:bio-only: sed: unknown key" in message(lambda: config.load("recipe:bio-only", [], found))


def test_every_recipe_that_is_shipped_is_a_valid_run(registry: Registry) -> None:
    for name in recipes(registry):
        run = config.load(f"recipe:{name}", [], registry)
        assert run.source == f"recipe:{name}"


# ----------------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("architecture: esm2:8M", True),
        ("architecture: {name: esm2, size: 8M, layers: 7}", True),
        ("architecture: {name: esm2, layer: 7}", False),
        ("architecture: esm3", False),
        ("architecture: esm2:9M", False),
        ("architecture: esm2\nobjective: {mask_rate: 0.2, weight: 2}", True),
        ("architecture: esm2\nobjective: {name: mlm, mask_rat: 0.2}", False),
        ("architecture: esm2\nobjectives: [mlm, {name: acme/mlm, rate: 1, alias: other}]", True),
        ("architecture: esm2\nobjectives: [{name: acme/mlm, mask_rate: 0.1}]", False),
        ("architecture: esm2\nobjective: {name: mlm, rate: 1}", False),
        ("architecture: esm2\nschedule: cosine", True),
        ("architecture: esm2\nschedule: {name: cosine, warmup_steps: 3}", True),
        ("architecture: esm2\nschedule: cosin", False),
        ("architecture: esm2\ntrainer: {steps: 0}", False),
        ("architecture: esm2\ntrainr: {}", False),
        ("architecture: esm2\noptimizer: {lr: 1e-3}", True),
    ],
)
def test_the_schema_agrees_with_the_loader(text: str, valid: bool, load: Load, site: Site) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the referee for JSON Schema is not installed")
    site.good("acme", "acme_schema", "mlm")
    both = Registry.discover()
    schema = config.run_schema(both)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(parse(text, "x")) == valid
    if valid:
        resolved = load(text, using=both).as_dict()
        jsonschema.validate(resolved, schema)
    else:
        assert message(lambda: load(text, using=both))


def test_the_schema_survives_a_component_that_cannot_be_loaded(acme: Registry) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the referee for JSON Schema is not installed")
    validator = jsonschema.Draft202012Validator(config.run_schema(acme))
    assert validator.is_valid({"objective": {"name": "lost", "anything": 3}})
    assert not validator.is_valid({"objective": {"name": "bare", "anything": 3}})


def test_the_schema_of_every_component_is_self_contained(registry: Registry) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the referee for JSON Schema is not installed")
    from protloom.config.schema import component_schema

    for component in registry.components():
        schema = component_schema(component)
        jsonschema.Draft202012Validator.check_schema(schema)
        model = component.load_config()
        if model is not None and not any(field.is_required() for field in model.model_fields.values()):
            jsonschema.validate({"name": component.name, **model().model_dump(mode="json")}, schema)
