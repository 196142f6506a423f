"""Composable sparse fine-tuning: add sparse differences."""

from __future__ import annotations

from typing import Annotated, Any

from mergekit_lite.ops._annotations import Lambda
from mergekit_lite.ops._spec import Doc, Range, Vector, preset


@preset(
    title="Composable sparse fine-tuning",
    paper="Ansell et al. 2022, arXiv 2110.07560 (LT-SFT)",
    vectors=[
        Vector([[4, 0, 1], [0, 3, 1]], [4, 3, 2], source="sparse differences add up, by hand"),
        Vector(
            [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2]],
            [4, -8, 0, 0, 3, 0],
            {"density": 0.34},
            source="the two largest of each: 4 -3; -5 3, by hand",
        ),
        Vector([[4, -3, 1, 0.5], [-1, -5, 2, -0.5]], [4, -5, 0, 0], {"count": 1}, source="by hand"),
    ],
)
def sft_compose(
    *,
    density: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("fraction of a dense expert's entries that make its sparse difference; 1: as it is"),
        "per_expert",
    ] = 1.0,
    count: Annotated[
        int | None,
        Range(at_least=1),
        Doc("how many entries instead, over the whole model"),
        "per_expert",
    ] = None,
    lambda_: Lambda = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Add sparse fine-tunings, such as one of a language and one of a task.

    Stands for `task_arithmetic`, after `magnitude` over the whole model where `density` or `count`
    says that the experts are dense. Sparse fine-tunings that were trained as such add up as they
    are. Heads of tasks are whole tensors: take them by a rule.
    """
    trim = {"density": density, "count": count, "scope": "model"}
    dense = density < 1 or count is not None
    return [
        *([("magnitude", trim)] if dense else []),
        ("task_arithmetic", {"lambda": lambda_}),
    ]
