"""What a plan asks of this room: the routed model of a recipe, its rows and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from mergekit_lite.moe.assembly import Assembly
from mergekit_lite.moe.carve.rows import CarvedRows
from mergekit_lite.moe.carve.settle import settle_carve
from mergekit_lite.moe.config import config_of, config_without
from mergekit_lite.moe.dense import joined as joined_rows
from mergekit_lite.moe.dense import rows as dense_rows
from mergekit_lite.moe.dense.joined import Joined
from mergekit_lite.moe.dense.settle import Densified
from mergekit_lite.moe.dense.settle import settle as settle_dense
from mergekit_lite.moe.fewer import rows as fewer_rows
from mergekit_lite.moe.grow.rows import GrownRows
from mergekit_lite.moe.grow.settle import Growth, set_aside
from mergekit_lite.moe.grow.settle import settle as settle_growth
from mergekit_lite.moe.lora.mixture import Mixture
from mergekit_lite.moe.lora.rows import MixedRows
from mergekit_lite.moe.lora.settle import settle_mixture
from mergekit_lite.moe.merge.rows import MergedRows
from mergekit_lite.moe.merge.settle import Merging
from mergekit_lite.moe.merge.settle import settle as settle_merging
from mergekit_lite.moe.prune.settle import Pruning
from mergekit_lite.moe.prune.settle import settle as settle_pruning
from mergekit_lite.moe.refit import settle as refit
from mergekit_lite.moe.refit.settle import Refit
from mergekit_lite.moe.rows import RoutedRows
from mergekit_lite.moe.settle import settle as settle_assembly
from mergekit_lite.moe.switch import rows as switched_rows
from mergekit_lite.moe.switch.settle import Switched
from mergekit_lite.moe.switch.settle import settle as settle_switched
from mergekit_lite.moe.unfuse import unfuse as unfuse_dense
from mergekit_lite.plan.types import Job

if TYPE_CHECKING:
    from mergekit_lite.plan.findings import Findings
    from mergekit_lite.plan.frame import Frame
    from mergekit_lite.plan.inputs import View
    from mergekit_lite.plan.rows import Rows
    from mergekit_lite.recipe.schema import Recipe

__all__ = ["Routed", "facts_of", "rows_of", "settings_of", "settle", "unfuse"]

Routed = Assembly | Pruning | Merging | Growth | Densified | Joined | Mixture | Refit | Switched


def unfuse(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Show models as routed ones are made of them, before they are compared with the base."""
    if recipe.moe is not None and recipe.moe.grow is not None:
        set_aside(recipe, found)
    else:
        unfuse_dense(recipe, found, findings)


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Routed | None:
    """Return the routed model that a recipe asks for; None without one, or with problems noted."""
    if recipe.moe is None:
        return refit.settle(recipe, found, findings)
    if recipe.moe.prune is not None:
        return settle_pruning(recipe, found, findings)
    if recipe.moe.merge is not None:
        return settle_merging(recipe, found, findings)
    if recipe.moe.grow is not None:
        return settle_growth(recipe, found, findings)
    if recipe.moe.dense is not None:
        return settle_dense(recipe, found, findings)
    if recipe.moe.bias is not None:
        return settle_switched(recipe, found, findings)
    if recipe.moe.carve is not None:
        return settle_carve(recipe, found, findings)
    if recipe.moe.target == "lora_moe":
        return settle_mixture(recipe, found, findings)
    return settle_assembly(recipe, found, findings)


def rows_of(
    routed: Routed,
    rows: Rows,
    recipe: Recipe,
    found: Mapping[str, View],
    frame: Frame,
    findings: Findings,
) -> list[Job]:
    """Return every row of a routed model."""
    if isinstance(routed, Pruning):
        return [job for _, job in fewer_rows.jobs(routed, rows, recipe, frame, "prune")]
    if isinstance(routed, Merging):
        return list(MergedRows(routed, rows, recipe).jobs(frame))
    if isinstance(routed, Growth):
        return list(GrownRows(routed, rows, recipe, found).jobs(frame))
    if isinstance(routed, Refit):
        return refit.jobs(routed, rows, recipe, frame, findings)
    if isinstance(routed, Densified):
        return list(dense_rows.jobs(routed, rows, recipe, frame))
    if isinstance(routed, Mixture):
        return list(MixedRows(routed, rows, recipe, found, findings).jobs(frame))
    if isinstance(routed, Joined):
        return list(joined_rows.jobs(routed, rows, recipe, frame))
    if isinstance(routed, Switched):
        return list(switched_rows.jobs(routed, rows, recipe, frame))
    make = RoutedRows if routed.carve is None else CarvedRows
    return list(make(routed, rows, recipe, found, findings).jobs(frame))


def settings_of(routed: Routed) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the entries of the result's config, and those of the donor's that it has not."""
    if isinstance(routed, Refit | Switched):
        return {}, ()
    if isinstance(routed, Pruning | Merging | Growth):
        return dict(routed.config), ()
    if isinstance(routed, Densified | Joined):
        return dict(routed.config), routed.gone
    if isinstance(routed, Mixture):
        return routed.config(), ()
    config = config_of(routed)
    return config, config_without(routed.donor.config, config)


def facts_of(routed: Routed, jobs: Iterable[Job]) -> dict[str, Any]:
    """Return `Plan.moe`: what is assembled, with the number of parameters in all and of a token."""
    if isinstance(routed, Assembly):
        return _assembled(routed, jobs)
    if isinstance(routed, Mixture):
        total = sum(prod(job.shape) for job in jobs)
        return {**routed.plain(), "parameters": {"total": total}}
    return routed.plain()


def _assembled(assembly: Assembly, jobs: Iterable[Job]) -> dict[str, Any]:
    total = routed = 0
    family, sizes = assembly.family, assembly.sizes
    marks = tuple(name.partition("{e}")[0] for name in family.experts.values())
    roots = (*assembly.roots.values(), *assembly.identical.values())
    starts = tuple(f"{root}.{mark}" for root in roots for mark in marks)
    for job in jobs:
        total += prod(job.shape)
        if job.name.startswith(starts):
            routed += prod(job.shape)
    active = total - routed + routed * min(sizes.per_token, assembly.stored) // assembly.stored
    return {**assembly.plain(), "parameters": {"total": total, "active": active}}
