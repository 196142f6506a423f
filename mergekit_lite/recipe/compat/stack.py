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


def stack(method: Method, groups: Sequence[Group], settled: Sequence[Settled]) -> Stack:
    """Return the slices of a recipe as ours.

    As in mergekit, embeddings follow the first slice, all else outside the layers the last.
    """
    mark = groups[0].mark
    if len(groups) == 1:
        entry = mapping({"layers": _ranges(groups[0])}, mark)
        steps = steps_of(method, groups[0], settled[0])
        return Stack(listed([entry], mark), steps, rules_of(settled[0], mark))
    entries, rules, first = [], [], 0
    flat = [_outside(values) for values in settled]
    for group, values, plain in zip(groups, settled, flat, strict=True):
        entries.append(_entry(method, group, plain))
        count = _count(group)
        rules += _layer_rules(group, values, first, count)
        first += count
    outer = _outer_rules(method, groups, flat)
    steps = steps_of(method, groups[-1], flat[-1], weighs=True)
    return Stack(listed(entries, mark), steps, outer + rules)


def _entry(method: Method, group: Group, settled: Settled) -> Node:
    only = group.inputs[0]
    if method.chain == ("passthrough",) and not settled.values and only.layers:
        taken = {"take": scalar(only.name, only.mark), "layers": _range(*only.layers, group)}
        return mapping(taken, group.mark)
    steps = steps_of(method, group, settled, weighs=True)
    return mapping({"layers": _ranges(group), "steps": steps}, group.mark)


def _outer_rules(method: Method, groups: Sequence[Group], flat: Sequence[Settled]) -> list[Node]:
    """Return the rules for tensors outside the layers, whose chain is that of the last slice."""
    bottom, top = groups[0], groups[-1]
    rules = rules_of(flat[-1], top.mark, layers="outside")
    same = [i.name for i in bottom.inputs] == [i.name for i in top.inputs]
    if same and not differs(flat[0], flat[-1]):
        return rules
    match = mapping({"role": scalar("embedding", bottom.mark)}, bottom.mark)
    steps = steps_of(method, bottom, flat[0], weighs=True)
    return [*rules, mapping({"match": match, "steps": steps}, bottom.mark)]


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
