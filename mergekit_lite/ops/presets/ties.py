"""TIES-Merging: trim, elect, merge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._annotations import Aggregate, Density, Density1d, Lambda
from mergekit_lite.ops._spec import Doc, Vector, preset

TAUS = [
    [[4, -3, 1, 0.5, 0, -2]],
    [[-1, -5, 2, -0.5, 3, 2]],
    [[2, 1, -6, 0.25, 0, 1]],
]


@preset(
    title="TIES-Merging",
    paper="Yadav et al. 2023, arXiv 2306.01708",
    idempotent=True,
    compat={"mergekit": {"density": 1.0, "density_1d": None}},
    vectors=[
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, -2]],
            {"density": 0.5},
            source="independent run: exact k, unit weights",
        ),
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, 1.5]],
            {"density": 0.5, "tie_mode": "threshold"},
            source="independent run: all ties kept, as the authors' code gives",
        ),
        Vector(
            TAUS,
            [[6, -8, -6, 0, 3, 3]],
            {"density": 0.5, "tie_mode": "threshold", "agg": "sum"},
            source="independent run of the authors' disjoint sum",
        ),
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, 1.5]],
            {
                "density": 0.5,
                "scope": "model",
                "tie_mode": "official",
                "zero_sign": "majority",
            },
            source="run of the authors' code",
        ),
        Vector(
            TAUS,
            [[6, -8, -6, 0, 3, 3]],
            {
                "density": 0.5,
                "scope": "model",
                "tie_mode": "official",
                "zero_sign": "majority",
                "agg": "sum",
            },
            source="run of the authors' code, disjoint sum",
        ),
        Vector(
            TAUS,
            [[1.5, -2, -3, 0.1875, 1.5, 0.75]],
            {"density": 1.0, "lambda": 0.5},
            source="independent run: no trim, halved by lambda",
        ),
    ],
)
def ties(
    *,
    density: Density = 0.2,
    lambda_: Lambda = 1.0,
    density_1d: Density1d = 1.0,
    scope: Annotated[
        Literal["tensor", "model"], Doc("trim each tensor, or the model as a whole (the paper)")
    ] = "tensor",
    tie_mode: Annotated[
        Literal["exact", "threshold", "official"],
        Doc("keep exactly k entries, all tied with the k-th, or with the (k+1)-th as the authors"),
    ] = "exact",
    elect: Annotated[
        Literal["mass", "count", "normfrac", "normmass"],
        Doc("vote by summed magnitude, by head count, or by shares of norms: largest, or summed"),
    ] = "mass",
    agg: Aggregate = "mean",
    zero_sign: Annotated[
        Literal["plus", "none", "majority"],
        Doc("a vote of exactly zero elects plus, nobody, or the model's majority (the paper)"),
    ] = "plus",
) -> list[tuple[str, dict[str, Any]]]:
    """Trim each task vector, elect a sign for each entry and merge what agrees.

    Stands for `magnitude`, `sign_consensus` and `scale`. The authors' own code is `scope: model`,
    `tie_mode: official` and `zero_sign: majority`.
    """
    trim = {"density": density, "density_1d": density_1d, "scope": scope, "tie_mode": tie_mode}
    return [
        ("magnitude", trim),
        ("sign_consensus", {"elect": elect, "agg": agg, "zero_sign": zero_sign}),
        ("scale", {"lambda": lambda_}),
    ]
