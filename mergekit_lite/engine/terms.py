"""Single steps of a row's chain in the terms of the fused CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergekit_lite.kernels.steps import BAND, CUT, DARE, FAR, IDENTITY, ROW_BAND, ROW_DROP
from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops.combine.consensus import limits
from mergekit_lite.ops.transform.breadcrumbs import band
from mergekit_lite.ops.transform.dare import rescale_factor
from mergekit_lite.plan.types import Job

_CUTS = {"magnitude": CUT, "graft": CUT, "breadcrumbs": BAND, "norm_share": CUT}
"""Transforms that wait for ranks of the tensor."""


@dataclass
class Transform:
    """One transform of one expert in the kernels' terms.

    Attributes:
        kind, factor, numbers: as the kernels take them.
        ranks: whose cuts it waits for.
        keep_ties: its cuts keep every tied entry.
        strict: its cuts keep no tied entry.
        of_model: its cut comes from the sweep over the whole model.
        l1_density: density of a drop whose factor waits for sums of magnitudes.
        share: of the sum of squares, which its one rank follows from.
        deviations: of a cut by deviation, whose bounds wait for sums.
        width: entries of a row, if it works on rows.
    """

    kind: int
    factor: float = 1.0
    numbers: list[int] = field(default_factory=list)
    ranks: tuple[int, ...] = ()
    keep_ties: bool = False
    strict: bool = False
    of_model: bool = False
    l1_density: float | None = None
    share: float | None = None
    deviations: float | None = None
    width: int = 0


@dataclass
class Post:
    """One post in the kernels' terms: a factor, and what is dropped before it is applied.

    Attributes:
        factor: of the merged delta.
        limits: how far each expert may be from what it claims; none where nothing is dropped.
        at_least: how many must claim an entry.
    """

    factor: float
    limits: Sequence[float] = ()
    at_least: int = 0


def post_of(spec: OpSpec, params: Mapping[str, Any], names: Sequence[str]) -> Post:
    """Return one post in the kernels' terms."""
    factor = float(params["lambda"])
    if spec.name == "scale":
        return Post(factor)
    return Post(factor, limits(params["mask_lambda"], names), int(params["at_least"]))


def transform_of(
    spec: OpSpec, params: Mapping[str, Any], job: Job, expert: str, seed: int, size: int
) -> Transform:
    """Return one transform in the kernels' terms."""
    density = float(params.get("density") or 0.0)
    if spec.name == "dare":
        key = random_key(seed, spec.name, expert, job.name)
        numbers = [key & 0xFFFFFFFF, key >> 32, round(density * 2**32)]
        if params["rescale"] == "l1" and density < 1:
            return Transform(DARE, numbers=numbers, l1_density=density)
        return Transform(DARE, rescale_factor(density, params["rescale"], None), numbers)
    if spec.name == "magprune" and density < 1:
        return _row_drop(params, job, expert, seed)
    if spec.name == "deviation":
        if params["factor"] is None:
            return Transform(IDENTITY)
        of_model = spec.needs.of_model(params)
        return Transform(FAR, deviations=float(params["factor"]), of_model=of_model)
    share = params.get("share")
    if (share or density) >= 1 and params.get("count") is None:
        return Transform(IDENTITY)
    if spec.reach_for(params) == "row":
        width = job.shape[-1] if job.shape else 1
        top, last = band(density, float(params["gamma"]), width)
        return Transform(ROW_BAND, numbers=[top, last - top], width=width)
    ranks = () if spec.needs.of_model(params) else spec.needs.ranks(params, size)
    return Transform(
        _CUTS[spec.name],
        ranks=tuple(ranks),
        keep_ties=spec.needs.keeps_ties(params),
        strict=spec.name == "graft",
        share=share,
        of_model=spec.needs.of_model(params),
    )


def _row_drop(params: Mapping[str, Any], job: Job, expert: str, seed: int) -> Transform:
    """Return a drop by rank; its chances travel as the bits of fp64 numbers."""
    density, epsilon = float(params["density"]), float(params["epsilon"])
    width = job.shape[-1] if job.shape else 1
    ends = (density - epsilon, 2.0 * epsilon) if width > 1 else (density, 0.0)
    least, spread = np.array(ends, np.float64).view(np.int64).tolist()
    key = random_key(seed, "magprune", expert, job.name)
    rescale = params["rescale"]
    numbers = [key & 0xFFFFFFFF, key >> 32, least, spread, int(rescale == "inv_prob")]
    by_l1 = density if rescale == "l1" else None
    return Transform(ROW_DROP, numbers=numbers, width=width, l1_density=by_l1)
