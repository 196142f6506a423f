"""Gives adapters of single experts the tensors that the base has for them, fused or renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mergekit_lite.checkpoint import Adapter, LoraFactors, Share
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.plan.names import few, plural
from mergekit_lite.plan.routed.layers import (
    RoutedLayer,
    Slot,
    name_below,
    routed_layers,
    same_layer,
    single_place,
)
from mergekit_lite.plan.routed.reads import dimensions, sizes_of

_MERGE_IT = "merge the adapter with PEFT and use the result as a model"


@dataclass
class _Placed:
    """What becomes of an adapter's factors of single experts.

    Attributes:
        gone: names of factors that are now elsewhere.
        renamed: base's name -> factors of the same matrix.
        shares: fused tensor -> the factors of each part of it.
        transposed: fused tensor -> whether it is stored (in x out).
        problems: what cannot be placed, with why.
    """

    gone: set[str] = field(default_factory=set)
    renamed: dict[str, LoraFactors] = field(default_factory=dict)
    shares: dict[str, list[Share]] = field(default_factory=dict)
    transposed: dict[str, bool] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def match_adapter(view: View, base: View, findings: Findings, where: str) -> None:
    """Read an adapter's factors of single experts as factors of the base's tensors.

    Experts that the base stores fused get their factors as shares of the fused tensor; what has
    another name in the base gets that.
    """
    adapter = view.model.adapter
    if adapter is None or all(name in base.tensors for name in adapter.factors):
        return
    layers = routed_layers(base.tensors, base.model.config)
    placed = _Placed()
    parents = {root.rpartition(".")[0]: layer for root, layer in layers.items()}
    for name, one in adapter.factors.items():
        if name in base.tensors:
            continue
        if place := single_place(name):
            if layer := same_layer(place[0], layers):
                _place(name, layer, place[1], adapter, base, placed)
        elif other := _beside(name, parents, base):
            placed.gone.add(name)
            placed.renamed[other] = one
    for name, why, hint in placed.problems:
        findings.problem_with(f"`{name}`", f"expert `{view.name}` {why}", where, hint)
    if placed.problems:
        view.settled = True
        return
    if not placed.gone:
        return
    left = {name: one for name, one in adapter.factors.items() if name not in placed.gone}
    fused = {
        name: LoraFactors(
            "",
            "",
            1.0,
            transpose=placed.transposed[name],
            stack=base.tensors[name].shape[0],
            shares=tuple(shares),
        )
        for name, shares in placed.shares.items()
    }
    if both := [name for name in fused if name in left]:
        findings.problem(
            f"expert `{view.name}` has factors of single experts and of all at once: {few(both)}",
            where,
            _MERGE_IT,
        )
        view.settled = True
        return
    shapes = {name: base.tensors[name].shape for name in fused}
    changed = replace(
        adapter,
        factors={**left, **placed.renamed, **fused},
        shapes={**adapter.shapes, **shapes},
    )
    view.model = replace(view.model, adapter=changed)
    findings.warn(
        f"expert `{view.name}` has factors of {plural(len(placed.gone), 'tensor')} of routed layers"
        " that the base stores in another layout; they are read in the base's",
        where,
    )


def _beside(name: str, parents: Mapping[str, RoutedLayer], base: View) -> str | None:
    """Return the base's name for what is beside the experts of a layer, its router say."""
    parts = name.split(".")
    for end in range(len(parts) - 2, 0, -1):
        if layer := parents.get(".".join(parts[:end])):
            return name_below(layer.root, ".".join(parts[end + 1 :]), base.tensors)
    return None


def _place(
    name: str, layer: RoutedLayer, slot: Slot, adapter: Adapter, base: View, placed: _Placed
) -> None:
    """Find the place of one pair of factors."""
    one, (expert, part, leaf) = adapter.factors[name], slot
    if slot in layer.tensors:
        placed.gone.add(name)
        placed.renamed[layer.tensors[slot]] = one
        return
    holder = layer.holder(part, leaf)
    if holder is None:
        return
    if not one.is_plain or one.transpose or leaf == "bias":
        why = f"holds {one.kind} of single experts, which the base stores fused"
        placed.problems.append((name, why, _MERGE_IT))
        return
    if layer.form.alternating is None:
        why = "has factors of single experts, and nothing tells how the base stores them fused"
        placed.problems.append((name, why, "the base's `config.json` must name its `model_type`"))
        return
    fused = base.tensors[layer.tensors[holder]]
    sizes = sizes_of(dimensions(holder[1], leaf, layer.form), fused.shape[1:])
    shape = adapter.shape(name)
    wanted = None if sizes is None else (sizes["i"], sizes["j"])
    if shape != wanted or expert >= fused.shape[0]:
        told = f"`{fused.name}` {shape_text(fused.shape)}"
        why = f"has factors of an expert that is not in the base's {told}"
        placed.problems.append((f"{name}` `{shape_text(shape)}", why, _MERGE_IT))
        return
    first, step = 0, 1
    if holder[1] == "gate_up_proj":
        second = int(part == "up_proj")
        first, step = (second, 2) if layer.form.alternating else (second * shape[0], 1)
    placed.gone.add(name)
    share = Share(expert, first, step, one.a, one.b, one.scale)
    placed.shares.setdefault(layer.tensors[holder], []).append(share)
    placed.transposed[layer.tensors[holder]] = layer.form.transposed
