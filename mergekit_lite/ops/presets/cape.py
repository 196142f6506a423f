"""CaPE: add what an expert learnt and take away what an anti-expert did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from mergekit_lite.ops._spec import Doc, ExpertName, Vector, preset


def check(params: Mapping[str, Any]) -> list[str]:
    """An expert contrasted with itself is a slip of the pen."""
    same = params["expert"] == params["anti_expert"]
    found = ["`expert` and `anti_expert` name the same expert"] if same else []
    named = "base" in (params["expert"], params["anti_expert"])
    return found + (["neither can be `base`: both start from it"] if named else [])


@preset(
    title="CaPE: contrastive parameter ensembling",
    paper="Choubey et al. 2023, arXiv 2110.07166",
    aliases=("expert_contrast",),
    experts=(2, None),
    check=check,
    vectors=[
        Vector(
            [[3, 1, 0], [1, 1, -2]],
            [2, 0, 2],
            {"expert": "a", "anti_expert": "b"},
            source="the difference, by hand",
        ),
        Vector(
            [[3, 1, 0], [1, 1, -2]],
            [-0.5, 0, -0.5],
            {"expert": "b", "anti_expert": "a", "alpha": 0.25},
            source="a quarter of it, the other way round, by hand",
        ),
    ],
)
def cape(
    *,
    expert: Annotated[ExpertName, Doc("expert that was tuned on clean data")],
    anti_expert: Annotated[ExpertName, Doc("expert that was tuned on noisy data")],
    alpha: Annotated[float, Doc("multiplies the contrast; try 0.2 to 1")] = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Move the base along the difference between a good and a bad fine-tune of it.

    Meant against hallucination: the base is tuned on all data, both experts go on from it.
    Stands for `task_arithmetic` with the weights +alpha and -alpha.
    """
    return [("task_arithmetic", {"weights": {expert: alpha, anti_expert: -alpha}})]
