"""The task ``definition``: whatever a YAML file defines, of any kind, without code.

Its options are those of all kinds together; one that the kind of the file does not have ends in a line that says so.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, ValidationError, create_model

from protloom.config.errors import explain
from protloom.errors import UserError, did_you_mean
from protloom.settings import Section
from protloom_tasks.definition import ENGINES, Engine, load, named

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from protloom.contracts import Task


def _options() -> type[Section]:
    """Returns a model with the options of all kinds; each kind's own model checks them when its definition is known."""
    found: dict[str, list[FieldInfo]] = {}
    for engine in dict.fromkeys(ENGINES.values()):
        for name, info in cast("type[Section]", named(engine.config)).model_fields.items():
            found.setdefault(name, []).append(info)
    fields: dict[str, Any] = {}
    for name, infos in found.items():
        anything = reduce(or_, (info.annotation for info in infos), None)  # a union of what the kinds take, or None
        words = dict.fromkeys(info.description or "" for info in infos)
        fields[name] = (anything, Field(default=None, description="; or: ".join(words)))
    fields["definition"] = (str, Field(description="A shipped definition, or the path of a YAML file"))
    fields["variant"] = (str | None, Field(default=None, description="Which of its variants"))
    return create_model("DefinitionConfig", __base__=Section, __doc__="Options of every kind of definition.", **fields)


DefinitionConfig = _options()

EVERYWHERE = frozenset({"data_dir", "split", "pool"})
"""Options that the command line gives to all tasks: a kind that has no such choice passes over them."""


def make(config: Section) -> Task:
    """Builds the task of a definition.

    Args:
        config: a ``DefinitionConfig``: which definition, and options of its kind; those not given are the kind's own.

    Raises:
        UserError: the definition is wrong, or its kind has no such option.
    """
    options = {name: getattr(config, name) for name in config.model_fields_set}
    found = load(options["definition"], options.get("variant"))
    engine = ENGINES[found.definition.kind]
    model: type[Section] = named(engine.config)
    given = {}
    for name, value in options.items():
        if name in model.model_fields:
            given[name] = value
        elif name not in EVERYWHERE and value is not None:
            offered = set(model.model_fields) - {"definition", "variant", "data_dir"}
            raise UserError(
                f"{found.name}: a {found.definition.kind} task has no option {name!r}.{did_you_mean(name, offered)}"
            )
    return _built(engine, model, given, found.name)


def _built(engine: Engine, model: type[Section], given: dict[str, Any], name: str) -> Task:
    try:
        chosen = model.model_validate(given)
    except ValidationError as error:
        raise explain(error, given, model, lambda _: name) from None
    task: Task = named(engine.task)(chosen)
    return task
