"""Shows the fused matrices of Phi-3 as the separate ones that routed families have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.moe.donors import DENSE
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.types import Piece, Read
from mergekit_lite.recipe.schema import Recipe

_FUSED = re.compile(r"(?P<root>.+)\.(?P<part>qkv_proj|gate_up_proj)\.weight")


def unfuse(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Give all inputs the separate names where the base is a fused model that is to be routed."""
    base = found["base"]
    dense = DENSE.get(configs.model_type(base.model.config))
    if recipe.moe is None or dense is None or not dense.fused:
        return
    shown: dict[str, TensorInfo] = {}
    for view in found.values():
        if view.model.adapter is not None:
            findings.problem(
                f"expert `{view.name}` is an adapter of fused matrices, which a routed model has"
                " one by one",
                recipe.at("experts", view.name),
                "merge it in a stage: `stages: {tuned: {base: ..., experts: {a: {lora: ...}},"
                " steps: [task_arithmetic]}}`, and name `@tuned` here",
            )
            view.settled = True
            continue
        _split(view)
        if view is base:
            shown = dict(view.tensors)
    for view in found.values():
        view.base = {name: info for name, info in shown.items() if view.in_scope(name)}


def _split(view: View) -> None:
    tensors: dict[str, TensorInfo] = {}
    for name, info in view.tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None or len(info.shape) != 2:
            tensors[name] = info
            continue
        first = 0
        for part, rows in _parts(view, match["part"], info.shape[0]):
            made = f"{match['root']}.{part}.weight"
            piece = Piece(info.name, first * info.shape[1], rows * info.shape[1])
            tensors[made] = TensorInfo(
                made, info.dtype, (rows, info.shape[1]), info.file, info.start
            )
            view.pieced[made] = Read(
                view.name,
                info.name,
                nbytes=tensors[made].nbytes,
                made=info.is_made,
                held=info.held,
                pieces=(piece,),
            )
            first += rows
    view.model = replace(view.model, header=replace(view.model.header, tensors=tensors))


def _parts(view: View, fused: str, rows: int) -> list[tuple[str, int]]:
    """Return the matrices that a fused one holds, and the rows of each."""
    if fused == "gate_up_proj":
        return [("gate_proj", rows // 2), ("up_proj", rows - rows // 2)]
    config = view.model.config
    heads = int(configs.value(config, "num_attention_heads") or 1)
    others = int(configs.value(config, "num_key_value_heads") or heads)
    width = rows // (heads + 2 * others)
    keys = others * width
    return [("q_proj", rows - 2 * keys), ("k_proj", keys), ("v_proj", keys)]
