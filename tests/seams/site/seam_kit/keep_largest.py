"""A third party's op that needs a statistic of the whole model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, Vector, transform
from mergekit_lite.ops._statistics import Order


@transform(
    title="Keep the largest",
    paper="none",
    needs=Order(lambda params, size: (min(size, params["count"]),), scope="over"),
    vectors=[Vector([[3, -1]], [3, 0], {"count": 1, "over": "tensor"}, source="by hand")],
)
def keep_largest(
    delta: Tensor,
    *,
    place: Place,
    cut: tuple[Cut, ...],
    count: Annotated[int, Range(at_least=1), Doc("how many entries are kept")],
    over: Annotated[Literal["tensor", "model"], Doc("of what")] = "model",
) -> Tensor:
    """Keep the entries of largest magnitude in the whole model."""
    values = delta.float()
    if not cut:
        return values
    return torch.where(cut[0].keeps(values.abs(), place.index(delta)), values, 0.0)
