"""Puts an output of other layers together: its tensors and what its config says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.plan import configs
from mergekit_lite.plan.depth import Restack, restacked
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.frame import Frame, plain_frame
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.naming import names_of
from mergekit_lite.plan.slices import Assembler
from mergekit_lite.plan.stacks import Stack, chosen_stack, counted, main_stacks, stack_in
from mergekit_lite.recipe.schema import BASE, Recipe

_BY_LAYER = ("layer_types", "no_rope_layers", "layers_block_type")


def set_layers_aside(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> str | None:
    """Return the stack that the slices are about; its tensors are not compared name by name."""
    stack = chosen_stack(recipe, found[BASE], findings)
    if stack is None:
        return None
    for view in found.values():
        start = f"{stack}."
        view.spare = {name for name in names_of(view.model) if name.startswith(start)}
        view.base = {name: info for name, info in view.base.items() if not name.startswith(start)}
    return stack


def assemble(
    recipe: Recipe, found: Mapping[str, View], stack: str | None, findings: Findings
) -> tuple[Frame, dict[str, Any]]:
    """Return the tensors of the output and what must change in the base's config.

    Args:
        recipe: what is wanted.
        found: the base and the experts; each learns which of its layers stand where.
        stack: the stack that is sliced, None where the output has the base's layers.
        findings: where problems are noted.
    """
    base = found[BASE]
    if stack is None:
        return plain_frame(base.base.values()), {}
    stacks = _stacks(found, stack, findings, recipe.at("slices"))
    frame = Assembler(recipe, found, stacks, findings).frame()
    if findings.all_problems():
        return frame, {}
    layers = [_donor(row["sources"], found) for row in frame.layer_map]
    restack = Restack(
        stack,
        _others(base, stack),
        {name: own.depth for name, own in stacks.items()},
        layers,
        {n: v.model.config if v.model.adapter is None else base.model.config
         for n, v in found.items()},
    )  # fmt: skip
    _warn_of_unlike(frame, restack, findings, recipe.at("slices"))
    return frame, restacked(restack, findings, recipe.at("slices"))


def _others(base: View, stack: str) -> tuple[str, ...]:
    # Encoders and decoders only: other numbered modules have no count of their own.
    return tuple(
        other
        for other in main_stacks(base.tensors)
        if other != stack and ("encoder" in other or "decoder" in other)
    )


def _stacks(
    found: Mapping[str, View], stack: str, findings: Findings, where: str
) -> dict[str, Stack]:
    others = _others(found[BASE], stack)
    stacks = {}
    for name, view in found.items():
        if view.model.adapter is not None:
            continue
        own = stacks[name] = stack_in(view, stack, others)
        named = counted(view.model.config, stack, others)
        if named is not None and named > own.depth:
            findings.problem(
                f"`{name}` stores {own.depth} layers, its config says {named}",
                where,
                "the checkpoint is not whole, or the config is of another model",
            )
    base = stacks[BASE]
    return {name: stacks.get(name, Stack(stack, base.depth)) for name in found}


def _donor(sources: Mapping[str, int], found: Mapping[str, View]) -> tuple[str, int]:
    """Return whose config describes a layer; an adapter's is described by the base's."""
    whole = [name for name in sources if found[name].model.adapter is None]
    name = whole[0] if whole else next(iter(sources))
    return (name if whole else BASE), sources[name]


def _warn_of_unlike(frame: Frame, restack: Restack, findings: Findings, where: str) -> None:
    """Warn where layers of different kinds are merged into one."""
    for row in frame.layer_map:
        sources: Mapping[str, int] = row["sources"]
        for key in _BY_LAYER:
            kinds = [
                listed[layer]
                for name, layer in sources.items()
                if isinstance(listed := configs.value(restack.configs[name], key), Sequence)
                and layer < len(listed)
            ]
            if any(kind != kinds[0] for kind in kinds):
                findings.warn_of(
                    f"layer {row['layer']}",
                    f"`{key}` differs between layers that are merged; the first input's counts",
                    where,
                )
