from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from plugin_files import GOOD, Site

from protloom import config
from protloom.errors import UserError
from protloom.plugins import PluginInfo, Registry, split_size
from protloom.specs import API_VERSION, ObjectiveSpec

HEAD = "from protloom import ObjectiveSpec, TokenizerSpec, hookimpl\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An empty site-packages on sys.path; modules imported from it are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PROTLOOM_DISABLE_PLUGINS", raising=False)
    yield Site(tmp_path)  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def plugin(registry: Registry, name: str) -> PluginInfo:
    (found,) = registry.named(name)
    return found


def told(kind: str, name: str, registry: Registry) -> str:
    with pytest.raises(UserError) as caught:
        registry.resolve(kind, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def body(code: str) -> str:
    return HEAD + "@hookimpl\ndef protloom_objectives():\n    " + code + "\n"


BAD = {
    "import-error": ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
    "syntax-error": ("def broken(:\n", "SyntaxError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "raises-base": ("raise ValueError('first\\nsecond')", "ValueError: first"),
    "unknown-hook": (HEAD + "@hookimpl\ndef protloom_objektives(): return []", "Did you mean 'protloom_objectives'?"),
    "unmarked-unknown": (HEAD + "def protloom_objectivs(): return []", "Did you mean 'protloom_objectives'?"),
    "unmarked": (HEAD + "def protloom_objectives(): return []", "lacks @hookimpl"),
    "no-hook": ("x = 1", "no hook found"),
    "wrong-argument": (HEAD + "@hookimpl\ndef protloom_objectives(config): return []", "config"),
    "wrapper": (HEAD + "@hookimpl(wrapper=True)\ndef protloom_objectives():\n    return (yield)", "hook wrapper"),
    "hook-raises": (body("raise RuntimeError('no licence server')"), "RuntimeError: no licence server"),
    "not-a-list": (body("return ObjectiveSpec(name='x', factory='a:b')"), "returned ObjectiveSpec, not a list"),
    "wrong-kind": (body("return [TokenizerSpec(name='x', factory='a:b')]"), "a TokenizerSpec in its list"),
    "illegal-name": (body("return [ObjectiveSpec(name='My/Loss', factory='a:b')]"), "illegal objective name 'My/Loss'"),
    "duplicate": (body("return [ObjectiveSpec(name='x', factory='a:b')] * 2"), "objective 'x' is already offered"),
    "future": (body("return [ObjectiveSpec(name='x', factory='a:b', api_version=99)]"), "upgrade protloom"),
    "bad-reference": (body("return [ObjectiveSpec(name='x', factory='a.b')]"), "not of the form 'package.module:attr'"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_plugin_is_kept_with_its_cause_and_harms_nothing(kind: str, site: Site) -> None:
    source, cause = BAD[kind]
    module = "bad_" + kind.replace("-", "_")
    site.add("acme-bad", module, source)
    site.good("acme-good", f"good_beside_{module}", "fine")

    registry = Registry.discover()

    bad = plugin(registry, "acme-bad")
    assert bad.state == "broken"
    assert cause in bad.error
    assert "\n" not in bad.error
    assert "Traceback" in bad.traceback
    assert bad.components == ()
    assert registry.resolve("objective", "fine").distribution == "acme-good"
    assert registry.resolve("objective", "mlm").builtin
    message = told("objective", "mlmm", registry)
    assert "Did you mean 'mlm'?" in message
    assert "acme-bad:main" in message
    assert cause in message
    # asking for a component of a broken plugin is fatal, with the cause
    assert cause in told("objective", "acme-bad/x", registry)


@pytest.mark.parametrize(
    ("written", "state", "says"),
    [
        (1, "broken", "was written for api_version 1, this protloom supports 2 to 3: upgrade the plugin"),
        (2, "ok", "written for an older api_version (objective 'x' for 2; this is 3): it works now"),
        (3, "ok", ""),
        (4, "broken", "was written for api_version 4, this protloom offers 3: upgrade protloom"),
    ],
)
def test_versions_of_the_contracts(
    written: int, state: str, says: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("acme", "acme_of_age", body(f"return [ObjectiveSpec(name='x', factory='a:b', api_version={written})]"))
    # ours are all of version 1, which the test's protloom has left behind: they are not loaded here
    (ours,) = [point for point in metadata.entry_points(group="protloom") if point.value == "acme_of_age"]
    monkeypatch.setattr("protloom.specs.API_VERSION", 3)
    monkeypatch.setattr("protloom.specs.OLDEST_API_VERSION", 2)
    (found,) = Registry.discover(entry_points=[ours]).plugins
    assert found.state == state
    assert says in (found.warning if state == "ok" else found.error)
    assert bool(found.warning) == (written == 2)


def test_a_run_with_an_older_component_is_warned(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who never lists plugins is told as well; what the run does not use is not told."""
    source = (
        GOOD.replace("{name}", "span").replace("{module}", "acme_aged").replace("summary=", "api_version=1, summary=")
    )
    site.add("acme", "acme_aged", source)
    site.good("bio", "bio_aged", "unused")
    monkeypatch.setattr("protloom.specs.API_VERSION", 2)
    resolved = config.load(
        None, ["architecture=esm2:tiny", "objective=span", "data.corpus=x.fasta"], Registry.discover()
    )
    (acme,) = [text for text in resolved.warnings if text.startswith("acme: ")]
    assert "written for an older api_version (objective 'span' for 1; this is 2): it works now" in acme
    assert not any("unused" in text or text.startswith("bio") for text in resolved.warnings)
    monkeypatch.setattr("protloom.specs.API_VERSION", 1)
    assert (
        config.load(None, ["architecture=esm2:tiny", "objective=span", "data.corpus=x"], Registry.discover()).warnings
        == ()
    )


def test_a_spec_that_states_no_version_was_written_for_the_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later protloom must not take what says nothing for its own version."""
    monkeypatch.setattr("protloom.specs.API_VERSION", 2)
    assert ObjectiveSpec(name="x", factory="a:b").api_version == 1


def test_built_in_components_are_of_this_version() -> None:
    assert {c.spec.api_version for c in Registry.discover().components()} == {API_VERSION}


def test_keyboard_interrupt_at_import_is_not_swallowed(site: Site) -> None:
    site.add("acme", "interrupted_plugin", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry.discover()


def test_built_in_components_come_through_entry_points() -> None:
    registry = Registry.discover()
    for kind, name in (("architecture", "esm2"), ("objective", "mlm"), ("optimizer", "adamw"), ("tokenizer", "esm")):
        assert registry.resolve(kind, name).full_name == f"protloom/{name}"
    assert [p.state for p in registry.plugins] == ["ok"] * len(registry.plugins)
    assert not Registry.discover(entry_points=[]).components()


def test_an_entry_point_of_the_same_name_does_not_replace_ours(site: Site) -> None:
    site.add("acme", "acme_takes_name", HEAD + "raise SystemExit", points={"objectives": "acme_takes_name"})
    registry = Registry.discover()
    assert registry.resolve("objective", "mlm").builtin
    assert {p.distribution: p.state for p in registry.named("objectives")} == {"protloom": "ok", "acme": "broken"}


def test_an_entry_point_to_our_module_does_not_replace_ours(site: Site) -> None:
    site.add("acme", "acme_unused", "", points={"main": "protloom_plugins.objectives"})
    registry = Registry.discover()
    assert registry.resolve("objective", "mlm").builtin
    assert registry.resolve("objective", "acme/mlm").distribution == "acme"


def test_a_bare_name_of_ours_stays_ours(site: Site) -> None:
    site.good("acme", "acme_mlm", "mlm")
    registry = Registry.discover()
    assert registry.resolve("objective", "mlm").builtin
    assert registry.resolve("objective", "acme/mlm").distribution == "acme"
    assert registry.resolve("objective", "ACME/mlm").distribution == "acme"
    acme = plugin(registry, "acme")
    assert acme.state == "clashing"
    assert "'acme/mlm'" in acme.error
    assert plugin(registry, "protloom:objectives").state == "ok"
    assert set(registry.names("objective")) == {"mlm", "acme/mlm"} | {
        c.name for c in registry.components("objective") if c.builtin
    }


def test_two_third_parties_with_one_name_are_refused_by_bare_name(site: Site) -> None:
    site.good("acme", "acme_span", "span")
    site.good("bio-tools", "bio_span", "span", version="2.1")
    registry = Registry.discover()
    message = told("objective", "span", registry)
    for part in ("'acme/span'", "acme 1.0", "'bio-tools/span'", "bio-tools 2.1"):
        assert part in message
    assert registry.resolve("objective", "bio-tools/span").version == "2.1"
    assert {plugin(registry, name).state for name in ("acme", "bio-tools")} == {"clashing"}
    # one of them blocked: the name is clear again
    assert Registry.discover(disabled=["acme"]).resolve("objective", "span").distribution == "bio-tools"


def test_one_distribution_cannot_give_a_full_name_two_meanings(site: Site) -> None:
    site.good("acme", "acme_twice", "span")
    point = metadata.EntryPoint("second", "acme_twice", "protloom")
    (first,) = [p for d in metadata.distributions(path=[str(site.folder)]) for p in d.entry_points]
    again = point._for(first.dist)  # type: ignore[attr-defined]
    registry = Registry.discover(entry_points=[again, first])
    assert [(p.name, p.state) for p in registry.plugins] == [("main", "ok"), ("second", "broken")]
    assert "'main'" in registry.plugins[1].error


def test_the_order_in_which_entry_points_are_found_changes_nothing(site: Site) -> None:
    site.good("acme", "acme_order", "mlm")
    site.good("bio", "bio_order", "span")
    site.good("cytos", "cytos_order", "span")
    site.add("dud", "dud_order", "1 / 0")
    points = [p for d in metadata.distributions() for p in d.entry_points if p.group == "protloom"]
    assert len(points) >= 10

    def facts(registry: Registry) -> list[tuple[object, ...]]:
        names = ([c.full_name for c in p.components] for p in registry.plugins)
        return [(p.full_name, p.state, p.error, *n) for p, n in zip(registry.plugins, names, strict=True)]

    expected = facts(Registry.discover())
    assert [line[0] for line in expected] == sorted(str(line[0]) for line in expected)
    for seed in range(5):
        random.Random(seed).shuffle(points)
        registry = Registry.discover(entry_points=points)
        assert facts(registry) == expected
        assert "'bio/span'" in told("objective", "span", registry)


@pytest.mark.parametrize("name", ["acme-tools", "Acme_Tools", "main", "acme-tools:main", "ACME.tools:main"])
def test_blocking_by_any_name(name: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.good("Acme_Tools", "acme_blocked", "span")
    by_argument = Registry.discover(disabled=[name])
    monkeypatch.setenv("PROTLOOM_DISABLE_PLUGINS", f" other , {name} ")
    for registry in (by_argument, Registry.discover()):
        assert plugin(registry, "acme-tools").state == "blocked"
        assert "acme_blocked" not in sys.modules
        assert "Blocked plugins that may have offered it: acme-tools:main" in told("objective", "span", registry)
        assert "is blocked" in told("objective", "acme-tools/span", registry)
        assert registry.resolve("objective", "mlm").builtin


@pytest.mark.parametrize("name", ["acme:other", "mai", "tools"])
def test_blocking_needs_the_whole_name(name: str, site: Site) -> None:
    site.good("acme", "acme_not_blocked", "span")
    assert plugin(Registry.discover(disabled=[name]), "acme").state == "ok"


def test_a_third_party_never_inherits_a_name_from_our_broken_plugin(site: Site) -> None:
    site.good("acme", "acme_inherits", "mlm")
    site.add("protloom", "our_broken_plugin", "1 / 0")
    points = [p for d in metadata.distributions(path=[str(site.folder)]) for p in d.entry_points]
    registry = Registry.discover(entry_points=points)
    assert "may mean protloom's" in told("objective", "mlm", registry)
    assert registry.resolve("objective", "acme/mlm").distribution == "acme"


def test_a_malformed_entry_points_file_harms_only_its_own_distribution(site: Site) -> None:
    site.add("acme", "acme_malformed", "", entry_points="[protloom]\nthis line has no sign\n")
    site.add("other", "other_malformed", "", entry_points="[console_scripts]\nuses protloom without a sign\n")
    site.good("bio", "bio_beside_malformed", "span")
    registry = Registry.discover()
    broken = [p for p in registry.plugins if p.state == "broken"]
    assert [p.distribution for p in broken] == ["acme"]
    assert "entry_points.txt" in broken[0].error
    assert registry.resolve("objective", "span").distribution == "bio"


def test_of_two_installed_versions_the_importable_one_counts(
    site: Site, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.good("acme", "acme_versions", "old", version="1.0")
    newer = Site(tmp_path_factory.mktemp("newer"))
    newer.good("acme", "acme_versions", "new", version="2.0")
    monkeypatch.syspath_prepend(newer.folder)
    registry = Registry.discover()
    assert registry.resolve("objective", "new").version == "2.0"
    assert [p.version for p in registry.named("acme")] == ["2.0"]
    # a version that is no plugin any more hides an older one that was
    newest = Site(tmp_path_factory.mktemp("newest"))
    newest.add("acme", "acme_versions", "", version="3.0", entry_points="[console_scripts]\nx = y:z\n")
    monkeypatch.syspath_prepend(newest.folder)
    assert Registry.discover().named("acme") == ()


def test_lazy_imports_that_fail_name_the_distribution(site: Site) -> None:
    spec = "ObjectiveSpec(name='{0}', factory='acme_lazy:{1}', config='acme_lazy:{2}')"
    specs = ", ".join(spec.format(*names) for names in (("one", "missing", "missing"), ("two", "number", "number")))
    site.add("acme", "acme_lazy", HEAD + f"number = 7\n@hookimpl\ndef protloom_objectives(): return [{specs}]\n")
    registry = Registry.discover()
    for name, cause in (("one", "AttributeError"), ("two", "cannot be called"), ("two", "pydantic")):
        component = registry.resolve("objective", name)
        load = component.load_config if cause == "pydantic" else component.load_factory
        with pytest.raises(UserError, match=cause) as caught:
            load()
        assert "acme 1.0" in str(caught.value)


def test_unknown_names_are_explained(site: Site) -> None:
    site.good("acme", "acme_unknown", "span")
    registry = Registry.discover()
    assert "Did you mean 'architecture'?" in told("architectures", "esm2", registry)
    assert "Did you mean 'acme/span'?" in told("objective", "acme/spam", registry)
    assert "pip install biotools" in told("objective", "biotools/span", registry)


@pytest.mark.parametrize(
    ("kind", "name", "legal"),
    [
        ("Task", "fold:mine", True),
        ("Task", "ss3:", False),
        ("Task", "a:b:c", False),
        ("Objective", "ss3:cb513", False),
        ("Objective", "span-mlm_2", True),
        ("Objective", "span--mlm", False),
        ("Objective", "acme/mlm", False),
        ("Objective", "", False),
    ],
)
def test_legal_names(kind: str, name: str, legal: bool, site: Site) -> None:
    hook = f"def protloom_{kind.lower()}s(): return [{kind}Spec(name={name!r}, factory='a:b')]"
    source = f"from protloom import {kind}Spec, hookimpl\n@hookimpl\n{hook}\n"
    site.add("acme", "acme_names", source)
    assert plugin(Registry.discover(), "acme").state == ("ok" if legal else "broken")


def test_licence_and_version_are_those_of_the_metadata(site: Site) -> None:
    site.good("acme", "acme_licence", "span", version="3.2.1")
    classifier = "Classifier: License :: OSI Approved :: Apache Software License\n"
    site.add("bio", "bio_licence", HEAD + "@hookimpl\ndef protloom_tasks(): return []", extra_metadata=classifier)
    site.add("cytos", "cytos_licence", HEAD + "@hookimpl\ndef protloom_tasks(): return []", extra_metadata="")
    registry = Registry.discover()
    found = {p.distribution: (p.version, p.licence) for p in registry.plugins if p.distribution != "protloom"}
    assert found == {
        "acme": ("3.2.1", "BSD-3-Clause"),
        "bio": ("1.0", "Apache Software License"),
        "cytos": ("1.0", "unknown"),
    }


def test_sizes_are_split_off() -> None:
    assert split_size("esm2:8M") == ("esm2", "8M")
    assert split_size("acme/esm2") == ("acme/esm2", None)
    for wrong in ("esm2:", ":8M", ""):
        with pytest.raises(UserError, match="NAME:SIZE"):
            split_size(wrong)


def protloom(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, "-m", "protloom", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_bad_plugins_leave_every_command_working_and_are_explained(tmp_path: Path) -> None:
    site = Site(tmp_path)
    kinds = ["import-error", "syntax-error", "exits", "unknown-hook", "hook-raises", "future"]
    for kind in kinds:
        site.add(f"acme-{kind}", f"acme_{kind.replace('-', '_')}", BAD[kind][0])
    site.add("acme-noisy", "acme_noisy", "print('not JSON')\n" + body("return []"))
    site.good("acme-good", "acme_good", "mlm")

    listed = protloom(tmp_path, "plugins", "--json")
    assert listed.returncode == 0, listed.stderr
    states = {p["distribution"]: p for p in json.loads(listed.stdout)["plugins"]}
    for kind in kinds:
        assert states[f"acme-{kind}"]["state"] == "broken"
        assert BAD[kind][1] in states[f"acme-{kind}"]["error"]
    assert states["acme-noisy"]["state"] == "ok"
    assert states["acme-good"]["state"] == "clashing"

    table = protloom(tmp_path, "plugins")
    assert table.returncode == 0
    assert "Traceback" not in table.stdout + table.stderr
    for kind in kinds:
        assert BAD[kind][1] in table.stdout
    assert "'acme-good/mlm'" in table.stdout
    assert "Traceback" in protloom(tmp_path, "--debug", "plugins").stdout

    shown = protloom(tmp_path, "show", "objective", "mlm")
    assert (shown.returncode, shown.stderr) == (0, "not JSON\n")
    assert "from protloom" in shown.stdout
    assert "from acme-good 1.0" in protloom(tmp_path, "show", "objective", "acme-good/mlm").stdout
    wrong = protloom(tmp_path, "show", "objective", "acme-exits/thing")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: no objective 'acme-exits/thing'")
    assert "SystemExit: 3" in wrong.stderr
    assert protloom(tmp_path, "--help").returncode == 0
