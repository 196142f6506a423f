"""DELLA: drop by rank, elect a sign, fuse."""

from __future__ import annotations

from typing import Any

from mergekit_lite.ops._annotations import (
    Aggregate,
    ChanceRescale,
    ChanceSpread,
    Elect,
    Lambda,
    MeanChance,
)
from mergekit_lite.ops._spec import Vector, preset
from mergekit_lite.ops.transform.magprune import check

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


@preset(
    title="DELLA-Merging",
    paper="Deep et al. 2024, arXiv 2406.11617",
    random=True,
    check=check,
    compat={"mergekit": {"density": 1.0, "epsilon": 0.15, "rescale": "l1"}},
    vectors=[
        Vector(
            TAUS,
            [3, -4, -6, 0.375, 3, 1.5],
            {"density": 1.0},
            source="independent run: density 1 is sign election with a mean",
        ),
        Vector(
            TAUS,
            [6, -8, -6, 0.75, 3, 3],
            {"density": 1.0, "agg": "sum"},
            source="independent run: density 1 is sign election with a sum",
        ),
    ],
)
def della(
    *,
    density: MeanChance = 0.7,
    epsilon: ChanceSpread = 0.07,
    rescale: ChanceRescale = "inv_prob",
    elect: Elect = "mass",
    agg: Aggregate = "mean",
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, small ones more often, then elect signs and merge.

    Stands for `magprune`, `sign_consensus` and `scale`. The authors drop 0.3 with a window of 0.14
    and use lambda 1.1.
    """
    return [
        ("magprune", {"density": density, "epsilon": epsilon, "rescale": rescale}),
        ("sign_consensus", {"elect": elect, "agg": agg}),
        ("scale", {"lambda": lambda_}),
    ]
