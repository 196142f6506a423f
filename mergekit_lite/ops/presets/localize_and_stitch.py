"""Localize-and-Stitch: graft the few entries that matter of every expert."""

from __future__ import annotations

from typing import Annotated, Any

from mergekit_lite.ops._annotations import Lambda, ModelScope
from mergekit_lite.ops._spec import Doc, Range, Vector, preset


@preset(
    title="Localize-and-Stitch",
    paper="He et al. 2024, arXiv 2408.13656 (localisation without data)",
    vectors=[
        Vector(
            [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 1], [2, 1, -6, 0.25, 0, 1.5]],
            [3, -4, -6, 0, 3, 0],
            {"density": 0.34},
            source="two entries of each: 4 -3; -5 3; 2 -6; means where two meet, by hand",
        ),
        Vector([[4, -3], [0, 0]], [2, 0], {"density": 0.5, "lambda": 0.5}, source="by hand"),
    ],
)
def localize_and_stitch(
    *,
    density: Annotated[
        float, Range(above=0, at_most=1), Doc("fraction of each expert's entries"), "per_expert"
    ] = 0.01,
    scope: ModelScope = "model",
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Keep the largest entries of each task vector and average them where they overlap.

    Stands for `graft`, `stitch` and `scale`. The authors also learn which entries to keep from a
    little data; this is their form without it, for which they suggest larger densities.
    """
    return [
        ("graft", {"density": density, "scope": scope}),
        ("stitch", {}),
        ("scale", {"lambda": lambda_}),
    ]
