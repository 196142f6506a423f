"""PortLLM: bring an old fine-tune to a new version of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from mergekit_lite.ops._spec import Doc, ExpertName, Vector, preset


def check(params: Mapping[str, Any]) -> list[str]:
    """What is carried over must be a difference, from a model to its own base."""
    found = []
    if params["from"] == params["old_base"]:
        found.append("`from` and `old_base` name the same expert, so nothing is carried over")
    if params["from"] == "base":
        found.append("`from` is what is carried over to the base, it cannot be `base`")
    if params["old_base"] == "base":
        found.append("leave `old_base` out where the patch belongs to the base itself")
    return found


@preset(
    title="PortLLM: training-free patches for evolving models",
    paper="Khan et al. 2025, arXiv 2410.10870",
    experts=(1, None),
    check=check,
    vectors=[
        Vector(
            [[3, 1, -1], [2, 1, -2]],
            [1, 0, 1],
            {"from": "a", "old_base": "b"},
            source="the old fine-tune less its base, by hand",
        ),
        Vector(
            [[3, 1, -1]],
            [1.5, 0.5, -0.5],
            {"from": "a", "lambda": 0.5},
            source="an adapter's own difference, halved, by hand",
        ),
    ],
)
def port_patch(
    *,
    from_: Annotated[
        ExpertName, Doc("the old fine-tune, or an adapter that was trained on the old base")
    ],
    old_base: Annotated[
        ExpertName | None, Doc("the model that it was tuned from; null for an adapter")
    ] = None,
    lambda_: Annotated[float, Doc("multiplies what is carried over")] = 1.0,
) -> list[tuple[str, dict[str, Any]]]:
    """Add what a model learnt on an older version of the base to the newer one.

    `base` is the new version; the patch is `from` less `old_base`, or the difference that an
    adapter stands for, which takes no `old_base`. Models must turn positions as the new base does.
    Before the first row a sample of the weights is looked at. Warnings tell where the old base has
    little to do with the new one (cosine below 0.9), and where the patch is small beside how far
    the base has moved (below a tenth). Stands for `task_arithmetic` with the weights +lambda and
    -lambda.
    """
    weights = {from_: lambda_}
    return [("task_arithmetic", {"weights": weights | ({old_base: -lambda_} if old_base else {})})]
