"""Elected signs, the largest magnitudes, a mask and a scale for each task."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.compress.schemes import masked
from mergekit_lite.compress.stores._spec import Deltas, Joint, StoreVector, store_method, total
from mergekit_lite.ops._parameters import Doc

_ONE, _TWO, _THREE = [4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]


@store_method(
    title="EMR-Merging",
    paper="Huang et al. 2024, arXiv 2405.17461",
    rescaled=True,
    vectors=[
        StoreVector(
            [_ONE, _TWO, _THREE],
            [
                [4.421053, -5.526316, 0, 0.552632, 0, 0],
                [0, -6.75, 0, 0, 4.05, 2.7],
                [3.28, 0, -4.92, 0.41, 0, 1.64],
            ],
            source="one vector [4, -5, -6, 0.5, 3, 2]; scales 10.5 / 9.5, 13.5 / 10, 10.25 / 12.5",
        ),
        StoreVector([[1, 2], [-1, 3]], [[0, 3], [-1, 3]], source="a sum of zero counts as minus"),
    ],
)  # fmt: skip
def emr(
    deltas: Deltas,
    *,
    dtype: Annotated[
        Literal["float16", "float32"], Doc("of the vector that all tasks share")
    ] = "float16",
) -> Joint:
    """Keep one vector for all tasks, and for each a mask of where it agrees, and one scale.

    The vector has in every entry the sign of the differences' sum (minus where that is zero) and
    the largest magnitude among those of that sign. A task's mask picks the entries where its own
    difference has that sign; its scale, one for the whole model, keeps its sum of magnitudes.
    """
    minus = total(deltas) <= 0
    largest = np.zeros(minus.size, np.float32)
    for delta in deltas.tasks.values():
        agreeing = np.where(minus, -delta.values, delta.values)
        np.maximum(largest, agreeing, out=largest)
    np.negative(largest, where=minus, out=largest)
    vector, unit = masked.vector_of(largest, dtype)
    picked = {
        task: np.where(minus, delta.values < 0, delta.values > 0)
        for task, delta in deltas.tasks.items()
    }
    return Joint(
        {task: masked.encoded(mask, unit) for task, mask in picked.items()}, {"vector": vector}
    )
