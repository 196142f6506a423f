"""DELLA before task arithmetic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._spec import Doc, Range, Vector, preset
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
    normalize: Annotated[bool, Doc("divide by the sum of the weights")] = False,
    lambda_: Annotated[float, Doc("multiplies the merged task vector")] = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, small ones more often, and add the rest.

    Stands for `magprune` and `task_arithmetic`.
    """
    return [
        ("magprune", {"density": density, "epsilon": epsilon, "rescale": rescale}),
        ("task_arithmetic", {"normalize": normalize, "lambda": lambda_}),
    ]
