"""A recipe that runs, for every op: the zoo's models and the op with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_lite.ops import OpSpec
    from mergekit_lite.ops._spec import Parameter

EXPERTS = ("german", "french", "dictionary")
_LAST = 29  # the last layer of zoo:smol
USUAL = 0.5
"""A value that nearly every fraction and strength admits."""


def example_recipe(spec: OpSpec) -> str:
    """Return a recipe, as YAML text, that merges models of the zoo by the op."""
    import yaml

    params = example_params(spec)
    names = EXPERTS[: _count(spec, params)]
    recipe: dict[str, Any] = {
        "schema_version": 1,
        "base": "zoo:smol",
        "experts": {name: {"lora": f"zoo:smol-{name}"} for name in names},
        "steps": _chain(spec, params),
    }
    if spec.structural:
        # Nothing would be left if the op were the whole recipe.
        recipe["steps"] = [{"task_arithmetic": {}}]
        recipe["rules"] = [{"match": {"layers": _LAST}, spec.name: True}]
    text: str = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=88)
    return text


def _count(spec: OpSpec, params: Mapping[str, Any]) -> int:
    named = len([value for value in params.values() if value in EXPERTS])
    if named:
        return max(named, spec.experts[0])
    return min(spec.experts[1] or len(EXPERTS), len(EXPERTS))


def _chain(spec: OpSpec, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    step: dict[str, Any] = {spec.name: dict(params)}
    total: dict[str, Any] = {"task_arithmetic": {}}
    return {"transform": [step, total], "post": [total, step]}.get(spec.kind, [step])


def example_params(spec: OpSpec) -> dict[str, Any]:
    """Return the parameters that must be given or name an expert, with values that are valid."""
    params: dict[str, Any] = {}
    experts = iter(EXPERTS)
    worked = spec.vectors[0].params if spec.vectors else {}
    for parameter in spec.parameters.values():
        if parameter.expert_name:
            params[parameter.name] = next(experts)
        elif parameter.required:
            value = worked.get(parameter.name, _value(parameter))
            if isinstance(value, Mapping):  # by expert, of which vectors have `a`, `b`, ...
                value = {name: f"{name}.safetensors" for name in EXPERTS[: spec.experts[1]]}
            params[parameter.name] = value
    return params


def _value(parameter: Parameter) -> Any:
    if parameter.choices:
        return parameter.choices[0]
    return USUAL if parameter.type is float else 1
