"""Model Breadcrumbs before sign election."""

from __future__ import annotations

from typing import Any

from mergekit_lite.ops._annotations import Aggregate, Density, Elect, Gamma, Lambda, Unit
from mergekit_lite.ops._spec import Vector, preset

TAUS = [
    [[4, -3, 1, 0.5, 0, -2]],
    [[-1, -5, 2, -0.5, 3, 2]],
    [[2, 1, -6, 0.25, 0, 1]],
]


@preset(
    title="Model Breadcrumbs with sign election",
    paper="Davari and Belilovsky 2024, arXiv 2312.06795, with Yadav et al. 2023, arXiv 2306.01708",
    compat={"mergekit": {"density": 1.0, "unit": "tensor", "agg": "sum"}},
    vectors=[
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, -2]],
            {"density": 0.5, "gamma": 0.0},
            source="independent run: gamma 0 is TIES with exact k",
        ),
        Vector(
            TAUS,
            [[2, -3, 2, 0, 3, -2]],
            {"density": 0.34, "gamma": 0.17},
            source="ranks 2 and 3 of each row: -3 -2; 2 3; 2 1, by hand",
        ),
    ],
)
def breadcrumbs_ties(
    *,
    density: Density = 0.15,
    gamma: Gamma = 0.01,
    unit: Unit = "row",
    elect: Elect = "mass",
    agg: Aggregate = "mean",
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Remove outliers and small entries of each task vector, then merge what agrees in sign.

    Stands for `breadcrumbs`, `sign_consensus` and `scale`.
    """
    return [
        ("breadcrumbs", {"density": density, "gamma": gamma, "unit": unit}),
        ("sign_consensus", {"elect": elect, "agg": agg}),
        ("scale", {"lambda": lambda_}),
    ]
