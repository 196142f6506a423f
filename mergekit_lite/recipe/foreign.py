"""Recipes of other commands, recognised and named."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from mergekit_lite.errors import nearest
from mergekit_lite.ops import OpSpec
from mergekit_lite.recipe.marks import Node, Problems, show
from mergekit_lite.recipe.text import number

_MERGE = ("merge_method", "models", "slices", "modules")
_SHARED = ("normalize", "lambda", "t", "int8_mask", "rescale")  # parameters given once


def refuse_foreign(root: Node, specs: Mapping[str, OpSpec], problems: Problems) -> bool:
    """Note that a recipe is another command's; return whether it is."""
    entries = root.entries()
    experts = entries.get("experts")
    routed = any(
        key in item.entries()
        for item in (experts.items() if experts else [])
        for key in ("source_model", "positive_prompts")
    )
    if routed or "gate_mode" in entries:
        first = entries.get("gate_mode") or entries["experts"]
        problems.add(
            "this is a recipe of `mergekit-moe`: it assembles a routed model from dense ones, "
            "which is not supported by this version",
            first.key,
            "a merge names `base`, `experts: {NAME: {model: ...}}` and `steps`",
        )
        return True
    found = [entries[key] for key in _MERGE if key in entries]
    if "base" in entries and "slices" in entries and len(found) == 1:
        return False  # this language has a key of that name
    if not found or "steps" in entries:
        return False
    problems.add(
        "this is a mergekit recipe, which is not supported by this version",
        found[0].key,
        _equivalent(entries, specs),
    )
    method = entries.get("merge_method")
    if method is not None and str(method.value) not in specs:
        hint = nearest(str(method.value), specs) or f"known are {', '.join(sorted(specs))}"
        problems.add(f"unknown merge method `{show(method.value)}`", method.mark, hint)
    return True


def _equivalent(entries: dict[str, Node], specs: Mapping[str, OpSpec]) -> str:
    """Return the same recipe in our language where it is a plain list of models."""
    general = "write it with `base`, `experts: {NAME: {model: ...}}` and `steps: [...]`"
    models, method = entries.get("models"), entries.get("merge_method")
    if models is None or method is None or "slices" in entries:
        return general
    name = method.value if isinstance(method.value, str) else ""
    name = nearest(name, specs)[len("did you mean `") : -2] if name not in specs else name
    base = entries["base_model"].value if "base_model" in entries else None
    listed = [model.plain() for model in models.items()]
    if not name or not listed or not all(isinstance(m, dict) and "model" in m for m in listed):
        return general
    recipe = _convert(name, base, listed, entries, specs)
    text = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=88)
    return "in this language, roughly:" + "".join(f"\n      {line}" for line in text.splitlines())


def _convert(
    op: str,
    base: object,
    models: list[dict[str, object]],
    entries: dict[str, Node],
    specs: Mapping[str, OpSpec],
) -> dict[str, object]:
    known = specs[op].parameters
    experts: dict[str, object] = {}
    step: dict[str, dict[str, object]] = {}
    for model in models:
        if model["model"] == base:
            continue
        name = f"expert{len(experts) + 1}"
        given = model.get("parameters")
        given = given if isinstance(given, dict) else {}
        weight = {"weight": given["weight"]} if "weight" in given else {}
        experts[name] = {"model": model["model"], **weight}
        for key, value in given.items():
            if key in known:
                step.setdefault(key, {})[name] = value
    params: dict[str, object] = {
        key: next(iter(values.values()))
        if len(values) == len(experts) and len({show(v) for v in values.values()}) == 1
        else values
        for key, values in step.items()
    }
    shared = entries["parameters"].plain() if "parameters" in entries else {}
    if isinstance(shared, dict):
        params.update({k: v for k, v in shared.items() if k in known and number(v) is not None})
        params.update({k: v for k, v in shared.items() if k in known and isinstance(v, bool)})
    recipe: dict[str, object] = {
        "base": base or models[0]["model"],
        "experts": experts,
        "steps": [{op: params} if params else op],
    }
    dtype = entries.get("out_dtype") or entries.get("dtype")
    if dtype is not None:
        recipe["output"] = {"dtype": dtype.value}
    return {**recipe, "compat": "mergekit"}
