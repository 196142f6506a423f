"""DELLA: drop by rank, elect a sign, fuse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._spec import Doc, Range, Vector, preset
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
    density: Annotated[
        float, Range(above=0, at_most=1), Doc("mean chance of an entry to be kept"), "per_expert"
    ] = 0.7,
    epsilon: Annotated[
        float,
        Range(at_least=0, below=0.5),
        Doc("the largest entry of a row has this much more chance, the smallest as much less"),
        "per_expert",
    ] = 0.07,
    rescale: Annotated[
        Literal["inv_prob", "l1", "none"],
        Doc("divide what is kept by its chance, or keep the sum of magnitudes of the tensor"),
    ] = "inv_prob",
    elect: Annotated[
        Literal["mass", "count"], Doc("vote by summed magnitude or by head count")
    ] = "mass",
    agg: Annotated[
        Literal["mean", "sum", "max"], Doc("what to make of the entries that agree")
    ] = "mean",
    lambda_: Annotated[float, Doc("multiplies the merged task vector")] = 1.0,
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
