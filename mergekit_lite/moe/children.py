"""Experts that are made of others: which there are, and whether they can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.experts import width_of
from mergekit_lite.moe.families import Family
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, MoeExpert, Recipe


def children(
    recipe: Recipe, experts: Sequence[MoeExpert], findings: Findings
) -> tuple[MoeExpert, ...]:
    """Return the experts that a recipe wants made of others; problems are noted.

    A child stands under the name of the first of the others, which stands for its size.
    """
    expand = recipe.moe.expand if recipe.moe else None
    if expand is None or recipe.moe is None:
        return ()
    where = recipe.at("moe", "expand")
    parents = {expert.expert for expert in experts} - {BASE}
    if len(parents) < 2:
        findings.problem(
            "more experts are made of two that differ from the base, and there are"
            f" {len(parents) or 'none'}",
            where,
            "name other experts; `experts: [base, base]` with `redraw` makes copies that differ",
        )
        return ()
    if expand.experts <= len(experts):
        findings.problem(
            f"there are {len(experts)} experts already, and `expand` wants {expand.experts}",
            where,
            f"write more than {len(experts)}, or leave it out",
        )
    if not recipe.moe.for_training:
        findings.problem(
            "experts that are random mixtures of others are for training",
            where,
            "write `moe: {for_training: true}`, or leave `expand` out",
        )
    return tuple(
        MoeExpert(expert=min(parents), child=number, where=where)
        for number in range(expand.experts - len(experts))
    )


def check_children(
    recipe: Recipe,
    family: Family,
    experts: Sequence[MoeExpert],
    found: Mapping[str, View],
    feed: FeedForward,
    findings: Findings,
) -> None:
    """Note what keeps experts from being made of others.

    Args:
        recipe: what is wanted.
        family: of the result.
        experts: the routed experts.
        found: the base and the experts.
        feed: the base's feed-forward layers.
        findings: where problems are noted.
    """
    if not any(expert.child is not None for expert in experts) or recipe.moe is None:
        return
    where = recipe.at("moe", "expand")
    widths = {width_of(name, found, feed) for name in (BASE, *(e.expert for e in experts))}
    if len(widths) > 1:
        findings.problem(
            "experts are made of others by entries, and these differ in width from the base",
            where,
            "take experts that are as wide as the base",
        )
    if family.fused or recipe.moe.split > 1:
        reason = "are cut into slices" if recipe.moe.split > 1 else "are stored in one tensor"
        findings.problem(
            f"experts that {reason} are not made of others",
            where,
            "leave `split` out, or take a `target` that stores each expert apart",
        )
