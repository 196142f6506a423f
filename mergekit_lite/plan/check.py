"""Whether an expert as a whole fits the base, from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from mergekit_lite.checkpoint import layer_count
from mergekit_lite.plan import configs
from mergekit_lite.plan.adapters import check_adapter
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.heads import check_heads
from mergekit_lite.plan.inputs import View, extra_names
from mergekit_lite.plan.names import few, plural
from mergekit_lite.plan.rules import layer_span
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.sources import Model


def check_quantised(recipe: Recipe, name: str, model: Model, findings: Findings) -> None:
    """Note that an input is quantised and cannot be read; this needs no other input."""
    where = recipe.at("base") if name == "base" else recipe.at("experts", name)
    for problem in model.unreadable:
        findings.problem(f"`{model.reference}` is {problem.what}", where, problem.hint)


def check_base(recipe: Recipe, base: View, findings: Findings) -> None:
    """Note what keeps the base from being merged into."""
    where = recipe.at("base")
    if not base.tensors:
        findings.problem("the base holds no tensors", where, "check that the download is whole")
    for warning in base.model.header.warnings:
        findings.warn(warning, where)
    dense = recipe.moe is not None and recipe.moe.dense is not None
    if configs.value(base.model.config, "output_router_logits") is True and not dense:
        findings.warn(
            "the config of the base says `output_router_logits: true`, and so will the result's: it"
            " slows inference and changes what loaders return; set it to false after training",
            where,
        )
    for index, pattern in enumerate(recipe.allow_missing):
        if not any(fnmatchcase(name, pattern) for name in base.tensors):
            findings.warn(
                f"`{pattern}` matches no tensor of the base", recipe.at("allow_missing", index)
            )


def check_expert(recipe: Recipe, view: View, base: View, findings: Findings) -> None:
    """Note what keeps an expert from being merged, apart from the tensors that rows read.

    Problems of the whole model come alone and set `view.settled`: once a prefix or another
    architecture explains all tensors, a list of tensors would only hide it.
    """
    where = recipe.at("experts", view.name)
    for warning in view.model.header.warnings:
        findings.warn(warning, where)
    if view.is_base:
        return
    if view.model.unreadable:
        view.settled = True
    elif view.model.kind != "checkpoint":
        view.settled = view.settled or check_adapter(view, base, findings, where)
        if not view.settled:
            _check_extra(recipe, view, findings, where)
    else:
        _check_checkpoint(recipe, view, base, findings, where)


def _check_checkpoint(
    recipe: Recipe, view: View, base: View, findings: Findings, where: str
) -> None:
    missing = [name for name in view.base if name not in view.tensors]
    extra = extra_names(view)
    view.settled = (
        view.settled
        or _other_family(view, base, len(missing) + len(extra), findings, where)
        or (bool(missing or extra) and not recipe.slices and _other_depth(view, findings, where))
    )
    if view.settled:
        return
    _check_settings(view, base, findings, where)
    check_heads(recipe, view, base, missing, extra, findings, where)
    _check_extra(recipe, view, findings, where)


def _other_family(view: View, base: View, unmatched: int, findings: Findings, where: str) -> bool:
    mine, theirs = view.model.config, base.model.config
    left, right = configs.model_type(mine), configs.model_type(theirs)
    if left and right and left != right and (view.scope or view.named):
        findings.warn(
            f"expert `{view.name}` is a `{left}` model, the base a `{right}` model", where
        )
        return False
    if left and right and left != right:
        findings.problem(
            f"not mergeable: expert `{view.name}` is a `{left}` model, the base a `{right}` model",
            where,
            "only models of one architecture can be merged",
        )
        return True
    left, right = configs.architectures(mine), configs.architectures(theirs)
    if not left or not right or left == right:
        return False
    what = f"expert `{view.name}` is a {left}, the base a {right}"
    if not unmatched:
        findings.warn(f"{what}; their tensors match", where)
        return False
    findings.warn(what, where)
    return False


def _other_depth(view: View, findings: Findings, where: str) -> bool:
    mine, theirs = layer_count(view.tensors), layer_count(view.base)
    if mine == theirs:
        return False
    findings.problem(
        f"expert `{view.name}` has {layer_span(mine)}, the base {layer_span(theirs)}",
        where,
        "only models of equal depth can be merged",
    )
    return True


def _check_settings(view: View, base: View, findings: Findings, where: str) -> None:
    mine, theirs = view.model.config, base.model.config
    view.sizes = configs.sizes_differ(mine, theirs)
    if settings := configs.behaviour_differs(mine, theirs):
        findings.warn(
            f"expert `{view.name}` is configured differently: {settings};"
            " the result is configured like the base",
            where,
        )


def _check_extra(recipe: Recipe, view: View, findings: Findings, where: str) -> None:
    extra = [name for name in extra_names(view) if name not in view.left_out]
    if not extra:
        return
    what = f"expert `{view.name}` has {plural(len(extra), 'tensor')} that the base lacks"
    if recipe.extra == "drop":
        findings.warn(f"{what}; dropped: {few(extra)}", where)
    else:
        findings.problem(
            f"{what}: {few(extra)}",
            where,
            "write `extra: drop` to leave them out",
        )


def check_used(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Warn of experts that no row reads, and of weights that none counts."""
    for name, view in found.items():
        if name != "base" and not view.used:
            findings.warn(f"expert `{name}` is not used by any tensor", recipe.at("experts", name))
        elif name != "base" and not view.weighted and recipe.experts[name].weight is not None:
            findings.warn(
                f"the weight of expert `{name}` has no effect: no step in force weighs experts",
                recipe.at("experts", name, "weight"),
            )
