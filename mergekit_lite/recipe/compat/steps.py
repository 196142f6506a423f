"""From the values of a group to a chain of ours and the rules on top of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergekit_lite.recipe.compat.groups import Group, Key, Settled, by_model
from mergekit_lite.recipe.compat.inputs import BASE
from mergekit_lite.recipe.compat.methods import Method
from mergekit_lite.recipe.compat.nodes import listed, mapping, same, scalar
from mergekit_lite.recipe.marks import Mark, Node

WEIGHT = "weight"


def steps_of(method: Method, group: Group, settled: Settled, *, weighs: bool = False) -> Node:
    """Return the chain for the tensors of a group that no filter fits.

    Args:
        method: what is done.
        group: to whom.
        settled: with which values.
        weighs: the chain names its inputs and their weights, as where other groups have others.
    """
    params: dict[str, dict[str, Node]] = {op: {} for op in method.chain}
    for key in dict.fromkeys(key for key, _ in settled.values):
        if key != WEIGHT:
            op, _, name = key.rpartition(".")
            params[op or method.chain[-1]][name] = _value(settled, key, group)
    last = params[method.chain[-1]]
    if method.chain == ("passthrough",) and group.inputs:
        last["source"] = scalar(group.inputs[0].name, group.inputs[0].mark)
    elif weights := _own_weights(method, group, settled, weighs):
        last["weights"] = mapping(weights, group.mark)
    if method.base == "origin":
        space = "weight" if group.base_counts else "delta"
        last["space"] = scalar(space, group.mark)
    if method.finish is not None:
        method.finish(last)
    return listed(
        [mapping({op: mapping(params[op], group.mark)}, group.mark) for op in method.chain],
        group.mark,
    )


def _own_weights(method: Method, group: Group, settled: Settled, weighs: bool) -> dict[str, Node]:
    """Return the weights that the step must name: the base's among them, or this group's own."""
    counts = any(item.name == BASE for item in group.merged)
    given = by_model(settled, WEIGHT)
    if given:
        return given if weighs or counts else {}
    if WEIGHT in method.settings:
        return {}  # one is missing, which was noted
    if not (counts or weighs):
        return {}
    return {item.name: scalar(1.0, item.mark) for item in group.merged}


def _value(settled: Settled, key: str, group: Group) -> Node:
    if (key, None) in settled.values:
        return settled.values[key, None]
    given = by_model(settled, key)
    nodes = list(given.values())
    if len(given) == len(group.merged) and same(nodes):
        return nodes[0]
    return mapping(given, group.mark)


def rules_of(settled: Settled, mark: Mark, *, prefix: str = "", layers: str = "") -> list[Node]:
    """Return the rules for the tensors that filters fit.

    In a list of filters the first that fits holds, of rules the last that matches, so each list
    is turned round.

    Args:
        settled: the values of a group.
        mark: where the group stands.
        prefix: pattern that the names must begin with.
        layers: layers that the group makes, "" for all tensors.
    """
    order: list[tuple[str, dict[str, Node]]] = []
    for (key, model), values in settled.filtered.items():
        at = 0
        for value in reversed(values):
            at = _place(order, value.filter, at)
            put(order[at][1], (key, model), value.node)
            at += 1
    return [_rule(text, changes, mark, prefix, layers) for text, changes in order]


def _place(order: list[tuple[str, dict[str, Node]]], text: str, at: int) -> int:
    """Return where in `order` a filter stands, not before `at`; it is added where it is not."""
    for index in range(at, len(order)):
        if order[index][0] == text:
            return index
    order.append((text, {}))
    return len(order) - 1


def put(changes: dict[str, Node], key: Key, node: Node) -> None:
    """Add one value to what a rule sets."""
    name, model = key
    if model is None:
        changes[name] = node
        return
    under = changes.get(name)
    entries = under.entries() if under is not None else {}
    changes[name] = mapping({**entries, model: node}, node.mark)


def _rule(text: str, changes: Mapping[str, Node], mark: Mark, prefix: str, layers: str) -> Node:
    first = next(iter(changes.values()))
    place = next(iter(first.entries().values()), first).mark
    pattern = f"{prefix}*{escaped(text)}*"
    match = {"name": scalar(pattern, place)}
    if layers:
        match["layers"] = scalar(layers, mark)
    body = {"match": match["name"] if not layers else mapping(match, place)}
    return mapping({**body, "set": mapping(changes, place)}, place)


def escaped(text: str) -> str:
    """Return a pattern that fits this text and nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", text)
