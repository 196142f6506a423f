"""A third party's op: any tile will do."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from mergekit_lite.ops._spec import Doc, Range, Vector, transform


@transform(
    title="Clip",
    paper="none",
    vectors=[Vector([[3, -1]], [2, -1], {"limit": 2.0}, source="by hand")],
)
def clip(
    delta: Tensor, *, limit: Annotated[float, Range(above=0), Doc("largest magnitude")] = 1.0
) -> Tensor:
    """Limit the magnitude of every entry."""
    return delta.float().clamp(-limit, limit)
