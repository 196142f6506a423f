"""Scale the merged task vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.ops._annotations import Lambda
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Vector, post

if TYPE_CHECKING:
    from torch import Tensor


@post(
    title="Scale the merged task vector",
    paper="Ilharco et al. 2023, arXiv 2212.04089 (lambda)",
    vectors=[
        Vector([[1, -2]], [1, -2], source="lambda is 1 unless given"),
        Vector([[1, -2]], [0.5, -1], {"lambda": 0.5}, source="by hand"),
        Vector([[1, -2]], [0, 0], {"lambda": 0.0}, source="lambda 0 gives the base, by hand"),
    ],
)
def scale(
    merged: Tensor,
    *,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Multiply the merged task vector by lambda.

    Order of operations: y = x * lambda in fp32, lambda rounded to fp32 first.
    """
    return merged.float() * single(lambda_)
