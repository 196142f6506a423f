"""What a recipe may say about the experts of a routed model that it merges with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mergekit_lite.recipe.schema.fields import Part, whole
from mergekit_lite.recipe.schema.prune import Keep

MergeMethod = Literal["ream", "hc_smoe", "m_smoe", "sub_moe", "uncurl", "listed"]


class MergeExperts(Part):
    """Which experts of each layer of a routed base become one, and how."""

    keep: Keep = None
    """How many experts each layer has afterwards: a number (`4`), or a share below 1 (`0.5`)."""
    method: MergeMethod = "ream"
    """What tells which experts go together."""
    stats: str | None = None
    """A folder that `calibrate --collect rates,merging` has made of the base."""
    groups: tuple[tuple[int, ...], ...] | Mapping[int, tuple[tuple[int, ...], ...]] | None = None
    """Of `listed`: experts that become one, the first of each leading, for all layers or by layer;
    those that no group names stay alone."""
    weights: Literal["frequency", "saliency", "equal"] | None = None
    """How much each expert of a group counts: by the tokens that chose it, by REAP's score, or all
    the same. By default `saliency` of `ream`, `frequency` where there are statistics."""
    align: Literal["weights", "activations", "both", "none"] = "weights"
    """How neurons are put in the order of the leading expert's before they are averaged: by their
    weights, by what they say of the same tokens, by both, or not at all."""
    router: Literal["centroid", "frequency", "lse", "map"] = "centroid"
    """The merged expert's row of the router: the leading expert's (`centroid`), the mean of all by
    `frequency`, or a row fitted so that the group is as likely as its experts were together
    (`lse`). `map` keeps all rows, each of which then stands for its group's expert: exact, but in a
    class with code of its own, for Qwen3-MoE models and those of `target: routed`."""
    refit_down: Literal["ridge"] | None = None
    """Fit down projections of merged experts anew, to what their group said of measured tokens."""
    penalty: Annotated[float, Field(gt=0)] = 0.01
    """Of `lse` and `ridge`: how much staying near the start counts against the fit."""
    largest: Annotated[int, Field(ge=2), BeforeValidator(whole)] = 16
    """Of `ream`: most experts of a group."""
    mtp: Literal["drop", "last"] | None = None
    """What becomes of layers that draft tokens ahead, of which nothing is measured: they are left
    out (`drop`), or merged in the groups of the `last` layer."""
