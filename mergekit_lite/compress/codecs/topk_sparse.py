"""The largest entries of each tensor, with their values."""

from __future__ import annotations

from typing import Annotated

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.schemes import rice
from mergekit_lite.compress.survey import largest
from mergekit_lite.ops._parameters import Doc, Range


@codec(
    title="Largest entries",
    paper="the plain baseline: magnitude pruning of the difference",
    vectors=[
        CodecVector([4, -3, 1, 0.5, 0, -2], [4, -3, 0, 0, 0, 0], {"keep": 0.34}),
        CodecVector([1, -1, 0.5], [1, 0, 0], {"keep": 0.01}, source="one entry is always kept"),
    ],
)
def topk_sparse(
    delta: Delta,
    *,
    keep: Annotated[
        float, Range(above=0, at_most=1), Doc("part of each tensor's entries that is kept")
    ] = 0.05,
) -> Encoded | None:
    """Keep the largest entries of each tensor with their values, in fp16.

    `floor(keep * entries)` are kept, one at least; of equal magnitudes the first by flat index.
    Zeros are never kept. Values are divided by a power of two for the tensor, so that differences
    of 16-bit weights lose nothing or little.
    """
    found = largest(delta.values, max(int(keep * delta.values.size), 1))
    scale = rice.scale_for(delta.values)
    return rice.encoded(
        delta.values, found.threshold, found.kept, found.ties, scale=scale, signs=False
    )
