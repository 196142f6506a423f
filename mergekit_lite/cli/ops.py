"""`mergekit-lite ops`: list the operations, or show one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from mergekit_lite.cli import _parameters as parameters
from mergekit_lite.cli._output import print_json, table

if TYPE_CHECKING:
    from mergekit_lite.ops import OpSpec
    from mergekit_lite.ops._spec import Parameter, Vector

ORDER = ("preset", "transform", "combine", "post")


@click.group(short_help="List the operations, or show one.")
def command() -> None:
    """List the operations, or show one.

    A chain is transforms (on each expert's delta), one combine (of all experts) and posts (on the
    merged delta); a preset is a name for a chain.
    """


@command.command("list")
@parameters.as_json
def list_(as_json: bool) -> None:
    """List every op: its kind, its parameters and what it is called in papers."""
    from mergekit_lite.ops import registry

    specs = sorted(registry().values(), key=lambda spec: (ORDER.index(spec.kind), spec.name))
    if as_json:
        print_json([plain(spec) for spec in specs])
        return
    rows = [
        (spec.name, spec.kind, ", ".join(spec.parameters), " = ".join((spec.title, *spec.aliases)))
        for spec in specs
    ]
    click.echo(table(("op", "kind", "parameters", "title = other names"), rows))


@command.command()
@click.argument("name")
@parameters.as_json
def show(name: str, as_json: bool) -> None:
    """Show one op: paper, parameters with their ranges, worked examples, a recipe to run.

    \b
    Example:
      mergekit-lite ops show ties
    """
    from mergekit_lite.errors import RecipeError
    from mergekit_lite.ops import get

    try:
        spec = get(name)
    except KeyError as error:
        raise RecipeError(str(error.args[0]), hint="`mergekit-lite ops list` lists them") from None
    if as_json:
        print_json(plain(spec))
    else:
        click.echo(op_text(spec))


def op_text(spec: OpSpec) -> str:
    """Return all that there is to know about an op, for a person to read."""
    from mergekit_lite.cli._example import example_recipe

    also = f"\nother names: {', '.join(spec.aliases)}" if spec.aliases else ""
    parts = [f"{spec.name}: {spec.title} ({spec.kind})\n{spec.paper}{also}", spec.doc]
    if spec.parameters:
        rows = [
            (p.name, type_text(p), default_text(p), p.range or "", p.doc)
            for p in spec.parameters.values()
        ]
        parts.append(table(("parameter", "type", "default", "range", "meaning"), rows))
    if spec.vectors:
        lines = [vector_text(spec, vector) for vector in spec.vectors]
        parts.append("\n".join(["Worked examples", *lines]))
    parts.append(f"A recipe to run\n\n{example_recipe(spec)}".rstrip())
    return "\n\n".join(parts)


def type_text(parameter: Parameter) -> str:
    """Return the type of a parameter in the words of a recipe."""
    text = " or ".join(_words(parameter.type))
    return f"{text}, or a map by expert" if parameter.per_expert else text


def _words(kind: Any) -> list[str]:
    from mergekit_lite.ops._spec import ExpertName

    if get_origin(kind) is tuple:
        return ["list of numbers"]
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if get_args(kind):
        return [word for part in get_args(kind) for word in _words(part)]
    names = {float: "number", int: "whole number", bool: "true or false", str: "text"}
    names |= {type(None): "null", ExpertName: "expert's name"}
    return [names.get(kind, getattr(kind, "__name__", str(kind)))]


def default_text(parameter: Parameter) -> str:
    """Return a parameter's default as a recipe spells it."""
    if parameter.required:
        return "must be given"
    value = parameter.default
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def vector_text(spec: OpSpec, vector: Vector) -> str:
    """Return one worked example on a line."""
    settings = [f"{name}={value}" for name, value in vector.params.items()]
    if vector.weights:
        settings.append(f"weights={vector.weights}")
    if vector.layer is not None:
        settings.append(f"layer {vector.layer} of {vector.layers}")
    given = f" with {', '.join(settings)}" if settings else ""
    inputs = vector.deltas[0] if spec.kind in ("transform", "post") else vector.deltas
    source = f"  ({vector.source})" if vector.source else ""
    return f"  {inputs}{given} -> {vector.expect}{source}"


def plain(spec: OpSpec) -> dict[str, Any]:
    """Return what is known about an op as JSON-able data."""
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "kind": spec.kind,
        "title": spec.title,
        "paper": spec.paper,
        "summary": spec.summary,
        "doc": spec.doc,
        # A preset reaches as far as what it expands to, which its parameters decide.
        "reach": None if spec.kind == "preset" else spec.reach,
        "space": spec.space,
        "experts": list(spec.experts),
        "random": spec.random,
        "parameters": [
            {
                "name": p.name,
                "type": type_text(p),
                "required": p.required,
                "default": None if p.required else p.default,
                "range": {k: v for k, v in asdict(p.range).items() if v is not None}
                if p.range
                else None,
                "doc": p.doc,
                "per_expert": p.per_expert,
            }
            for p in spec.parameters.values()
        ],
        "vectors": [asdict(vector) for vector in spec.vectors],
    }
