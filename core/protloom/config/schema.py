"""The JSON Schema of a run file with the components that are installed, for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from protloom.config.source import COMPONENT_SECTIONS, as_mapping
from protloom.errors import UserError
from protloom.plugins import Component, Registry
from protloom.settings import ObjectiveMix, RunConfig
from protloom.specs import ArchitectureSpec

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LISTS = ("objectives", "callbacks")


def run_schema(registry: Registry) -> Schema:
    """Returns the JSON Schema (2020-12) of a whole run file: the core's sections and every installed component's."""
    schema, definitions = _split(RunConfig, "core")
    schema |= {"$schema": DIALECT, "title": "protloom run", "description": "A run file of protloom"}
    properties = schema["properties"]
    sections = {kind: _section(kind, registry, definitions) for kind in dict.fromkeys(COMPONENT_SECTIONS.values())}
    for key, kind in COMPONENT_SECTIONS.items():
        about = {"description": properties[key]["description"]} if "description" in properties[key] else {}
        reference = {"$ref": f"#/$defs/{kind}"}
        content = {"type": "array", "items": reference} if key in _LISTS else reference
        properties[key] = {**about, "anyOf": [content, {"type": "null"}]}
    properties["schedule"] = {"anyOf": [properties["schedule"], _schedule_names(definitions)]}
    properties["components"] = {
        "description": "Written by a run: what was used, of which version",
        "type": "array",
        "items": {"type": "object"},
    }
    return {**schema, "$defs": {**definitions, **sections}}


def component_schema(component: Component) -> Schema:
    """Returns the JSON Schema of one component's section, self-contained; raises UserError if it cannot be loaded."""
    definitions: Schema = {}
    schema = _mapping(component, [component.full_name], definitions)
    schema["properties"]["name"] = {"enum": [component.name, component.full_name]}
    return {"$schema": DIALECT, "title": component.full_name, **schema, "$defs": definitions}


def _section(kind: str, registry: Registry, definitions: Schema) -> Schema:
    """Returns what may stand in a section of this kind: a name, or a mapping of one component's options."""
    defaults = set(_stated_defaults(registry, kind))
    names: list[str] = []
    mappings: list[Schema] = []
    for component in registry.components(kind):
        own = list(dict.fromkeys((registry.shortest(component), component.full_name)))
        spec = component.spec
        sized = [f"{n}:{size}" for n in own for size in spec.sizes] if isinstance(spec, ArchitectureSpec) else []
        names += [*own, *sized]
        mapping = _mapping(component, [*own, *sized], definitions)
        if component.name not in defaults:
            mapping["required"] = ["name", *mapping.get("required", [])]
        mappings.append(mapping)
    return {"anyOf": [{"enum": names}, *mappings]}


def _mapping(component: Component, names: Sequence[str], definitions: Schema) -> Schema:
    """Returns the schema of a component's section as a mapping; shared definitions are added to ``definitions``."""
    try:
        model = component.load_config()
    except UserError as error:
        # an editor should still know the name of a component whose optional package is missing
        return {"type": "object", "description": str(error), "properties": {"name": {"enum": [*names]}}}
    schema: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if model is not None:
        schema, found = _split(model, f"{component.kind}.{component.full_name.replace('/', '.')}")
        schema.setdefault("additionalProperties", False)
        definitions |= found
    extra: Schema = {"name": {"enum": [*names], "description": component.spec.summary}}
    spec = component.spec
    if isinstance(spec, ArchitectureSpec) and spec.sizes:
        extra["size"] = {"enum": [*spec.sizes], "description": "A preset; options beside it override it"}
        preset = set.intersection(*(set(options) for options in spec.sizes.values()))
        schema["required"] = [key for key in schema.get("required", []) if key not in preset]
    if component.kind == "objective":
        mix, found = _split(ObjectiveMix, "core")
        extra |= mix["properties"]
        definitions |= found
    schema["properties"] = {**extra, **schema.get("properties", {})}
    schema["title"] = component.full_name
    return schema


def _split(model: type[BaseModel], prefix: str) -> tuple[Schema, Schema]:
    """Returns (schema, its definitions) of a model; definitions get a prefix, so that two plugins' cannot collide."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    definitions = {f"{prefix}.{name}": value for name, value in schema.pop("$defs", {}).items()}
    return schema, definitions


def _schedule_names(definitions: Mapping[str, Schema]) -> Schema:
    names = definitions["core.ScheduleConfig"]["properties"]["name"]
    return {"enum": list(names["enum"])}


def _stated_defaults(registry: Registry, kind: str) -> Iterator[str]:
    for component in registry.components("architecture"):
        spec = component.spec
        if isinstance(spec, ArchitectureSpec) and kind in spec.defaults:
            name = as_mapping(kind, spec.defaults[kind]).get("name")
            if isinstance(name, str):
                yield name.rpartition("/")[2]
