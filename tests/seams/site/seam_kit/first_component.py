"""A third party's op that needs a whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_lite.ops._spec import Vector, transform


@transform(
    title="First component",
    paper="none",
    reach="tensor",
    vectors=[Vector([[[3, 0], [0, 1]]], [[3, 0], [0, 0]], source="by hand")],
)
def first_component(delta: Tensor) -> Tensor:
    """Keep the largest singular component of a matrix; leave other tensors as they are."""
    values = delta.float()
    if values.dim() != 2 or not values.numel():
        return values
    left, size, right = torch.linalg.svd(values, full_matrices=False)
    return size[0] * torch.outer(left[:, 0], right[0])
