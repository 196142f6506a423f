"""DARE before TIES-Merging."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._annotations import Aggregate, Chance, Elect, Lambda, Rescale
from mergekit_lite.ops._spec import Doc, Range, Vector, preset

TAUS = [
    [[4, -3, 1, 0.5, 0, -2]],
    [[-1, -5, 2, -0.5, 3, 2]],
    [[2, 1, -6, 0.25, 0, 1]],
]


@preset(
    title="DARE with TIES-Merging",
    paper="Yu et al. 2024, arXiv 2311.03099, with Yadav et al. 2023, arXiv 2306.01708",
    random=True,
    compat={
        "mergekit": {
            "density": 1.0,
            "rescale": "l1",
            "trim_density": 1.0,
            "density_1d": None,
            "agg": "sum",
        }
    },
    vectors=[
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, -2]],
            {"density": 1.0, "trim_density": 0.5},
            source="independent run: density 1 is TIES with exact k",
        ),
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, 1.5]],
            {"density": 1.0, "trim_density": 0.5, "scope": "model"},
            source="over the whole model all ties are kept",
        ),
        Vector(
            TAUS,
            [[6, -8, -6, 0.75, 3, 3]],
            {"density": 1.0, "trim_density": 1.0, "agg": "sum"},
            source="independent run: sign election without trim, sum (as mergekit)",
        ),
    ],
)
def dare_ties(
    *,
    density: Chance = 0.5,
    rescale: Rescale = "inv_density",
    trim_density: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("fraction of all entries that TIES then keeps; 1 leaves the trim out"),
        "per_expert",
    ] = 0.2,
    density_1d: Annotated[
        float | None,
        Range(above=0, at_most=1),
        Doc("fraction that TIES keeps of 1-D tensors; null means `trim_density`"),
    ] = 1.0,
    scope: Annotated[
        Literal["tensor", "model"],
        Doc("TIES trims each tensor, or the model as a whole as the authors do"),
    ] = "tensor",
    elect: Elect = "mass",
    agg: Aggregate = "mean",
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, scale up the rest, then run TIES.

    Stands for `dare`, `magnitude`, `sign_consensus` and `scale`. The authors run TIES whole, with
    its own trim over the whole model (`scope: model`) and mean; mergekit leaves the trim out and
    sums.
    """
    how = {"density": trim_density, "density_1d": density_1d, "scope": scope}
    trim = ("magnitude", how)
    return [
        ("dare", {"density": density, "rescale": rescale}),
        *([] if trim_density == 1 else [trim]),
        ("sign_consensus", {"elect": elect, "agg": agg}),
        ("scale", {"lambda": lambda_}),
    ]
