"""DELLA before task arithmetic."""

from __future__ import annotations

from typing import Any

from mergekit_lite.ops._annotations import (
    ChanceRescale,
    ChanceSpread,
    Lambda,
    MeanChance,
    Normalize,
)
from mergekit_lite.ops._spec import Vector, preset
from mergekit_lite.ops.transform.magprune import check


@preset(
    title="DELLA with task arithmetic",
    paper="Deep et al. 2024, arXiv 2406.11617, without the election",
    random=True,
    unbiased=True,
    check=check,
    compat={"mergekit": {"density": 1.0, "epsilon": 0.15, "rescale": "l1"}},
    vectors=[
        Vector(
            [[4, -3], [-1, -5]],
            [1.5, -4],
            {"density": 1.0, "lambda": 0.5},
            source="density 1 is task arithmetic, by hand",
        )
    ],
)
def della_linear(
    *,
    density: MeanChance = 0.7,
    epsilon: ChanceSpread = 0.07,
    rescale: ChanceRescale = "inv_prob",
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, small ones more often, and add the rest.

    Stands for `magprune` and `task_arithmetic`.
    """
    return [
        ("magprune", {"density": density, "epsilon": epsilon, "rescale": rescale}),
        ("task_arithmetic", {"normalize": normalize, "lambda": lambda_}),
    ]
