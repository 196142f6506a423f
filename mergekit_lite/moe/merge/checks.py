"""What keeps groups of experts from being merged, or makes the mean of them a poor one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.matrices import Matrices
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, shape_text
from mergekit_lite.recipe.schema import MergeExperts, Recipe

_PLAIN_ACTIVATIONS = ("silu", "swish")


def check_base(
    recipe: Recipe,
    merge: MergeExperts,
    modules: Mapping[str, RoutedModule],
    matrices: Mapping[str, Matrices],
    base: View,
    findings: Findings,
) -> None:
    """Note what of a recipe cannot be done with the experts of a base, whatever the groups."""
    if merge.align == "none":
        findings.warn(
            "neurons of experts are averaged in the order in which they are stored, which is one"
            " and the same only in experts that began as copies of one network",
            recipe.at("moe", "merge", "align"),
        )
    else:
        _check_neurons(recipe, matrices, findings)
    drafts = [root for root, own in modules.items() if own.drafts]
    measured = merge.router == "lse" or merge.align in ("activations", "both")
    if drafts and (measured or merge.refit_down is not None):
        findings.problem(
            f"nothing is measured of layers that draft tokens ahead, such as `{drafts[0]}`",
            recipe.at("moe", "merge"),
            "write `mtp: drop`, or `router: centroid`, `align: weights` and no `refit_down`",
        )
    if merge.router == "lse":
        _check_softmax(recipe, modules, base, findings)
    if merge.refit_down is not None:
        _check_refit(recipe, matrices, base, findings)


def check_groups(
    recipe: Recipe,
    groups: Mapping[str, Sequence[Group]],
    matrices: Mapping[str, Matrices],
    base: View,
    findings: Findings,
) -> None:
    """Note groups whose experts are not of one size."""
    for root, own in groups.items():
        if matrices[root].stacked:
            continue
        for group in own:
            for held in matrices[root].held:
                names = [held.name.format(e=expert) for expert in group.everyone]
                shapes = {name: base.tensors[name].shape for name in names if name in base.tensors}
                if len(set(shapes.values())) > 1 or len(shapes) < len(names):
                    listed = ", ".join(shape_text(shape) for shape in sorted(set(shapes.values())))
                    findings.problem_with(
                        f"`{names[0]}` ({listed})",
                        "experts of a group are not of one size",
                        recipe.at("moe", "merge"),
                        "leave the odd ones out first: `moe: {prune: {method: listed, ...}}`",
                    )


def _check_neurons(recipe: Recipe, matrices: Mapping[str, Matrices], findings: Findings) -> None:
    for root, stored in matrices.items():
        unknown = [held.name for held in stored.held if not held.part]
        if unknown or not stored.neurons or not stored.known:
            findings.problem_with(
                f"`{unknown[0] if unknown else root}`",
                "it is not known where neurons lie in the matrices of these experts, so they cannot"
                " be put in one order",
                recipe.at("moe", "merge", "align"),
                "write `align: none` if experts began as copies of one network",
            )


def _check_softmax(
    recipe: Recipe, modules: Mapping[str, RoutedModule], base: View, findings: Findings
) -> None:
    scores = configs.value(base.model.config, "scoring_func") == "sigmoid"
    biased = [own.root for own in modules.values() if len(own.routers) > 1]
    if biased or scores:
        findings.problem(
            "`lse` fits the logarithm of a sum of softmax probabilities, and these routers add a"
            " bias or take sigmoids",
            recipe.at("moe", "merge", "router"),
            "write `router: frequency` or `router: centroid`",
        )


def _check_refit(
    recipe: Recipe, matrices: Mapping[str, Matrices], base: View, findings: Findings
) -> None:
    where = recipe.at("moe", "merge", "refit_down")
    activation = configs.value(base.model.config, "hidden_act")
    plain = all(_is_plain(own) for own in matrices.values())
    if not plain or activation not in (None, *_PLAIN_ACTIVATIONS):
        findings.problem(
            "`refit_down` knows experts of gate, up and down without biases, stored (out x in), and"
            f" silu; this model has `{activation}`" + ("" if plain else " and stores others"),
            where,
            "leave `refit_down` out",
        )


def _is_plain(own: Matrices) -> bool:
    """Return whether experts are the three matrices alone, each as torch's linears have it."""
    parts = {(held.part, held.leaf, held.axis, held.kind) for held in own.held}
    down = ("down", "weight", "columns", "alone")
    apart = {(part, "weight", "rows", "alone") for part in ("gate", "up")}
    return own.known and parts in ({*apart, down}, {("gate_up", "weight", "rows", "halves"), down})
