"""What a plan asks of this room: the routed model of a recipe, its rows and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from mergekit_lite.moe.assembly import Assembly
from mergekit_lite.moe.config import config_of, config_without
from mergekit_lite.moe.rows import RoutedRows
from mergekit_lite.moe.settle import settle
from mergekit_lite.moe.unfuse import unfuse
from mergekit_lite.plan.types import Job

if TYPE_CHECKING:
    from mergekit_lite.plan.findings import Findings
    from mergekit_lite.plan.frame import Frame
    from mergekit_lite.plan.inputs import View
    from mergekit_lite.plan.rows import Rows
    from mergekit_lite.recipe.schema import Recipe

__all__ = ["Assembly", "facts_of", "rows_of", "settings_of", "settle", "unfuse"]


def rows_of(
    assembly: Assembly,
    rows: Rows,
    recipe: Recipe,
    found: Mapping[str, View],
    frame: Frame,
    findings: Findings,
) -> list[Job]:
    """Return every row of a routed model."""
    return list(RoutedRows(assembly, rows, recipe, found, findings).jobs(frame))


def settings_of(assembly: Assembly) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the entries of the result's config, and those of the donor's that it has not."""
    config = config_of(assembly)
    return config, config_without(assembly.donor.config, config)


def facts_of(assembly: Assembly, jobs: Iterable[Job]) -> dict[str, Any]:
    """Return `Plan.moe`: what is assembled, with the number of parameters in all and of a token."""
    total = routed = 0
    family, sizes = assembly.family, assembly.sizes
    marks = tuple(name.partition("{e}")[0] for name in family.experts.values())
    starts = tuple(f"{root}.{mark}" for root in assembly.roots.values() for mark in marks)
    for job in jobs:
        total += prod(job.shape)
        if job.name.startswith(starts):
            routed += prod(job.shape)
    active = total - routed + routed * sizes.per_token // sizes.experts
    return {**assembly.plain(), "parameters": {"total": total, "active": active}}
