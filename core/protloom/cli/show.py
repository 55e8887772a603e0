"""``protloom show KIND NAME``: what a component is, where it comes from, and its options."""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from protloom.cli import common

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from protloom.plugins import Component, Registry

RUN, RECIPES = "run", "recipe"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", metavar="KIND", help="tokenizer, architecture, objective, optimizer, ... recipe or run")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the component; without it, all of that kind")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of its section, for editors")
    common.json_option(parser)
    common.example(
        parser,
        "protloom show objective mlm",
        "protloom show architecture",
        "protloom show recipe",
        "protloom show run --schema > run.schema.json",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a component, a kind, or the run file's own keys."""
    found = common.registry(args)
    if args.kind == RUN:
        _show_run(args, found)
    elif args.kind == RECIPES:
        _show_recipes(args, found)
    elif args.name is None:
        _show_kind(args, found)
    else:
        _show_component(args, found)
    return 0


def _show_run(args: argparse.Namespace, registry: Registry) -> None:
    if args.name is not None:
        common.fail(f"'show {RUN}' takes no name, found {args.name!r}; a component is shown by KIND NAME")
    if args.schema:
        from protloom.config.schema import run_schema

        common.print_json(run_schema(registry))
        return
    from protloom.settings import RunConfig

    options = list(option_rows(RunConfig))
    if args.json:
        common.print_json({"options": options})
        return
    print("Keys of a run file; a component's section also takes that component's options (protloom show KIND NAME).\n")
    _print_options(options)


def _show_recipes(args: argparse.Namespace, registry: Registry) -> None:
    """Lists the recipes, or prints one."""
    from protloom.config.source import recipes
    from protloom.errors import did_you_mean
    from protloom.plugins import OWN

    texts = {name.removeprefix(f"{OWN}/"): file.read_text(encoding="utf-8") for name, file in recipes(registry).items()}
    if args.name is not None:
        if args.name not in texts:
            common.fail(f"no recipe {args.name!r}.{did_you_mean(args.name, texts)}")
        print(texts[args.name], end="")
        return
    if args.json:
        common.print_json({"recipes": texts})
        return
    rows = [(name, next(iter(text.splitlines()), "").removeprefix("# ")) for name, text in texts.items()]
    common.print_table(("recipe", "what it is"), rows)
    print("\n'protloom show recipe NAME' prints one, 'protloom train recipe:NAME' trains it.")


def _show_kind(args: argparse.Namespace, registry: Registry) -> None:
    _check_kind(args.kind)
    if args.schema:
        common.fail(f"--schema needs a name: protloom show {args.kind} NAME --schema")
    components = registry.components(args.kind)
    if args.json:
        common.print_json({"kind": args.kind, "components": [_about(c) for c in components]})
        return
    if not components:
        print(f"no {args.kind} is installed")
        return
    rows = [(registry.shortest(c), c.distribution, c.version, c.spec.summary) for c in components]
    common.print_table(("name", "distribution", "version", "summary"), rows)


def _show_component(args: argparse.Namespace, registry: Registry) -> None:
    from protloom.plugins import split_size

    name = split_size(args.name)[0] if args.kind == "architecture" else args.name
    _check_kind(args.kind)
    component = registry.resolve(args.kind, name)
    if args.schema:
        from protloom.config.schema import component_schema

        common.print_json(component_schema(component))
        return
    model = component.load_config()
    options = [] if model is None else list(option_rows(model))
    spec = component.spec
    sizes = {size: dict(preset) for size, preset in getattr(spec, "sizes", {}).items()}
    defaults = dict(getattr(spec, "defaults", {}))
    if args.json:
        extra = {"sizes": sizes, "defaults": defaults} if component.kind == "architecture" else {}
        common.print_json({**_about(component), "options": options, **extra})
        return
    licence = next(p.licence for p in registry.plugins if component in p.components)
    print(f"{component.kind} {component.full_name}: {spec.summary or 'no summary'}")
    print(f"from {component.distribution} {component.version} (licence {licence}), plugin {component.plugin}")
    if sizes:
        print(f"\nsizes, as {component.name}:SIZE")
        keys = list(dict.fromkeys(key for preset in sizes.values() for key in preset))
        common.print_table(("size", *keys), [(size, *(p.get(k, "-") for k in keys)) for size, p in sizes.items()])
    if defaults:
        print("\na run that leaves them out gets " + ", ".join(f"{key} {value}" for key, value in defaults.items()))
    print("\noptions" if options else "\nno options")
    _print_options(options)
    if component.kind == "objective":
        from protloom.settings import ObjectiveMix

        print("\nbeside them, for the trainer")
        _print_options(list(option_rows(ObjectiveMix)))


def _check_kind(kind: str) -> None:
    from protloom.errors import did_you_mean
    from protloom.specs import KINDS

    if kind not in KINDS:
        common.fail(f"there is no kind {kind!r}.{did_you_mean(kind, [*KINDS, RUN, RECIPES])}")


def _about(component: Component) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "full_name": component.full_name,
        "distribution": component.distribution,
        "version": component.version,
        "plugin": component.plugin,
        "summary": component.spec.summary,
    }


# --------------------------------------------------------------------------------------------------------- options


def option_rows(model: type[BaseModel], under: str = "") -> Iterator[dict[str, Any]]:
    """Yields key, type, default and description of every option; nested models are unfolded with dotted keys."""
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        key = f"{under}{field.alias or name}"
        nested, is_list = _nested(field.annotation, BaseModel)
        if nested is None or nested is not field.annotation:
            yield {
                "key": key,
                "type": _type_name(field.annotation) + _bounds(field),
                "needed": field.is_required(),
                "default": _default(field),
                "description": field.description or "",
            }
        if nested is not None:
            yield from option_rows(nested, f"{key}.N." if is_list else f"{key}.")


def _print_options(rows: list[dict[str, Any]]) -> None:
    if rows:
        cells = [
            (r["key"], r["type"], "needed" if r["needed"] else _written(r["default"]), r["description"]) for r in rows
        ]
        common.print_table(("key", "type", "default", "meaning"), cells)


def _nested(annotation: Any, base: type[BaseModel]) -> tuple[type[BaseModel] | None, bool]:
    """Returns (the model inside a type, whether a list or mapping is round it)."""
    if isinstance(annotation, type) and issubclass(annotation, base):
        return annotation, False
    for argument in typing.get_args(annotation):
        found, is_list = _nested(argument, base)
        if found is not None:
            return found, is_list or typing.get_origin(annotation) in (list, tuple, dict)
    return None, False


def _default(field: FieldInfo) -> Any:
    """Returns a default as a plain value, None where a value is needed."""
    from pydantic_core import to_jsonable_python

    if field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))


def _written(value: Any) -> str:
    """Returns a value as a run file or an override writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    told = [
        f"{sign} {getattr(item, attribute):g}"
        for item in field.metadata
        for attribute, sign in signs.items()
        if getattr(item, attribute, None) is not None
    ]
    return f" {', '.join(told)}" if told else ""


def _type_name(annotation: Any) -> str:
    """Returns a type as the field writes it: ``int``, ``'a' | 'b'``, ``float | null``."""
    if annotation is None or annotation is types.NoneType:
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is not None:
        inside = ", ".join("..." if argument is Ellipsis else _type_name(argument) for argument in arguments)
        return f"{_type_name(origin)}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))
