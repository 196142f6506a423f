"""Slices of a mergekit recipe: layers of models on top of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mergekit_lite.recipe.cascade import interpolate
from mergekit_lite.recipe.compat.groups import Group, Settled, differs
from mergekit_lite.recipe.compat.methods import Method
from mergekit_lite.recipe.compat.nodes import listed, mapping, scalar
from mergekit_lite.recipe.compat.steps import put, rules_of, steps_of
from mergekit_lite.recipe.marks import Node
from mergekit_lite.recipe.text import number


@dataclass(frozen=True)
class Stack:
    """What becomes of a recipe's slices.

    Attributes:
        slices: our `slices`.
        steps: the chain of the tensors outside the layers.
        rules: rules for them and for the layers.
    """

    slices: Node
    steps: Node
    rules: list[Node]


@dataclass(frozen=True)
class Slab:
    """One slice: what is done to which layers, with which values."""

    method: Method
    group: Group
    settled: Settled


def stack(slabs: Sequence[Slab]) -> Stack:
    """Return the slices of a recipe as ours.

    As in mergekit, embeddings follow the first slice, all else outside the layers the last.
    """
    group, method = slabs[0].group, slabs[0].method
    mark = group.mark
    if len(slabs) == 1:
        entry = mapping({"layers": _ranges(group)}, mark)
        steps = steps_of(method, group, slabs[0].settled)
        return Stack(listed([entry], mark), steps, rules_of(slabs[0].settled, mark))
    entries, rules, first = [], [], 0
    flat = [replace(slab, settled=_outside(slab.settled)) for slab in slabs]
    for slab, plain in zip(slabs, flat, strict=True):
        entries.append(_entry(plain))
        count = _count(slab.group)
        rules += _layer_rules(slab.group, slab.settled, first, count)
        first += count
    return Stack(listed(entries, mark), _steps(flat[-1]), _outer_rules(flat[0], flat[-1]) + rules)


def _steps(slab: Slab) -> Node:
    return steps_of(slab.method, slab.group, slab.settled, weighs=True)


def _entry(slab: Slab) -> Node:
    method, group, settled = slab.method, slab.group, slab.settled
    only = group.inputs[0]
    if method.chain == ("passthrough",) and not settled.values and only.layers:
        taken = {"take": scalar(only.name, only.mark), "layers": _range(*only.layers, group)}
        return mapping(taken, group.mark)
    return mapping({"layers": _ranges(group), "steps": _steps(slab)}, group.mark)


def _outer_rules(bottom: Slab, top: Slab) -> list[Node]:
    """Return the rules for tensors outside the layers, whose chain is that of the last slice."""
    rules = rules_of(top.settled, top.group.mark, layers="outside")
    same = [i.name for i in bottom.group.inputs] == [i.name for i in top.group.inputs]
    if same and not differs(bottom.settled, top.settled):
        return rules
    mark = bottom.group.mark
    match = mapping({"role": scalar("embedding", mark)}, mark)
    return [*rules, mapping({"match": match, "steps": _steps(bottom)}, mark)]


def _layer_rules(group: Group, settled: Settled, first: int, count: int) -> list[Node]:
    """Return the rules for the layers that a slice makes.

    Gradients run over the slice, so each layer has a rule where there are any.
    """
    if not _has_gradient(settled):
        span = f"{first}-{first + count - 1}" if count > 1 else str(first)
        return rules_of(settled, group.mark, layers=span)
    rules: list[Node] = []
    for index in range(count):
        depth = index / (count - 1) if count > 1 else 1.0
        place = str(first + index)
        here = _at(settled, depth)
        varied: dict[str, Node] = {}
        for key, node in here.values.items():
            if isinstance(settled.values[key].value, list):
                put(varied, key, node)
        if varied:
            match = mapping({"layers": scalar(place, group.mark)}, group.mark)
            rules.append(mapping({"match": match, "set": mapping(varied, group.mark)}, group.mark))
        rules += rules_of(here, group.mark, layers=place)
    return rules


def _has_gradient(settled: Settled) -> bool:
    filtered = [value.node for values in settled.filtered.values() for value in values]
    return any(isinstance(n.value, list) for n in [*settled.values.values(), *filtered])


def _outside(settled: Settled) -> Settled:
    """Return the values for tensors outside the layers: the first of each gradient."""
    return _at(settled, 0.0)


def _at(settled: Settled, depth: float) -> Settled:
    return Settled(
        {key: _point(node, depth) for key, node in settled.values.items()},
        {
            key: [replace(value, node=_point(value.node, depth)) for value in values]
            for key, values in settled.filtered.items()
        },
    )


def _point(node: Node, depth: float) -> Node:
    """Return the value of a gradient at a depth; one that is no list of numbers stays as it is."""
    points = [number(item.value) for item in node.items()]
    if not points or any(point is None for point in points):
        return node
    return node.with_value(interpolate([float(point or 0.0) for point in points], depth))


def _ranges(group: Group) -> Node:
    named = {i.name: _range(*i.layers, group) for i in group.inputs if i.layers}
    return mapping(named, group.mark)


def _range(first: int, end: int, group: Group) -> Node:
    text = f"{first}-{end - 1}" if end - first > 1 else str(first)
    return scalar(text, group.mark)


def _count(group: Group) -> int:
    layers = group.inputs[0].layers or (0, 0)
    return layers[1] - layers[0]
