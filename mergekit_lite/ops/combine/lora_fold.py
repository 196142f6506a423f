"""Fold adapters into the base one after the other, rounding each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Doc, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = Literal["bfloat16", "float16", "float32"]


@combine(
    title="Chain of LoRA folds",
    paper="Xia et al. 2024, arXiv 2401.04151 (Chain of LoRA)",
    vectors=[
        Vector([[1, 2], [0.5, -1]], [1.5, 1], source="no rounding to see, by hand"),
        Vector(
            [[256, 2], [1, 1], [1, 1]],
            [256, 4],
            source="steps of 2 at 256: one is lost twice, where two at once would not; by hand",
        ),
        Vector([[256, 2], [1, 1], [1, 1]], [258, 4], {"dtype": "float32"}, source="by hand"),
        Vector([[2, 2]], [-1, -1], weights=[-0.5], source="taken out by half, by hand"),
    ],
)
def lora_fold(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    base: Tensor | None = None,
    dtype: Annotated[DTYPES, Doc("what the weight is rounded to after each fold")] = "bfloat16",
) -> Tensor:
    """Add the deltas to the weight one by one and round it to its dtype after each.

    It is what training adapter after adapter does, each folded into the weights that the next one
    learns on. Rounding loses what is small against the weight, at each fold anew: in bfloat16 all
    that is under 1/256 of it, so `task_arithmetic`, which rounds once, is nearer to the sum. The
    order of the experts counts. `mergekit-lite adapter fold` tells how much was lost.

    Order of operations: w = base; w = round(w + w_i*x_i) for each i in turn, each product and sum
    rounded to fp32 first; the result is w - base.
    """
    import torch

    start = torch.zeros_like(inputs[0], dtype=torch.float32) if base is None else base.float()
    kind = getattr(torch, dtype)
    weight = start
    for delta, factor in zip(inputs, weights, strict=True):
        weight = (weight + delta.float() * single(factor)).to(kind).float()
    # What no fold has changed stays as it is, even if the base has another dtype.
    return torch.where(weight == start.to(kind).float(), torch.zeros_like(start), weight - start)
