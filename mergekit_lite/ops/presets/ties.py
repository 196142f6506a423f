"""TIES-Merging: trim, elect, merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mergekit_lite.ops._annotations import Aggregate, Density, Density1d, Lambda
from mergekit_lite.ops._spec import Doc, Range, Vector, preset

TAUS = [
    [[4, -3, 1, 0.5, 0, -2]],
    [[-1, -5, 2, -0.5, 3, 2]],
    [[2, 1, -6, 0.25, 0, 1]],
]


def check(params: Mapping[str, Any]) -> list[str]:
    """What trims by standard deviation keeps no fraction."""
    if params["trim"] == "std" and params["density_1d"] not in (None, 1):
        return ["with `trim: std`, `density_1d` is 1, which spares 1-D tensors, or null"]
    return []


@preset(
    title="TIES-Merging",
    paper="Yadav et al. 2023, arXiv 2306.01708",
    idempotent=True,
    check=check,
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
        Vector(
            TAUS,
            [[3, -4, -6, 0, 3, 2]],
            {"trim": "std", "std_factor": 0.5},
            source="independent run: half a standard deviation from the mean",
        ),
        Vector(
            TAUS,
            [[4, -4, -6, 0, 0, 0]],
            {"trim": "std", "std_factor": 1.0, "scope": "model", "density_1d": None},
            source="independent run: a whole one",
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
    trim: Annotated[
        Literal["topk", "std"],
        Doc("keep the largest entries, or those that many standard deviations from the mean"),
    ] = "topk",
    std_factor: Annotated[
        float,
        Range(at_least=0),
        Doc("of `trim: std`, which looks at neither `density` nor `tie_mode`: how many"),
        "per_expert",
    ] = 1.28,
) -> list[tuple[str, dict[str, Any]]]:
    """Trim each task vector, elect a sign for each entry and merge what agrees.

    Stands for `magnitude` (with `trim: std` `deviation`), `sign_consensus` and `scale`. The
    authors' own code is `scope: model`, `tie_mode: official` and `zero_sign: majority`; it knows
    `trim: std` too.
    """
    largest = {"density": density, "density_1d": density_1d, "scope": scope, "tie_mode": tie_mode}
    far = {"factor": std_factor, "scope": scope, "spare_1d": density_1d is not None}
    return [
        ("magnitude", largest) if trim == "topk" else ("deviation", far),
        ("sign_consensus", {"elect": elect, "agg": agg, "zero_sign": zero_sign}),
        ("scale", {"lambda": lambda_}),
    ]
