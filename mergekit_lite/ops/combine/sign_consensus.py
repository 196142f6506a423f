"""Merge only what agrees in sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Doc, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def elected_sign(shares: Sequence[Tensor], elect: str, zero_sign: str) -> Tensor:
    """Return the winning sign of each entry: -1, 0 or 1."""
    votes = shares[0].clone() if elect == "mass" else shares[0].sign()
    for share in shares[1:]:
        votes += share if elect == "mass" else share.sign()
    sign = votes.sign()
    return sign.masked_fill(votes == 0, 1.0) if zero_sign == "plus" else sign


@combine(
    title="Sign election and disjoint merge",
    paper="Yadav et al. 2023, arXiv 2306.01708 (elect and merge of TIES-Merging)",
    commutative=True,
    idempotent=True,
    compat={"mergekit": {"divisor": "signed"}},
    vectors=[
        Vector(TAUS, [3, -4, -6, 0.375, 3, 1.5], source="independent run: by mass, mean"),
        Vector(
            TAUS, [6, -8, -6, 0.75, 3, 3], {"agg": "sum"}, source="independent run: by mass, sum"
        ),
        Vector(
            TAUS,
            [6, -8, 3, 0.75, 3, 3],
            {"agg": "sum", "elect": "count"},
            source="independent run: by count, sum",
        ),
        Vector(TAUS, [4, -5, -6, 0.5, 3, 2], {"agg": "max"}, source="by mass, max, by hand"),
        Vector(
            [[3, 1], [1, -4]],
            [2.5, -4],
            weights=[3, 1],
            source="shares 9 and 1 over 4; 3 and -4, by hand",
        ),
        Vector([[1, 2], [-1, -2]], [1, 2], source="a sum of zero counts as plus, by hand"),
        Vector(
            [[1, 2], [-1, -2]], [0, 0], {"zero_sign": "none"}, source="or elects nobody, by hand"
        ),
        Vector(
            [[2, 3], [0, -1]],
            [-2, -2],
            weights=[-1, 1],
            source="forgotten, not learnt: -2 over 1; -3 and -1 over 2, by hand",
        ),
        Vector(
            [[2, 3], [0, -1]],
            [2, 0],
            {"divisor": "signed"},
            weights=[-1, 1],
            source="-2 over -1; over -1 + 1 = 0 nothing, by hand",
        ),
    ],
)
def sign_consensus(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    elect: Annotated[
        Literal["mass", "count"], Doc("vote by summed magnitude or by head count")
    ] = "mass",
    agg: Annotated[
        Literal["mean", "sum", "max"], Doc("what to make of the entries that agree")
    ] = "mean",
    zero_sign: Annotated[
        Literal["plus", "none"], Doc("a vote of exactly zero elects plus, or nobody")
    ] = "plus",
    divisor: Annotated[
        Literal["absolute", "signed"],
        Doc("divide a mean by the sum of |weight| or of weight: other only where one is negative"),
    ] = "absolute",
) -> Tensor:
    """Elect a sign for each entry and merge only the experts that agree with it.

    Weights multiply the task vectors before the vote. Trimming is a step of its own: put
    `magnitude` before this one for TIES, or use the preset `ties`.

    Order of operations: all in fp32, weights rounded to fp32 first. p_i = w_i*x_i.
    Vote: s = p_0; s = s + p_1; ... (`count`: the same over sign(p_i)). e = sign(s), with 1 for
    s == 0 under `plus`; a NaN, as of inf - inf, elects nobody. Expert i agrees where p_i != 0 and
    sign(p_i) == e.
    sum: num = 0; num = num + p_i over agreeing i, in order.
    mean: den = 0; den = den + |w_i| over agreeing i, in order (`signed`: + w_i); num / den, and
    +0.0 where den == 0.
    max: top = 0; top = max(top, |p_i|) over agreeing i; e * top.
    """
    import torch

    shares = [x.float() * single(w) for x, w in zip(inputs, weights, strict=True)]
    elected = elected_sign(shares, elect, zero_sign)
    agreeing = [(p.sign() == elected) & (p != 0) for p in shares]
    total = torch.zeros_like(elected)
    for share, agrees in zip(shares, agreeing, strict=True):
        kept = torch.where(agrees, share, 0.0)
        total = torch.maximum(total, kept.abs()) if agg == "max" else total + kept
    if agg == "max":
        return elected * total
    if agg == "sum":
        return total
    mass = torch.zeros_like(elected)
    for agrees, weight in zip(agreeing, weights, strict=True):
        mass = mass + agrees * (abs(single(weight)) if divisor == "absolute" else single(weight))
    return torch.where(mass != 0, total / mass, 0.0)
