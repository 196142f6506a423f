"""Consensus merging of a TIES task vector."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mergekit_lite.ops._annotations import (
    Aggregate,
    Claims,
    Density,
    Density1d,
    Lambda,
    MaskLambda,
)
from mergekit_lite.ops._spec import Doc, Vector, preset

TAUS = [
    [[4, -3, 1, 0.5, 0, -2]],
    [[-1, -5, 2, -0.5, 3, 2]],
    [[2, 1, -6, 0.25, 0, 1]],
]


@preset(
    title="Consensus merging over TIES",
    paper="Wang et al. 2024, arXiv 2405.07813, with Yadav et al. 2023, arXiv 2306.01708",
    experts=(2, None),
    vectors=[
        Vector(
            TAUS,
            [[6, -8, 0, 0, 0, -2]],
            {"density": 0.5},
            source="TIES gives 6 -8 -6 0 3 -2; claims 2 2 1 3 1 2 at 0.4, by hand",
        ),
        Vector(
            TAUS,
            [[0, 0, -6, 0, 3, 0]],
            {"density": 0.5, "at_least": 1, "mask_lambda": 3.0, "scope": "model"},
            source="all ties are kept, so the last is 3; claims 0 0 1 0 1 0, by hand",
        ),
    ],
)
def consensus_ties(
    *,
    density: Density = 0.2,
    mask_lambda: MaskLambda = 0.4,
    at_least: Claims = 2,
    density_1d: Density1d = 1.0,
    scope: Annotated[
        Literal["tensor", "model"], Doc("trim each tensor, or the model as a whole (the paper)")
    ] = "tensor",
    agg: Aggregate = "sum",
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Merge by TIES and keep the entries that several experts lay claim to.

    Stands for `magnitude`, `sign_consensus` and `consensus_mask`: what TIES makes of the experts is
    compared with their whole task vectors. `agg: sum` as the authors have it; a mean is too small
    for many experts to find themselves in.
    """
    trim = {"density": density, "density_1d": density_1d, "scope": scope}
    mask = {"mask_lambda": mask_lambda, "at_least": at_least, "lambda": lambda_}
    return [
        ("magnitude", trim),
        ("sign_consensus", {"agg": agg}),
        ("consensus_mask", mask),
    ]
