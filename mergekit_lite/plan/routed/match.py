"""Gives the routed experts of a model the tensors that the base has for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.routed.layers import RoutedLayer, name_below, routed_layers, same_layer
from mergekit_lite.plan.routed.reads import Made, Sides


def match_expert_layout(view: View, base: View, findings: Findings, where: str) -> None:
    """Give a routed expert the base's tensors, as pieces of its own where the layouts differ."""
    if view.model.adapter is not None:
        return
    wanted = routed_layers(base.tensors, base.model.config)
    own = routed_layers(view.tensors, view.model.config) if wanted else {}
    made: dict[str, Made] = {}
    used: set[str] = set()
    renamed: dict[str, str] = {}
    for layer in wanted.values():
        mine = same_layer(layer.root, own)
        if mine is None or _is_alike(layer, mine):
            continue
        sides = Sides(layer, mine, base.tensors, view.tensors, view.name)
        found = {name: sides.read_as(slot) for slot, name in layer.tensors.items()}
        fits = {name: one for name, one in found.items() if one is not None}
        told = _is_told(layer) and _is_told(mine)
        if len(fits) < len(found) or not told:
            _refuse(layer, mine, view, base, findings, where, told=told)
            return
        made |= fits
        read = {piece.name for _, one in fits.values() for piece in one.pieces}
        used |= {name for name in mine.tensors.values() if view.tensors[name].name in read}
        renamed |= dict(_moved(layer.root, mine.root, view, base))
    if not made:
        return
    tensors = {renamed.get(n, n): info for n, info in view.tensors.items() if n not in used}
    tensors |= {name: info for name, (info, _) in made.items()}
    view.pieced |= {name: read for name, (_, read) in made.items()}
    view.model = replace(view.model, header=replace(view.model.header, tensors=tensors))
    findings.warn(
        f"expert `{view.name}` stores its experts in another layout; they are read in the base's"
        f" ({plural(len(made), 'tensor')})",
        where,
    )


def _is_alike(wanted: RoutedLayer, own: RoutedLayer) -> bool:
    """Return whether nothing needs to be matched: the same names, in the same form."""
    shared = wanted.tensors.keys() & own.tensors.keys()
    if not shared or wanted.root != own.root:
        return False
    if any(own.tensors[slot] != wanted.tensors[slot] for slot in shared):
        return False
    one, other = wanted.form, own.form
    if not wanted.fused or one == other:
        return True
    # What is not known of one is taken to be as in the other.
    return one.transposed == other.transposed and None in (one.alternating, other.alternating)


def _is_told(layer: RoutedLayer) -> bool:
    return not layer.fused or layer.form.alternating is not None


def _moved(root: str, mine: str, view: View, base: View) -> Iterator[tuple[str, str]]:
    """Yield (name, base's name) of what else is below a routed layer's module: its router, say."""
    for name in view.tensors:
        if not name.startswith(f"{mine}."):
            continue
        rest = name[len(mine) + 1 :]
        new = name_below(root, rest, base.tensors) or f"{root}.{rest}"
        if new != name:
            yield name, new


def _refuse(
    wanted: RoutedLayer,
    own: RoutedLayer,
    view: View,
    base: View,
    findings: Findings,
    where: str,
    *,
    told: bool,
) -> None:
    def layout(input_: View, layer: RoutedLayer) -> str:
        first = next(iter(layer.tensors.values()))
        shape = shape_text(input_.tensors[first].shape)
        return f"{plural(len(layer.tensors), 'tensor')} such as `{first}` {shape}"

    findings.problem(
        f"expert `{view.name}` stores its experts in a layout that cannot be read as the base's:"
        f" {layout(view, own)}; the base has {layout(base, wanted)}",
        where,
        "only models with as many experts of one size can be matched"
        if told
        else "nothing tells whether gate and up take turns in the fused tensor: its `config.json`"
        " must name the `model_type` that stores them so",
    )
    view.settled = True
