"""Layers that are not to be routed, in models all of whose layers have experts."""

from __future__ import annotations

from mergekit_lite.moe.families import Family, Sizes
from mergekit_lite.plan.findings import Findings
from mergekit_lite.recipe.layers import format_layers
from mergekit_lite.recipe.schema import Recipe


def outside_layers(
    recipe: Recipe, family: Family, routed: tuple[int, ...], layers: int, findings: Findings
) -> tuple[int, ...]:
    """Return the layers all of whose experts are the base's own layer; none unless it is asked."""
    moe = recipe.moe
    if moe is None or moe.outside != "identical":
        return ()
    found = tuple(layer for layer in range(layers) if layer not in routed)
    where = recipe.at("moe", "outside")
    if not found:
        what = "there are no layers outside of those that are routed"
        findings.problem(what, where, "say which are routed: `layers: '4-'`")
    if family.name == "routed":
        what = "a model with code of its own keeps the other layers as they are"
        findings.problem(what, where, "leave `outside` out")
    if moe.split > 1:
        what = "`outside: identical` and `split` do not go together"
        findings.problem(what, where, "the base's layer is wider than a slice: leave one out")
    return found


def check_outside(
    recipe: Recipe, family: Family, sizes: Sizes, hidden: int, findings: Findings
) -> None:
    """Note layers of copies whose weights do not add up to 1, and say what copies take."""
    if not sizes.identical:
        return
    where = recipe.at("moe", "outside")
    if family.norm == "never" and sizes.per_token < sizes.experts:
        findings.problem(
            f"the weights of the experts that a token passes do not add up to 1 in a"
            f" `{family.name}` model, so {sizes.per_token} of {sizes.experts} copies of a layer say"
            " less than the layer",
            where,
            f"write `experts_per_token: {sizes.experts}`, or take another `target`",
        )
    named = format_layers(tuple((layer, layer) for layer in sizes.identical))
    more = 3 * hidden * sizes.width * (sizes.experts - 1) * len(sizes.identical)
    findings.warn(
        f"layers {named} are stored {sizes.experts} times, which takes {more:,} parameters more"
        " than one layer each; a token passes the same layer whatever their routers choose",
        where,
    )
