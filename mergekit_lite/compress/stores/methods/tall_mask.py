"""The sum of all differences, and a mask of what matters to each task."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.compress.schemes import masked
from mergekit_lite.compress.stores._spec import Deltas, Joint, StoreVector, store_method, total
from mergekit_lite.ops._parameters import Doc, Range

_ONE, _TWO, _THREE = [4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]


@store_method(
    title="TALL masks",
    paper="Wang et al. 2024, arXiv 2405.07813",
    vectors=[
        StoreVector(
            [_ONE, _TWO, _THREE],
            [[5, -7, 0, 0.25, 0, 1], [0, -7, 0, 0.25, 3, 1], [5, 0, -3, 0.25, 0, 1]],
            source="the sum is [5, -7, -3, 0.25, 3, 1]",
        ),
        StoreVector([[2, -1]], [[2, -1]], source="one task keeps its difference"),
    ],
)
def tall_mask(
    deltas: Deltas,
    *,
    mask_lambda: Annotated[float, Range(above=0), Doc("larger values keep fewer entries")] = 0.4,
    dtype: Annotated[
        Literal["float16", "float32"], Doc("of the sum that all tasks share")
    ] = "float16",
) -> Joint:
    """Keep the sum of all differences, and for each task a mask of the entries that it needs.

    A task needs an entry where its own magnitude is more than `mask_lambda` times that of what the
    others add to it. There it gets the whole sum, elsewhere the base.
    """
    every = total(deltas)
    picked = {
        task: np.abs(delta.values) > np.float32(mask_lambda) * np.abs(every - delta.values)
        for task, delta in deltas.tasks.items()
    }
    vector, unit = masked.vector_of(every, dtype)
    return Joint(
        {task: masked.encoded(mask, unit) for task, mask in picked.items()}, {"vector": vector}
    )
