"""For each task the largest singular directions of every matrix."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.codecs.svd import svd
from mergekit_lite.compress.stores._spec import Deltas, Joint, StoreVector, store_method
from mergekit_lite.ops._parameters import Doc, Range

_TALL = [[3, 0], [0, 1], [0, 0], [0, 0], [0, 0]]


@store_method(
    title="TSV-C",
    paper="Gargiulo et al. 2025, arXiv 2412.00081",
    vectors=[
        StoreVector(
            [_TALL, [[0, 0], [0, 2], [0, 0], [0, 0], [0, 0]]],
            [[[3, 0], [0, 0], [0, 0], [0, 0], [0, 0]], [[0, 0], [0, 2], [0, 0], [0, 0], [0, 0]]],
            tolerance=2e-3,
            source="two tasks: half of the two directions of each",
        ),
        StoreVector([[1, 2], [3, 4]], [None, None], source="no matrices"),
    ],
)
def tsv_compress(
    deltas: Deltas,
    *,
    fraction: Annotated[
        float | None,
        Range(above=0, at_most=1),
        Doc("part of each matrix's directions that is kept; 1 over the number of tasks by default"),
    ] = None,
    exact: Annotated[bool, Doc("the full SVD in place of the randomised one")] = False,
    dtype: Annotated[Literal["float16", "float32"], Doc("of the stored factors")] = "float16",
) -> Joint:
    """Keep for each task the largest singular directions of every matrix, as two factors.

    Of `r` directions `floor(r * fraction)` are kept, one at least. What is no matrix, and a matrix
    whose factors would take more than itself, is stored whole. Tasks share nothing.
    """
    part = 1 / deltas.count if fraction is None else fraction

    def one(delta: Delta) -> Encoded | None:
        rank = max(int(min(delta.shape) * part), 1) if delta.is_matrix else 1
        return svd(delta, rank=rank, exact=exact, dtype=dtype)

    return Joint({task: one(delta) for task, delta in deltas.tasks.items()})
