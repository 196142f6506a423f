"""Keep the merged change only where enough experts want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._annotations import Claims, Lambda, MaskLambda
from mergekit_lite.ops._arithmetic import single, weighted_sum
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def check(params: Mapping[str, Any]) -> list[str]:
    """Three of two experts cannot agree."""
    weights, least = params.get("weights"), params["at_least"]
    if not isinstance(weights, Sequence) or len(weights) >= least:
        return []
    return [f"`at_least: {least}` with {len(weights)} experts keeps nothing"]


def limits(mask_lambda: float | Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return each expert's own limit, as fp32 has it.

    Raises:
        RecipeError: a map by expert says nothing of one.
    """
    if not isinstance(mask_lambda, Mapping):
        return [single(mask_lambda)] * len(names)
    default = mask_lambda.get("default")
    each = {name: mask_lambda.get(name, default) for name in names}
    if lacking := [name for name, value in each.items() if value is None]:
        raise RecipeError(f"`mask_lambda` has no value for {', '.join(lacking)}, and no `default`")
    return [single(value) for value in each.values() if value is not None]


def claims(merged: Tensor, tasks: Sequence[Tensor], limits: Sequence[float]) -> Tensor:
    """Return how many tasks claim each entry: |x_i| > limit_i * |merged - x_i|."""
    import torch

    count = torch.zeros_like(merged)
    for task, limit in zip(tasks, limits, strict=True):
        count = count + (task.abs() > (merged - task).abs() * limit)
    return count


@combine(
    title="Consensus merging with TALL masks",
    paper="Wang et al. 2024, arXiv 2405.07813",
    experts=(2, None),
    commutative=True,
    check=check,
    vectors=[
        Vector(TAUS, [5, -7, 0, 0.25, 0, 1], source="independent run: two of three at 0.4"),
        Vector(
            TAUS,
            [5, -7, -3, 0.25, 3, 1],
            {"at_least": 1},
            source="independent run: one suffices, nothing is lost here",
        ),
        Vector(TAUS, [0, 0, -3, 0.25, 0, 1], {"at_least": 3, "mask_lambda": 0.2}, source="by hand"),
        Vector(
            TAUS,
            [5, 0, -3, 0.25, 0, 1],
            {"mask_lambda": {"a": 1.0, "b": 0.1, "default": 0.6}},
            source="an expert's own: claims 100100, 111111 and 101101, by hand",
        ),
        Vector([[2, 1], [1, 0]], [3, 0], {"lambda": 1.0}, source="zero claims nothing, by hand"),
        Vector([[2, 1], [1, 1]], [0, 1.5], {"lambda": 0.5}, [2, 1], source="weighted, by hand"),
    ],
)
def consensus(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    names: Sequence[str],
    mask_lambda: MaskLambda = 0.4,
    at_least: Claims = 2,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add the task vectors and keep only the entries that several experts lay claim to.

    An expert claims an entry where its own change is larger than `mask_lambda` times what the
    others add to it. Entries that no expert claims hurt all tasks, those of one serve it alone.
    The authors try 0.2 to 0.6 for `mask_lambda`, for each expert its own. `consensus_mask` does so
    after any merge, `consensus_ties` after TIES.

    Order of operations: all in fp32, weights, mask_lambda and lambda rounded to fp32 first.
    p_i = w_i*x_i; s = p_0; s = s + p_1; ...; expert i claims where |p_i| > mask_lambda*|s - p_i|;
    y = s where at least `at_least` claim, else +0.0; last y * lambda.
    """
    import torch

    total = weighted_sum(inputs, weights)
    shares = [x.float() * single(weight) for x, weight in zip(inputs, weights, strict=True)]
    claimed = claims(total, shares, limits(mask_lambda, names))
    return torch.where(claimed >= at_least, total, 0.0) * single(lambda_)
