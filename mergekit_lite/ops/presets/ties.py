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
    """What trims by deviation or norm keeps no fraction of entries."""
    if params["trim"] != "topk" and params["density_1d"] not in (None, 1):
        how = f"with `trim: {params['trim']}`"
        return [f"{how}, `density_1d` is 1, which spares 1-D tensors, or null"]
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
        Vector(
            TAUS,
            [[4, -4, -6, 0, 3, 0]],
            {"trim": "norm", "norm_share": 0.75},
            source="16 + 9 of 30.25; 25 + 9 of 43.25; 36 of 42.0625: 4 -3; -5 3; -6, by hand",
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
        Literal["topk", "std", "norm"],
        Doc("keep a fraction of entries, those far from the mean, or those that make up the norm"),
    ] = "topk",
    std_factor: Annotated[
        float,
        Range(at_least=0),
        Doc("of `trim: std`: how many standard deviations from the mean"),
        "per_expert",
    ] = 1.28,
    norm_share: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("of `trim: norm`: part of the sum of squares that what is kept must have"),
        "per_expert",
    ] = 0.9,
) -> list[tuple[str, dict[str, Any]]]:
    """Trim each task vector, elect a sign for each entry and merge what agrees.

    Stands for `magnitude`, `sign_consensus` and `scale`. The authors' own code is `scope: model`,
    `tie_mode: official` and `zero_sign: majority`. It also knows two other trims: `trim: std`, with
    `deviation` in place of `magnitude`, and `trim: norm`, with `norm_share`; these look at neither
    `density` nor `tie_mode`.
    """
    largest = {"density": density, "density_1d": density_1d, "scope": scope, "tie_mode": tie_mode}
    far = {"factor": std_factor, "scope": scope, "spare_1d": density_1d is not None}
    most = {"share": norm_share, "scope": scope, "spare_1d": density_1d is not None}
    trims: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("magnitude", largest),
        "std": ("deviation", far),
        "norm": ("norm_share", most),
    }
    return [
        trims[trim],
        ("sign_consensus", {"elect": elect, "agg": agg, "zero_sign": zero_sign}),
        ("scale", {"lambda": lambda_}),
    ]
