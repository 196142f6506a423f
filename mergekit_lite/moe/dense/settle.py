"""From what a recipe says of a routed base, and headers, to the dense model that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lite.errors import MergekitLiteError
from mergekit_lite.moe.dense.families import TWINS, DenseTwin, settings
from mergekit_lite.moe.dense.joined import Joined, settle_joined
from mergekit_lite.moe.fewer.stored import RoutedModule, modules_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, placed
from mergekit_lite.recipe.schema import BASE, Recipe, ToDense


@dataclass(frozen=True)
class Densified:
    """A routed model that becomes a dense one.

    Attributes:
        dense: what the recipe says.
        modules: the routed modules by name.
        weights: how much each expert of a module counts; a single one is taken as it is.
        config: entries of the config that change.
        gone: entries that go.
    """

    dense: ToDense
    modules: Mapping[str, RoutedModule]
    weights: Mapping[str, tuple[float, ...]]
    config: Mapping[str, Any]
    gone: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """Return what the card says, as plain data."""
        weights = {root: list(own) for root, own in self.weights.items()}
        return {"dense": {"method": self.dense.method, "weights": weights}}


def settle(
    recipe: Recipe, found: Mapping[str, View], findings: Findings
) -> Densified | Joined | None:
    """Return the dense model that a recipe asks for; None with problems noted."""
    base = found[BASE]
    if recipe.moe is None or recipe.moe.dense is None or base.settled:
        return None
    if recipe.moe.dense.method == "concat":
        return settle_joined(recipe, base, findings)
    config, before = base.model.config, len(findings.problems)
    modules = modules_of(base.tensors, config)
    twin = TWINS.get(configs.model_type(config))
    if twin is None or not modules:
        known = ", ".join(TWINS)
        findings.problem(
            f"no dense family computes what a `{configs.model_type(config) or 'unnamed'}` model"
            " does with equal experts",
            recipe.at("base"),
            f"known are {known}; shared experts and biases of routers have no place in a dense one",
        )
        return None
    width, hidden = _sizes(base, modules, twin, recipe, findings)
    if configs.value(config, "norm_topk_prob") is False:
        findings.warn(
            "weights of this model's experts do not add up to 1, so the dense model says more than"
            " the routed one did",
            recipe.at("base"),
        )
    weights = _weights(recipe, recipe.moe.dense, modules, findings)
    if len(findings.problems) > before:
        return None
    changed, gone = settings(config, twin, width, hidden)
    return Densified(recipe.moe.dense, modules, weights, changed, gone)


def _sizes(
    base: View,
    modules: Mapping[str, RoutedModule],
    twin: DenseTwin,
    recipe: Recipe,
    findings: Findings,
) -> tuple[int, int]:
    """Return the width of an expert and of the stream; note layers that are not so wide."""
    hidden = configs.value(base.model.config, "hidden_size")
    width = configs.value(base.model.config, twin.width)
    where = recipe.at("base")
    if type(hidden) is not int or type(width) is not int:
        findings.problem(f"its config names no `{twin.width}`", where, "check the download")
        return 0, 0
    for own in modules.values():
        for name in own.odd:
            findings.problem_with(f"`{name}`", "experts cannot be told apart", where)
    for name, info in base.tensors.items():
        if name.endswith(".mlp.gate_proj.weight") and info.shape[0] != width:
            findings.problem_with(
                f"`{name}`",
                f"dense layers are not as wide as one expert ({width})",
                where,
                "a config has one width for all layers",
            )
    return width, hidden


def _weights(
    recipe: Recipe, dense: ToDense, modules: Mapping[str, RoutedModule], findings: Findings
) -> dict[str, tuple[float, ...]]:
    if dense.method == "mean":
        return {root: (1.0,) * own.experts for root, own in modules.items()}
    # Here, because means need no numpy.
    from mergekit_lite.moe.fewer.statistics import layer_statistics
    from mergekit_lite.moe.prune.scores import tokens

    folder = recipe.folder / Path(dense.stats or "").expanduser()
    result = {}
    for root, own in modules.items():
        try:
            counts = tokens(layer_statistics(folder, "rates", own.layer or 0)).tolist()
        except MergekitLiteError as error:
            findings.problems += placed(error.problems, recipe.at("moe", "dense"))
            return {}
        if len(counts) != own.experts or not any(counts):
            findings.problem(
                f"`{dense.stats}` does not say how often each of {own.experts} experts of layer"
                f" {own.layer} was chosen",
                recipe.at("moe", "dense", "stats"),
                "name statistics that were made of this base",
            )
            return {}
        if dense.method == "top1":
            first = counts.index(max(counts))
            counts = [float(expert == first) for expert in range(own.experts)]
        result[root] = tuple(counts)
    return result
