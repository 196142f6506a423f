"""The best product of low rank for each matrix."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.low_rank import Wanted
from mergekit_lite.compress.low_rank import factors as low_rank
from mergekit_lite.compress.schemes import factors
from mergekit_lite.ops._parameters import Doc, Range

_DIAGONAL = [[3, 0, 0], [0, 1, 0], [0, 0, 1]]
_LARGEST = [[3, 0, 0], [0, 0, 0], [0, 0, 0]]


@codec(
    title="Low rank",
    paper="the plain baseline: the truncated SVD (Eckart and Young 1936)",
    vectors=[
        CodecVector(_DIAGONAL, _LARGEST, {"rank": 1}, tolerance=2e-3),
        CodecVector(_DIAGONAL, _LARGEST, {"energy": 0.8}, tolerance=2e-3),
        CodecVector(_DIAGONAL, None, {"rank": 2}, source="two factors of rank 2 take more"),
        CodecVector([1, 2], None, source="no matrix"),
    ],
)
def svd(
    delta: Delta,
    *,
    rank: Annotated[int, Range(at_least=1), Doc("rank of each matrix, at most")] = 32,
    energy: Annotated[
        float | None,
        Range(above=0, below=1),
        Doc("in place of a fixed rank: the least that holds this part of the sum of squares"),
    ] = None,
    exact: Annotated[bool, Doc("the full SVD in place of the randomised one")] = False,
    dtype: Annotated[Literal["float16", "float32"], Doc("of the stored factors")] = "float16",
) -> Encoded | None:
    """Keep the largest singular directions of each matrix, as two factors.

    Singular values are shared out evenly among the factors. With `energy`, `rank` is no limit.
    What is no matrix, and a matrix whose factors would take more than itself, is stored whole.
    """
    if not delta.is_matrix:
        return None
    import torch

    torch.set_num_threads(1)  # the same digits whatever the number of threads
    matrix = torch.from_numpy(delta.values).reshape(delta.shape)
    most = min(delta.shape) if energy is not None else rank
    left, right = low_rank(matrix, Wanted(most, energy, exact), delta.name)
    if left.shape[1] * sum(delta.shape) >= delta.values.size:
        return None
    return factors.encoded(left.numpy(), right.numpy(), dtype)
