"""DARE before task arithmetic."""

from __future__ import annotations

from typing import Any

from mergekit_lite.ops._annotations import Chance, Lambda, Normalize, Rescale
from mergekit_lite.ops._spec import Vector, preset


@preset(
    title="DARE with task arithmetic",
    paper="Yu et al. 2024, arXiv 2311.03099",
    random=True,
    unbiased=True,
    compat={"mergekit": {"density": 1.0, "rescale": "l1"}},
    vectors=[
        Vector(
            [[4, -3], [-1, -5]],
            [1.5, -4],
            {"density": 1.0, "lambda": 0.5},
            source="density 1 is task arithmetic, by hand",
        )
    ],
)
def dare_linear(
    *,
    density: Chance = 0.5,
    rescale: Rescale = "inv_density",
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, scale up the rest and add them.

    Stands for `dare` and `task_arithmetic`.
    """
    return [
        ("dare", {"density": density, "rescale": rescale}),
        ("task_arithmetic", {"normalize": normalize, "lambda": lambda_}),
    ]
