"""Take a second model's entries where they matter most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._elementary import exponential_, logarithm_
from mergekit_lite.ops._order import TILE, cuts_of
from mergekit_lite.ops._rows import as_rows, row_sums
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-8
"""Added to every probability, so that a row's divergence stays finite."""


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Bytes of the importance of each entry, whose place the result takes, and the scratch."""
    width = shape[-1] if shape else 1
    return 4 * math.prod(shape) + 64 * max(width, TILE)


def probabilities(rows: Tensor) -> Tensor:
    """Return the fp64 softmax of each row, plus a floor."""
    exact = rows.double()
    exact -= exact.amax(dim=-1, keepdim=True)
    exponential_(exact)
    return exact.mul_(1.0 / row_sums(exact)).add_(FLOOR)


def importance(expert: Tensor, base: Tensor) -> Tensor:
    """Return |difference| times the divergence of the row from the base's, in fp32."""
    p, q = probabilities(expert), probabilities(base)
    divergence = row_sums(logarithm_(p / q).mul_(p)).clamp(min=0.0)
    return ((expert - base).abs().double() * divergence).float()


def quartile_ranks(size: int) -> tuple[int, int, int]:
    """Return which of the largest entries the lower quartile, the median and the upper one are."""
    low, middle, high = (size - int(share * (size - 1)) for share in (0.25, 0.5, 0.75))
    return low, middle, high


def limit_of(low: float, middle: float, high: float) -> float:
    """Return median + 1.5 times the distance of the quartiles."""
    return middle + 1.5 * (high - low)


def threshold(scores: Tensor) -> float:
    """Return the importance from which on an entry is taken, of exact order statistics."""
    low, middle, high = cuts_of(scores, quartile_ranks(scores.numel()))
    return limit_of(low.threshold, middle.threshold, high.threshold)


@combine(
    title="Arcee Fusion",
    paper="none: a method of mergekit",
    space="weight",
    experts=(1, 2),
    base_fills=True,
    idempotent=True,
    reach="tensor",
    workspace=workspace,
    vectors=[
        Vector(
            [[[0, 0, 0, 0], [1, 1, 1, 1]], [[0.1, 0.1, 0.1, 3], [1, 1, 1, 1]]],
            [[0, 0, 0, 3], [1, 1, 1, 1]],
            source="quartiles 0, 0 and 0.1d, so what is above 0.15d, by hand",
        ),
        Vector(
            [[[0, 0, 0, 0]], [[0.1, 0.1, 0.1, 3]]],
            [[0.1, 0.1, 0.1, 3]],
            source="all quartiles are 0.1d, so all of it, by hand",
        ),
        Vector([[1, 2], [1, 2]], [1, 2], source="equal models, by hand"),
        Vector([[[1], [2]], [[3], [4]]], [[3], [4]], source="rows of one entry all count, by hand"),
    ],
)
def arcee_fusion(inputs: Sequence[Tensor]) -> Tensor:
    """Take the entries of a second model that differ most, in rows that differ most.

    Takes one expert, with the base as the first model, or two. The importance of an entry is its
    difference times the divergence of its row's softmax from that of the first model; entries above
    median + 1.5 times the distance between the quartiles are the second model's.

    Order of operations: p, q = softmax of the rows (last dimension) of the second and the first
    model in fp64 (exponentials and logarithms by polynomials, sums in blocks of 4096 entries and 16
    lanes), each plus 1e-8; d = sum p * log(p / q), at least 0; s =
    float32(|x1 - x0| * d); quartiles are the entries number floor(n/4), floor(n/2), floor(3n/4),
    counting from the smallest with n the number of entries less one; y = x1 where s >= the
    threshold, else x0.
    """
    import torch

    first, second = (as_rows(x.float()) for x in inputs)
    if not first.numel():
        return inputs[0].float()
    scores = torch.empty_like(first)
    step = max(1, TILE // first.shape[-1])
    for row in range(0, len(first), step):
        part = slice(row, row + step)
        scores[part] = importance(second[part], first[part])
    limit = threshold(scores.reshape(-1))
    for row in range(0, len(first), step):
        part = slice(row, row + step)
        taken = (scores[part].double() >= limit).int().neg_()
        # Bit by bit, which is several times faster than a choice by a mask.
        a, b = first[part].view(torch.int32), second[part].view(torch.int32)
        scores[part] = (a ^ ((a ^ b) & taken)).view(torch.float32)
    return scores.reshape(inputs[0].shape)
