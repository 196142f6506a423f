"""The JSON schema of recipes, made from the models and the op specs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._spec import ExpertName, Parameter, Range, canonical, names
from mergekit_lite.recipe import schema
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.recipe.stages import OUTSIDE
from mergekit_lite.recipe.steps import takes_weights
from mergekit_lite.recipe.values import choices, kinds

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Schema = {"$ref": "#/$defs/variable"}
_SEARCHED: Schema = {"$ref": "#/$defs/searched"}
_WEIGHTS: Schema = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"$ref": "#/$defs/weight"},
    "description": "The inputs of this combine and their weights; in place of the experts' own.",
}


def field_docs() -> dict[str, dict[str, str]]:
    """Return the text under each field of the recipe's models, by model and field."""
    found: dict[str, dict[str, str]] = {}
    files = sorted(file for folder in schema.__path__ for file in Path(folder).glob("*.py"))
    for node in (node for file in files for node in ast.parse(file.read_text()).body):
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return found


def json_schema(specs: Mapping[str, OpSpec]) -> Schema:
    """Return the draft 2020-12 schema of a recipe in which these ops are known."""
    root = Recipe.model_json_schema(mode="validation")
    definitions: dict[str, Schema] = root.pop("$defs")
    docs = field_docs()
    for name, model in {**definitions, "Recipe": root}.items():
        for key, field in model.get("properties", {}).items():
            _tidy(field)
            known = {**docs["Recipe"], **docs["Stage"]} if name == "Stage" else docs.get(name, {})
            if key in known:
                field["description"] = known[key]
    _open_stages(root, definitions)
    _open_forms(root, definitions)
    definitions["RecipeStep"] = _step(specs)
    definitions |= {f"op.{name}": _op(spec) for name, spec in sorted(specs.items())}
    definitions["variable"] = {
        "type": "string",
        "pattern": r"\$\{",
        "description": "A value that uses a variable: `${name}`, declared under `vars`.",
    }
    definitions["searched"] = _searched()
    definitions["weight"] = _number_or_gradient({"type": "number"})
    return {
        "$schema": DIALECT,
        "title": "mergekit-lite recipe",
        **{key: value for key, value in root.items() if key != "title"},
        "description": "What to merge, how, and how to store the result.",
        "$defs": dict(sorted(definitions.items())),
    }


def _tidy(field: Schema) -> None:
    """Drop pydantic's titles and nulls; let a variable stand where a scalar is wanted."""
    field.pop("title", None)
    if field.get("default", 0) is None:
        del field["default"]
    options = [option for option in field.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        field.update(options[0])
    elif options:
        field["anyOf"] = options
    for option in (field, field.get("items", {})):
        option.pop("title", None)
    is_scalar = field.get("type") in ("integer", "number", "boolean") or (
        "enum" in field or "const" in field or "oneOf" in field
    )
    if is_scalar:
        outer: Schema = {key: field.pop(key) for key in ("description", "default") if key in field}
        inner = dict(field)
        field.clear()
        field.update({**outer, "anyOf": [inner, dict(_VARIABLE)]})


def _open_stages(root: Schema, definitions: dict[str, Schema]) -> None:
    """Leave out what stages do not have, and let them be written in short forms too."""
    stage = definitions["Stage"]
    for key in OUTSIDE:
        del stage["properties"][key]
    stage["required"] = ["base"]
    stage["anyOf"] = [{"required": ["steps"]}, {"required": ["slices"]}]
    _open_experts(stage["properties"]["experts"])


def _open_experts(experts: Schema) -> None:
    experts["propertyNames"] = {"not": {"enum": ["base", "default"]}}
    experts["additionalProperties"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Expert"}],
    }


def _open_forms(root: Schema, definitions: dict[str, Schema]) -> None:
    """Add what is written before validation: short forms, `extends` and `vars`."""
    properties = root["properties"]
    properties["extends"] = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "Recipes to build on: mappings merge, lists replace, this file wins.",
    }
    properties["vars"] = {
        "type": "object",
        "description": "Values to use elsewhere as `${name}`.",
    }
    del root["required"]
    root["anyOf"] = [
        {"required": ["base", "steps"]},
        {"required": ["base", "slices"]},
        {"required": ["base", "output"]},
        {"required": ["base", "moe"]},
        {"required": ["extends"]},
    ]
    by_input = definitions["Slice"]["properties"]["layers"]
    ranges = by_input["additionalProperties"]
    definitions["Slice"]["properties"]["layers"] = {
        "anyOf": [*ranges["oneOf"], {**by_input, "minProperties": 1}]
    }
    definitions["LoraOutput"]["properties"]["inner"] = {
        "description": "What is done in that space: an op, or a list of steps in place of `steps`.",
        "anyOf": [
            {"$ref": "#/$defs/RecipeStep"},
            {"type": "array", "items": {"$ref": "#/$defs/RecipeStep"}, "minItems": 1},
        ],
    }
    _open_quantize(definitions)
    _open_experts(properties["experts"])
    properties["routers"]["anyOf"].append(dict(_VARIABLE))
    tokens = definitions["Tokenizer"]["properties"]["tokens"]
    rule = tokens["additionalProperties"]
    tokens["additionalProperties"] = {"anyOf": [{"type": "string"}, rule]}
    definitions["Expert"]["oneOf"] = [{"required": [key]} for key in ("model", "lora", "store")]
    weight = definitions["Expert"]["properties"]["weight"]
    weight.pop("anyOf")
    weight["$ref"] = "#/$defs/weight"
    rule = definitions["Rule"]
    rule["properties"]["match"] = {
        "description": rule["properties"]["match"].get("description", ""),
        "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Match"}],
    }
    rule["oneOf"] = [{"required": [action]} for action in schema.ACTIONS]
    definitions["Match"]["minProperties"] = 1
    _open_moe(definitions)


def _open_quantize(definitions: dict[str, Schema]) -> None:
    fields = definitions["Output"]["properties"]
    fields["quantize"] = {
        "description": fields["quantize"].pop("description", ""),
        "anyOf": [*definitions["Quantize"]["properties"]["scheme"]["anyOf"], fields["quantize"]],
    }


def _open_moe(definitions: dict[str, Schema]) -> None:
    """Add the short forms of a routed model's parts."""
    fields = definitions["Moe"]["properties"]
    word: Schema = {"type": "string"}
    fields["experts"]["items"] = {"anyOf": [word, fields["experts"]["items"]]}
    for key in ("shared", "gate", "dense"):
        fields[key] = {
            "description": fields[key].pop("description", ""),
            "anyOf": [word, fields[key]],
        }
    added = definitions["Grow"]["properties"]["experts"]
    added["items"] = {"anyOf": [word, added["items"]]}
    fields["grow"] = {
        "description": fields["grow"].pop("description", ""),
        "anyOf": [{**added, "minItems": 1}, fields["grow"]],
    }
    take = definitions["Addition"]["properties"]["take"]
    definitions["Addition"]["properties"]["take"] = {
        "description": take.pop("description", ""),
        "anyOf": [{"type": "integer", "minimum": 0}, take],
    }
    expert = definitions["MoeExpert"]["properties"]
    for key in ("noise", "redraw"):
        expert[key] = {
            "description": expert[key].pop("description", ""),
            "anyOf": [{"type": "number", "minimum": 0}, dict(_VARIABLE), expert[key]],
        }
    gate = definitions["Gate"]
    del gate["properties"]["params"]
    gate["additionalProperties"] = True


def _step(specs: Mapping[str, OpSpec]) -> Schema:
    known = {name: specs[canonical(name, specs)] for name in names(specs)}
    bare = sorted(
        name
        for name, spec in known.items()
        if not any(parameter.required for parameter in spec.parameters.values())
    )
    branches = {
        name: {"$ref": f"#/$defs/op.{spec.name}", "description": f"{spec.kind}: {spec.summary}"}
        for name, spec in sorted(known.items())
    }
    return {
        "description": "One op: its name, or its name and its parameters.",
        "anyOf": [
            {"enum": bare},
            {
                "type": "object",
                "properties": branches,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ],
    }


def _op(spec: OpSpec) -> Schema:
    properties = {name: _parameter(p, spec) for name, p in spec.parameters.items()}
    if takes_weights(spec):
        properties["weights"] = dict(_WEIGHTS)
    required = [name for name, parameter in spec.parameters.items() if parameter.required]
    return {
        "type": "object" if required else ["object", "null"],
        "title": spec.title,
        "description": spec.summary,
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _parameter(parameter: Parameter, spec: OpSpec) -> Schema:
    value = _scalar(parameter)
    if parameter.numeric:
        value = _number_or_gradient(value)
    options = value["anyOf"] if "anyOf" in value else [value, dict(_VARIABLE)]
    if dict(_SEARCHED) not in options:
        options = [*options, dict(_SEARCHED)]
        value = {"anyOf": options}
    if parameter.per_expert or spec.kind == "transform":
        by_expert = {"type": "object", "additionalProperties": value, "minProperties": 1}
        options = [*options, by_expert]
    result: Schema = {"anyOf": options}
    if parameter.doc:
        result["description"] = parameter.doc
    if not parameter.required:
        result["default"] = parameter.default
    return result


def _number_or_gradient(number: Schema) -> Schema:
    entry = {"anyOf": [number, dict(_VARIABLE), dict(_SEARCHED)]}
    return {"anyOf": [*entry["anyOf"], {"type": "array", "items": entry, "minItems": 1}]}


def _searched() -> Schema:
    """Return what may stand in place of a value that `search` chooses."""
    number: Schema = {"anyOf": [{"type": "number"}, dict(_VARIABLE)]}
    ends = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    range_keys = {"log": {"type": "boolean"}, "step": number, "default": number}
    choice: Schema = {"type": ["number", "string", "boolean", "array"]}
    listed = {"type": "array", "items": choice, "minItems": 2, "uniqueItems": True}
    return {
        "description": "A value that `search` chooses: of a range, or of a list.",
        "anyOf": [
            {
                "type": "object",
                "properties": {"search": ends, **range_keys},
                "required": ["search"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"choice": listed, "default": choice},
                "required": ["choice"],
                "additionalProperties": False,
            },
        ],
    }


def _scalar(parameter: Parameter) -> Schema:
    options: list[Schema] = []
    if parameter.listed:
        entry = {"type": "number", **_bounds(parameter.range)}
        return {"type": "array", "items": {"anyOf": [entry, dict(_VARIABLE)]}, "minItems": 1}
    words = choices(parameter)
    if words:
        options.append({"enum": list(words)})
    names = {float: "number", int: "integer", bool: "boolean", NoneType: "null"}
    for kind in kinds(parameter):
        if kind in names:
            bounds = _bounds(parameter.range) if kind in (int, float) else {}
            options.append({"type": names[kind], **bounds})
        elif get_origin(kind) is None and kind in (str, ExpertName):
            options.append({"type": "string"})
    return options[0] if len(options) == 1 else {"anyOf": options}


def _bounds(bounds: Range | None) -> Schema:
    if bounds is None:
        return {}
    found = {
        "minimum": bounds.at_least,
        "maximum": bounds.at_most,
        "exclusiveMinimum": bounds.above,
        "exclusiveMaximum": bounds.below,
    }
    return {key: value for key, value in found.items() if value is not None}
