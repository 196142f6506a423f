"""The recipe reference, made from the models and the op specs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe import schema
from mergekit_lite.recipe.json_schema import Schema, field_docs, json_schema
from mergekit_lite.recipe.marks import show
from mergekit_lite.recipe.places import NOT_YET, keys_of
from mergekit_lite.recipe.values import wanted

_SECTIONS = (
    ("Top level", schema.Recipe),
    ("Experts", schema.Expert),
    ("Slices", schema.Slice),
    ("Rules", schema.Rule),
    ("Match", schema.Match),
    ("Stages", schema.Stage),
    ("Output", schema.Output),
    ("Routers", schema.Routers),
    ("Expected quality", schema.Expect),
    ("Bounds", schema.Bound),
    ("Routed models", schema.Moe),
    ("Routed experts", schema.MoeExpert),
    ("Noise", schema.Noise),
    ("Redrawn neurons", schema.Redraw),
    ("Carving", schema.Carve),
    ("Shared expert", schema.SharedExpert),
    ("Gate", schema.Gate),
    ("Growing", schema.Grow),
    ("Added experts", schema.Addition),
    ("Tokenizer", schema.Tokenizer),
    ("Token", schema.TokenRule),
    ("Token source", schema.TokenSource),
)


_REQUIRED = {
    "Recipe": ("base", "steps"),
    "Rule": ("match",),
    "Slice": ("layers",),
    "Expect": ("data", "bounds"),
    "Bound": ("data", "score"),
    "MoeExpert": ("expert",),
    "Noise": ("scale",),
    "SharedExpert": ("expert",),
    "Gate": ("method",),
    "Grow": ("experts",),
    "Addition": ("expert",),
    "Routers": ("data",),
}


def recipe_reference(specs: Mapping[str, OpSpec]) -> str:
    """Return the Markdown page about recipes in which these ops are known."""
    known = json_schema(specs)
    lines = [_INTRODUCTION.strip(), ""]
    for title, model in _SECTIONS:
        text = str(known["description"] if model is schema.Recipe else inspect.getdoc(model))
        lines += [f"## {title}", "", text, "", *_fields(model, known), ""]
        if model is schema.Stage:
            lines += [_STAGES.strip(), ""]
    lines += ["## Steps", "", _STEPS.strip(), "", *_ops(specs), _REST.strip(), ""]
    lines += [f"- `{key}`: {what}" for key, what in NOT_YET.items()]
    return "\n".join(lines) + "\n"


def _fields(model: type, known: Schema) -> Iterator[str]:
    name = model.__name__
    fields = known if name == "Recipe" else known["$defs"][name]
    docs = field_docs()[name]
    yield "| key | takes | default | meaning |"
    yield "|---|---|---|---|"
    extra = ["extends", "vars"] if name == "Recipe" else []
    keys = {"Stage": ["keep"], "Gate": ["method"]}.get(name) or keys_of(model)
    for key in [*keys, *extra]:
        field = fields["properties"][key]
        text = docs.get(key) or field.get("description", "")
        needed = key in _REQUIRED.get(name, ())
        default = "required" if needed else _default(field)
        yield f"| `{key}` | {_takes(field)} | {default} | {_cell(text)} |"


def _takes(field: Schema) -> str:
    options = field.get("anyOf") or field.get("oneOf") or [field]
    words = [text for option in options if (text := _one(option))]
    return _cell(" or ".join(dict.fromkeys(words)))


def _one(option: Schema) -> str:
    if "const" in option:
        return f"`{show(option['const'])}`"
    if "enum" in option:
        return ", ".join(f"`{word}`" for word in option["enum"])
    if "oneOf" in option or "anyOf" in option:
        return _takes(option)
    target = str(option.get("$ref", "")).rpartition("/")[2]
    if target:
        return {"variable": "", "weight": "number or list of numbers"}.get(target, "mapping")
    names = {"array": "list", "object": "mapping", "string": "text", "integer": "whole number"}
    kinds = option.get("type", "")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(names.get(kind, kind) for kind in kinds)


def _default(field: Schema) -> str:
    default: Any = field.get("default")
    if isinstance(default, dict):
        default = {key: value for key, value in default.items() if value not in (None, {})}
    return "" if default is None or default in ([], {}) else f"`{show(default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _ops(specs: Mapping[str, OpSpec]) -> Iterator[str]:
    for kind in ("transform", "combine", "post", "preset"):
        yield f"### {kind.capitalize()}s"
        yield ""
        yield "| op | parameter | takes | range | default | meaning |"
        yield "|---|---|---|---|---|---|"
        for name, spec in sorted(specs.items()):
            if spec.kind == kind:
                names = ", ".join(f"`{known}`" for known in (name, *spec.aliases))
                yield f"| **{names}** | | | | | {_cell(spec.summary)} |"
                yield from _parameters(spec)
        yield ""


def _parameters(spec: OpSpec) -> Iterator[str]:
    for name, parameter in spec.parameters.items():
        bounds = f"`{str(parameter.range).replace('x', name)}`" if parameter.range else ""
        default = "required" if parameter.required else f"`{show(parameter.default)}`"
        other = spec.defaults("mergekit").get(name, parameter.default)
        if not parameter.required and other != parameter.default:
            default += f" (`compat: mergekit`: `{show(other)}`)"
        takes = wanted(parameter)
        yield (
            f"| | `{name}` | {_cell(takes)} | {_cell(bounds)} | {default} | "
            f"{_cell(parameter.doc)} |"
        )


_INTRODUCTION = """
# Recipes

<!-- Made by tools/generate_recipe_reference.py; edit the models, not this page. -->

A recipe is one YAML document that says what to merge, how, and how to store the result.
Plain words follow YAML 1.2: `1e-3` is a number, `"1e-3"` is not, `no` and `on` are text, only
`true` and `false` are truth values. Everything a recipe gets wrong is reported at once, each with
its line and column, before any weight is read.

```yaml
schema_version: 1
base: zoo:smol
vars: {density: 0.2}
experts:
  math: {model: ./math, weight: 0.5}
  code: {model: ./code, weight: [0.2, 0.6]}      # a gradient over depth
steps:
  - ties: {density: "${density}"}
rules:
  - {match: {layers: "0-4"}, take: math}
  - {match: {role: norm}, take: base}
output: {dtype: bfloat16, shard_size: 5GB}
```

**Values.** A numeric parameter takes a number, a *gradient* (a list, interpolated over depth:
its first value holds for the first layer and the embedding, its last for the last layer, the
final norm and the head), and where it makes sense a *map* of those by expert, with `default` for
the experts it does not name. A number must be one that fp32 can hold.

**Tensors that are not floats** (position ids, masks, counters) enter no arithmetic: they are
copied from the base, whatever the experts hold. A rule with `take: NAME` copies them from that
expert instead.

**`extends`** names one recipe or several to build on, relative to the file that says so. Mappings
merge key by key, lists and scalars are replaced, later ones win over earlier ones and this file
over all. `math: ./math` merges as `math: {model: ./math}`, and of `model` and `lora` the later one
stays. References beginning with `./` or `../` stay relative to the file they are written in.

**`slices`** stack layers of several models, or of one model several times, into a model of another
depth. Tensors outside the layers follow `steps` and `rules` as usual; without `steps` they are the
base's. Gradients over depth, `layers` of rules and the seeds of random ops go by the layers of the
output. A slice without `take` and `steps` runs the recipe's steps. Where it does not name the
base's layers, they are those of its experts if these agree.

```yaml
base: zoo:smol
experts: {math: ./math}
slices:
  - {take: base, layers: 0-19}
  - {layers: {base: 10-19, math: 10-19}, steps: [{slerp: {t: 0.5}}]}
  - {take: math, layers: 20-}
```

**`vars`** declares values. `${name}` on its own takes the value with its type; inside a longer text
it is written out. Variables may use one another. `$${` is a literal `${`.

**`--set a.b=c`** lays single values over a recipe: `--set output.dtype=float16`,
`--set steps.0.ties.density=0.3`, `--set vars.density=0.1`. The value is read as YAML, list entries
go by index from 0, and a key that holds dots is quoted.
"""

_STAGES = """
A stage has all keys of a recipe but `schema_version`, `tokenizer`, `chat_template` and `stages`.
It is used as `@NAME` for a `base` or an expert's `model`, by the recipe or by another stage. `seed`
and `compat` are those of the recipe unless the stage has its own.

A stage is computed while it is read, tile by tile where its ops allow it, and needs no disk.
Between stages fp32 is handed on: that is more exact than writing 16-bit files in between, and so
differs from it. A stage that names `output.dtype` rounds to it (`base`: to the dtypes of its own
base), and then gives what merging in two runs would give. Either way the result is stored in the
dtypes of the first base, unless the recipe says otherwise.

A stage is written first, beside the output, where statistics of the whole model are asked in it or
of it, where computing it while it is read does not fit into `--max-memory`, and where it says
`keep: true`; `plan` says which and what that costs. Only what is kept is there when the run has
ended.
"""

_STEPS = """
A chain is a list: transforms (each expert's difference to the base, one by one), then exactly one
combine, then posts (on the merged difference). A preset stands for such a chain. Combines that work
on whole weights (`linear`, `slerp` and their like) stand alone. A combine's own
`weights: {NAME: number}` replaces the experts' `weight` and picks its inputs: an expert it
does not name is not read.
"""

_REST = """
## Reserved

These keys belong to the recipe language and are refused by this version:
"""
