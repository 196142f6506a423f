"""For each task the signs of its largest entries, with one scale that keeps their norm."""

from __future__ import annotations

from typing import Annotated, Literal

from mergekit_lite.compress.codecs.compeft import compeft
from mergekit_lite.compress.stores._spec import Deltas, Joint, StoreVector, store_method
from mergekit_lite.ops._parameters import Doc, Range


@store_method(
    title="T-Switch",
    paper="Qi et al. 2024, arXiv 2412.00054",
    keep="keep",
    vectors=[
        StoreVector(
            [[4, -3, 1, 0.5, 0, -2], [0, 0, 6, 0, 0, -8]],
            [[3.535534, -3.535534, 0, 0, 0, 0], [0, 0, 7.071068, 0, 0, -7.071068]],
            {"keep": 0.34},
            source="by hand: the roots of (16 + 9) / 2 and (36 + 64) / 2",
        ),
    ],
)
def t_switch(
    deltas: Deltas,
    *,
    keep: Annotated[
        float, Range(above=0, at_most=1), Doc("part of each model's entries that is kept")
    ] = 0.35,
    form: Annotated[
        Literal["rice", "masks"], Doc("coded gaps, the smallest; or two masks of bits")
    ] = "rice",
) -> Joint:
    """Keep for each task the signs of its largest entries, times one scale that keeps their norm.

    The k-th largest magnitude is that of the whole model, embeddings and norms included; of equal
    magnitudes the first are kept, by tensor and flat index. Tasks share nothing, so that one more
    takes as much as the first.
    """
    return Joint(
        {
            task: compeft(delta, keep=keep, scale="l2", form=form)
            for task, delta in deltas.tasks.items()
        }
    )
