"""The folder of a comparison holds one comparison: what was asked first is kept there, and must be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom import config, provenance
from protloom.compare.plan import Plan
from protloom.config import source as config_source
from protloom.errors import UserError
from protloom.files import write_text
from protloom.run import changes
from protloom.run import folder as run_folder

if TYPE_CHECKING:
    from protloom.plugins import Registry

FILE = "comparison.yaml"
RECIPES = "recipes.yaml"
"""Every recipe as a whole run file, by its name: what a recipe or a run file said when the comparison began."""
CODE = "code.yaml"
"""A hash of the code of every third party's package that a recipe names, by the package's name."""

ADAPTABLE = ("tasks", "margins", "seeds", "checkpoints", "rounds", "data_dir")
"""Keys of the comparison that may change between two sittings: more tasks, seeds and points are added to what is
there."""
FREE = ("components", "data.cache_dir", "data.threads", "out", "trainer.log_every")
"""Keys of a recipe that may change: nothing that is trained depends on them. A run tells itself what became of versions
of components."""


def claim(folder: Path, planned: Plan) -> None:
    """Makes the folder, or makes sure that it holds this very comparison.

    Raises:
        UserError: the folder holds something else, or a comparison with another option.
    """
    stated = planned.config.model_dump(mode="json")
    path = folder / FILE
    if path.is_file():
        _refuse_other_options(path, stated)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: is not empty and holds no comparison; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, config_source.dump(stated))


def _refuse_other_options(path: Path, stated: Mapping[str, Any]) -> None:
    # a folder that says nothing of split and precision was made when tasks scored their test split, in fp32
    kept = _read(path)
    names = [sorted(dict(of.get("recipes") or {})) for of in (kept, stated)]
    if names[0] != names[1]:
        raise _another(path.parent, "set of recipes", ", ".join(names[0]), ", ".join(names[1]))
    before, now = changes.leaves({"split": "test", "precision": "fp32", **kept}), changes.leaves(dict(stated))
    for key in sorted({**before, **now}):
        if before.get(key) != now.get(key) and not changes.under(key, ADAPTABLE):
            raise _another(path.parent, key, before.get(key), now.get(key))


def keep_recipes(folder: Path, planned: Plan, registry: Registry) -> None:
    """Keeps the recipes in a claimed folder, or makes sure that they are what they were when the comparison began.

    Runs that were begun go on with what their recipe said then; those that begin now would follow an edited one.

    Args:
        folder: of the comparison.
        planned: what is asked now.
        registry: completes recipes that an earlier version kept.

    Raises:
        UserError: a recipe is another one, or code of a plugin that it names has changed.
    """
    path = folder / RECIPES
    _keep_code(folder, _code(planned, registry))
    if not path.is_file():
        write_text(path, config_source.dump(dict(planned.documents)))
        return
    for arm, kept in _read(path).items():
        # both are completed by this version: an option that is new since then has its default in both
        before, now = (changes.leaves(_completed(document, registry)) for document in (kept, planned.documents[arm]))
        for key in {**before, **now}:
            if before.get(key) != now.get(key) and not changes.under(key, FREE):
                raise _another(folder, f"{key} of recipe {arm!r}", before.get(key), now.get(key))


def _keep_code(folder: Path, now: Mapping[str, str]) -> None:
    """Keeps the hashes, or makes sure that no package is another; new ones come with new recipes or versions."""
    path = folder / CODE
    before = _read(path) if path.is_file() else {}
    for package in sorted(before.keys() & now.keys()):
        if before[package] != now[package]:
            raise UserError(
                f"{folder} holds runs that an earlier state of package {package!r} trained: its code has changed "
                "since, so they and new ones cannot be compared; choose another --out"
            )
    if {**now, **before} != before:
        write_text(path, config_source.dump({**now, **before}))


def _code(planned: Plan, registry: Registry) -> dict[str, str]:
    """Returns the hash of each third party's package that a recipe names; protloom's own code goes by its version."""
    named = {
        (c["kind"], f"{c['distribution']}/{c['name']}") for d in planned.documents.values() for c in d["components"]
    }
    found = (registry.resolve(kind, name) for kind, name in sorted(named))
    packages = {c.load_factory().__module__.partition(".")[0] for c in found if not c.builtin}
    return {package: provenance.code_hash((package,)) for package in sorted(packages)}


def _read(path: Path) -> dict[str, Any]:
    found = config_source.parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged, no mapping of keys to values; choose another --out")
    return found


def _completed(document: Mapping[str, Any], registry: Registry) -> Mapping[str, Any]:
    return run_folder.document(config.load(None, [], registry, base=document))


def _another(folder: Path, key: str, before: Any, now: Any) -> UserError:
    return UserError(
        f"{folder} holds a comparison with another {key} ({_shown(before)}, now {_shown(now)}): choose another --out, "
        "or take the change back"
    )


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
