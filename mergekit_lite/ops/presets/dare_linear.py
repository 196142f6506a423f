"""DARE before task arithmetic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._spec import Doc, Range, Vector, preset


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
    density: Annotated[
        float, Range(above=0, at_most=1), Doc("chance of an entry to be kept"), "per_expert"
    ] = 0.5,
    rescale: Annotated[
        Literal["inv_density", "l1", "none"],
        Doc("multiply what is kept by 1/density, or so that the sum of magnitudes is unchanged"),
    ] = "inv_density",
    normalize: Annotated[bool, Doc("divide by the sum of the weights")] = False,
    lambda_: Annotated[float, Doc("multiplies the merged task vector")] = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Drop random entries of each task vector, scale up the rest and add them.

    Stands for `dare` and `task_arithmetic`.
    """
    return [
        ("dare", {"density": density, "rescale": rescale}),
        ("task_arithmetic", {"normalize": normalize, "lambda": lambda_}),
    ]
